"""Parts of tiny_vla. Written with torch's own attention: at this size Python overhead is what costs."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlinf.models.embodiment.modules.spatial import SHARPNESS, pixel_grid


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
    """Images uint8 [B, H, W, 3] -> tokens [B, num_tokens + 1, dim].

    A small convolutional net whose channels the instruction modulates (FiLM, Perez et al. 2018), read out by
    `num_tokens` attention maps (TokenLearner, Ryoo et al. 2021; RT-1, Brohan et al. 2022). The maps are
    queries of the instruction, so that the word for a colour can look for that colour, and each token holds
    what its map saw and where (spatial soft-argmax, Levine et al. 2016). The last token is all places alone.
    """

    _fsdp_wrap_name = "stem"

    def __init__(self, dim: int, channels: tuple[int, int], num_tokens: int) -> None:
        super().__init__()
        first, second = channels
        self.conv1 = nn.Conv2d(3, first, 5, stride=2, padding=2)
        self.conv2 = nn.Conv2d(first, second, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(second, second, 3, padding=1)
        self.film = nn.Linear(dim, 4 * second)
        nn.init.normal_(self.film.weight, std=0.1)
        nn.init.zeros_(self.film.bias)
        self.query = nn.Linear(dim, num_tokens * second)
        self.key = nn.Conv2d(second, second, 1, bias=False)
        self.prior = nn.Conv2d(second, num_tokens, 1, bias=False)
        self.token = nn.Linear(second + 2, dim)
        self.slot = nn.Parameter(torch.randn(num_tokens, dim) * 0.5)
        self.places = nn.Linear(2 * num_tokens, dim)

    def forward(self, images: Tensor, instruction: Tensor) -> Tensor:
        # permute() alone makes this channels-last memory, which the CPU and GPU kernels prefer.
        x = images.permute(0, 3, 1, 2).to(self.conv1.weight.dtype).div_(127.5).sub_(1)
        instruction = instruction.to(x.dtype)
        scale2, shift2, scale3, shift3 = self.film(instruction)[:, :, None, None].chunk(4, dim=1)
        x = F.relu_(self.conv1(x))
        x = F.relu_(torch.addcmul(shift2, self.conv2(x), 1 + scale2))
        x = F.relu_(torch.addcmul(shift3, self.conv3(x), 1 + scale3))
        query = self.query(instruction).unflatten(-1, (-1, x.shape[1])) / math.sqrt(x.shape[1])
        # (query . key) for all places at once: keys are linear in x, so they go to the few queries' side.
        query = SHARPNESS * (query @ self.key.weight.flatten(1)) + self.prior.weight.flatten(1)
        grid = 2 * pixel_grid(x.shape[-2], x.shape[-1], x.device).to(x.dtype)
        x = x.flatten(2)
        maps = (query @ x).softmax(dim=-1)
        where = maps @ grid
        tokens = self.token(torch.cat([maps @ x.transpose(1, 2), where], dim=-1))
        return torch.cat([tokens + self.slot, self.places(where.flatten(1))[:, None]], dim=1)


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
