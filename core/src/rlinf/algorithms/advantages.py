"""Advantage estimators: GAE, GRPO, REINFORCE++, and the way there from rollout tensors [T, B, chunk]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from rlinf.algorithms.levels import chunk_rewards, lookup
from rlinf.algorithms.masks import AllReduce, grouped, normalize_masked


def _reverse_scan(x: Tensor, decay: Tensor) -> Tensor:
    """y[t] = x[t] + decay[t] * y[t+1] with y[T] = 0; both [T, B]."""
    out = torch.empty_like(x)
    carry = torch.zeros_like(x[0]) if len(x) else x
    for t in range(len(x) - 1, -1, -1):
        carry = torch.addcmul(x[t], decay[t], carry, out=out[t])
    return out


@torch.no_grad()
def gae(
    rewards: Tensor, values: Tensor, dones: Tensor, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2015, arXiv:1506.02438, equations 11 and 16).

    delta[t] = r[t] + gamma * V[t+1] * (1 - done[t+1]) - V[t]
    A[t]     = delta[t] + gamma * lambda * (1 - done[t+1]) * A[t+1]

    Several episodes may follow each other in a column (auto-reset): a done cuts the recursion.

    Args:
        rewards: [T, B].
        values: [T+1, B]; the last row bootstraps what the rollout cut off.
        dones: bool [T+1, B]; row t+1 says that step t ended the episode. Row 0 is not read.

    Returns:
        advantages and returns (the value targets, advantages + values), float32 [T, B].
    """
    rewards, values = rewards.float(), values.float()
    alive = (~dones[1:]).float()
    delta = rewards + gamma * values[1:] * alive - values[:-1]
    advantages = _reverse_scan(delta, gamma * gae_lambda * alive)
    return advantages, advantages + values[:-1]


@torch.no_grad()
def discounted_returns(rewards: Tensor, dones: Tensor, gamma: float) -> Tensor:
    """Reward-to-go of each step within its episode: rewards [T, B], dones [T+1, B] -> float32 [T, B]."""
    return _reverse_scan(rewards.float(), gamma * (~dones[1:]).float())


@torch.no_grad()
def bootstrap_truncations(rewards: Tensor, truncations: Tensor, final_values: Tensor, gamma: float) -> Tensor:
    """Rewards that count what a time limit cut off (Pardo et al. 2018, arXiv:1712.00378).

    A truncated episode is done for `gae`, although its last state was worth V: add gamma * V to its last
    reward. For the cut at the rollout's own end `gae` reads the last row of the values instead.

    Args:
        rewards: [T, B, chunk].
        truncations: bool [T, B, chunk]; the first True of a chunk is where the episode was cut.
        final_values: [T, B], the critic at the last observation of the cut episode; any finite elsewhere.

    Returns:
        float32 [T, B, chunk].
    """
    first = truncations & (truncations.cumsum(-1) == 1)
    return rewards.float() + gamma * final_values.float().unsqueeze(-1) * first


@torch.no_grad()
def episode_scores(rewards: Tensor, dones: Tensor) -> Tensor:
    """Undiscounted return of each column's first episode: [T, B], [T+1, B] -> float32 [B]."""
    started = torch.ones_like(dones[:1])
    first = torch.cat([started, dones[1:-1].cumsum(0) == 0])[: len(rewards)]
    return (rewards.float() * first).sum(0)


@torch.no_grad()
def best_of_group(scores: Tensor) -> Tensor:
    """The probability that a member of a group is its best, by the model of Plackett and Luce (Luce 1959; of
    two it is that of Bradley and Terry, which reward models are trained by): a softmax over the group.

    Scores of reward models reach far down for nonsense, so that beside it near misses are above a group's
    mean. Here they earn next to nothing beside a right answer, as with a rule, and what a reward model adds
    to all answers to a prompt is without effect.

    Args:
        scores: [groups, group_size >= 2].

    Returns:
        float32 [groups, group_size]; sum 1 in each group.
    """
    return scores.float().softmax(dim=1)


@torch.no_grad()
def grpo_advantages(scores: Tensor, scale: bool = True, eps: float = 1e-6) -> Tensor:
    """Group-relative advantages (GRPO: Shao et al. 2024, arXiv:2402.03300, section 4.1.2).

    Args:
        scores: [groups, group_size >= 2], one score per trajectory.
        scale: divide by the group's standard deviation (unbiased, + eps). False: only centre, as Dr. GRPO
            does (Liu et al. 2025, arXiv:2503.20783) so that easy and hard groups weigh alike.

    Returns:
        float32 [groups, group_size]; mean 0 in each group, and exactly 0 where all scores are equal.
    """
    if scores.dim() != 2 or scores.shape[1] < 2:
        raise ValueError(
            f"GRPO compares members of a group: group_size must be >= 2, got scores {tuple(scores.shape)}"
        )
    scores = scores.float()
    centered = scores - scores.mean(dim=1, keepdim=True)
    if scale:
        centered = centered / (scores.std(dim=1, keepdim=True) + eps)
    # The mean of equal numbers may be one rounding off, which eps would blow up to visible advantages.
    return centered.masked_fill((scores == scores[:, :1]).all(dim=1, keepdim=True), 0)


@torch.no_grad()
def reinforce_pp_advantages(
    rewards: Tensor,
    dones: Tensor,
    loss_mask: Tensor | None = None,
    *,
    gamma: float = 1.0,
    group_size: int = 1,
    normalize: bool = True,
    all_reduce: AllReduce | None = None,
) -> Tensor:
    """REINFORCE++ (Hu et al. 2025, arXiv:2501.03262): returns-to-go, whitened over the whole batch.

    With `group_size > 1` it is the paper's REINFORCE++-baseline: the group's mean return is subtracted first,
    the scale stays that of the batch (unlike GRPO, whose scale is the group's).

    Args:
        rewards [T, B], dones [T+1, B], loss_mask bool [T, B] or None: as for `gae`.

    Returns:
        float32 [T, B]; 0 where masked.
    """
    returns = discounted_returns(rewards, dones, gamma)
    if group_size > 1:
        baseline = grouped(returns[0], group_size).mean(dim=1).repeat_interleave(group_size)
        returns = returns - baseline
    if normalize:
        return normalize_masked(returns, loss_mask, all_reduce=all_reduce)
    return returns if loss_mask is None else returns * loss_mask


@dataclass(frozen=True, kw_only=True)
class AdvantageResult:
    """What `ppo_loss` reads, [T, B, K] with K = chunk at action level, 1 at chunk level."""

    #: float32, 0 where masked.
    advantages: Tensor
    #: The value targets, float32, 0 where masked; None without a critic.
    returns: Tensor | None
    #: bool, which steps train.
    loss_mask: Tensor


@dataclass(frozen=True, kw_only=True)
class _Steps:
    """What an estimator sees: the rollout flattened to single steps [N, B], and the settings."""

    rewards: Tensor
    dones: Tensor
    values: Tensor | None
    loss_mask: Tensor
    gamma: float
    gae_lambda: float
    group_size: int
    normalize: bool
    group_scores: str
    all_reduce: AllReduce | None


def _gae(s: _Steps) -> tuple[Tensor, Tensor | None]:
    if s.values is None:
        raise ValueError(
            "adv_type gae needs the critic's values; without a value head use grpo or reinforce++"
        )
    advantages, returns = gae(s.rewards, s.values, s.dones, s.gamma, s.gae_lambda)
    if s.normalize:
        advantages = normalize_masked(advantages, s.loss_mask, all_reduce=s.all_reduce)
    masked = ~s.loss_mask
    return advantages.masked_fill(masked, 0), returns.masked_fill(masked, 0)


def _grpo(s: _Steps) -> tuple[Tensor, Tensor | None]:
    scores = grouped(episode_scores(s.rewards, s.dones), s.group_size)
    if s.group_scores == "best_of_group":
        scores = best_of_group(scores)
    return grpo_advantages(scores, scale=s.normalize).reshape(1, -1) * s.loss_mask, None


def _reinforce_pp(s: _Steps) -> tuple[Tensor, Tensor | None]:
    advantages = reinforce_pp_advantages(
        s.rewards,
        s.dones,
        s.loss_mask,
        gamma=s.gamma,
        group_size=s.group_size,
        normalize=s.normalize,
        all_reduce=s.all_reduce,
    )
    return advantages, None


#: `adv_type` -> estimator over flattened steps.
ADVANTAGES: Final[dict[str, Callable[[_Steps], tuple[Tensor, Tensor | None]]]] = {
    "gae": _gae,
    "grpo": _grpo,
    "reinforce++": _reinforce_pp,
}


def _flatten(x: Tensor) -> Tensor:
    """[T, B, K] -> [T * K, B], in the order in which the steps were executed."""
    return x.transpose(1, 2).reshape(-1, x.shape[1])


@torch.no_grad()
def compute_advantages(
    *,
    adv_type: str,
    rewards: Tensor,
    values: Tensor | None,
    dones: Tensor,
    loss_mask: Tensor | None,
    gamma: float,
    gae_lambda: float,
    group_size: int,
    reward_type: str,
    normalize_advantages: bool,
    group_scores: str = "raw",
    all_reduce: AllReduce | None = None,
) -> AdvantageResult:
    """From rollout tensors to advantages and value targets, at the granularity of `reward_type`.

    Args:
        adv_type: gae, grpo or reinforce++.
        rewards: [T, B, chunk]; T policy calls of `chunk` actions each.
        values: [T+1, B, K] with K = chunk (action_level) or 1 (chunk_level); only gae reads them.
        dones: bool [T+1, B, chunk]; entry [t+1, b, c] says that action c of chunk t ended the episode. The
            front row stands for what was before the rollout.
        loss_mask: bool [T, B, chunk] or None (every step trains).
        gamma, gae_lambda: per step, that is per chunk at chunk level. grpo reads neither, reinforce++ gamma.
        group_size: consecutive columns that started alike; grpo needs >= 2, reinforce++ takes the group's
            mean as its baseline when > 1.
        normalize_advantages: gae, reinforce++: whiten over the selected steps of the batch; grpo: divide by
            the group's standard deviation.
        group_scores: grpo only; "raw", or "best_of_group" (the function of that name).
        all_reduce: sum over ranks when each holds a part of the batch (whole groups of it).

    Raises:
        ValueError: unknown name, shapes that do not fit, a group size that does not divide B.
    """
    estimator = lookup(ADVANTAGES, "adv_type", adv_type)
    rewards, dones, mask = chunk_rewards(rewards, dones, loss_mask, reward_type)
    calls, batch, width = rewards.shape
    if values is not None and adv_type == "gae" and values.shape != (calls + 1, batch, width):
        raise ValueError(
            f"values: reward_type {reward_type} expects [T+1, B, K] = {(calls + 1, batch, width)}, "
            f"got {tuple(values.shape)}; a value head with one value per chunk needs reward_type chunk_level"
        )
    steps = calls * width
    mask = torch.ones_like(rewards, dtype=torch.bool) if mask is None else mask
    advantages, returns = estimator(
        _Steps(
            rewards=_flatten(rewards),
            dones=_flatten(dones)[-(steps + 1) :],
            values=_flatten(values)[: steps + 1] if values is not None and adv_type == "gae" else None,
            loss_mask=_flatten(mask),
            gamma=gamma,
            gae_lambda=gae_lambda,
            group_size=group_size,
            normalize=normalize_advantages,
            group_scores=group_scores,
            all_reduce=all_reduce,
        )
    )

    def unflatten(x: Tensor) -> Tensor:
        return x.reshape(calls, width, batch).transpose(1, 2).contiguous()

    return AdvantageResult(
        advantages=unflatten(advantages),
        returns=None if returns is None else unflatten(returns),
        loss_mask=mask,
    )
