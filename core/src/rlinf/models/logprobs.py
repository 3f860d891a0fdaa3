"""Log-probabilities and entropies of categorical distributions, in float32 whatever the logits' dtype."""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

#: Logits that `linear_log_probs` holds at once: 32 MiB in float32.
_CHUNK_ELEMENTS: Final = 1 << 23


def log_probs_from_logits(logits: Tensor, targets: Tensor) -> Tensor:
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


def linear_log_probs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies under softmax(hidden @ weight.T / temperature), without the logits.

    Rows pass in chunks; backward computes their logits again. The numbers are those of
    `log_probs_from_logits` and `entropy_from_logits` on logits of the inputs' dtype.

    Args:
        hidden: [..., H]. weight: [V, H], the output embedding. targets: int64 [...].
        chunk_size: rows at once; None: as many as make 8 Mi logits.

    Returns:
        logprobs, entropy: float32 [...], both differentiable in `hidden` and `weight`.
    """
    if hidden.shape[:-1] != targets.shape:
        raise ValueError(
            f"targets: expected shape {tuple(hidden.shape[:-1])}, that of hidden; got {tuple(targets.shape)}"
        )
    rows = chunk_size or max(1, _CHUNK_ELEMENTS // weight.shape[0])
    logp, entropy = _LinearLogProbs.apply(
        hidden.reshape(-1, hidden.shape[-1]), weight, targets.reshape(-1), temperature, rows
    )
    return logp.view(targets.shape), entropy.view(targets.shape)


class _LinearLogProbs(torch.autograd.Function):
    """hidden [N,H], weight [V,H], targets [N] -> log-probabilities and entropies, float32 [N].

    With p = softmax(z): d logp_t / dz = onehot(t) - p and d entropy / dz = -p (log p + entropy).
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, rows: int
    ) -> tuple[Tensor, Tensor]:
        n = hidden.shape[0]
        out = hidden.new_empty((3, n), dtype=torch.float32)
        for start in range(0, n, rows):
            part = slice(start, start + rows)
            z = _scaled_logits(hidden[part], weight, temperature)
            normalizer = torch.logsumexp(z, dim=-1)
            out[0, part] = z.gather(-1, targets[part, None]).squeeze(-1) - normalizer
            z.sub_(normalizer[:, None])
            p = z.exp()
            out[1, part] = -p.mul_(z).sum(dim=-1)
            out[2, part] = normalizer
        logp, entropy, normalizer = out.unbind()
        ctx.save_for_backward(hidden, weight, targets, entropy, normalizer)
        ctx.temperature, ctx.rows = temperature, rows
        ctx.set_materialize_grads(False)
        return logp.clone(), entropy.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, entropy, normalizer = ctx.saved_tensors
        grad_logp, grad_entropy = grads
        if grad_logp is None:
            grad_logp = torch.zeros_like(entropy)
        to_hidden, to_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if to_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if to_weight else None
        for start in range(0, hidden.shape[0], ctx.rows):
            part = slice(start, start + ctx.rows)
            z = _scaled_logits(hidden[part], weight, ctx.temperature).sub_(normalizer[part, None])
            scale = grad_logp[part, None]
            if grad_entropy is not None:
                p = z.exp()
                scale = scale + grad_entropy[part, None] * (entropy[part, None] + z)
                dz = p.mul_(scale).neg_()
            else:
                dz = z.exp_().mul_(-scale)
            dz.scatter_add_(-1, targets[part, None], grad_logp[part, None])
            dz = dz.div_(ctx.temperature).to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(dz, weight, out=grad_hidden[part])
            if grad_weight is not None:
                _add_product(grad_weight, dz, hidden[part])
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None, None, None


def _scaled_logits(hidden: Tensor, weight: Tensor, temperature: float) -> Tensor:
    z = (hidden @ weight.t()).float()
    return z if temperature == 1.0 else z.div_(temperature)


def _add_product(total: Tensor, dz: Tensor, hidden: Tensor) -> None:
    """total += dz.T @ hidden, summed in float32."""
    if dz.dtype == torch.float32:
        total.addmm_(dz.t(), hidden)
    else:
        total.add_(dz.t() @ hidden)
