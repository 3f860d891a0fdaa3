"""Action processors: from the policy's actions [B, chunk, dim] to those of each simulator.

Numbers follow RLinf's `prepare_actions`. The gripper of OpenVLA's data is 1 = open, 0 = closed.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def inverted_gripper(actions: np.ndarray, **context: Any) -> np.ndarray:
    """libero and its kin: -1 opens, 1 closes; the gripper at 0.5 is 0."""
    actions = actions.copy()
    actions[..., -1] = -np.sign(2 * actions[..., -1] - 1)
    return actions


def calvin(actions: np.ndarray, **context: Any) -> np.ndarray:
    """The gripper is 1 above 0 and -1 else."""
    actions = actions.copy()
    actions[..., -1] = np.where(actions[..., -1] > 0, 1, -1)
    return actions


def metaworld(actions: np.ndarray, **context: Any) -> np.ndarray:
    """Three translations and the gripper of seven dimensions; four pass."""
    if actions.shape[-1] != 7:
        return actions
    return np.concatenate([actions[..., :3], actions[..., -1:]], axis=-1)


def maniskill(
    actions: np.ndarray, *, action_scale: float = 1.0, policy: str | None = None, **context: Any
) -> np.ndarray:
    """Scale the six movements and binarise the gripper (above 0.5 is open); Panda's joints pass."""
    if policy is not None and "panda" in policy:
        return actions
    if actions.shape[-1] != 7:
        raise ValueError(f"maniskill: expected 7 dimensions, got {actions.shape[-1]}")
    actions = actions.copy()
    actions[..., :6] *= action_scale
    actions[..., 6] = np.where(actions[..., 6] > 0.5, 1, -1)
    return actions


def world_model(actions: np.ndarray, *, wm_env_type: str | None = "libero", **context: Any) -> np.ndarray:
    """World models stand in for a simulator, `wm_env_type`: libero alone, as in the reference."""
    if wm_env_type != "libero":
        raise ValueError(f"wm_env_type: expected libero, got {wm_env_type!r}")
    return inverted_gripper(actions)
