"""openpi's PyTorch loop re-created on the weights of `rlinf_openpi`, as the yardstick of `openpi_speed.py`.

What it does as openpi does: all cameras through the vision tower, masked ones too; prompts padded to the full
length; one joint pass over prefix and suffix in training; attention by explicit matrix products in which keys
and values are repeated for every query head, under an additive mask; a cache that is concatenated at every
step; masks, times and modulations made anew in every step. (openpi also recomputes activations in training;
that is left out here, which only speeds it up.)
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from rlinf_openpi.network.gemma import GemmaBlock, RmsNorm
from rlinf_openpi.network.pi0 import MASKED, Observation, Pi0
from torch import Tensor

Cache = list[tuple[Tensor, Tensor]]


def loss(net: Pi0, obs: Observation, actions: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """Elementwise flow-matching loss by one joint pass."""
    t = time[:, None, None]
    prefix, prefix_pad, prefix_blocks = embed_prefix(net, obs)
    suffix, suffix_pad, suffix_blocks, cond = embed_suffix(
        net, obs.state, t * noise + (1 - t) * actions, time
    )
    pad, blocks = torch.cat([prefix_pad, suffix_pad], 1), torch.cat([prefix_blocks, suffix_blocks], 1)
    mask, positions = attention_mask(pad, blocks), pad.cumsum(1) - 1
    x = [prefix, suffix]
    for layers in zip(net.vlm.language_model.layers, net.expert.layers):
        x = joint_layer(layers, x, mask, positions, [None, cond], net)
    hidden, _ = norm(net.expert.norm, x[1], cond)
    velocity = net.action_out_proj(hidden[:, -actions.shape[1] :].float())
    return F.mse_loss(noise - actions, velocity, reduction="none")


@torch.no_grad()
def sample(net: Pi0, obs: Observation, noise: Tensor, steps: int) -> Tensor:
    """Euler sampling with a cached prefix."""
    prefix, pad, blocks = embed_prefix(net, obs)
    mask, positions = attention_mask(pad, blocks), pad.cumsum(1) - 1
    cache: Cache = []
    x = prefix
    for layer in net.vlm.language_model.layers:
        x, kv = cached_layer(layer, x, mask, positions, None, None, net)
        cache.append(kv)
    norm(net.vlm.language_model.norm, x, None)
    x_t, time, delta = noise, torch.tensor(1.0), torch.tensor(-1.0 / steps)
    while time >= -delta / 2:
        x_t = x_t + delta * denoise_step(net, obs.state, pad, cache, x_t, time.expand(len(noise)))
        time = time + delta
    return x_t


def denoise_step(
    net: Pi0, state: Tensor | None, pad: Tensor, cache: Cache, x_t: Tensor, time: Tensor
) -> Tensor:
    x, suffix_pad, blocks, cond = embed_suffix(net, state, x_t, time)
    length = x.shape[1]
    seen = pad[:, None].expand(len(pad), length, pad.shape[1])
    own = allowed(suffix_pad, blocks)
    mask = torch.where(torch.cat([seen, own], dim=2)[:, None], 0.0, MASKED)
    positions = pad.sum(1)[:, None] + suffix_pad.cumsum(1) - 1
    for layer, past in zip(net.expert.layers, cache):
        x, _ = cached_layer(layer, x, mask, positions, cond, past, net)
    hidden, _ = norm(net.expert.norm, x, cond)
    return net.action_out_proj(hidden[:, -x_t.shape[1] :].float())


def embed_prefix(net: Pi0, obs: Observation) -> tuple[Tensor, Tensor, Tensor]:
    parts, pads = [], []
    assert obs.image_masks is not None
    for camera in range(obs.images.shape[1]):
        tokens = net.image_tokens(obs.images[:, camera])
        parts.append(tokens)
        pads.append(obs.image_masks[:, camera, None].expand(tokens.shape[:2]))
    words = net.vlm.language_model.embed_tokens(obs.tokens)
    parts.append(words * math.sqrt(words.shape[-1]))
    pads.append(obs.token_mask)
    x, pad = torch.cat(parts, 1), torch.cat(pads, 1)
    return x, pad, torch.zeros_like(pad, dtype=torch.long)


def embed_suffix(
    net: Pi0, state: Tensor | None, x_t: Tensor, time: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    embedding = net.time_embedding(time)
    if net.pi05:
        x, cond = net.action_tokens(x_t, None), net.condition(time)
        blocks = [1] + [0] * (x_t.shape[1] - 1)
    else:
        assert state is not None
        x, cond = torch.cat([net.state_token(state), net.action_tokens(x_t, embedding)], 1), None
        blocks = [1, 1] + [0] * (x_t.shape[1] - 1)
    pad = torch.ones(x.shape[:2], dtype=torch.bool)
    return x, pad, torch.tensor(blocks)[None].expand(len(x), -1), cond


def allowed(pad: Tensor, blocks: Tensor) -> Tensor:
    order = blocks.cumsum(1)
    return (order[:, None, :] <= order[:, :, None]) & (pad[:, None, :] & pad[:, :, None])


def attention_mask(pad: Tensor, blocks: Tensor) -> Tensor:
    return torch.where(allowed(pad, blocks)[:, None], 0.0, MASKED)


def norm(layer: RmsNorm, x: Tensor, cond: Tensor | None) -> tuple[Tensor, Tensor | None]:
    variance = x.float().square().mean(-1, keepdim=True)
    normed = x * torch.rsqrt(variance + layer.eps)
    if cond is None:
        return (normed * (1 + layer.weight.float())).to(x.dtype), None
    scale, shift, gate = layer.dense(cond)[:, None].chunk(3, dim=-1)
    return (normed * (1 + scale.float()) + shift.float()).to(x.dtype), gate


def residual(x: Tensor, branch: Tensor, gate: Tensor | None) -> Tensor:
    return x + branch if gate is None else x + branch * gate


def project(block: GemmaBlock, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    a = block.self_attn
    q, k, v = (p(x).unflatten(-1, (-1, a.head_dim)).transpose(1, 2) for p in (a.q_proj, a.k_proj, a.v_proj))
    return q, k, v


def rotate(x: Tensor, positions: Tensor, net: Pi0) -> Tensor:
    size = x.shape[-1]
    frequencies = 1.0 / net.sizes.rope_theta ** (torch.arange(0, size, 2).float() / size)
    angle = (positions.float()[..., None] * frequencies)[:, None]
    angle = torch.cat([angle, angle], dim=-1)
    half = torch.cat([-x[..., size // 2 :], x[..., : size // 2]], dim=-1)
    return x * angle.cos() + half * angle.sin()


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    weights = (q @ k.transpose(2, 3)) * q.shape[-1] ** -0.5 + mask
    weights = weights.softmax(dim=-1, dtype=torch.float32).to(q.dtype)
    return (weights @ v).transpose(1, 2).flatten(2)


def finish(block: GemmaBlock, x: Tensor, out: Tensor, cond: Tensor | None, gate: Tensor | None) -> Tensor:
    x = residual(x, block.self_attn.o_proj(out), gate)
    hidden, gate = norm(block.post_attention_layernorm, x, cond)
    return residual(x, block.mlp(hidden), gate)


def joint_layer(layers: Any, x: list, mask: Tensor, positions: Tensor, conds: list, net: Pi0) -> list:
    parts, gates = [], []
    for block, hidden, cond in zip(layers, x, conds):
        normed, gate = norm(block.input_layernorm, hidden, cond)
        gates.append(gate)
        parts.append(project(block, normed))
    q, k, v = (torch.cat(pair, dim=2) for pair in zip(*parts))
    out = attend(rotate(q, positions, net), rotate(k, positions, net), v, mask)
    split = out.split([hidden.shape[1] for hidden in x], dim=1)
    return [finish(b, h, o, c, g) for b, h, o, c, g in zip(layers, x, split, conds, gates)]


def cached_layer(
    block: GemmaBlock, x: Tensor, mask: Tensor, positions: Tensor, cond: Any, past: Any, net: Pi0
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    normed, gate = norm(block.input_layernorm, x, cond)
    q, k, v = project(block, normed)
    q, k = rotate(q, positions, net), rotate(k, positions, net)
    if past is not None:
        k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
    return finish(block, x, attend(q, k, v, mask), cond, gate), (k, v)
