"""ScaleDP (Zhu et al. 2024, arXiv:2409.14411): a diffusion transformer over an action chunk, with adaLN.

Module names are those of DexVLA's checkpoints. What depends on the timestep and the condition alone, not on
the noisy actions, is computed once for all steps of a denoising chain (`ScaleDP.plan`): the embeddings of the
condition and every block's shift, scale and gate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Width of the hidden layers that join condition and state.
COMBINE_WIDTH: Final = 1024
#: Sinusoidal features of a timestep, and the longest period.
TIME_FEATURES, MAX_PERIOD = 256, 10000

#: Published sizes: depth, width, heads.
SIZES: Final = {
    "S": (12, 384, 6),
    "B": (12, 768, 12),
    "L": (24, 1024, 16),
    "XL": (28, 1152, 16),
    "H": (32, 1280, 16),
}


def timestep_features(timesteps: Tensor, *, bf16_frequencies: bool) -> Tensor:
    """Cosines, then sines of the timesteps at 128 frequencies: float32 [N, 256].

    bf16_frequencies: as DexVLA's code computes them: frequencies in bfloat16 (up to 2 % off) and the features
        rounded to bfloat16. Checkpoints of the original were trained with these.
    """
    half = TIME_FEATURES // 2
    dtype = torch.bfloat16 if bf16_frequencies else torch.float32
    steps = torch.arange(half, dtype=dtype, device=timesteps.device)
    frequencies = torch.exp(-math.log(MAX_PERIOD) * steps / half)
    angles = timesteps[:, None].float() * frequencies[None]
    features = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return features.bfloat16().float() if bf16_frequencies else features


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x [B, T, D] scaled and shifted by [B, D]."""
    return torch.addcmul(shift[:, None], x, 1 + scale[:, None])


class TimestepEmbedder(nn.Module):
    """Timesteps int64 [N] -> [N, width]."""

    def __init__(self, width: int, *, bf16_frequencies: bool) -> None:
        super().__init__()
        self.bf16_frequencies = bf16_frequencies
        self.mlp = nn.Sequential(nn.Linear(TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, timesteps: Tensor) -> Tensor:
        features = timestep_features(timesteps, bf16_frequencies=self.bf16_frequencies)
        return self.mlp(features.to(next(self.mlp.parameters()).dtype))


class Attention(nn.Module):
    """Multi-head self-attention over [B, T, D], every step sees every other."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two layers with tanh-GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class ScaleDPBlock(nn.Module):
    """Transformer block whose norms are modulated by the condition (adaLN-zero, Peebles and Xie 2022)."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.apply_modulated(x, self.adaLN_modulation(c))

    def apply_modulated(self, x: Tensor, modulation: Tensor) -> Tensor:
        """The block on x [B, T, D] with its modulation [B, 6 D] given."""
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)
        x = torch.addcmul(x, gate1[:, None], self.attn(modulate(self.norm1(x), shift1, scale1)))
        return torch.addcmul(x, gate2[:, None], self.mlp(modulate(self.norm2(x), shift2, scale2)))


class FinalLayer(nn.Module):
    """Modulated norm, then the noise."""

    def __init__(self, width: int, action_dim: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, action_dim)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.apply_modulated(x, self.adaLN_modulation(c))

    def apply_modulated(self, x: Tensor, modulation: Tensor) -> Tensor:
        """The layer on x [B, T, D] with its modulation [B, 2 D] given."""
        shift, scale = modulation.chunk(2, dim=-1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class ScaleDP(nn.Module):
    """Noise in a chunk of actions, given its timestep, a condition and the robot's state.

    Args:
        cond_dim: width of the condition (the language model's). state_dim, action_dim: of the robot.
        horizon: steps of the chunk (`prediction_horizon`).
        depth, width, num_heads, mlp_ratio: of the transformer; see `SIZES`.
        bf16_frequencies: see `timestep_features`.
    """

    #: Stays trainable under LoRA, which adapts the language model.
    _is_policy_head = True

    def __init__(
        self,
        *,
        cond_dim: int,
        state_dim: int,
        action_dim: int,
        horizon: int,
        depth: int,
        width: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        bf16_frequencies: bool = False,
    ) -> None:
        super().__init__()
        self.combine = nn.Sequential(
            nn.Linear(cond_dim + state_dim, COMBINE_WIDTH),
            nn.ReLU(),
            nn.Linear(COMBINE_WIDTH, COMBINE_WIDTH),
            nn.ReLU(),
            nn.Linear(COMBINE_WIDTH, cond_dim),
        )
        self.x_embedder = nn.Linear(action_dim, width)
        self.t_embedder = TimestepEmbedder(width, bf16_frequencies=bf16_frequencies)
        self.cond_obs_emb = nn.Linear(cond_dim, width)
        self.pos_embed = nn.Parameter(torch.empty(1, horizon, width))
        self.blocks = nn.ModuleList(ScaleDPBlock(width, num_heads, mlp_ratio) for _ in range(depth))
        self.final_layer = FinalLayer(width, action_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """adaLN-zero: every block starts as the identity, and the predicted noise as 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cond_obs_emb.weight, std=0.02)
        nn.init.normal_(self.t_embedder.mlp.get_parameter("0.weight"), std=0.02)
        nn.init.normal_(self.t_embedder.mlp.get_parameter("2.weight"), std=0.02)
        for layer in (*self.blocks, self.final_layer):
            nn.init.zeros_(layer.get_parameter("adaLN_modulation.1.weight"))
        nn.init.zeros_(self.final_layer.linear.weight)

    @property
    def dtype(self) -> torch.dtype:
        return self.pos_embed.dtype

    def condition(self, cond: Tensor, states: Tensor) -> Tensor:
        """What conditions every step beside the timestep: [B, width] of cond [B, cond_dim], states [B, D]."""
        joined = torch.cat([cond.to(self.dtype), states.to(self.dtype)], dim=-1)
        return self.cond_obs_emb(self.combine(joined))

    def forward(self, x: Tensor, timesteps: Tensor, cond: Tensor, states: Tensor) -> Tensor:
        """The predicted noise, float32 [B, T, A], of noisy actions x [B, T, A] at int64 timesteps [B].

        cond [B, cond_dim] and states [B, D] may have fewer rows than x: row i of x then goes with row
        i % len(cond), and the condition is computed once for all.
        """
        condition = self.condition(cond, states)
        c = self.t_embedder(timesteps) + condition.repeat(len(x) // len(condition), 1)
        x = self.x_embedder(x.to(self.dtype)) + self.pos_embed
        for block in self.blocks:
            x = block(x, c)
        return self.final_layer(x, c).float()

    def plan(self, timesteps: Sequence[int], cond: Tensor, states: Tensor) -> list[list[Tensor]]:
        """The modulations of all blocks and of the final layer, for each of the timesteps."""
        times = torch.tensor(timesteps, device=cond.device)
        c = self.t_embedder(times)[:, None] + self.condition(cond, states)[None]
        layers = [layer.get_submodule("adaLN_modulation")(c) for layer in (*self.blocks, self.final_layer)]
        return [[modulation[step] for modulation in layers] for step in range(len(timesteps))]

    def predict(self, x: Tensor, modulations: list[Tensor]) -> Tensor:
        """As `forward`, with the modulations of one timestep of a `plan`."""
        x = self.x_embedder(x.to(self.dtype)) + self.pos_embed
        for block, modulation in zip(self.blocks, modulations):
            assert isinstance(block, ScaleDPBlock)
            x = block.apply_modulated(x, modulation)
        return self.final_layer.apply_modulated(x, modulations[-1]).float()
