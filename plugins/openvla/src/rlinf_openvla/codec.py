"""Actions as tokens: 256 bins per dimension at the end of the vocabulary, and the statistics around them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from rlinf.data.stats import FILE, read_norm_stats
from torch import Tensor

#: Added to the range of the statistics where un-normalised by RLinf and OFT; official OpenVLA adds nothing.
RANGE_EPS: Final = 1e-8
Normalization = Literal["bounds_q99", "bounds"]


class ActionTokens:
    """Between normalised actions in [-1, 1] and token ids (Kim et al. 2024, arXiv:2406.09246, section 3.2).

    `bins` edges cut [-1, 1] into bins - 1 intervals, whose centres are the decoded actions. The id of a value
    is `vocab_end - digitize(value)`; digitize counts from 1 to `bins`, so value 1.0 has an id of its own, the
    smallest, which decodes to the last centre like the next one does.
    """

    def __init__(self, vocab_end: int, bins: int = 256) -> None:
        """vocab_end: size of the vocabulary without padding; action ids are the `bins` before it."""
        self.vocab_end, self.bins = vocab_end, bins
        self.edges = np.linspace(-1.0, 1.0, bins)
        self.centers = (self.edges[:-1] + self.edges[1:]) / 2

    @property
    def first_id(self) -> int:
        return self.vocab_end - self.bins

    def encode(self, actions: Tensor | np.ndarray) -> Tensor:
        """Normalised actions [...] -> token ids int64 [...]; values beyond [-1, 1] are clipped."""
        # float64 as in the original: the edges are sensitive.
        values = np.clip(np.asarray(actions, dtype=np.float64), -1.0, 1.0)
        return torch.from_numpy(self.vocab_end - np.digitize(values, self.edges))

    def decode(self, ids: Tensor) -> Tensor:
        """Token ids [...] -> normalised actions float32 [...]. Other ids give the nearest."""
        centers = torch.from_numpy(self.centers).to(ids.device)
        return centers[(self.vocab_end - ids - 1).clamp(0, self.bins - 2)].float()


@dataclass(frozen=True, kw_only=True)
class ActionStats:
    """Bounds of each action dimension, and which dimensions are normalised at all; float64 / bool [A]."""

    low: np.ndarray
    high: np.ndarray
    mask: np.ndarray

    @property
    def dim(self) -> int:
        return len(self.low)

    @classmethod
    def identity(cls, dim: int) -> ActionStats:
        """Actions that are in [-1, 1] already."""
        return cls(low=-np.ones(dim), high=np.ones(dim), mask=np.zeros(dim, dtype=bool))

    def unnormalize(self, actions: Tensor, eps: float = RANGE_EPS) -> Tensor:
        """[-1, 1] -> the robot's units, float32 [..., A]; unmasked dimensions pass."""
        low, high, mask = self._tensors(actions)
        actions = actions.double()
        return torch.where(mask, 0.5 * (actions + 1) * (high - low + eps) + low, actions).float()

    def normalize(self, actions: Tensor, eps: float = RANGE_EPS) -> Tensor:
        """The robot's units -> [-1, 1], clipped, float32 [..., A]; unmasked dimensions pass."""
        low, high, mask = self._tensors(actions)
        actions = actions.double()
        scaled = (2 * (actions - low) / (high - low + eps) - 1).clamp(-1, 1)
        return torch.where(mask, scaled, actions).float()

    def _tensors(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        low, high, mask = (torch.from_numpy(x).to(like.device) for x in (self.low, self.high, self.mask))
        return low, high, mask


def read_statistics(file: Path, config_stats: Mapping[str, Any] | None) -> dict[str, Any]:
    """Statistics by dataset: those of a `dataset_statistics.json`, which a fine-tuned checkpoint has, if
    there is one, over those in its `config.json`."""
    stats = dict(config_stats or {})
    if file.is_file():
        try:
            stats |= json.loads(file.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{file}: cannot be read as JSON: {error}") from error
    return stats


def given_statistics(path: Path, unnorm_key: str | None) -> dict[str, Any]:
    """Statistics by dataset of a file that a configuration names: a `dataset_statistics.json`, or what
    `rlinf data stats` wrote (the file or its folder), as the dataset `unnorm_key` or by the folder's name.

    Raises ValueError naming the file that is missing or cannot be read.
    """
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"statistics: no such file: {file}")
    stats = read_statistics(file, None)
    if "norm_stats" not in stats:
        return stats
    parts = {"action": "actions", "proprio": "state"}
    measured = read_norm_stats(file)
    plain = {
        part: {key: value.tolist() for key, value in vars(measured[name]).items() if value is not None}
        for part, name in parts.items()
        if name in measured
    }
    return {unnorm_key or file.resolve().parent.name: plain}


def select_statistics(
    stats: Mapping[str, Any],
    unnorm_key: str | None,
    *,
    part: str = "action",
    normalization: Normalization = "bounds_q99",
) -> ActionStats:
    """Bounds of one dataset. part: "action" or "proprio".

    Raises ValueError naming what there is, where `unnorm_key` is missing, unknown or ambiguous.
    """
    if unnorm_key is None and len(stats) == 1:
        unnorm_key = next(iter(stats))
    # LIBERO's datasets without no-op steps are stored under a longer name than the suite's.
    for name in (str(unnorm_key), f"{unnorm_key}_no_noops"):
        if name in stats:
            found = stats[name].get(part)
            break
    else:
        raise ValueError(
            f"unnorm_key: {unnorm_key!r} is no dataset of the checkpoint's statistics; it has "
            f"{', '.join(sorted(stats)) or 'none'}"
        )
    low, high = ("q01", "q99") if normalization == "bounds_q99" else ("min", "max")
    missing = [key for key in (low, high) if found is None or key not in found]
    if missing:
        raise ValueError(f"statistics of {unnorm_key!r}: {part} lacks {missing[0]!r}")
    bounds = {key: np.asarray(found[key], dtype=np.float64) for key in (low, high)}
    mask = np.asarray(found.get("mask", [True] * len(bounds[low])), dtype=bool)
    return ActionStats(low=bounds[low], high=bounds[high], mask=mask)
