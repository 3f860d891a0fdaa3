"""Divergences between policies, and the Huber penalty."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch.nn.functional as F
from torch import Tensor

from rlinf.algorithms.levels import lookup

#: Bounds of the k3 estimator: |log ratio| and the estimate itself; one odd token must not own the gradient.
_K3_LOG_RATIO: Final = 20.0
_K3_MAX: Final = 10.0


def _k3(log_ratio: Tensor) -> Tensor:
    reverse = (-log_ratio).clamp(-_K3_LOG_RATIO, _K3_LOG_RATIO)
    return (reverse.exp() - reverse - 1).clamp(max=_K3_MAX)


#: Estimator of KL(policy || reference) per sample, as a function of log policy - log reference.
KL_ESTIMATORS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "k1": lambda log_ratio: log_ratio,
    "abs": lambda log_ratio: log_ratio.abs(),
    "k2": lambda log_ratio: 0.5 * log_ratio.square(),
    "k3": _k3,
}


def kl_divergence(logprob: Tensor, ref_logprob: Tensor, kind: str) -> Tensor:
    """Per-sample estimate of KL(policy || reference) from samples of the policy, float32, input's shape.

    J. Schulman, "Approximating KL divergence" (2020), with r = reference / policy: k1 = -log r is unbiased
    and can be negative; k2 = (log r)^2 / 2; k3 = r - 1 - log r is unbiased and never negative (log r is
    clamped to +-20, the estimate to 10); abs = |log r|.
    """
    return lookup(KL_ESTIMATORS, "kl_type", kind)(logprob.float() - ref_logprob.float())


def huber(x: Tensor, delta: float) -> Tensor:
    """Huber (1964): x^2 / 2 up to |x| = delta, then delta * (|x| - delta / 2). Element-wise."""
    return F.huber_loss(x, x.new_zeros(()).expand_as(x), reduction="none", delta=delta)
