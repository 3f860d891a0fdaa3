"""Gemma's transformer block, plain (PaliGemma's language model) and adaptive (pi0.5's action expert).

A block returns the keys and values that it computed, and attends to those of tokens before its own. So the
language model and the action expert, which openpi runs side by side through one joint attention, run one
after the other: no prefix token attends to a suffix token, so the numbers are the same.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

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
    """A past at the beginning of a buffer; what comes next is written behind it, over what was there."""

    buffer: KeyValues
    length: int

    def extended(self, new: KeyValues) -> KeyValues:
        end = self.length + new.k.shape[2]
        self.buffer.k[:, :, self.length : end] = new.k
        self.buffer.v[:, :, self.length : end] = new.v
        return KeyValues(self.buffer.k[:, :, :end], self.buffer.v[:, :, :end])


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
            return F.rms_norm(x.float(), x.shape[-1:], 1 + self.weight.float(), self.eps).to(x.dtype)
        normed = F.rms_norm(x.float(), x.shape[-1:], None, self.eps)
        return torch.addcmul(modulation.shift.float(), normed, 1 + modulation.scale.float()).to(x.dtype)

    def modulation(self, cond: Tensor) -> Modulation:
        """Of conditions [B, cond_dim]."""
        return Modulation(*self.dense(cond)[:, None].chunk(3, dim=-1))


class Rotary(NamedTuple):
    """Rotary position embedding: cosines and sines [B or 1, 1, L, head_dim / 2] (Su et al. 2021)."""

    cos: Tensor
    sin: Tensor

    @staticmethod
    def at(positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> Rotary:
        """Of positions [B or 1, L]."""
        exponent = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
        angle = (positions.float()[..., None] * theta**-exponent)[:, None]
        return Rotary(angle.cos().to(dtype), angle.sin().to(dtype))

    def rotate(self, x: Tensor) -> Tensor:
        """x [B, heads, L, head_dim]; dimension i is paired with i + head_dim / 2."""
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * self.cos - b * self.sin, b * self.cos + a * self.sin], dim=-1)


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
        k, v = (
            proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for proj in (self.k_proj, self.v_proj)
        )
        return KeyValues(rotary.rotate(k), v)

    def forward(self, x: Tensor, rotary: Rotary, kv: KeyValues, mask: Tensor | None) -> Tensor:
        """x [B, L, width] attends to kv [B, kv_heads, M, head_dim].

        mask: bool (true attends) or added to the scores, [B or 1, 1, 1 or L, M]; None: all attend to all.
        """
        q = rotary.rotate(self.q_proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2))
        length, group = x.shape[1], self.heads // self.kv_heads
        # The query heads that share keys become further rows of queries: nothing is copied per head.
        q = q.reshape(-1, self.kv_heads, group * length, self.head_dim)
        if mask is not None and mask.shape[-2] > 1:
            mask = mask.repeat(1, 1, group, 1)
        out = F.scaled_dot_product_attention(q, kv.k, kv.v, attn_mask=mask)
        out = out.reshape(-1, self.heads, length, self.head_dim).transpose(1, 2).flatten(2)
        return self.o_proj(out)


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
