"""Draws, and the distributions that rollout and training share. Each sample may bring its own generator."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def randn_per_sample(
    shape: Sequence[int], generators: Sequence[torch.Generator] | None, device: torch.device | str
) -> Tensor:
    """Standard normal float32 `shape`; row i comes from generators[i] alone.

    Raises ValueError when there are not exactly `shape[0]` generators.
    """
    if generators is None:
        return torch.randn(*shape, device=device)
    _check_generators(shape[0], generators)
    rows = [torch.randn(*shape[1:], generator=g, device=g.device) for g in generators]
    return torch.stack(rows).to(device)


def rand_per_sample(
    shape: Sequence[int], generators: Sequence[torch.Generator] | None, device: torch.device | str
) -> Tensor:
    """Uniform [0, 1) float32 `shape`; row i comes from generators[i] alone."""
    if generators is None:
        return torch.rand(*shape, device=device)
    _check_generators(shape[0], generators)
    rows = [torch.rand(*shape[1:], generator=g, device=g.device) for g in generators]
    return torch.stack(rows).to(device)


def generators_of(*seen: Tensor) -> list[torch.Generator]:
    """One generator per sample, seeded by its rows of what the policy sees, [B, ...] each.

    An evaluation of a policy that needs noise is deterministic with them, and does not stand or fall with one
    draw, as it would if all samples and steps began with the same noise.
    """
    seeds = [0] * len(seen[0])
    for tensor in seen:
        rows = tensor.cpu().numpy()
        seeds = [zlib.crc32(row.tobytes(), seed) for row, seed in zip(rows, seeds, strict=True)]
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def _check_generators(batch: int, generators: Sequence[torch.Generator]) -> None:
    if len(generators) != batch:
        raise ValueError(f"generators: expected one per sample ({batch}), got {len(generators)}")


def gaussian_logprobs(actions: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log-density of independent normals, float32, of the broadcast shape."""
    mean, log_std = mean.float(), log_std.float()
    return -0.5 * ((actions.float() - mean) * torch.exp(-log_std)).square() - log_std - _HALF_LOG_2PI


def gaussian_entropy(log_std: Tensor) -> Tensor:
    """Entropy of a normal in nats, float32: log std + (1 + log 2 pi) / 2."""
    return log_std.float() + 0.5 + _HALF_LOG_2PI


def filter_logits(
    logits: Tensor, *, temperature: float = 1.0, top_k: int | None = None, mask: Tensor | None = None
) -> Tensor:
    """The log-probabilities from which actions are drawn; training recomputes with the same call.

    Classes outside `mask` are barred first, so that top-k counts only permitted ones.

    Args:
        logits: [..., V], any float dtype.
        temperature: > 0; logits are divided by it.
        top_k: keep the k largest (ties at the k-th are kept); None keeps all.
        mask: bool, broadcastable to [..., V]; True is permitted, at least one per row.

    Returns:
        float32 [..., V] log-probabilities; -inf for barred classes.
    """
    if not temperature > 0:
        raise ValueError(f"temperature: expected > 0 (mode='eval' takes the arg-max), got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k: expected >= 1 or None, got {top_k}")
    scores = logits.float() / temperature
    if mask is not None:
        if not bool(mask.any(dim=-1).all()):
            raise ValueError("mask: a row permits no class")
        scores = scores.masked_fill(~mask, -math.inf)
    if top_k is not None and top_k < scores.shape[-1]:
        kth = scores.topk(top_k, dim=-1).values[..., -1:]
        scores = scores.masked_fill(scores < kth, -math.inf)
    return F.log_softmax(scores, dim=-1)


def categorical_per_sample(logp: Tensor, generators: Sequence[torch.Generator] | None) -> Tensor:
    """Draw from log-probabilities [B, ..., V] -> int64 [B, ...], by the Gumbel-max trick.

    The noise is drawn for every class, barred or not: changing the filter does not shift later draws.
    """
    return (logp + gumbel_per_sample(logp.shape, generators, logp.device)).argmax(dim=-1)


def gumbel_per_sample(
    shape: Sequence[int], generators: Sequence[torch.Generator] | None, device: torch.device | str
) -> Tensor:
    """Standard Gumbel noise, float32 `shape`; row i comes from generators[i] alone."""
    uniform = rand_per_sample(shape, generators, device)
    # Uniform draws can be exactly 0, whose Gumbel value would be -inf and tie with the barred classes.
    return -torch.log(-torch.log(uniform.clamp(min=1e-20, max=1 - 1e-7)))
