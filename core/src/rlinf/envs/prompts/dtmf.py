"""Pairs of dialled digits and questions about them: prompts with sounds, always the same.

A digit is the two tones of its row and its column on a telephone's keypad (DTMF, ITU-T Q.23).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from rlinf.envs.prompts.pairs import PairProblems
from rlinf.models.language.modality import SAMPLE_RATE

#: Hz of the keypad's rows and columns, and where its digits are.
_ROWS: Final = (697, 770, 852, 941)
_COLUMNS: Final = (1209, 1336, 1477)
_KEYPAD: Final = ("123", "456", "789", " 0 ")
_TONES: Final = {
    key: (_ROWS[row], _COLUMNS[column]) for row, keys in enumerate(_KEYPAD) for column, key in enumerate(keys)
}
#: Seconds, least and most: before and after the digits, of a digit, and between the two.
_SILENCE, _PRESSED, _BETWEEN = (0.0, 0.02), (0.05, 0.08), (0.03, 0.06)
_NOISE: Final = 0.02


def _sound(rng: np.random.Generator, first: int, last: int) -> np.ndarray:
    """float32 [N], samples at 16 kHz of 0.13 to 0.26 s."""
    before, between, after = (_pause(rng, seconds) for seconds in (_SILENCE, _BETWEEN, _SILENCE))
    clean = np.concatenate([before, _pressed(rng, first), between, _pressed(rng, last), after])
    return (clean + rng.normal(0, _NOISE, len(clean))).astype(np.float32)


def _pause(rng: np.random.Generator, seconds: tuple[float, float]) -> np.ndarray:
    return np.zeros(int(SAMPLE_RATE * rng.uniform(*seconds)))


def _pressed(rng: np.random.Generator, digit: int) -> np.ndarray:
    times = np.arange(int(SAMPLE_RATE * rng.uniform(*_PRESSED))) / SAMPLE_RATE
    row, column = (np.sin(2 * np.pi * (hertz * times + rng.uniform())) for hertz in _TONES[str(digit)])
    return rng.uniform(0.1, 0.4) * (row + column)


_PROBLEMS: Final = PairProblems(questions=("first", "last"), column="audio", make=_sound)
held_out, train, demonstrations = _PROBLEMS.held_out, _PROBLEMS.train, _PROBLEMS.demonstrations
