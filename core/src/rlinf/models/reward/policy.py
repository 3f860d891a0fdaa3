"""Scalar reward models in the interface of policies: they learn from pairs and choose between two answers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rlinf.models.embodiment.base_policy import BasePolicy, check_mode
from rlinf.models.factory import config_errors, plugin_config
from rlinf.models.language.config import RewardModelConfig
from rlinf.models.language.lora import linear_layers
from rlinf.models.language.media import doubled, media_in
from rlinf.models.language.policy import processor_and_model, whole_blocks
from rlinf.models.language.text import TextProcessor, pad_left
from rlinf.models.reward.scalar import (
    ScalarRewardModel,
    ScalarRewardModelAL,
    ScalarRewardModelVL,
    preference_loss,
)

if TYPE_CHECKING:
    from omegaconf import DictConfig


class ScalarRewardPolicy(BasePolicy):
    """A scalar reward model with its tokenizer. It scores a prompt, with its picture or sound where it has
    one, and an answer, its end included."""

    def __init__(self, model: ScalarRewardModel, processor: TextProcessor, margin: float) -> None:
        super().__init__()
        self.model, self.processor, self.margin = model, processor, margin
        self._no_split_modules = whole_blocks(model.backbone)
        self.lora_targets = [
            re.escape(f"model.backbone.{path}") for path in linear_layers(model.backbone, towers=False)
        ]

    def score(
        self, prompts: Sequence[str], answers: Sequence[str], media: Mapping[str, Any] | None = None
    ) -> Tensor:
        """Scores float32 [B].

        media: the prompts' main_images or audios (`TextProcessor.prompts`, which says what is refused).
        """
        rows, seen = self.processor.prompts(prompts, media)
        rows = [[*row, *self.processor.answer(text)] for row, text in zip(rows, answers, strict=True)]
        ids, mask = pad_left(rows, max(map(len, rows)), 0)
        device = next(self.parameters()).device
        ids, mask = ids.to(device), mask.to(device)
        inputs = self.processor.flat(ids, {name: x.to(device) for name, x in seen.items()})
        return self.model(ids, mask, **inputs)["reward"]

    def sft_forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        """Bradley-Terry loss of pairs.

        Args:
            batch: rows, mappings with prompt, chosen, rejected and, where a row has its own, margin;
                main_images or audios of the prompts; action_is_pad bool [B, 1], rows that do not count.

        Returns:
            loss; accuracy, the share of pairs in which the chosen answer scores higher.
        """
        counted = (~batch["action_is_pad"][:, 0]).cpu().numpy()
        # A batch in which nothing counts has share 0 in the loss; its collectives must take place.
        kept = np.flatnonzero(counted) if counted.any() else np.arange(len(counted))
        rows = [batch["rows"][i] for i in kept.tolist()]
        prompts, chosen, rejected = (
            [str(row[key]) for row in rows] for key in ("prompt", "chosen", "rejected")
        )
        gaps = self._pairs(prompts, chosen, rejected, {k: v[kept] for k, v in media_in(batch).items()})
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

        env_obs: task_descriptions (the prompts), first and second: texts, B each; main_images or audios.

        Returns:
            actions float32 [B, 1, 1]: by how much the first scores higher.
        """
        check_mode(mode)
        if mode == "train":
            raise self._unimplemented("predict_action_batch in mode 'train'")
        prompts, first, second = (
            list(map(str, env_obs[key])) for key in ("task_descriptions", "first", "second")
        )
        return self._pairs(prompts, first, second, media_in(env_obs)).view(-1, 1, 1), {}

    def _pairs(
        self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str], media: Mapping[str, Any]
    ) -> Tensor:
        """Score of the first less that of the second, [B]; one forward for both."""
        scores = self.score([*prompts, *prompts], [*first, *second], doubled(media))
        return scores[: len(prompts)] - scores[len(prompts) :]


def build_scalar(cfg: DictConfig, torch_dtype: torch.dtype) -> ScalarRewardPolicy:
    """The policy of `model_type: scalar_reward`."""
    return _build(cfg, torch_dtype, ScalarRewardModel)


def build_scalar_vision(cfg: DictConfig, torch_dtype: torch.dtype) -> ScalarRewardPolicy:
    """The policy of `model_type: scalar_reward_vl`."""
    return _build(cfg, torch_dtype, ScalarRewardModelVL)


def build_scalar_audio(cfg: DictConfig, torch_dtype: torch.dtype) -> ScalarRewardPolicy:
    """The policy of `model_type: scalar_reward_al`."""
    return _build(cfg, torch_dtype, ScalarRewardModelAL)


def _build(
    cfg: DictConfig, torch_dtype: torch.dtype, model_class: type[ScalarRewardModel]
) -> ScalarRewardPolicy:
    config = plugin_config(cfg, RewardModelConfig)
    with config_errors(cfg):
        processor, source = processor_and_model(cfg, config, model_class.modality)
        model = model_class(
            source,
            pooling=config.pooling,
            probing_layer=config.probing_layer,
            attn_implementation=config.attn_implementation,
        )
        policy = ScalarRewardPolicy(model, processor, config.margin)
    return policy.to(torch_dtype)
