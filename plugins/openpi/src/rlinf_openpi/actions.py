"""Action processors: from the policy's actions [B, chunk, dim] to those of each simulator, for `openpi`.

Numbers follow RLinf's `prepare_actions`. Simulators that are not here (libero, metaworld, robotwin, ...) take
the actions as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

#: RoboCasa's controller: what all 12 dimensions are where nothing drives them.
ROBOCASA_DEFAULT: Final = (0.0,) * 11 + (-1.0,)
#: Action space -> the dimensions it drives: end effector and gripper, or those, base, torso and base mode.
ROBOCASA_SPACES: Final[Mapping[str, tuple[int, ...]]] = {"7d": tuple(range(7)), "12d": tuple(range(12))}


def maniskill(
    actions: np.ndarray, *, action_scale: float = 1.0, policy: str | None = None, **context: Any
) -> np.ndarray:
    """Scale the 6 movements and binarise the gripper (> 0.5 is open); Panda policies pass through."""
    if policy is not None and "panda" in policy:
        return actions
    if actions.shape[-1] != 7:
        raise ValueError(f"maniskill: expected 7 dimensions, got {actions.shape[-1]}")
    actions = actions.copy()
    actions[..., :6] *= action_scale
    actions[..., 6] = 2.0 * (actions[..., 6] > 0.5) - 1.0
    return actions


def calvin(actions: np.ndarray, **context: Any) -> np.ndarray:
    """The gripper is -1 or 1 (0 stays 0)."""
    actions = actions.copy()
    actions[..., -1] = np.sign(actions[..., -1])
    return actions


def polaris(actions: np.ndarray, **context: Any) -> np.ndarray:
    """The gripper is 0 or 1."""
    actions = actions.copy()
    actions[..., -1] = actions[..., -1] > 0.5
    return actions


def frankasim(actions: np.ndarray, **context: Any) -> np.ndarray:
    """Three translations and the gripper, which is clipped to [-1, 1]."""
    if actions.shape[-1] >= 7:
        actions = np.concatenate([actions[..., :3], actions[..., 6:7]], axis=-1)
    else:
        actions = actions[..., :4].copy()
    actions[..., -1] = np.clip(actions[..., -1], -1.0, 1.0)
    return actions


def d4rl(actions: np.ndarray, *, action_dim: int | None = None, **context: Any) -> np.ndarray:
    """The first `action_dim` dimensions, the last of them clipped to [-1, 1]."""
    actions = actions[..., :action_dim].copy()
    actions[..., -1] = np.clip(actions[..., -1], -1.0, 1.0)
    return actions


def robocasa(actions: np.ndarray, *, policy: str | None = None, **context: Any) -> np.ndarray:
    """The action space `policy` (7d or 12d; None: by the number of dimensions) within all 12 dimensions."""
    space = policy or f"{actions.shape[-1]}d"
    driven = ROBOCASA_SPACES.get(space)
    if driven is None or actions.shape[-1] < len(driven):
        raise ValueError(
            f"robocasa: expected the action space {' or '.join(ROBOCASA_SPACES)} and as many dimensions; got "
            f"{space} and {actions.shape[-1]}"
        )
    full = np.broadcast_to(
        np.asarray(ROBOCASA_DEFAULT, np.float32), (*actions.shape[:-1], len(ROBOCASA_DEFAULT))
    ).copy()
    full[..., list(driven)] = actions[..., : len(driven)]
    return full
