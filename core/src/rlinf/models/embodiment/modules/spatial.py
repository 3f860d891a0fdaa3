"""Positions in feature maps."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

#: Initial inverse temperature of `soft_argmax`: at 1 it starts so flat that it learns half as fast
#: (measured).
SHARPNESS: Final = 3.0


def soft_argmax(maps: Tensor, sharpness: Tensor) -> Tensor:
    """Where each channel is strongest (Levine et al. 2016, "spatial softmax").

    Args:
        maps: [B, C, h, w].
        sharpness: [C, 1], inverse temperature per channel.

    Returns:
        [B, C, 2]: the mean (x, y) in [-1, 1] under the softmax over the map.
    """
    grid = pixel_grid(maps.shape[-2], maps.shape[-1], maps.device).to(maps.dtype)
    return (maps.flatten(2) * sharpness).softmax(dim=-1) @ grid


def pixel_grid(height: int, width: int, device: torch.device) -> Tensor:
    """Centres (x, y) of the cells in [-1, 1], float32 [height * width, 2], row by row."""
    y = (torch.arange(height, device=device) + 0.5) / height * 2 - 1
    x = (torch.arange(width, device=device) + 0.5) / width * 2 - 1
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1).reshape(-1, 2)
