"""Random changes to images in SFT, on tensors. Every sample of a batch draws its own.

The draws are those of torch's global generator, which SFT seeds for each step: a resumed run sees the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

#: Weights of red, green and blue in the luminance.
_LUMA: Final = (0.299, 0.587, 0.114)


def augment(
    cameras: Sequence[Tensor],
    *,
    crop_area: float = 1.0,
    degrees: float = 0.0,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
    colors: Literal["torchvision", "tensorflow"] = "torchvision",
) -> list[Tensor]:
    """uint8 [B, H, W, 3] of every camera -> the same sizes; the cameras of a sample share its draws.

    crop_area: share of the area that is cut out somewhere and enlarged to the whole.
    degrees: rotations are up to this angle; what comes from outside is black.
    brightness, contrast, saturation: contrast and saturation are multiplied by 1 +- these, uniformly drawn;
        brightness likewise ("torchvision"), or it is a share of full white that is added ("tensorflow").
    hue: turned by up to this share of the circle.
    colors: whose definitions hold. torchvision's contrast is about the mean luminance, its saturation blends
        with the grey of each pixel; tensorflow's contrast is about each channel's mean, its saturation is
        that of HSV.
    """
    batch, device = len(cameras[0]), cameras[0].device
    draws = 2 * torch.rand(batch, 7, device=device) - 1
    place, angle = draws[:, :2], draws[:, 2] * math.radians(degrees)
    spread = torch.tensor([brightness, contrast, saturation, hue], device=device)
    changes = (draws[:, 3:] * spread).view(batch, 4, 1, 1, 1).unbind(dim=1)
    changed = []
    for images in cameras:
        x = images.permute(0, 3, 1, 2).float() / 255
        if crop_area < 1 or degrees:
            x = _warp(x, math.sqrt(crop_area), place, angle)
        for operation, change in zip((*_COLORS[colors], shift_hue), changes):
            x = operation(x, change).clamp(0, 1)
        changed.append((x * 255).round().byte().permute(0, 2, 3, 1))
    return changed


def _warp(x: Tensor, side: float, place: Tensor, angle: Tensor) -> Tensor:
    """The crop of `side` of each side, then the rotation about the centre, as one bilinear resampling."""
    height, width = x.shape[-2:]
    cos, sin, ratio = angle.cos(), angle.sin(), height / width
    # Coordinates are in [-1, 1] in both directions, so a rotation of pixels stretches by the sides' ratio.
    rotation = torch.stack([cos, -sin * ratio, sin / ratio, cos], dim=-1).view(-1, 2, 2)
    # The outermost pixels' centres, not their edges, are as far as a crop may go.
    reach = torch.tensor([1 - 1 / width, 1 - 1 / height], device=x.device) * (1 - side)
    theta = torch.cat([side * rotation, (reach * place).unsqueeze(-1)], dim=-1)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _luminance(x: Tensor) -> Tensor:
    return (x * torch.tensor(_LUMA, device=x.device).view(3, 1, 1)).sum(dim=1, keepdim=True)


def _away_from(middle: Tensor, x: Tensor, change: Tensor) -> Tensor:
    return middle + (x - middle) * (1 + change)


def scale_saturation(x: Tensor, change: Tensor) -> Tensor:
    """HSV's saturation times 1 + change, at most 1; hue and value stay. x: [B, 3, H, W] in [0, 1]."""
    value = x.amax(dim=1, keepdim=True)
    chroma = value - x.amin(dim=1, keepdim=True)
    return value - (value - x) * torch.minimum(1 + change, value / chroma.clamp(min=1e-8))


def shift_hue(x: Tensor, turns: Tensor) -> Tensor:
    """HSV's hue plus `turns` of the circle; saturation and value stay. x: [B, 3, H, W] in [0, 1]."""
    red, green, blue = x.unbind(dim=1)
    value = x.amax(dim=1)
    chroma = value - x.amin(dim=1)
    divisor = chroma.clamp(min=1e-8)
    sixths = torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor)
    sixths = torch.where(value == red, (green - blue) / divisor, sixths)
    first = torch.tensor([5, 3, 1], device=x.device).view(3, 1, 1)
    distance = (first + sixths.unsqueeze(1) + 6 * turns) % 6
    return value.unsqueeze(1) - chroma.unsqueeze(1) * torch.minimum(distance, 4 - distance).clamp(0, 1)


#: Brightness, contrast, saturation: functions of images [B, 3, H, W] in [0, 1] and changes [B, 1, 1, 1].
_COLORS: Final[dict[str, tuple[Callable[[Tensor, Tensor], Tensor], ...]]] = {
    "torchvision": (
        lambda x, change: x * (1 + change),
        lambda x, change: _away_from(_luminance(x).mean(dim=(2, 3), keepdim=True), x, change),
        lambda x, change: _away_from(_luminance(x), x, change),
    ),
    "tensorflow": (
        lambda x, change: x + change,
        lambda x, change: _away_from(x.mean(dim=(2, 3), keepdim=True), x, change),
        scale_saturation,
    ),
}
