"""Generative reward models: a judge writes its reasons and a score, which is read out of the text."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlinf.models.language.actor import ActorVL
from rlinf.models.language.config import SCORE
from rlinf.models.language.generation import GenerationConfig


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a judge wrote, and the score in it."""

    text: str
    #: In [0, 1]; None where the text holds no score, or one outside the scale.
    score: float | None
    #: Why there is none; "" where there is one.
    problem: str = ""


def parse_verdict(text: str, *, low: float, high: float, pattern: str = SCORE) -> Verdict:
    """Read the last score that `pattern`'s first group finds, and scale [low, high] to [0, 1]."""
    found = re.findall(pattern, text)
    if not found:
        return Verdict(text=text, score=None, problem="the judgement holds no score")
    last = found[-1] if isinstance(found[-1], str) else found[-1][0]
    try:
        value = float(last)
    except ValueError:
        return Verdict(text=text, score=None, problem=f"the score {last!r} is no number")
    if not low <= value <= high:
        return Verdict(text=text, score=None, problem=f"the score {value:g} is not in [{low:g}, {high:g}]")
    return Verdict(text=text, score=(value - low) / (high - low))


class GenerativeRewardModelVL(nn.Module):
    """A vision-language model as a judge."""

    def __init__(
        self,
        pretrain_or_model: str | Path | nn.Module,
        *,
        low: float = 0.0,
        high: float = 10.0,
        pattern: str = SCORE,
        **options: Any,
    ) -> None:
        """
        Args:
            pretrain_or_model, options: as of `rlinf.models.ActorVL`.
            low, high: the scale that the prompt asks for.
            pattern: regular expression whose first group is the score.
        """
        super().__init__()
        if not low < high:
            raise ValueError(f"expected low < high, got low {low:g} and high {high:g}")
        if not re.compile(pattern).groups:
            raise ValueError(f"pattern: {pattern!r} has no group (...) to take the score from")
        self.actor = ActorVL(pretrain_or_model, **options)
        self.low, self.high, self.pattern = low, high, pattern

    def judge(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        decode: Callable[[Sequence[int]], str],
        *,
        generators: Sequence[torch.Generator] | None = None,
        config: GenerationConfig | None = None,
        **inputs: Any,
    ) -> list[Verdict]:
        """Write a judgement for each left-padded prompt int64 [B, P] and read its score.

        decode: token ids of a judgement -> text, such as a tokenizer's `decode`. The rest: see
        `ActorVL.generate`.
        """
        sequences, _, actions = self.actor.generate(
            input_ids, attention_mask, generators=generators, config=config, **inputs
        )
        written = sequences[:, input_ids.shape[1] :]
        return [
            parse_verdict(decode(row[mask].tolist()), low=self.low, high=self.high, pattern=self.pattern)
            for row, mask in zip(written, actions, strict=True)
        ]
