"""Rendered pairs of digits and questions about them: prompts with pictures, always the same."""

from __future__ import annotations

from typing import Final

import numpy as np

from rlinf.envs.prompts.pairs import PairProblems

#: Height and width of a picture, in pixels; a digit is 7 x 5 of them twice over, anywhere in its half.
SIZE: Final = (16, 24)
_SCALE: Final = 2

#: Rows of a digit from the top, five pixels each.
_GLYPHS: Final = (
    "01110 10001 10011 10101 11001 10001 01110",
    "00100 01100 00100 00100 00100 00100 01110",
    "01110 10001 00001 00110 01000 10000 11111",
    "11110 00001 00001 01110 00001 00001 11110",
    "00010 00110 01010 10010 11111 00010 00010",
    "11111 10000 11110 00001 00001 10001 01110",
    "00110 01000 10000 11110 10001 10001 01110",
    "11111 00001 00010 00100 01000 01000 01000",
    "01110 10001 10001 01110 10001 10001 01110",
    "01110 10001 10001 01111 00001 00010 01100",
)
#: float64 [14, 10] each.
_PIXELS: Final = [
    np.kron([[int(bit) for bit in line] for line in glyph.split()], np.ones((_SCALE, _SCALE)))
    for glyph in _GLYPHS
]


def _picture(rng: np.random.Generator, *digits: int) -> np.ndarray:
    """uint8 [16, 24, 3]."""
    height, width = SIZE
    half = width // len(digits)
    canvas = rng.uniform(0, 0.3, (height, width, 3))
    for number, digit in enumerate(digits):
        glyph = _PIXELS[digit]
        tall, wide = glyph.shape
        top = int(rng.integers(0, height - tall + 1))
        side = number * half + int(rng.integers(0, half - wide + 1))
        canvas[top : top + tall, side : side + wide] += glyph[..., None] * rng.uniform(0.4, 0.7, 3)
    return (255 * canvas).astype(np.uint8)


_PROBLEMS: Final = PairProblems(questions=("left", "right"), column="image", make=_picture)
held_out, train, demonstrations = _PROBLEMS.held_out, _PROBLEMS.train, _PROBLEMS.demonstrations
