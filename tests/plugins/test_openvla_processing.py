"""Images and prompts on their way to the network."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from rlinf_openvla.processing import CROP_AREA, PromptEncoder, normalize_images, resize_images
from rlinf_openvla.tokenizers import word_tokenizer


@pytest.mark.parametrize("size", [(120, 160), (96, 64), (28, 28), (30, 500)])
def test_resizing_is_pils(size: tuple[int, int]):
    """As the originals resize: both sides on their own, bicubic, antialiased; within a level of 255.

    Away from black and white, where it matters which side comes first: newer versions of PIL choose.
    """
    image = np.random.default_rng(0).integers(80, 170, (*size, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(image).resize((56, 56), Image.Resampling.BICUBIC)).astype(int)
    ours = resize_images(torch.from_numpy(image)[None], 56)[0].permute(1, 2, 0).numpy().astype(int)
    assert np.abs(ours - expected).max() <= 1


def test_center_crop_enlarges_the_middle():
    """A ramp stays one; it ends where the crop cuts it, at the same share on every side."""
    size = 101
    ramp = np.linspace(0, 250, size)
    image = np.stack([np.tile(ramp, (size, 1)), np.tile(ramp[:, None], (1, size)), np.full((size, size), 9)])
    pixels = torch.from_numpy(image.astype(np.uint8)).permute(1, 2, 0)[None]
    cropped = resize_images(pixels, size, center_crop=True)[0].float()
    low, high = (125 * (1 - sign * math.sqrt(CROP_AREA)) for sign in (1, -1))
    for row in (cropped[0, 50], cropped[1, :, 50]):
        torch.testing.assert_close(row, torch.linspace(low, high, size), atol=2.5, rtol=0)
    assert bool((cropped[2] == 9).all())


def test_each_view_is_normalised_for_both_towers():
    images = torch.randint(0, 256, (2, 3, 3, 28, 28), dtype=torch.uint8)
    pixels = normalize_images(images)
    assert pixels.shape == (2, 18, 28, 28)
    for view in range(3):
        dino, siglip = pixels[:, 6 * view : 6 * view + 3], pixels[:, 6 * view + 3 : 6 * view + 6]
        torch.testing.assert_close(siglip, images[:, view] / 255 * 2 - 1)
        scale = torch.tensor([0.228515625, 0.2236328125, 0.224609375]).view(3, 1, 1)
        shift = torch.tensor([0.484375, 0.455078125, 0.40625]).view(3, 1, 1)
        torch.testing.assert_close(dino * scale + shift, images[:, view] / 255)


class Separated:
    """A tokenizer with Llama's word separator, and no BOS of its own."""

    bos_token_id, pad_token_id = 1, None

    def get_vocab(self) -> dict[str, int]:
        return {"▁": 29871}

    def __call__(self, text: str, **kwargs: bool) -> Separated:
        self.input_ids = [100 + len(word) for word in text.split()]
        return self


def test_prompts_begin_with_bos_and_end_with_the_separator():
    ids, mask = PromptEncoder(Separated(), style="openvla", max_tokens=20)(["Push IT", "touch the cube"])
    assert mask.sum(1).tolist() == [13, 14]
    for row, real in zip(ids, mask, strict=True):
        assert row[real][0] == 1 and row[real][-1] == 29871
        assert bool((row[~real] == 0).all()) and not bool(real[0])


def test_prompts_are_the_originals():
    encoder = PromptEncoder(word_tokenizer(), style="openvla", max_tokens=128)
    assert encoder.text("Push IT") == "In: What action should the robot take to push it?\nOut:"
    ids = encoder.ids("Push IT")
    spaceless = "".join(encoder.text("Push IT").split())
    assert ids[0] == 1 and encoder.tokenizer.decode(ids[1:]) == spaceless
    assert len(ids) == 15, "a token per word, and one per byte of what stands between"
    assert len(encoder.ids("xyz")) == len(ids) - 2 + len(" xyz")
    old = PromptEncoder(word_tokenizer(), style="openvla_v01", max_tokens=8).text("push it")
    assert old.endswith("USER: What action should the robot take to push it? ASSISTANT:")


def test_a_prompt_that_is_too_long_is_refused():
    encoder = PromptEncoder(word_tokenizer(), style="openvla", max_tokens=12)
    with pytest.raises(ValueError, match=r"'touch it' makes \d+ prompt tokens; max_prompt_tokens = 12"):
        encoder(["touch it"])
