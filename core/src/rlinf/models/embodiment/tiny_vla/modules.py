"""Parts of tiny_vla. Written with torch's own attention: at this size Python overhead is what costs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlinf.models.embodiment.modules.spatial import SHARPNESS, fourier_coordinates, soft_argmax


class TextEncoder(nn.Module):
    """Hashed words -> token embeddings [B, L, dim] and a summary of the instruction [B, dim].

    Each word is the sum of two rows of a small table, chosen by two parts of its hash (Svenstrup et al.
    2017, "Hash Embeddings"): two words collide only if both rows do, once in rows^2 pairs.
    """

    _fsdp_wrap_name = "text_encoder"

    def __init__(self, dim: int, rows: int, max_tokens: int) -> None:
        super().__init__()
        self.rows = rows
        self.table = nn.Embedding(2 * rows, dim)
        self.position = nn.Parameter(torch.randn(max_tokens, dim) * 0.5)
        self.norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        first = tokens % self.rows
        second = self.rows + (tokens // self.rows) % self.rows
        words = self.table(torch.stack([first, second], dim=-1)).sum(dim=-2)
        # The MLP sees word and place together, so that the mean still knows the order of the words.
        words = self.norm(words + self.position[: words.shape[1]])
        words = words + self.mlp(words)
        weight = mask.unsqueeze(-1).to(words.dtype)
        return words, (words * weight).sum(dim=1) / weight.sum(dim=1)


class Stem(nn.Module):
    """Images uint8 [B, H, W, 3] -> tokens [B, H/16 * W/16 + 1, dim]: patches marked with their 2-D
    coordinates, and one token of key points.

    The convolutions are modulated by the instruction (FiLM, Perez et al. 2018), so that a channel can look
    for what the instruction names. A key point is where a channel of the stride-8 map is strongest (spatial
    soft-argmax, Levine et al. 2016): attention alone finds positions as well, but needs several times as
    many samples to learn it.
    """

    _fsdp_wrap_name = "stem"

    def __init__(self, dim: int, channels: tuple[int, int], frequencies: int = 4) -> None:
        super().__init__()
        first, second = channels
        self.conv1 = nn.Conv2d(3, first, 5, stride=2, padding=2)
        self.conv2 = nn.Conv2d(first, second, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(second, dim, 3, stride=2, padding=1)
        self.merge = nn.Conv2d(dim, dim, 2, stride=2)
        self.film = nn.Linear(dim, 2 * (second + dim))
        nn.init.normal_(self.film.weight, std=0.02)
        nn.init.zeros_(self.film.bias)
        self.frequencies = frequencies
        self.coordinates = nn.Linear(2 + 4 * frequencies, dim)
        self.sharpness = nn.Parameter(torch.full((dim, 1), SHARPNESS))
        self.keypoints = nn.Linear(2 * dim, dim)

    def forward(self, images: Tensor, instruction: Tensor) -> Tensor:
        dtype = self.conv1.weight.dtype
        # permute() alone makes this channels-last memory, which the CPU and GPU kernels prefer.
        x = images.permute(0, 3, 1, 2).to(dtype) / 127.5 - 1
        c2, c3 = self.conv2.out_channels, self.conv3.out_channels
        film = self.film(instruction.to(dtype))[:, :, None, None]
        scale2, shift2, scale3, shift3 = film.split([c2, c2, c3, c3], dim=1)
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x) * (1 + scale2) + shift2)
        x = self.conv3(x) * (1 + scale3) + shift3
        points = self.keypoints(soft_argmax(x, self.sharpness).flatten(1))
        x = self.merge(F.relu(x))
        place = fourier_coordinates(x.shape[-2], x.shape[-1], self.frequencies, x.device).to(dtype)
        patches = x.flatten(2).transpose(1, 2) + self.coordinates(place)
        return torch.cat([patches, points[:, None]], dim=1)


class TinyVlaBlock(nn.Module):
    """Pre-norm transformer block. `readout` n computes (and returns) only the last n tokens."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(dim)
        self.q_proj = nn.Linear(dim, dim)
        self.kv_proj = nn.Linear(dim, 2 * dim)
        self.o_proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, mlp_ratio * dim)
        self.fc2 = nn.Linear(mlp_ratio * dim, dim)

    def forward(self, x: Tensor, bias: Tensor, readout: int | None = None) -> Tensor:
        """x [B, L, dim], bias [B, 1, 1, L] (0, or -inf for padding) -> [B, readout or L, dim]."""
        h = self.norm1(x)
        if readout is not None:
            x, queries = x[:, -readout:], h[:, -readout:]
        else:
            queries = h
        q = self.q_proj(queries).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = self.kv_proj(h).unflatten(-1, (2, self.num_heads, -1)).unbind(2)
        out = F.scaled_dot_product_attention(
            q, k.transpose(1, 2), v.transpose(1, 2), attn_mask=bias.to(q.dtype)
        )
        x = x + self.o_proj(out.transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
