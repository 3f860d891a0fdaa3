"""Granularity: log-probabilities per token, action or chunk; rewards per action or chunk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

#: `logprob_type` -> reduction of a per-token quantity [M, chunk, dim] to the elements that share one ratio.
LOGPROB_TYPES: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "token_level": lambda x: x,
    "action_level": lambda x: x.sum(dim=-1),
    "chunk_level": lambda x: x.sum(dim=(-2, -1)).unsqueeze(-1),
}


def lookup(registry: Mapping[str, T], key: str, name: str) -> T:
    """The registered object, or a ValueError that names the configuration key and what it may be."""
    if name not in registry:
        raise ValueError(f"{key}: expected one of {', '.join(sorted(registry))}; got {name!r}")
    return registry[name]


def reduce_logprobs(logprobs: Tensor, level: str) -> Tensor:
    """Sum token log-probabilities [M, chunk, dim] into those of the elements that share one PPO ratio.

    Returns:
        float32: token_level [M, chunk, dim]; action_level [M, chunk]; chunk_level [M, 1] (the trailing axis
        stays, so that it lines up with the advantages [M, 1] of chunk-level rewards).
    """
    if logprobs.dim() != 3:
        raise ValueError(f"log-probabilities: expected [M, chunk, dim], got shape {tuple(logprobs.shape)}")
    return lookup(LOGPROB_TYPES, "logprob_type", level)(logprobs.float())


def reduce_entropy(entropy: Tensor, level: str, token_shape: torch.Size) -> Tensor:
    """Entropy of each element of `level`: the sum over its tokens, taken as independent.

    Args:
        entropy: per token [M, chunk, dim], or [M, 1]: that of the whole chunk, which then is spread evenly.
        token_shape: [M, chunk, dim] of the log-probabilities.
    """
    if entropy.shape == token_shape:
        return reduce_logprobs(entropy, level)
    rows, chunk, dim = token_shape
    if entropy.shape != (rows, 1):
        raise ValueError(
            f"entropy: expected {tuple(token_shape)} (per token) or {(rows, 1)} (per chunk), "
            f"got {tuple(entropy.shape)}"
        )
    per_token = entropy.float().unsqueeze(-1) / (chunk * dim)
    return reduce_logprobs(per_token.expand(token_shape), level)


def align(x: Tensor, target: Tensor) -> Tensor:
    """Per-step [M, chunk or 1] with trailing axes added, so that it broadcasts against `target` [M, ...].

    Raises ValueError when one element of `target` covers several steps: chunk-level log-probabilities have
    one ratio for a whole chunk, to which several advantages cannot belong.
    """
    out = x.reshape(*x.shape, *[1] * (target.dim() - x.dim()))
    if any(have not in (1, want) for have, want in zip(out.shape, target.shape, strict=True)):
        raise ValueError(
            f"per-step values {tuple(x.shape)} do not belong to elements {tuple(target.shape)}; "
            "logprob_type chunk_level needs reward_type chunk_level"
        )
    return out


class StepRewards(NamedTuple):
    """Rewards [T, B, K] float32, dones [T+1, B, K] bool and loss_mask [T, B, K] bool or None."""

    rewards: Tensor
    dones: Tensor
    loss_mask: Tensor | None


def _chunk_level(rewards: Tensor, dones: Tensor, loss_mask: Tensor | None) -> StepRewards:
    mask = None if loss_mask is None else loss_mask.any(dim=-1, keepdim=True)
    return StepRewards(rewards.sum(dim=-1, keepdim=True), dones.any(dim=-1, keepdim=True), mask)


#: `reward_type` -> what one step of the return is: an action, or a whole chunk.
REWARD_TYPES: Final[dict[str, Callable[[Tensor, Tensor, Tensor | None], StepRewards]]] = {
    "action_level": StepRewards,
    "chunk_level": _chunk_level,
}


def chunk_rewards(rewards: Tensor, dones: Tensor, loss_mask: Tensor | None, reward_type: str) -> StepRewards:
    """Rewards, dones and mask at the granularity of `reward_type`.

    Args:
        rewards: [T, B, chunk], 0 for actions that were not executed.
        dones: bool [T+1, B, chunk]; entry [t+1, b, c]: action c of chunk t ended the episode.
        loss_mask: bool [T, B, chunk] or None.
        reward_type: action_level keeps the actions apart (K = chunk); chunk_level makes a chunk one step
            (K = 1): rewards add up, the chunk is done or counts when any of its actions is or does.
    """
    reduce = lookup(REWARD_TYPES, "reward_type", reward_type)
    steps, batch, chunk = rewards.shape
    if dones.shape != (steps + 1, batch, chunk):
        raise ValueError(
            f"dones: expected [T+1, B, chunk] = {(steps + 1, batch, chunk)}, got {tuple(dones.shape)}"
        )
    if loss_mask is not None and loss_mask.shape != rewards.shape:
        raise ValueError(
            f"loss_mask: expected the shape of rewards {tuple(rewards.shape)}, got {tuple(loss_mask.shape)}"
        )
    return reduce(rewards.float(), dones, loss_mask)
