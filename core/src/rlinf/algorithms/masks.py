"""Masked reductions, and the masks and weights that decide which step trains and how much."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: Sums a tensor over the ranks that share a batch (`torch.distributed.all_reduce` wrapped); None: one rank.
AllReduce = Callable[[Tensor], Tensor]


def masked_mean(x: Tensor, mask: Tensor | None, normalizer: Tensor | float | None = None) -> Tensor:
    """`sum(x * mask) / normalizer`, a scalar; 0 (never NaN) where nothing counts.

    Args:
        x: any shape. What is masked out may be NaN or infinite.
        mask: bool, broadcasts against `x`; None counts everything.
        normalizer: what to divide by, in entries of `mask` *as given*; where `mask` broadcasts, every entry
            stands for `x.numel() / mask.numel()` elements and the divisor grows with it. Default: the local
            `mask.sum()`, which makes this the mean over the selected elements. Give the count of the whole
            batch, over all micro-batches and ranks, and the partial results add up to the batch's mean.
    """
    mask = x.new_ones(x.shape, dtype=torch.bool) if mask is None else mask
    count = mask.sum() if normalizer is None else torch.as_tensor(normalizer, device=x.device)
    selected = torch.where(mask, x, 0)
    elements = count.to(torch.float32).clamp(min=1) * (selected.numel() / max(mask.numel(), 1))
    return selected.sum() / elements


def normalize_masked(
    x: Tensor, mask: Tensor | None = None, eps: float = 1e-5, all_reduce: AllReduce | None = None
) -> Tensor:
    """`(x - mean) / (std + eps)` over the selected entries; the others become 0.

    The standard deviation is the unbiased one. Nothing selected gives zeros, a single entry gives 0.

    Args:
        x, mask: equal shapes; `mask` is bool or None (all).
        all_reduce: sums over the ranks, so that a batch sharded over them is whitened as one.
    """
    reduce = all_reduce or (lambda partial: partial)
    mask = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
    x = torch.where(mask, x.float(), 0)
    total, count = reduce(torch.stack([x.sum(), mask.sum().float()])).unbind()
    centered = torch.where(mask, x - total / count.clamp(min=1), 0)
    variance = reduce(centered.square().sum()) / (count - 1).clamp(min=1)
    return centered / (variance.sqrt() + eps)


def loss_mask_from_dones(dones: Tensor) -> tuple[Tensor, Tensor]:
    """Which steps train when an environment idles after its first episode (no auto-reset).

    Args:
        dones: bool [T+1, B, chunk]; entry [t+1, b, c] says that action c of chunk t ended the episode. Of the
            front row only the last entry is read: the episode was over before the first step.

    Returns:
        loss_mask: bool [T, B, chunk]; the step that ends the episode still counts, those after it do not.
        loss_mask_sum: float32 [T, B, chunk]; the trajectory's number of counting steps, at every entry.
    """
    steps, batch, chunk = dones.shape[0] - 1, dones.shape[1], dones.shape[2]
    over = dones.transpose(1, 2).reshape(-1, batch)[chunk - 1 : -1].cumsum(0) > 0
    mask = ~over.reshape(steps, chunk, batch).transpose(1, 2)
    return mask, mask.sum(dim=(0, 2), keepdim=True).float().expand_as(mask)


def loss_mask_from_valid_steps(valid_steps: Tensor, chunk: int) -> Tensor:
    """Which actions were executed when chunks stop at an episode's end: int [T, B] -> bool [T, B, chunk]."""
    return torch.arange(chunk, device=valid_steps.device) < valid_steps.unsqueeze(-1)


def episode_weights(
    loss_mask: Tensor, loss_mask_sum: Tensor, max_episode_steps: int, valid_fraction: float | None = None
) -> Tensor:
    """Weights under which every trajectory counts alike, however early it ended.

    A masked mean weighs a trajectory by its length. With these weights the same masked mean becomes
    `mean(x * mask * max_episode_steps / loss_mask_sum)` over all entries, masked ones included.

    Args:
        loss_mask, loss_mask_sum: equal shapes, as `loss_mask_from_dones` gives them.
        max_episode_steps: the longest possible trajectory, in the units of `loss_mask_sum`.
        valid_fraction: the share of entries selected in the *whole* batch, where this is a part of it.

    Returns:
        float32, shape of `loss_mask`, for `weights=` of the losses.
    """
    fraction = loss_mask.float().mean() if valid_fraction is None else valid_fraction
    return fraction * max_episode_steps / loss_mask_sum.float().clamp(min=1)


def group_reward_filter(scores: Tensor, lower: float, upper: float) -> Tensor:
    """DAPO's dynamic sampling (Yu et al. 2025, arXiv:2503.14476, section 3.2).

    A group whose members all fail or all succeed has no gradient; drop it.

    Args:
        scores: [groups, group_size], one score per trajectory.
        lower, upper: inclusive bounds of the group's mean score.

    Returns:
        bool [groups], True where the group is kept.
    """
    if lower > upper:
        raise ValueError(f"reward filter: lower bound {lower} is above the upper bound {upper}")
    mean = scores.float().mean(dim=-1)
    return (mean >= lower) & (mean <= upper)


def filter_groups(loss_mask: Tensor, scores: Tensor, group_size: int, lower: float, upper: float) -> Tensor:
    """`loss_mask` [T, B, ...] without the trajectories of the groups that `group_reward_filter` drops.

    `scores` [B]; a group is `group_size` consecutive columns.
    """
    keep = group_reward_filter(grouped(scores, group_size), lower, upper).repeat_interleave(group_size)
    return loss_mask & keep.reshape(1, -1, *[1] * (loss_mask.dim() - 2))


def grouped(scores: Tensor, group_size: int) -> Tensor:
    """[B] -> [B / group_size, group_size]; a group is `group_size` consecutive columns."""
    if group_size < 1 or scores.numel() % group_size:
        raise ValueError(
            f"group_size {group_size} does not divide the {scores.numel()} trajectories of the batch"
        )
    return scores.reshape(-1, group_size)


def highest(values: Tensor, mask: Tensor, fraction: float) -> Tensor:
    """The mask [S, K] without all but the highest `fraction` of the values [S, K] under it (at least one).

    With entropies: only the tokens where a policy decides train it (Wang et al. 2025, arXiv:2506.01939).
    """
    count = int(mask.sum())
    if count == 0:
        return mask
    kept = max(1, round(fraction * count))
    limit = values[mask].topk(kept).values[-1]
    return mask & (values >= limit)
