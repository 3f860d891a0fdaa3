"""What a vectorised environment hands back: plain numpy, which Ray's object store passes without copies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

#: A batch of observations: main_images [N,H,W,3] uint8, states [N,D] float32, task_descriptions list[str],
#: and where the simulator has them wrist_images [N,H,W,3] and extra_view_images [N,K,H,W,3] uint8.
Observation = dict[str, Any]


class EnvError(RuntimeError):
    """A simulator breaks its contract, or fails again and again; the text carries the original traceback."""


@dataclass(frozen=True, kw_only=True)
class EpisodeEnd:
    """One finished episode.

    index: position of the environment in its VecEnv. seed: the seed the episode was reset with.
    length: environment steps. return_: undiscounted sum of rewards.
    error: why the simulator was restarted, None for a regular end.
    """

    index: int
    seed: int
    success: bool
    length: int
    return_: float
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """The outcome of one chunk of actions in each of N environments.

    obs: the observations to act on next; those of a new episode where one ended under auto-reset.
    rewards [N,chunk] float32, terminations, truncations [N,chunk] bool: zero or false after the first done.
    valid_steps [N] int64: how many actions of the chunk were executed; 0 for an idle environment
        (auto_reset=False, episode over) and for one whose simulator failed, which sets truncations[i, 0].
    final_mask [N] bool: episodes cut off without a terminal state, whose return needs bootstrapping.
    final_obs: their last observations, one row per set element of final_mask, in order; None when there is
        none. Where the simulator failed it is the observation before this chunk.
    episodes: the episodes that ended in this chunk.
    errors: simulator failures since the last result, {message: count}.
    """

    obs: Observation
    rewards: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray
    valid_steps: np.ndarray
    final_mask: np.ndarray
    final_obs: Observation | None = None
    episodes: list[EpisodeEnd] = field(default_factory=list)
    errors: Mapping[str, int] = field(default_factory=Counter)
