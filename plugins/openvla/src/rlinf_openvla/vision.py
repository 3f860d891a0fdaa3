"""The fused vision backbone: DINOv2 with registers and SigLIP, each read before its last block.

Module names are those of the published checkpoints (timm's, below `featurizer` and `fused_featurizer`). The
last block, the final norm and SigLIP's pooling are in the checkpoints, and the model reads none of them; they
are not built here, and `is_unused` names them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAYER_NORM_EPS: Final = 1e-6
_TOWERS: Final = ("featurizer", "fused_featurizer")
_BLOCK = re.compile(r"vision_backbone\.(featurizer|fused_featurizer)\.blocks\.(\d+)\.")
_UNUSED = re.compile(r"vision_backbone\.(featurizer|fused_featurizer)\.(norm|attn_pool|fc_norm|head)\.")


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """Sizes of one vision transformer. depth counts the last block, which is never computed.

    registers: prefix tokens after the class token; None: neither class token nor registers.
    """

    depth: int
    dim: int
    heads: int
    mlp_hidden: int
    patch_size: int = 14
    registers: int | None = None
    layer_scale: bool = False

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise ValueError(f"vision tower: dim {self.dim} is not a multiple of heads {self.heads}")
        if self.depth < 2:
            raise ValueError(
                f"vision tower: depth {self.depth}; the output is that of the second-to-last block"
            )


#: timm's names in `config.json` -> sizes.
KNOWN_TOWERS: Final = {
    "vit_large_patch14_reg4_dinov2.lvd142m": TowerConfig(
        depth=24, dim=1024, heads=16, mlp_hidden=4096, registers=4, layer_scale=True
    ),
    "vit_so400m_patch14_siglip_224": TowerConfig(depth=27, dim=1152, heads=16, mlp_hidden=4304),
}


def tower_configs(
    timm_ids: Sequence[str], towers: Sequence[dict[str, Any]] | None
) -> tuple[TowerConfig, TowerConfig]:
    """Sizes of DINOv2 and SigLIP: `towers` where a configuration gives them, else by timm's names.

    Raises ValueError for backbones other than the fused one, and names that are unknown.
    """
    if len(timm_ids) != 2:
        raise ValueError(
            f"timm_model_ids: expected two vision towers, DINOv2 and SigLIP; the configuration has {timm_ids}"
        )
    if towers is not None:
        dino, siglip = (TowerConfig(**tower) for tower in towers)
        return dino, siglip
    unknown = [name for name in timm_ids if name not in KNOWN_TOWERS]
    if unknown:
        raise ValueError(
            f"timm_model_ids: unknown vision tower {unknown[0]!r}; known: {', '.join(KNOWN_TOWERS)}. "
            "Give sizes as vision_towers in config.json"
        )
    return KNOWN_TOWERS[timm_ids[0]], KNOWN_TOWERS[timm_ids[1]]


def is_unused(name: str, depths: Sequence[int]) -> bool:
    """Whether a tensor of a checkpoint belongs to what the model never reads. depths: of the two towers."""
    block = _BLOCK.match(name)
    if block is not None:
        return int(block[2]) >= depths[_TOWERS.index(block[1])] - 1
    return _UNUSED.match(name) is not None


class VisionAttention(nn.Module):
    """Multi-head self-attention over all tokens."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_BND: Tensor) -> Tensor:
        q, k, v = self.qkv(x_BND).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class VisionMlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """A learned factor per channel (checkpoints of this family call it `scale_factor`)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale_factor = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale_factor


class VisionBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        dim = config.dim
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = VisionAttention(dim, config.heads)
        self.ls1 = LayerScale(dim) if config.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = VisionMlp(dim, config.mlp_hidden)
        self.ls2 = LayerScale(dim) if config.layer_scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """Image [B,3,H,W] -> patches [B,N,D]."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.dim, config.patch_size, config.patch_size)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.proj(pixels).flatten(2).transpose(1, 2)


class VisionTower(nn.Module):
    """A vision transformer up to its second-to-last block."""

    def __init__(self, config: TowerConfig, image_size: int) -> None:
        super().__init__()
        patches = (image_size // config.patch_size) ** 2
        self.patch_embed = PatchEmbed(config)
        self.pos_embed = nn.Parameter(torch.randn(1, patches, config.dim) * config.dim**-0.5)
        self.cls_token = self.reg_token = None
        if config.registers is not None:
            self.cls_token = nn.Parameter(torch.randn(1, 1, config.dim) * 0.02)
            self.reg_token = nn.Parameter(torch.randn(1, config.registers, config.dim) * 0.02)
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.depth - 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [B,3,H,W] -> patch features [B,N,D]."""
        x = self.patch_embed(pixels) + self.pos_embed
        prefix = [t.expand(len(x), -1, -1) for t in (self.cls_token, self.reg_token) if t is not None]
        x = torch.cat([*prefix, x], dim=1)
        for block in self.blocks:
            x = block(x)
        return x[:, sum(t.shape[1] for t in prefix) :]


class FusedVisionBackbone(nn.Module):
    """Both towers on each view: pixel values [B, 6 * views, H, W] -> features [B, views * N, D1 + D2].

    The first three channels of a view are normalised for DINOv2, the next three for SigLIP.
    """

    def __init__(self, dino: TowerConfig, siglip: TowerConfig, image_size: int) -> None:
        super().__init__()
        self.featurizer = VisionTower(dino, image_size)
        self.fused_featurizer = VisionTower(siglip, image_size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        views = pixel_values.shape[1] // 6
        # Views are further samples to the towers: one pass for all.
        pixels = pixel_values.unflatten(1, (views, 6)).flatten(0, 1)
        dino, siglip = self.featurizer(pixels[:, :3]), self.fused_featurizer(pixels[:, 3:])
        features = torch.cat([dino, siglip], dim=-1)
        return features.unflatten(0, (-1, views)).flatten(1, 2)


class Projector(nn.Module):
    """Vision features -> the language model's embeddings."""

    def __init__(self, vision_dim: int, llm_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(vision_dim, 4 * vision_dim)
        self.fc2 = nn.Linear(4 * vision_dim, llm_dim)
        self.fc3 = nn.Linear(llm_dim, llm_dim)

    def forward(self, features: Tensor) -> Tensor:
        return self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(features)))))
