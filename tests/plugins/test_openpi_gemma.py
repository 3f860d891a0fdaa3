"""Gemma's parts with gradients of their own, against autograd's and torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from rlinf_openpi.network.gemma import Attention, RmsNorm, Rotary, _rms_norm
from torch import Tensor

WIDTH, HEADS, HEAD_DIM = 12, 4, 6


def random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()


def rotary(length: int, dtype: torch.dtype) -> Rotary:
    return Rotary.at(torch.arange(2, 2 + length)[None], HEAD_DIM, 100.0, dtype)


@pytest.mark.parametrize("weighted", [True, False])
def test_gradients_of_the_norm(weighted: bool) -> None:
    weight = random(WIDTH) if weighted else None
    assert torch.autograd.gradcheck(lambda *args: _rms_norm(*args, 1e-6), (random(2, 3, WIDTH), weight))


def test_gradients_of_the_rotation() -> None:
    turn = rotary(5, torch.float64)
    assert torch.autograd.gradcheck(turn.rotate, (random(2, 5, HEADS, HEAD_DIM),))


def test_the_norm_is_the_same_with_and_without_gradients() -> None:
    """A rollout's log-probabilities come from one, and training's from the other."""
    norm, x = RmsNorm(WIDTH, 1e-6), random(2, 3, WIDTH, dtype=torch.float32)
    torch.nn.init.normal_(norm.weight)
    with torch.no_grad():
        expected, inference = F.rms_norm(x, (WIDTH,), 1 + norm.weight, 1e-6), norm(x)
    assert torch.equal(norm(x), inference)
    torch.testing.assert_close(inference, expected)


def test_the_rotation_is_that_of_the_paper() -> None:
    x, turn = random(2, 5, HEADS, HEAD_DIM).detach(), rotary(5, torch.float64)
    assert torch.equal(turn.rotate(x), turn.rotate(x.clone().requires_grad_()))
    half = HEAD_DIM // 2
    angle = (torch.arange(2, 7).float()[:, None] * 100.0 ** -(torch.arange(half) / half))[:, None]
    turned = torch.polar(torch.ones_like(angle), angle) * torch.complex(x[..., :half], x[..., half:])
    torch.testing.assert_close(
        turn.rotate(x), torch.cat([turned.real, turned.imag], dim=-1), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("kv_heads", [1, 2, HEADS])
@pytest.mark.parametrize("masked", [True, False])
def test_heads_that_share_keys(kv_heads: int, masked: bool) -> None:
    """Against torch's own grouped attention; a mask says for each query of a token what it attends to."""
    attention, length = Attention(WIDTH, HEADS, kv_heads, HEAD_DIM), 5
    x, turn = random(2, length, WIDTH, dtype=torch.float32), rotary(length, torch.float32)
    kv = attention.keys_values(x, turn)
    mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None] if masked else None
    rows = None if mask is None else mask.repeat_interleave(HEADS // kv_heads, dim=2)
    q = turn.rotate(attention.q_proj(x).unflatten(-1, (HEADS, -1))).transpose(1, 2)
    out = F.scaled_dot_product_attention(q, kv.k, kv.v, attn_mask=mask, enable_gqa=True)
    expected = attention.o_proj(out.transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x, turn, kv, rows), expected)
