"""Scalar reward models: hidden states of a language model, pooled over the answer's tokens, to scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlinf.models.language.actor import padded_inputs
from rlinf.models.language.loading import ActorOptions, load_language_model
from rlinf.models.language.modality import ActorModality, check_inputs

Pooling = Literal["last_token", "attention"]


class LastToken(nn.Module):
    """The hidden state of each row's last valid token."""

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """hidden [B, S, H], mask bool [B, S] -> [B, H]; padding may be on either side."""
        steps = torch.arange(mask.shape[1], device=mask.device)
        last = torch.where(mask, steps, -1).amax(dim=1)
        return hidden[torch.arange(len(hidden), device=hidden.device), last.clamp(min=0)]


class AttentionPooling(nn.Module):
    """A mean of the valid tokens' hidden states with weights softmax(hidden . query / sqrt(H))."""

    #: New beside a pretrained backbone: trainable under LoRA, and a FSDP2 unit of its own.
    _is_policy_head = True

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, 1, bias=False)
        self.scale = 1 / math.sqrt(width)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """hidden [B, S, H], mask bool [B, S] -> [B, H]; padding has no weight."""
        scores = self.query(hidden).squeeze(-1).float() * self.scale
        # A row without any token would be softmax over nothing: it gets zeros.
        weights = scores.masked_fill(~mask, -math.inf).softmax(-1).masked_fill(~mask, 0)
        return (weights.to(hidden.dtype).unsqueeze(1) @ hidden).squeeze(1)


class ScoreHeads(nn.Module):
    """Named linear heads [B, H] -> {name: float32 [B]}."""

    _is_policy_head = True

    def __init__(self, width: int, names: Sequence[str]) -> None:
        super().__init__()
        self.names: Final = tuple(names)
        self.linear = nn.Linear(width, len(names))
        # Unit variance of the scores for states of unit variance; a larger start saturates the loss.
        nn.init.normal_(self.linear.weight, std=1 / math.sqrt(width))
        nn.init.zeros_(self.linear.bias)

    def forward(self, pooled: Tensor) -> dict[str, Tensor]:
        scores = self.linear(pooled.to(self.linear.weight.dtype)).float()
        return dict(zip(self.names, scores.unbind(-1), strict=True))


class ScalarRewardModel(nn.Module):
    """Scores of texts: a language model's backbone without its output embedding, pooling, heads."""

    modality: ClassVar[ActorModality] = ActorModality.LANGUAGE_ONLY

    def __init__(
        self,
        pretrain_or_model: str | Path | nn.Module,
        *,
        heads: Sequence[str] = ("reward",),
        pooling: Pooling = "last_token",
        probing_layer: int = -1,
        **options: Any,
    ) -> None:
        """
        Args:
            pretrain_or_model: a folder, or the model with its output embedding.
            heads: names of the scores.
            pooling: last_token, or attention with a learned query.
            probing_layer: whose hidden states are pooled: 0 the embeddings, 1 the first block, -1 the last.
            options: fields of `rlinf.models.language.loading.ActorOptions`.

        Raises:
            TypeError: an unknown option. ValueError: no head or one twice, an unknown pooling, a folder that
            holds no such model.
        """
        super().__init__()
        if not heads or len(set(heads)) < len(heads):
            raise ValueError(f"heads: expected one or more different names, got {list(heads)}")
        if pooling not in ("last_token", "attention"):
            raise ValueError(f"pooling: expected last_token or attention, got {pooling!r}")
        self.options = ActorOptions.of(options)
        if self.options.packing_samples:
            raise ValueError("packing_samples: a reward model pools padded rows")
        whole: Any = load_language_model(pretrain_or_model, self.modality, self.options)
        self.backbone: Any = whole.model
        width = int(whole.config.get_text_config().hidden_size)
        self.probing_layer = probing_layer
        like = next(self.backbone.parameters())
        self.pooling = AttentionPooling(width) if pooling == "attention" else LastToken()
        self.heads = ScoreHeads(width, heads)
        self.pooling.to(like.device, like.dtype)
        self.heads.to(like.device)
        self.options.add_adapters(self)

    def forward(self, sequences: Tensor, attention_mask: Tensor, **inputs: Any) -> dict[str, Tensor]:
        """Scores of prompt and answer together.

        Args:
            sequences, attention_mask: int64 [B, S], padded on either side, which changes no score.
            inputs: what `get_supported_parameters` names.

        Returns:
            {head: float32 [B]}.
        """
        check_inputs(self, inputs)
        out = self.backbone(
            **padded_inputs(self.modality, sequences, attention_mask),
            output_hidden_states=self.probing_layer != -1,
            **inputs,
        )
        hidden = out.last_hidden_state if self.probing_layer == -1 else out.hidden_states[self.probing_layer]
        return self.heads(self.pooling(hidden, attention_mask.bool()))


class ScalarRewardModelVL(ScalarRewardModel):
    """Scores of answers about images: Qwen2-VL, Qwen2.5-VL, Qwen3-VL, PaliGemma."""

    modality = ActorModality.VISION_LANGUAGE


class ScalarRewardModelAL(ScalarRewardModel):
    """Scores of answers about sounds: Qwen2-Audio."""

    modality = ActorModality.AUDIO_LANGUAGE


def preference_loss(
    chosen: Mapping[str, Tensor], rejected: Mapping[str, Tensor], margin: Tensor | float = 0.0
) -> dict[str, Tensor]:
    """Bradley-Terry loss of pairs: mean of -log sigmoid(chosen - rejected - margin) over pairs and heads.

    R. A. Bradley and M. E. Terry (1952); the margin as in Touvron et al. 2023, arXiv:2307.09288, equation 2.

    Args:
        chosen, rejected: {head: [B]} of one model on the two answers to each prompt.
        margin: [B] or a number: by how much the chosen answer should win.

    Returns:
        loss; accuracy, the share of pairs in which the chosen answer scores higher (margin aside); and
        accuracy_<head> where there are several heads. Scalars, float32.
    """
    gaps = {name: chosen[name].float() - rejected[name].float() for name in chosen}
    wins = {name: (gap > 0).float().mean().detach() for name, gap in gaps.items()}
    losses = [-F.logsigmoid(gap - margin).mean() for gap in gaps.values()]
    named = {f"accuracy_{name}": win for name, win in wins.items()} if len(wins) > 1 else {}
    accuracy = torch.stack(list(wins.values())).mean()
    return {"loss": torch.stack(losses).mean(), "accuracy": accuracy, **named}
