"""PaliGemma's vision tower: SigLIP without its pooling head (Zhai et al. 2023)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SiglipEmbeddings(nn.Module):
    """Pixels [B, 3, H, W] in [-1, 1] -> patch tokens [B, patches, width]."""

    def __init__(self, width: int, patch_size: int, image_size: int) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv2d(3, width, patch_size, stride=patch_size)
        self.position_embedding = nn.Embedding((image_size // patch_size) ** 2, width)
        nn.init.normal_(self.position_embedding.weight, std=width**-0.5)  # as Zhai et al.

    def forward(self, pixels: Tensor) -> Tensor:
        tokens = self.patch_embedding(pixels.to(self.patch_embedding.weight.dtype)).flatten(2).transpose(1, 2)
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return tokens + self.position_embedding(places)


class SiglipAttention(nn.Module):
    """Attention of all patches to all."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class SiglipMlp(nn.Module):
    """Two layers with tanh-GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class SiglipBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, mlp_dim: int, heads: int, eps: float) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(width, eps)
        self.self_attn = SiglipAttention(width, heads)
        self.layer_norm2 = nn.LayerNorm(width, eps)
        self.mlp = SiglipMlp(width, mlp_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class SiglipEncoder(nn.Module):
    """The blocks."""

    def __init__(self, depth: int, width: int, mlp_dim: int, heads: int, eps: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(SiglipBlock(width, mlp_dim, heads, eps) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class SiglipTower(nn.Module):
    """Pixels [B, 3, H, W] in [-1, 1] -> normed patch features [B, patches, width]."""

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        mlp_dim: int,
        heads: int,
        patch_size: int,
        image_size: int,
        eps: float,
    ) -> None:
        super().__init__()
        self.embeddings = SiglipEmbeddings(width, patch_size, image_size)
        self.encoder = SiglipEncoder(depth, width, mlp_dim, heads, eps)
        self.post_layernorm = nn.LayerNorm(width, eps)

    def forward(self, pixels: Tensor) -> Tensor:
        tokens = self.embeddings(pixels).to(self.post_layernorm.weight.dtype)
        return self.post_layernorm(self.encoder(tokens))
