"""Reward models that this framework trained, served to a run: one Ray actor per checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic import Field, field_validator

from rlinf.cluster.ray_cluster import Host, RemoteWorker
from rlinf.config.schema import Block
from rlinf.data.media import media_of
from rlinf.rewards import Answer, Reward, RewardError

#: Ray's name of a server, within the run.
_NAME: Final = "rlinf reward model {}"
_TARGET: Final = "rlinf.workers.reward_server:RewardServer"


class RewardModelOptions(Block):
    """A checkpoint of a reward model."""

    checkpoint: str = Field(description="Folder of a checkpoint that `rlinf sft` made of a reward model.")
    num_gpus: float = Field(default=0.0, ge=0, description="Share of a GPU for the process that serves it.")
    batch_size: int = Field(default=64, ge=1, description="Answers per forward.")

    @field_validator("checkpoint")
    @classmethod
    def _is_there(cls, value: str) -> str:
        if not (Path(value) / "metadata.json").is_file():
            raise ValueError(
                f"{value} is no checkpoint: expected a folder with metadata.json, which `rlinf sft` of a "
                "reward model leaves in checkpoints/ of its run folder"
            )
        return value


class RewardServer:
    """Holds a reward model; lives in a Ray actor of its own."""

    def __init__(self, options: dict[str, Any]) -> None:
        import torch

        from rlinf.config import Config, use_plugins
        from rlinf.fsdp.checkpoint import verify
        from rlinf.fsdp.state import load_model_state
        from rlinf.models import get_model

        self._options = RewardModelOptions.model_validate(options)
        folder = Path(self._options.checkpoint)
        config = Config.model_validate(verify(folder)["config"])
        use_plugins(config.plugins)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model: Any = get_model(config.model)
        if not hasattr(self._model, "score"):
            raise RewardError(f"{folder}: model_type {config.model.model_type!r} is no reward model")
        load_model_state(self._model, folder)
        self._model.to(self._device).eval()

    def score(
        self, prompts: Sequence[str], answers: Sequence[str], media: Mapping[str, np.ndarray]
    ) -> list[float]:
        """A score per answer; media: the prompts' pictures or sounds (`media_of`)."""
        import torch

        scores: list[float] = []
        with torch.no_grad():
            for start in range(0, len(prompts), self._options.batch_size):
                part = slice(start, start + self._options.batch_size)
                seen = {key: values[part] for key, values in media.items()}
                scores += self._model.score(prompts[part], answers[part], seen).tolist()
        return scores


def served(options: RewardModelOptions) -> Reward:
    """The reward `reward_model`: asks the server of the checkpoint, which the first that asks starts."""
    servers: list[RemoteWorker] = []

    def reward(answers: Sequence[Answer]) -> list[float]:
        import ray

        if not servers:
            actor: Any = ray.remote(Host).options(
                name=_NAME.format(Path(options.checkpoint).absolute()),
                get_if_exists=True,
                num_cpus=0,
                num_gpus=options.num_gpus,
                scheduling_strategy="DEFAULT",
            )
            servers.append(RemoteWorker(actor.remote(_TARGET, {"options": options.model_dump()})))
        prompts, texts = [answer.prompt for answer in answers], [answer.text for answer in answers]
        media = media_of([answer.row for answer in answers])
        try:
            return ray.get(servers[0].submit("score", prompts, texts, media))
        except ray.exceptions.RayError as error:
            raise RewardError(f"the reward model {options.checkpoint} failed: {error}") from None

    return reward
