"""PPO's losses. Each is `sum(element * mask) / normalizer`, so parts of a batch add up to the batch.

The rule of `normalizer`, for every function here: it counts entries of `loss_mask` as given, over the *whole*
batch (all micro-batches, all ranks). The losses and metrics of the parts then sum to those of the batch,
exactly; a trainer whose gradients are averaged over ranks multiplies the loss by their number. Without it the
local count is taken, and the result is the mean over the part alone. Nothing selected gives 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from rlinf.algorithms.divergences import huber, kl_divergence
from rlinf.algorithms.levels import align, lookup, reduce_entropy, reduce_logprobs
from rlinf.algorithms.masks import masked_mean

Metrics = dict[str, Tensor]

#: Keeps exp finite in float32: where a clip cuts an infinite ratio off, its gradient would be 0 * inf.
_MAX_LOG_RATIO: Final = 80.0


def policy_loss(
    *,
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    loss_mask: Tensor | None,
    clip_ratio_low: float,
    clip_ratio_high: float,
    clip_ratio_c: float | None = None,
    clip_log_ratio: float | tuple[float, float] | None = None,
    weights: Tensor | None = None,
    normalizer: Tensor | float | None = None,
) -> tuple[Tensor, Metrics]:
    """PPO's clipped surrogate (Schulman et al. 2017, arXiv:1707.06347, equation 7).

    loss = mean max(-A r, -A clip(r, 1 - low, 1 + high)), r = exp(logprobs - old_logprobs)

    Args:
        logprobs, old_logprobs: equal shapes, any; one ratio per element.
        advantages, loss_mask (bool or None), weights (or None): broadcast against `logprobs`. Where they do,
            the mean is still that over elements: an entry of the mask stands for all that it covers.
        clip_ratio_low, clip_ratio_high: asymmetric clip (DAPO, Yu et al. 2025, arXiv:2503.14476).
        clip_ratio_c: dual clip for A < 0 (Ye et al. 2020, arXiv:1912.09729): loss <= c |A|; c > 1.
        clip_log_ratio: clamps log r to [-b, b], or to a pair of bounds; outside, the gradient is 0.
        weights: per-entry weights of the loss (`episode_weights`); metrics stay unweighted.
        normalizer: see the module.

    Returns:
        scalar loss and metrics: actor/policy_loss, ratio, approx_kl (k1: mean of -log r; can be negative),
        approx_kl_k3 (never negative, before clip_log_ratio; the one to stop on), clip_fraction,
        dual_clip_fraction, dual_clipped_ratio (mean of r where the dual clip acts, 0 elsewhere).
    """
    if clip_ratio_c is not None and clip_ratio_c <= 1:
        raise ValueError(
            f"clip_ratio_c: expected > 1 (it bounds the loss at c * |advantage|), got {clip_ratio_c}"
        )
    logprobs, old_logprobs, advantages = logprobs.float(), old_logprobs.float(), advantages.float()
    mask = torch.ones_like(logprobs, dtype=torch.bool) if loss_mask is None else loss_mask
    # Masked before exp: what does not count may hold anything and must send back zeros, not NaN.
    raw_log_ratio = torch.where(mask, logprobs - old_logprobs, 0)
    log_ratio = raw_log_ratio
    if clip_log_ratio is not None:
        low, high = clip_log_ratio if isinstance(clip_log_ratio, tuple) else (-clip_log_ratio, clip_log_ratio)
        log_ratio = log_ratio.clamp(low, high)
    ratio = log_ratio.clamp(max=_MAX_LOG_RATIO).exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_ratio_low, 1 + clip_ratio_high)
    loss = torch.maximum(unclipped, clipped)
    is_dual = torch.zeros_like(mask)
    if clip_ratio_c is not None:
        bound = clip_ratio_c * advantages.abs()
        is_dual = bound < loss.detach()
        loss = torch.minimum(loss, bound)
    mean = partial(masked_mean, mask=mask, normalizer=normalizer)
    total = mean(loss if weights is None else loss * weights)
    with torch.no_grad():
        metrics = {
            "actor/policy_loss": total.detach(),
            "actor/ratio": mean(ratio),
            "actor/approx_kl": mean(-log_ratio),
            "actor/approx_kl_k3": mean(kl_divergence(-raw_log_ratio, torch.zeros_like(ratio), "k3")),
            "actor/clip_fraction": mean((unclipped < clipped).float()),
            "actor/dual_clip_fraction": mean(is_dual.float().expand_as(ratio)),
            "actor/dual_clipped_ratio": mean(torch.where(is_dual, ratio, 0)),
        }
    return total, metrics


def value_loss(
    *,
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    loss_mask: Tensor | None,
    value_clip: float | None,
    huber_delta: float,
    weights: Tensor | None = None,
    normalizer: Tensor | float | None = None,
) -> tuple[Tensor, Metrics]:
    """Huber loss of the critic with PPO's value clip.

    loss = mean max(huber(R - V), huber(R - V')) with V' = V_old + clip(V - V_old, -value_clip, value_clip)

    Args:
        values, old_values, returns: equal shapes.
        loss_mask (bool or None), weights (or None): broadcast against them.
        value_clip: None: no clipping.
        huber_delta: where the penalty turns linear.
        normalizer: see the module.

    Returns:
        scalar loss and metrics: critic/value_loss, critic/value_clip_ratio (the share of |V - V_old| >
        value_clip) and the moments from which `finish_metrics` makes critic/explained_variance.
    """
    values, old_values, returns = values.float(), old_values.float(), returns.float()
    mask = torch.ones_like(values, dtype=torch.bool) if loss_mask is None else loss_mask
    error = torch.where(mask, returns - values, 0)
    loss, is_clipped = huber(error, huber_delta), torch.zeros_like(error)
    if value_clip is not None:
        update = torch.where(mask, values - old_values, 0)
        clipped = returns - old_values - update.clamp(-value_clip, value_clip)
        loss = torch.maximum(loss, huber(clipped, huber_delta))
        is_clipped = (update.detach().abs() > value_clip).float()
    mean = partial(masked_mean, mask=mask, normalizer=normalizer)
    total = mean(loss if weights is None else loss * weights)
    with torch.no_grad():
        metrics = {
            "critic/value_loss": total.detach(),
            "critic/value_clip_ratio": mean(is_clipped),
            "critic/returns_mean": mean(returns),
            "critic/returns_square": mean(returns.square()),
            "critic/error_mean": mean(error),
            "critic/error_square": mean(error.square()),
        }
    return total, metrics


def finish_metrics(metrics: Metrics) -> Metrics:
    """Metrics summed over the parts of a batch -> metrics to show.

    The second moments, which add up over parts where a variance does not, become critic/explained_variance =
    1 - Var(R - V) / Var(R): 1 for a perfect critic, 0 for a constant one, 0 too when all returns are equal.
    """
    out = dict(metrics)
    if "critic/returns_square" not in out:
        return out
    error = out.pop("critic/error_square") - out.pop("critic/error_mean").square()
    spread = out.pop("critic/returns_square") - out["critic/returns_mean"].square()
    # Below float32's resolution of the squares the difference is rounding, not variance.
    known = spread > 1e-6 * metrics["critic/returns_square"]
    out["critic/explained_variance"] = torch.where(known, 1 - error / spread.where(known, 1), 0)
    return out


def ppo_loss(
    *,
    loss_type: str,
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    loss_mask: Tensor | None,
    logprob_type: str,
    reward_type: str,
    clip_ratio_low: float,
    clip_ratio_high: float,
    clip_ratio_c: float | None = None,
    clip_log_ratio: float | tuple[float, float] | None = None,
    values: Tensor | None = None,
    old_values: Tensor | None = None,
    returns: Tensor | None = None,
    value_clip: float | None = None,
    huber_delta: float = 10.0,
    value_coef: float = 0.5,
    entropy: Tensor | None = None,
    entropy_bonus: float = 0.0,
    ref_logprobs: Tensor | None = None,
    kl_beta: float = 0.0,
    kl_type: str = "k3",
    weights: Tensor | None = None,
    behavior_logprobs: Tensor | None = None,
    behavior_weight_cap: float = 5.0,
    normalizer: Tensor | float | None = None,
) -> tuple[Tensor, Metrics]:
    """policy + value_coef * value - entropy_bonus * entropy + kl_beta * KL(policy || reference).

    Args:
        loss_type: actor_critic; actor leaves the value term out (and reads none of its tensors).
        logprobs, old_logprobs, ref_logprobs: [M, chunk, dim], per token; `logprob_type` says how many tokens
            share a ratio (`reduce_logprobs`).
        advantages, returns, values, old_values, loss_mask, weights: [M, K], with K = chunk at `reward_type`
            action_level and K = 1 at chunk_level.
        entropy: per token [M, chunk, dim] or per chunk [M, 1]; reported when given, needed by entropy_bonus.
        behavior_logprobs: [M, chunk, dim] of the policy that acted, where that is another than the one of
            `old_logprobs`, around which the clip is (the proximal policy). Decoupled PPO (Hilton et al. 2022,
            arXiv:2110.00641; Fu et al. 2025, arXiv:2505.24298): the policy's loss is weighted by
            exp(old - behavior), at most `behavior_weight_cap`, per ratio.
        normalizer: entries of `loss_mask` in the whole batch; see the module.
        The rest: `policy_loss`, `value_loss`, `kl_divergence`.

    Returns:
        scalar loss, and metrics that add up over parts like the loss does (then `finish_metrics`).

    Raises:
        ValueError: unknown name, shapes that do not fit, a term asked for without its tensor.
    """
    lookup(LOSSES, "loss_type", loss_type)
    new, old = reduce_logprobs(logprobs, logprob_type), reduce_logprobs(old_logprobs, logprob_type)
    width = logprobs.shape[1] if lookup(_REWARD_WIDTH, "reward_type", reward_type) else 1
    mask = torch.ones_like(advantages, dtype=torch.bool) if loss_mask is None else loss_mask
    _check_shapes(
        (logprobs.shape[0], width), reward_type, advantages=advantages, loss_mask=mask, weights=weights
    )
    element_mask = align(mask, new)
    policy_weights = None if weights is None else align(weights, new)
    stale: Metrics = {}
    if behavior_logprobs is not None:
        behavior = reduce_logprobs(behavior_logprobs, logprob_type)
        log_weight = torch.where(element_mask, (old - behavior).float(), 0)
        importance = log_weight.clamp(max=_MAX_LOG_RATIO).exp().clamp(max=behavior_weight_cap).detach()
        stale["actor/behavior_weight"] = masked_mean(importance, element_mask, normalizer)
        policy_weights = importance if policy_weights is None else importance * policy_weights
    loss, metrics = policy_loss(
        logprobs=new,
        old_logprobs=old,
        advantages=align(advantages, new),
        loss_mask=element_mask,
        clip_ratio_low=clip_ratio_low,
        clip_ratio_high=clip_ratio_high,
        clip_ratio_c=clip_ratio_c,
        clip_log_ratio=clip_log_ratio,
        weights=policy_weights,
        normalizer=normalizer,
    )
    metrics |= stale
    if loss_type == "actor_critic":
        critic = _given("loss_type actor_critic", values=values, old_values=old_values, returns=returns)
        _check_shapes((logprobs.shape[0], width), reward_type, **critic)
        value, value_metrics = value_loss(
            **critic,
            loss_mask=mask,
            value_clip=value_clip,
            huber_delta=huber_delta,
            weights=weights,
            normalizer=normalizer,
        )
        loss, metrics = loss + value_coef * value, metrics | value_metrics
    if entropy_bonus:
        _given("entropy_bonus", entropy=entropy)
    if entropy is not None:
        mean_entropy = masked_mean(
            reduce_entropy(entropy, logprob_type, logprobs.shape), element_mask, normalizer
        )
        metrics["actor/entropy"] = mean_entropy.detach()
        loss = loss - entropy_bonus * mean_entropy
    if kl_beta:
        reference = _given("kl_beta", ref_logprobs=ref_logprobs)["ref_logprobs"]
        kl = reduce_logprobs(kl_divergence(logprobs, reference, kl_type), logprob_type)
        mean_kl = masked_mean(kl, element_mask, normalizer)
        metrics["actor/kl_ref"] = mean_kl.detach()
        loss = loss + kl_beta * mean_kl
    return loss, metrics | {"actor/loss": loss.detach()}


#: reward_type -> whether every action of a chunk is a step of its own.
_REWARD_WIDTH: Final = {"action_level": True, "chunk_level": False}

#: `loss_type` -> loss with the keywords of `ppo_loss`.
LOSSES: Final[dict[str, Callable[..., tuple[Tensor, Metrics]]]] = {
    "actor_critic": partial(ppo_loss, loss_type="actor_critic"),
    "actor": partial(ppo_loss, loss_type="actor"),
}


def loss_over_transitions(
    loss: Callable[..., tuple[Tensor, Metrics]],
    *,
    logprobs: Tensor,
    old_logprobs: Tensor,
    discounts: Sequence[float],
    clips: Sequence[float],
    advantages: Tensor,
    clip_ratio_low: float,
    clip_ratio_high: float,
    **rest: Any,
) -> tuple[Tensor, Metrics]:
    """The mean of `loss` over S transitions that led to one action, each with a ratio of its own.

    For policies that denoise (DPPO, Ren et al. 2024, arXiv:2409.00588, section 4): the product of all ratios
    would be clipped after the smallest update.

    Args:
        loss: of `LOSSES`. logprobs, old_logprobs: [M, S, chunk, dim].
        discounts: S numbers; transition s has the advantage `advantages * discounts[s]`.
        clips: S numbers; its clip is `clip_ratio_low * clips[s]`, `clip_ratio_high * clips[s]`.
        rest: as for `loss`, the same for every transition.

    Returns:
        scalar loss and metrics, as `loss` does.
    """
    found = [
        loss(
            logprobs=logprobs[:, s],
            old_logprobs=old_logprobs[:, s],
            advantages=advantages * discount,
            clip_ratio_low=clip_ratio_low * clip,
            clip_ratio_high=clip_ratio_high * clip,
            **rest,
        )
        for s, (discount, clip) in enumerate(zip(discounts, clips, strict=True))
    ]
    metrics = {name: torch.stack([m[name] for _, m in found]).mean(dim=0) for name in found[0][1]}
    return torch.stack([term for term, _ in found]).mean(), metrics


def _given(by: str, **tensors: Tensor | None) -> dict[str, Tensor]:
    missing = [name for name, tensor in tensors.items() if tensor is None]
    if missing:
        raise ValueError(f"{by} needs {', '.join(missing)}; the policy gave none")
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def _check_shapes(shape: tuple[int, int], reward_type: str, **tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and tensor.shape != shape:
            raise ValueError(
                f"{name}: reward_type {reward_type} expects [M, K] = {shape}, got {tuple(tensor.shape)}"
            )
