"""The fused linear -> log-probability -> entropy against the plain computation."""

from __future__ import annotations

import pytest
import torch
from rlinf.models.logprobs import entropy_from_logits, linear_log_probs, log_probs_from_logits
from torch.testing import assert_close


def inputs(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 11, 16, generator=g).to(dtype).requires_grad_()
    weight = torch.randn(307, 16, generator=g).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(307, (3, 11), generator=g)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("with_entropy", [True, False])
def test_values_and_gradients_are_those_of_the_logits(temperature: float, with_entropy: bool) -> None:
    hidden, weight, targets = inputs(torch.float32)
    logits = hidden @ weight.t() / temperature
    plain = log_probs_from_logits(logits, targets), entropy_from_logits(logits)
    fused = linear_log_probs(hidden, weight, targets, temperature=temperature, chunk_size=4)
    assert_close(fused[0], plain[0], atol=1e-5, rtol=1e-5)
    assert_close(fused[1], plain[1], atol=1e-5, rtol=1e-5)
    scale = torch.linspace(-1, 1, 33).view(3, 11)

    def gradients(pair: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        loss = (pair[0] * scale).sum() + (0.3 * pair[1].square().sum() if with_entropy else 0)
        return torch.autograd.grad(loss, (hidden, weight))

    for ours, theirs in zip(gradients(fused), gradients(plain)):
        assert_close(ours, theirs, atol=2e-4, rtol=1e-4)


def test_a_frozen_embedding_gets_no_gradient_and_bf16_is_summed_in_float32() -> None:
    hidden, weight, targets = inputs(torch.bfloat16)
    logp, _ = linear_log_probs(hidden, weight.detach(), targets, chunk_size=5)
    assert logp.dtype == torch.float32
    assert_close(logp, log_probs_from_logits(hidden @ weight.t(), targets), atol=1e-5, rtol=1e-5)
    logp.sum().backward()
    assert weight.grad is None
    assert hidden.grad is not None and hidden.grad.dtype == torch.bfloat16


def test_shapes_that_do_not_fit_are_named() -> None:
    hidden, weight, targets = inputs(torch.float32)
    with pytest.raises(ValueError, match=r"expected shape \(3, 11\), that of hidden; got \(3, 10\)"):
        linear_log_probs(hidden, weight, targets[:, :10])
