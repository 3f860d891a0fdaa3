"""Log-probabilities and entropies of categorical distributions, in float32 whatever the logits' dtype."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def logprobs_from_logits(logits: Tensor, targets: Tensor) -> Tensor:
    """log softmax(logits)[targets].

    Args:
        logits: [..., V], any float dtype; -inf bars a class.
        targets: int64 [...], each in [0, V); there is no ignore index, mask the result instead.

    Returns:
        float32 [...]; -inf for a barred target.
    """
    logp = F.log_softmax(logits, dim=-1, dtype=torch.float32)
    return logp.gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def entropy_from_logits(logits: Tensor) -> Tensor:
    """Entropy in nats of softmax(logits) over the last axis: [..., V] -> float32 [...].

    0 * log 0 = 0, in the value and in the gradient: barred classes (-inf) get gradient 0, not NaN.
    """
    logp = F.log_softmax(logits, dim=-1, dtype=torch.float32)
    p = logp.exp()
    # The fill must happen before the product: a `where` around p * logp still sends 0 * -inf backwards.
    return -(p * logp.masked_fill(p == 0, 0)).sum(dim=-1)
