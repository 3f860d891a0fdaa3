"""From a policy's actions to an environment's: the processors that plugins contribute, and checks."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from rlinf.envs.observations import describe
from rlinf.plugins import ActionProcessorSpec, get_host


class ActionError(ValueError):
    """Actions, or what a processor made of them, do not fit; the text names the processor."""


def prepare_actions(
    raw_chunk_actions: Any,
    env_type: str,
    model_type: str,
    num_action_chunks: int | None = None,
    action_dim: int | None = None,
    action_scale: float = 1.0,
    policy: str | None = None,
    *,
    action_space: gymnasium.spaces.Box | None = None,
    **context: Any,
) -> np.ndarray:
    """The actions [B, chunk, dim] float32 that the environment executes; the input is never changed.

    raw_chunk_actions: tensor or array [B, chunk, dim] of the policy.
    num_action_chunks, action_dim: what [chunk, dim] of the policy's actions must be, if given.
    action_space: of the environment, to check the result's last dimension against.
    action_scale, policy, context: for the processors, which get all arguments by name.

    Applies the processors that plugins contributed for (env_type, model_type), each of which keeps the shape
    unless its spec says otherwise; without any, the actions pass unchanged. Raises ActionError for a wrong
    shape, values that are not finite, or a processor that fails.
    """
    host = get_host()
    actions = _to_numpy(raw_chunk_actions)
    _check(actions, f"the actions of model_type {model_type!r}")
    wanted = {"num_action_chunks": num_action_chunks, "action_dim": action_dim}
    for (name, size), got in zip(wanted.items(), actions.shape[1:]):
        if size is not None and got != size:
            raise ActionError(f"{name} is {size}, but the policy's actions are {describe(actions)}")
    context = {
        "env_type": env_type,
        "model_type": model_type,
        **wanted,
        "action_scale": action_scale,
        "policy": policy,
        "action_space": action_space,
        **context,
    }
    for spec in host.action_processors(env_type, model_type):
        actions = _apply(host.resolve(spec, "function"), spec, actions, context)
    if action_space is not None and actions.shape[-1:] != action_space.shape:
        raise ActionError(
            f"env_type {env_type!r} takes actions of {action_space.shape[0]} dimensions, model_type "
            f"{model_type!r} gives {actions.shape[-1]}: set model.action_dim, or add an action processor"
        )
    return actions


def _to_numpy(value: Any) -> np.ndarray:
    """float32 array of a tensor (any device, bf16 too) or an array; shares memory where it can."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().float().numpy()
    return np.asarray(value, dtype=np.float32)


def _check(actions: np.ndarray, what: str) -> None:
    if actions.ndim != 3 or 0 in actions.shape:
        raise ActionError(f"{what} must be [B, chunk, dim], got {describe(actions)}")
    if not np.isfinite(actions).all():
        raise ActionError(f"{what} hold NaN or infinity")


def _apply(
    function: Any, spec: ActionProcessorSpec, actions: np.ndarray, context: dict[str, Any]
) -> np.ndarray:
    name = f"action processor {spec.function} for ({spec.env_type!r}, {spec.model_type!r})"
    try:
        result = _to_numpy(function(actions.copy(), **context))
    except Exception as error:
        raise ActionError(f"{name} failed: {type(error).__name__}: {error}") from error
    _check(result, f"the actions that {name} returned")
    if spec.keeps_shape and result.shape != actions.shape:
        raise ActionError(
            f"{name} turned {describe(actions)} into {describe(result)}; declare keeps_shape=False if it may"
        )
    if len(result) != len(actions):
        raise ActionError(f"{name} turned a batch of {len(actions)} into {len(result)}")
    return result
