"""What the tests of the golden cases pi0, pi05 and pi_rl make of a case's config.json and tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from rlinf_openpi.architecture import Architecture, GemmaSizes, VisionSizes
from rlinf_openpi.checkpoint import from_openpi
from rlinf_openpi.network.pi0 import Observation, Pi0
from torch import Tensor

P = TypeVar("P", bound=Pi0)


def architecture(config: dict[str, Any]) -> Architecture:
    """The sizes of a case."""
    reference, plain = config["reference"], config["plain"]
    vlm, expert, siglip = reference["vlm"], reference["expert"], reference["siglip"]
    return Architecture(
        vision=VisionSizes(
            width=siglip["hidden_size"],
            depth=siglip["num_hidden_layers"],
            mlp_dim=siglip["intermediate_size"],
            num_heads=siglip["num_attention_heads"],
            patch_size=siglip["patch_size"],
            image_size=siglip["image_size"],
        ),
        vlm=GemmaSizes(width=vlm["width"], mlp_dim=vlm["mlp_dim"]),
        expert=GemmaSizes(width=expert["width"], mlp_dim=expert["mlp_dim"]),
        depth=vlm["depth"],
        num_heads=vlm["num_heads"],
        num_kv_heads=vlm["num_kv_heads"],
        head_dim=vlm["head_dim"],
        vocab_size=reference["vocab_size"],
        rope_theta=plain["rope_theta"],
        rms_norm_eps=plain["rms_norm_eps"],
        layer_norm_eps=plain["layer_norm_eps"],
        time_min_period=plain["time_min_period"],
        time_max_period=plain["time_max_period"],
    )


def load(network: P, weights: Mapping[str, Tensor]) -> P:
    """`network` with these weights, every one of which must find its place."""
    network.load_state_dict(from_openpi(dict(weights)), strict=True)
    return network.eval()


def network(case: Any) -> Pi0:
    """The network of a case."""
    reference = case.config["reference"]
    sizes = architecture(case.config)
    return load(Pi0(sizes, action_dim=reference["action_dim"], pi05=reference["pi05"]), case.weights)


def observation(case: Any) -> Observation:
    """The observation of a case."""
    reference, inputs = case.config["reference"], case.inputs
    cameras = reference["cameras"]
    images = torch.stack([inputs[f"images.{camera}"] for camera in cameras], dim=1)
    state = inputs["state"]
    return Observation(
        images=images.permute(0, 1, 3, 4, 2),
        image_masks=torch.stack([inputs[f"image_masks.{camera}"] for camera in cameras], dim=1),
        tokens=inputs["tokens"],
        token_mask=inputs["token_mask"],
        state=None if reference["pi05"] else state,
    )


def close(got: Tensor, expected: Tensor, atol: float, what: str = "") -> None:
    """Equal shapes, and entries that differ by at most `atol`."""
    assert got.shape == expected.shape, f"{what}: {tuple(got.shape)} instead of {tuple(expected.shape)}"
    gap = float((got.detach().double() - expected.double()).abs().max())
    assert gap <= atol, f"{what}: differs by {gap:.3g}, tolerance {atol:.3g}"
