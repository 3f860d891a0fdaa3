"""Gemma's transformer block, plain (PaliGemma's language model) and adaptive (pi0.5's action expert).

A block returns the keys and values that it computed, and attends to those of tokens before its own. So the
language model and the action expert, which openpi runs side by side through one joint attention, run one
after the other: no prefix token attends to a suffix token, so the numbers are the same.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class KeyValues(NamedTuple):
    """Keys and values [B, kv_heads, L, head_dim] of one layer."""

    k: Tensor
    v: Tensor


class Past(Protocol):
    """Keys and values of the tokens before those that a block is given."""

    def extended(self, new: KeyValues) -> KeyValues:
        """Those keys and values followed by `new`."""


class Concatenated(NamedTuple):
    """A past that joins by concatenation; gradients flow through it."""

    kv: KeyValues

    def extended(self, new: KeyValues) -> KeyValues:
        return KeyValues(torch.cat([self.kv.k, new.k], dim=2), torch.cat([self.kv.v, new.v], dim=2))


class Preallocated(NamedTuple):
    """A past at the beginning of a buffer; what comes next is written behind it, over what was there.

    whole: the past and the place behind it. place: that place, as long as what comes next.
    """

    whole: KeyValues
    place: KeyValues

    @staticmethod
    def behind(buffer: KeyValues, length: int, room: int) -> Preallocated:
        """With the first `length` tokens of a buffer as the past, and `room` tokens behind them."""
        whole = KeyValues(*(x[:, :, : length + room] for x in buffer))
        return Preallocated(whole, KeyValues(*(x[:, :, length:] for x in whole)))

    def extended(self, new: KeyValues) -> KeyValues:
        self.place.k.copy_(new.k)
        self.place.v.copy_(new.v)
        return self.whole


class Modulation(NamedTuple):
    """What an adaptive norm does at one time of the flow: each [B or 1, 1, width]."""

    scale: Tensor
    shift: Tensor
    gate: Tensor


#: Of a block: for the norm before attention, and for the one before the MLP; (None, None) in a plain block.
BlockModulation = tuple[Modulation, Modulation] | tuple[None, None]


class RmsNorm(nn.Module):
    """Gemma's RMS norm with scale (1 + w), or with `cond_dim` pi0.5's adaptive one; float32 inside."""

    def __init__(self, width: int, eps: float, cond_dim: int | None = None) -> None:
        super().__init__()
        self.eps = eps
        if cond_dim is None:
            self.weight = nn.Parameter(torch.zeros(width))
        else:
            self.dense = nn.Linear(cond_dim, 3 * width)
            nn.init.zeros_(self.dense.weight)  # as openpi: at first the time modulates nothing

    def forward(self, x: Tensor, modulation: Modulation | None = None) -> Tensor:
        if modulation is None:
            return _rms_norm(x.float(), self.weight.float(), self.eps).to(x.dtype)
        normed = _rms_norm(x.float(), None, self.eps)
        return torch.addcmul(modulation.shift.float(), normed, 1 + modulation.scale.float()).to(x.dtype)

    def modulation(self, cond: Tensor) -> Modulation:
        """Of conditions [B, cond_dim]."""
        return Modulation(*self.dense(cond)[:, None].chunk(3, dim=-1))


def _rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """float32 [..., width] divided by the root of its mean square, times 1 + weight."""
    if x.is_cuda:  # the only device for which torch has it, and its gradient, in one kernel
        return F.rms_norm(x, x.shape[-1:], None if weight is None else 1 + weight, eps)
    if torch.is_grad_enabled():
        return _RmsNorm.apply(x, weight, eps)
    y, _ = _normalized(x, eps)
    return y if weight is None else torch.addcmul(y, y, weight)


def _normalized(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """y = r x and r = (mean x² + eps)^-1/2, [..., 1]."""
    width = x.shape[-1]
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    factor = norm.square_().div_(width).add_(eps).rsqrt_()
    return x * factor, factor


class _RmsNorm(torch.autograd.Function):
    """Where g is the gradient of y = r x, that of x is r (g - y mean(g y)): x itself need not be kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        y, factor = _normalized(x, eps)
        ctx.save_for_backward(y, factor, weight)
        return y if weight is None else torch.addcmul(y, y, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        y, factor, weight = ctx.saved_tensors
        of_weight = None
        if weight is not None:
            of_weight = (grad * y).flatten(0, -2).sum(dim=0)
            grad = torch.addcmul(grad, grad, weight)
        along = torch.linalg.vecdot(grad, y)[..., None] / y.shape[-1]
        return torch.addcmul(grad, y, along, value=-1).mul_(factor), of_weight, None


class Rotary(NamedTuple):
    """Rotary position embedding (Su et al. 2021).

    cos: [B or 1, L, 1, head_dim], the cosines twice. sin: [B or 1, L, 1, head_dim / 2].
    """

    cos: Tensor
    sin: Tensor

    @staticmethod
    def at(positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> Rotary:
        """Of positions [B or 1, L]."""
        exponent = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
        angle = (positions.float()[..., None] * theta**-exponent)[:, :, None]
        return Rotary(angle.cos().repeat(1, 1, 1, 2).to(dtype), angle.sin().to(dtype))

    def rotate(self, x: Tensor) -> Tensor:
        """x [B, L, heads, head_dim]; dimension i is paired with i + head_dim / 2."""
        rotate = _Rotate.apply if torch.is_grad_enabled() else _rotated
        return rotate(x, self.cos, self.sin)


class _Rotate(torch.autograd.Function):
    """Its gradient is the rotation by the opposite angle: nothing of x is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotated(grad, cos, -sin), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    out = x * cos
    (a, b), (out_a, out_b) = x.chunk(2, dim=-1), out.chunk(2, dim=-1)
    out_a.addcmul_(b, sin, value=-1)
    out_b.addcmul_(a, sin)
    return out


class Attention(nn.Module):
    """Attention with fewer key-value heads than query heads."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.q_proj = nn.Linear(width, heads * head_dim, bias=False)
        self.k_proj = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(heads * head_dim, width, bias=False)

    def keys_values(self, x: Tensor, rotary: Rotary) -> KeyValues:
        k, v = (proj(x).unflatten(-1, (self.kv_heads, -1)) for proj in (self.k_proj, self.v_proj))
        return KeyValues(rotary.rotate(k).transpose(1, 2), v.transpose(1, 2))

    def forward(self, x: Tensor, rotary: Rotary, kv: KeyValues, mask: Tensor | None) -> Tensor:
        """x [B, L, width] attends to kv [B, kv_heads, M, head_dim].

        mask: bool (true attends) or added to the scores, [B or 1, 1, 1 or rows, M], where the rows are the
        queries of each token (`heads / kv_heads` of them), token by token; None: all attend to all.
        """
        length, group = x.shape[1], self.heads // self.kv_heads
        q = rotary.rotate(self.q_proj(x).unflatten(-1, (self.heads, -1)))
        # The query heads that share keys become further rows of queries: nothing is copied per head, and
        # nothing is transposed where all share them.
        q = q.unflatten(2, (self.kv_heads, group)).transpose(1, 2).flatten(2, 3)
        out = F.scaled_dot_product_attention(q, kv.k, kv.v, attn_mask=mask)
        return self.o_proj(out.unflatten(2, (length, group)).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Gated MLP with tanh-GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x))


class GemmaBlock(nn.Module):
    """One layer: attention and MLP, each behind an RMS norm and, where adaptive, before a gate."""

    def __init__(
        self,
        *,
        width: int,
        mlp_dim: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        eps: float,
        cond_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.adaptive = cond_dim is not None
        self.input_layernorm = RmsNorm(width, eps, cond_dim)
        self.self_attn = Attention(width, heads, kv_heads, head_dim)
        self.post_attention_layernorm = RmsNorm(width, eps, cond_dim)
        self.mlp = Mlp(width, mlp_dim)

    def modulation(self, cond: Tensor) -> BlockModulation:
        """Of conditions [B, cond_dim]."""
        return self.input_layernorm.modulation(cond), self.post_attention_layernorm.modulation(cond)

    def forward(
        self,
        x: Tensor,
        rotary: Rotary,
        *,
        mask: Tensor | None = None,
        past: Past | None = None,
        cond: Tensor | None = None,
        modulation: BlockModulation = (None, None),
        keys_values_only: bool = False,
    ) -> tuple[Tensor, KeyValues]:
        """The layer's output [B, L, width], and the keys and values of these tokens.

        cond [B, cond_dim] or its `modulation`, for an adaptive block. keys_values_only: leave out what later
        layers would need; the output is then the input.
        """
        if cond is not None:
            modulation = self.modulation(cond)
        first, second = modulation
        hidden = self.input_layernorm(x, first)
        new = self.self_attn.keys_values(hidden, rotary)
        if keys_values_only:
            return x, new
        kv = new if past is None else past.extended(new)
        x = _add(x, self.self_attn(hidden, rotary, kv, mask), first)
        return _add(x, self.mlp(self.post_attention_layernorm(x, second)), second), new


def _add(x: Tensor, branch: Tensor, modulation: Modulation | None) -> Tensor:
    return x + branch if modulation is None else torch.addcmul(x, branch, modulation.gate.to(x.dtype))
