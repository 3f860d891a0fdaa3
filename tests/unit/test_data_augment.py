"""Random changes to images."""

from __future__ import annotations

import colorsys
import math

import pytest
import torch
from rlinf.data.augment import augment, scale_saturation, shift_hue
from torch.testing import assert_close


def hsv(pixels: torch.Tensor) -> torch.Tensor:
    """Of [N, 3] in [0, 1], by the standard library."""
    return torch.tensor([colorsys.rgb_to_hsv(*pixel) for pixel in pixels.double().tolist()])


def test_hue_and_saturation_are_those_of_hsv():
    pixels = torch.rand(500, 3, generator=torch.Generator().manual_seed(0))
    pixels[:4] = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.3, 0.3, 0.3], [0.0, 1.0, 1.0]])
    images = pixels.T.reshape(1, 3, 20, 25)
    for change in (-0.4, 0.0, 0.1, 0.5):
        for function, moved in (
            (shift_hue, lambda h, s, v, by=change: ((h + by) % 1, s, v)),
            (scale_saturation, lambda h, s, v, by=change: (h, min(s * (1 + by), 1), v)),
        ):
            ours = function(images, torch.full((1, 1, 1, 1), change)).reshape(3, -1).T
            theirs = [colorsys.hsv_to_rgb(*moved(*pixel)) for pixel in hsv(pixels).tolist()]
            assert_close(ours, torch.tensor(theirs), atol=1e-5, rtol=0)


def test_a_crop_enlarges_a_part_of_the_image_that_lies_within_it():
    """A ramp stays one, of the crop's slope; over many draws its middle is everywhere that it can be."""
    size, area = 101, 0.81
    ramp = torch.linspace(0, 250, size).byte().expand(size, size)
    image = torch.stack([ramp, ramp.T, torch.full_like(ramp, 9)], dim=-1)
    torch.manual_seed(0)
    cropped = augment([image.expand(200, -1, -1, -1)], crop_area=area)[0].float()
    assert bool((cropped[..., 2] == 9).all()), "nothing came from outside"
    slope = (cropped[:, 50, 90, 0] - cropped[:, 50, 10, 0]) / 80
    assert_close(slope, torch.full((200,), 2.5 * math.sqrt(area)), atol=0.04, rtol=0)
    middle = cropped[:, 50, 50, 0]
    low, high = 125 - 12.5, 125 + 12.5
    assert low - 2 <= middle.min() < low + 2 and high - 2 < middle.max() <= high + 2


def test_a_rotation_turns_about_the_centre_and_keeps_shapes():
    """On an image that is wider than high a bar keeps its length, and turns by no more than it may."""
    image = torch.zeros(1, 60, 120, 3, dtype=torch.uint8)
    image[:, 28:32, 40:80] = 255
    torch.manual_seed(0)
    turned = augment([image.expand(50, -1, -1, -1)], degrees=30.0)[0][..., 0].float() / 255
    assert_close(turned.sum(dim=(1, 2)), torch.full((50,), 160.0), atol=4, rtol=0)
    y, x = torch.meshgrid(torch.arange(60) - 29.5, torch.arange(120) - 59.5, indexing="ij")
    share = turned / turned.sum(dim=(1, 2), keepdim=True)
    xx, yy, xy = ((share * moment).sum(dim=(1, 2)) for moment in (x * x, y * y, x * y))
    angle = torch.rad2deg(torch.atan2(2 * xy, xx - yy) / 2).abs()
    assert 25 < angle.max() < 30.5


@pytest.mark.parametrize(
    ("colors", "change", "low", "high"),
    [("torchvision", "brightness", 80, 120), ("tensorflow", "brightness", 49, 151)],
)
def test_brightness_is_multiplied_or_added(colors: str, change: str, low: int, high: int):
    grey = torch.full((300, 4, 4, 3), 100, dtype=torch.uint8)
    torch.manual_seed(0)
    values = augment([grey], **{change: 0.2}, colors=colors)[0].float()
    assert bool((values == values[:, :1, :1, :1]).all())
    assert low <= values.min() < low + 3 and high - 3 < values.max() <= high


@pytest.mark.parametrize("colors", ["torchvision", "tensorflow"])
def test_contrast_is_about_the_mean_of_the_image(colors: str):
    """Of the luminance, or of each channel; a grey image of any level stays."""
    image = torch.full((100, 4, 4, 3), 200, dtype=torch.uint8)
    assert bool((augment([image], contrast=0.4, colors=colors)[0] == image).all())
    image[:, :2] = torch.tensor([100, 200, 200], dtype=torch.uint8)
    torch.manual_seed(0)
    changed = augment([image], contrast=0.4, colors=colors)[0].float()
    spread = (changed[:, 3, 0, 0] - changed[:, 0, 0, 0]) / 100
    assert 0.59 < spread.min() < 0.65 and spread.max() > 1.2
    still = bool((changed[..., 1] == 200).all())
    assert still == (colors == "tensorflow"), "a channel alike everywhere is about its own mean"


def test_samples_differ_cameras_of_a_sample_do_not_and_a_seed_repeats_them():
    image = torch.randint(0, 256, (1, 40, 60, 3), dtype=torch.uint8).repeat(2, 1, 1, 1)
    colors = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.05}
    torch.manual_seed(0)
    first, second = augment([image, image], crop_area=0.9, degrees=5.0, **colors)
    assert first.shape == image.shape and first.dtype == torch.uint8
    assert torch.equal(first, second) and not torch.equal(first[0], first[1])
    torch.manual_seed(0)
    assert torch.equal(augment([image], crop_area=0.9, degrees=5.0, **colors)[0], first)
    assert torch.equal(augment([image])[0], image), "nothing asked for, nothing changed"
