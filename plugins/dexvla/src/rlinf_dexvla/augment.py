"""Random changes to images, on tensors: every sample of a batch draws its own, its cameras share them."""

from __future__ import annotations

import math
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

#: The original's: a crop of this share of each side, rotations up to this angle, factors 1 +- these.
CROP, DEGREES = 0.95, 5.0
BRIGHTNESS, CONTRAST, SATURATION = 0.3, 0.4, 0.5
#: Weights of red, green and blue in the luminance.
_LUMA: Final = (0.299, 0.587, 0.114)


def augment(cameras: list[Tensor]) -> list[Tensor]:
    """uint8 [B, H, W, 3] of every camera -> the same, cropped, resized, rotated, with other colours.

    Crop, resize and rotation are one bilinear resampling; what comes from outside is black. The draws are
    those of torch's global generator.
    """
    batch, device = len(cameras[0]), cameras[0].device
    draws = 2 * torch.rand(batch, 6, device=device) - 1
    place, angle, colours = draws[:, :2], draws[:, 2] * math.radians(DEGREES), draws[:, 3:]
    spread = torch.tensor([BRIGHTNESS, CONTRAST, SATURATION], device=device)
    factors = 1 + colours * spread
    return [_jitter(_warp(images, place, angle), factors) for images in cameras]


def _warp(images: Tensor, place: Tensor, angle: Tensor) -> Tensor:
    """float [B, 3, H, W]: first the crop, then the rotation about the centre."""
    x = images.permute(0, 3, 1, 2).float()
    height, width = x.shape[-2:]
    cos, sin, ratio = angle.cos(), angle.sin(), height / width
    # Coordinates are in [-1, 1] in both directions, so a rotation of pixels stretches by the sides' ratio.
    rotation = torch.stack([cos, -sin * ratio, sin / ratio, cos], dim=-1).view(-1, 2, 2)
    theta = torch.cat([CROP * rotation, (1 - CROP) * place.unsqueeze(-1)], dim=-1)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _jitter(x: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast about the mean luminance, saturation about each pixel's: uint8 [B, H, W, 3]."""
    brightness, contrast, saturation = (f.view(-1, 1, 1, 1) for f in factors.unbind(dim=1))
    luma = torch.tensor(_LUMA, device=x.device).view(1, 3, 1, 1)
    x = (x * brightness).clamp(0, 255)
    mean = (x * luma).sum(dim=1, keepdim=True).mean(dim=(2, 3), keepdim=True)
    x = torch.lerp(mean.expand_as(x), x, contrast).clamp(0, 255)
    grey = (x * luma).sum(dim=1, keepdim=True)
    x = torch.lerp(grey.expand_as(x), x, saturation).clamp(0, 255)
    return x.round().byte().permute(0, 2, 3, 1)
