"""Scalar reward models in the interface of policies: they learn from pairs and choose between two answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlinf.models.embodiment.base_policy import BasePolicy, check_mode
from rlinf.models.factory import plugin_config
from rlinf.models.language.actor import ActorLanguage
from rlinf.models.language.config import RewardModelConfig
from rlinf.models.language.lora import linear_layers
from rlinf.models.language.policy import new_model
from rlinf.models.language.text import TextProcessor, pad_left, text_processor
from rlinf.models.reward.scalar import ScalarRewardModel, preference_loss

if TYPE_CHECKING:
    from omegaconf import DictConfig


class ScalarRewardPolicy(BasePolicy):
    """A scalar reward model with its tokenizer. It scores a prompt and an answer, its end included."""

    def __init__(self, model: ScalarRewardModel, processor: TextProcessor, margin: float) -> None:
        super().__init__()
        self.model, self.processor, self.margin = model, processor, margin
        self._no_split_modules = list(model.backbone._no_split_modules or ())
        self.lora_targets = [
            re.escape(f"model.backbone.{path}") for path in linear_layers(model.backbone, towers=False)
        ]

    def score(self, prompts: Sequence[str], answers: Sequence[str]) -> Tensor:
        """Scores float32 [B]. Raises ValueError for a prompt that is too long or that has unknown text."""
        rows, _ = self.processor.prompts(prompts)
        rows = [[*row, *self.processor.answer(text)] for row, text in zip(rows, answers, strict=True)]
        ids, mask = pad_left(rows, max(map(len, rows)), 0)
        device = next(self.parameters()).device
        return self.model(ids.to(device), mask.to(device))["reward"]

    def sft_forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        """Bradley-Terry loss of pairs.

        Args:
            batch: rows, mappings with prompt, chosen, rejected and, where a row has its own, margin;
                action_is_pad bool [B, 1], rows that do not count.

        Returns:
            loss; accuracy, the share of pairs in which the chosen answer scores higher.
        """
        counts = (~batch["action_is_pad"][:, 0]).tolist()
        # A batch in which nothing counts has share 0 in the loss; its collectives must take place.
        rows = [row for row, counted in zip(batch["rows"], counts) if counted] or batch["rows"]
        gaps = self._pairs(*([str(row[key]) for row in rows] for key in ("prompt", "chosen", "rejected")))
        margin = torch.tensor([float(row.get("margin", self.margin)) for row in rows], device=gaps.device)
        return preference_loss({"reward": gaps}, {"reward": torch.zeros_like(gaps)}, margin)

    def predict_action_batch(
        self,
        env_obs: dict[str, Any],
        mode: str = "train",
        compute_values: bool = True,
        *,
        generators: Sequence[torch.Generator] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Compare two answers to each prompt; evaluation only.

        env_obs: task_descriptions (the prompts), first and second: texts, B each.

        Returns:
            actions float32 [B, 1, 1]: by how much the first scores higher.
        """
        check_mode(mode)
        if mode == "train":
            raise self._unimplemented("predict_action_batch in mode 'train'")
        gaps = self._pairs(
            *(list(map(str, env_obs[key])) for key in ("task_descriptions", "first", "second"))
        )
        return gaps.view(-1, 1, 1), {}

    def _pairs(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Tensor:
        """Score of the first less that of the second, [B]; one forward for both."""
        scores = self.score([*prompts, *prompts], [*first, *second])
        return scores[: len(prompts)] - scores[len(prompts) :]


def build_scalar(cfg: DictConfig, torch_dtype: torch.dtype) -> ScalarRewardPolicy:
    """The policy of `model_type: scalar_reward`."""
    config = plugin_config(cfg, RewardModelConfig)
    processor = text_processor(config, cfg.model_path)
    model = ScalarRewardModel(
        cfg.model_path or new_model(config, processor.tokenizer, ActorLanguage),
        pooling=config.pooling,
        probing_layer=config.probing_layer,
        attn_implementation=config.attn_implementation,
    )
    return ScalarRewardPolicy(model, processor, config.margin).to(torch_dtype)
