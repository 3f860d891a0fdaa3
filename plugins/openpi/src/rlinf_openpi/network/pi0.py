"""pi0 (Black et al. 2024) and pi0.5 (Physical Intelligence 2025): a velocity field over action chunks.

The prefix (images, prompt) goes through PaliGemma, the suffix (state, noisy actions) through the action
expert, which attends to the prefix layer by layer. Names and shapes of parameters are those of openpi's
checkpoints. What changes no number is left out: cameras that are masked for the whole batch, padding on the
right of every prompt, and of the last prefix layer all but keys and values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlinf_openpi.architecture import Architecture
from rlinf_openpi.network.gemma import (
    BlockModulation,
    Concatenated,
    GemmaBlock,
    KeyValues,
    Modulation,
    Past,
    RmsNorm,
    Rotary,
)
from rlinf_openpi.network.siglip import SiglipTower

#: openpi adds this to a score that does not count. A row of such scores becomes uniform attention, which its
#: reference values contain (see `embed_prefix`).
MASKED = -2.3819763e38


@dataclass(frozen=True)
class Observation:
    """What the network sees of a batch of B samples.

    images: uint8 [B, cameras, H, W, 3], H = W = the vision tower's image_size.
    tokens: int64 [B, L], padded on the right.
    token_mask: bool [B, L], true for a token.
    state: float32 [B, action_dim], normalised; None for pi0.5.
    image_masks: bool [B, cameras], true for a camera that is there; None: all are.
    """

    images: Tensor
    tokens: Tensor
    token_mask: Tensor
    state: Tensor | None = None
    image_masks: Tensor | None = None


@dataclass(frozen=True)
class Prefix:
    """What the suffix needs of the prefix.

    layers: keys and values [B, kv_heads, P, head_dim] of each layer.
    mask: bool [B, P], true for a token; None: all are.
    length: int64 [B] or [1], the number of tokens that count.
    hidden: [B, P, vlm width], the language model's output, if it was asked for.
    """

    layers: list[KeyValues]
    mask: Tensor | None
    length: Tensor
    hidden: Tensor | None = None


class Projector(nn.Module):
    """Vision features -> tokens of the language model."""

    def __init__(self, vision_width: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(vision_width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class _Namespace(nn.Module):
    """Modules under one name."""

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)


class Pi0(nn.Module):
    """The network; `pi05` selects pi0.5's expert (adaptive norms, no state token)."""

    def __init__(self, sizes: Architecture, *, action_dim: int, pi05: bool) -> None:
        super().__init__()
        self.sizes, self.pi05 = sizes, pi05
        width = sizes.expert.width
        self.paligemma_with_expert: Any = _Namespace(
            paligemma=_Namespace(model=_paligemma(sizes)),
            gemma_expert=_Namespace(model=_expert(sizes, adaptive=pi05)),
        )
        self.action_in_proj = nn.Linear(action_dim, width)
        self.action_out_proj = nn.Linear(width, action_dim)
        if pi05:
            self.time_mlp_in = nn.Linear(width, width)
            self.time_mlp_out = nn.Linear(width, width)
        else:
            self.state_proj = nn.Linear(action_dim, width)
            self.action_time_mlp_in = nn.Linear(2 * width, width)
            self.action_time_mlp_out = nn.Linear(width, width)

    @property
    def vlm(self) -> Any:
        """Vision tower, projector and language model."""
        return self.paligemma_with_expert.paligemma.model

    @property
    def expert(self) -> Any:
        """Blocks and norm of the action expert."""
        return self.paligemma_with_expert.gemma_expert.model

    # -- prefix ------------------------------------------------------------------------------------------

    def embed_prefix(self, obs: Observation, *, compact: bool = True) -> tuple[Tensor, Tensor | None]:
        """Tokens [B, P, vlm width] of images and prompt, and which count, bool [B, P] (None: all).

        compact: leave out cameras and columns that count for no sample.
        """
        images, masks = obs.images, obs.image_masks
        tokens, token_mask = obs.tokens, obs.token_mask
        if compact:
            if masks is not None:
                kept = masks.any(dim=0)
                images, masks = images[:, kept], masks[:, kept]
            longest = int(token_mask.sum(dim=1).max())
            tokens, token_mask = tokens[:, :longest], token_mask[:, :longest]
        batch, cameras = images.shape[:2]
        words = self.vlm.language_model.embed_tokens(tokens) * math.sqrt(self.sizes.vlm.width)
        parts, seen = [words], [token_mask]
        if cameras:
            vision = self.image_tokens(images.flatten(0, 1)).to(words.dtype)
            parts.insert(0, vision.reshape(batch, -1, vision.shape[-1]))
            there = token_mask.new_ones(batch, cameras) if masks is None else masks
            seen.insert(0, there.repeat_interleave(self.sizes.vision.tokens, dim=1))
        mask = torch.cat(seen, dim=1)
        return torch.cat(parts, dim=1), None if compact and bool(mask.all()) else mask

    def image_tokens(self, images: Tensor) -> Tensor:
        """uint8 [N, H, W, 3] -> [N, patches, vlm width]."""
        pixels = images.permute(0, 3, 1, 2).div(255).mul_(2).sub_(1)
        return self.vlm.multi_modal_projector(self.vlm.vision_tower.vision_model(pixels))

    def prefix(self, obs: Observation, *, hidden: bool = False, reference_padding: bool = False) -> Prefix:
        """Run the language model over images and prompt.

        hidden: compute the last layer's output as well.
        reference_padding: keep masked cameras and padding, whose rows attend uniformly to everything, as
            openpi's do. They reach no action; only a value that averages over them needs this.
        """
        x, mask = self.embed_prefix(obs, compact=not reference_padding)
        if mask is None:
            positions = torch.arange(x.shape[1], device=x.device)[None]
            length = positions[:, -1] + 1
            attend = None
        else:
            positions = mask.cumsum(dim=1) - 1
            length = mask.sum(dim=1)
            attend = mask[:, None, None]
            if reference_padding:
                both = attend & mask[:, None, :, None]
                attend = self._query_rows(torch.where(both, 0.0, MASKED).to(x.dtype))
        rotary = self._rotary(positions, x.dtype)
        model, layers = self.vlm.language_model, []
        for number, block in enumerate(model.layers, start=1):
            last = number == len(model.layers) and not hidden
            x, kv = block(x, rotary, mask=attend, keys_values_only=last)
            layers.append(kv)
        return Prefix(layers, mask, length, model.norm(x) if hidden else None)

    # -- suffix ------------------------------------------------------------------------------------------

    def time_embedding(self, time: Tensor) -> Tensor:
        """Times float32 [B] -> sines and cosines of log-spaced periods [B, expert width]; float64 inside."""
        half, sizes = self.sizes.expert.width // 2, self.sizes
        fraction = torch.linspace(0, 1, half, dtype=torch.float64, device=time.device)
        period = sizes.time_min_period * (sizes.time_max_period / sizes.time_min_period) ** fraction
        angle = (2 * math.pi / period)[None] * time.double()[:, None]
        return torch.cat([angle.sin(), angle.cos()], dim=1).to(time.dtype)

    def condition(self, time: Tensor) -> Tensor:
        """What modulates pi0.5's norms at times [B]: [B, expert width]."""
        hidden = F.silu(self.time_mlp_in(self.time_embedding(time).to(self.time_mlp_in.weight.dtype)))
        return F.silu(self.time_mlp_out(hidden))

    def action_tokens(self, x_t: Tensor, time_embedding: Tensor | None) -> Tensor:
        """Noisy actions [B, T, action_dim] -> tokens [B, T, expert width]. pi0 mixes the time in here."""
        tokens = self.action_in_proj(x_t.to(self.action_in_proj.weight.dtype))
        if time_embedding is None:
            return tokens
        time = time_embedding[:, None].expand_as(tokens).to(tokens.dtype)
        return self.action_time_mlp_out(F.silu(self.action_time_mlp_in(torch.cat([tokens, time], dim=2))))

    def state_token(self, state: Tensor) -> Tensor:
        """State [B, action_dim] -> token [B, 1, expert width] (pi0)."""
        return self.state_proj(state.to(self.state_proj.weight.dtype))[:, None]

    def suffix_hidden(self, x_t: Tensor, time: Tensor, state: Tensor | None, prefix: Prefix) -> Tensor:
        """The expert's output at the actions, float32 [B, T, expert width]; the time is each sample's own.

        Args:
            x_t: noisy actions float32 [B, T, action_dim].
            time: float32 [B]; 1 is noise, 0 data.
            state: float32 [B, action_dim] for pi0.
        """
        horizon = x_t.shape[1]
        if self.pi05:
            x, cond = self.action_tokens(x_t, None), self.condition(time)
            mask = key_mask(prefix, horizon)
        else:
            assert state is not None
            x = torch.cat([self.state_token(state), self.action_tokens(x_t, self.time_embedding(time))], 1)
            cond = None
            mask = self._query_rows(_suffix_mask(prefix, x.shape[1]))
        x = x.to(self._expert_dtype)
        cond = None if cond is None else cond.to(self._expert_dtype)
        positions = prefix.length[:, None] + torch.arange(x.shape[1], device=x.device)
        rotary = self._rotary(positions, x.dtype)
        for block, kv in zip(self.expert.layers, prefix.layers, strict=True):
            x, _ = block(x, rotary, mask=mask, past=Concatenated(kv), cond=cond)
        final = None if cond is None else self.expert.norm.modulation(cond)
        return self.expert.norm(x, final)[:, -horizon:].float()

    def velocity(self, hidden: Tensor) -> Tensor:
        """The expert's output [B, T, expert width] -> velocity float32 [B, T, action_dim]."""
        return self.action_out_proj(hidden.to(self.action_out_proj.weight.dtype)).float()

    def run_expert(
        self,
        x: Tensor,
        rotary: Rotary,
        pasts: Sequence[Past],
        mask: Tensor | None,
        modulations: list[BlockModulation] | None,
        final: Modulation | None,
    ) -> Tensor:
        """The expert over tokens [B, L, expert width] with the pasts of its layers; normed."""
        for number, (block, past) in enumerate(zip(self.expert.layers, pasts, strict=True)):
            modulation = (None, None) if modulations is None else modulations[number]
            x, _ = block(x, rotary, mask=mask, past=past, modulation=modulation)
        return self.expert.norm(x, final)

    # -- training ----------------------------------------------------------------------------------------

    def flow_loss(self, obs: Observation, actions: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Conditional flow matching (Lipman et al. 2023), element by element, float32 [B, T, action_dim].

        Args:
            actions, noise: float32 [B, T, action_dim]; the path is x_t = t noise + (1 - t) actions.
            time: float32 [B].
        """
        t = time[:, None, None]
        hidden = self.suffix_hidden(t * noise + (1 - t) * actions, time, obs.state, self.prefix(obs))
        return (noise - actions - self.velocity(hidden)).square()

    def _query_rows(self, mask: Tensor) -> Tensor:
        """A mask [B or 1, 1, L, M] of tokens -> of the queries of each token, as `Attention` takes it."""
        return mask.repeat_interleave(self.sizes.num_heads // self.sizes.num_kv_heads, dim=2)

    def _rotary(self, positions: Tensor, dtype: torch.dtype) -> Rotary:
        return Rotary.at(positions, self.sizes.head_dim, self.sizes.rope_theta, dtype)

    @property
    def _expert_dtype(self) -> torch.dtype:
        return self.expert.layers[0].mlp.up_proj.weight.dtype


def key_mask(prefix: Prefix, suffix: int) -> Tensor | None:
    """bool [B, 1, 1, P + suffix]: suffix tokens attend to the prefix tokens that count and to the suffix."""
    if prefix.mask is None:
        return None
    return F.pad(prefix.mask, (0, suffix), value=True)[:, None, None]


def _suffix_mask(prefix: Prefix, suffix: int) -> Tensor:
    """bool [B or 1, 1, suffix, P + suffix]: likewise, but the first suffix token sees no other."""
    size = prefix.layers[0].k.shape[2]
    device = prefix.layers[0].k.device
    seen = torch.ones(1, size, dtype=torch.bool, device=device) if prefix.mask is None else prefix.mask
    mask = F.pad(seen, (0, suffix), value=True)[:, None, None].repeat(1, 1, suffix, 1)
    mask[:, :, 0, size + 1 :] = False
    return mask


def _paligemma(sizes: Architecture) -> nn.Module:
    vision, vlm = sizes.vision, sizes.vlm
    embedding = nn.Embedding(sizes.vocab_size, vlm.width)
    nn.init.normal_(embedding.weight, std=vlm.width**-0.5)
    tower = SiglipTower(
        width=vision.width,
        depth=vision.depth,
        mlp_dim=vision.mlp_dim,
        heads=vision.num_heads,
        patch_size=vision.patch_size,
        image_size=vision.image_size,
        eps=sizes.layer_norm_eps,
    )
    return _Namespace(
        vision_tower=_Namespace(vision_model=tower),
        multi_modal_projector=Projector(vision.width, vlm.width),
        language_model=_Namespace(
            embed_tokens=embedding,
            layers=_blocks(sizes, vlm.width, vlm.mlp_dim, None),
            norm=RmsNorm(vlm.width, sizes.rms_norm_eps),
        ),
    )


def _expert(sizes: Architecture, *, adaptive: bool) -> nn.Module:
    width = sizes.expert.width
    cond_dim = width if adaptive else None
    return _Namespace(
        layers=_blocks(sizes, width, sizes.expert.mlp_dim, cond_dim),
        norm=RmsNorm(width, sizes.rms_norm_eps, cond_dim),
    )


def _blocks(sizes: Architecture, width: int, mlp_dim: int, cond_dim: int | None) -> nn.ModuleList:
    return nn.ModuleList(
        GemmaBlock(
            width=width,
            mlp_dim=mlp_dim,
            heads=sizes.num_heads,
            kv_heads=sizes.num_kv_heads,
            head_dim=sizes.head_dim,
            eps=sizes.rms_norm_eps,
            cond_dim=cond_dim,
        )
        for _ in range(sizes.depth)
    )
