"""Pairs of dialled digits and questions about them: prompts with sounds, always the same.

A digit is the two tones of its row and its column on a telephone's keypad (DTMF, ITU-T Q.23).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from rlinf.models.language.modality import SAMPLE_RATE

_HELD_OUT, _TRAIN, _DEMONSTRATED = 256, 4000, 2000
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


def _row(number: int) -> dict[str, Any]:
    """Problem `number`: which digits, how long and loud, what is asked, and the noise follow from it."""
    rng = np.random.default_rng(number)
    first, last = rng.integers(0, 10, 2).tolist()
    question = ("first", "last", "sum")[number % 3]
    answer = {"first": first, "last": last, "sum": first + last}[question]
    return {"prompt": question, "answer": str(answer), "audio": _sound(rng, first, last)}


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


def held_out() -> list[dict[str, Any]]:
    """256 problems that no other function gives."""
    return [_row(number) for number in range(_HELD_OUT)]


def train() -> list[dict[str, Any]]:
    """4,000 problems."""
    return [_row(_HELD_OUT + number) for number in range(_TRAIN)]


def demonstrations() -> list[dict[str, Any]]:
    """2,000 of the problems of `train` with their answers."""
    return [_row(_HELD_OUT + number) for number in range(_DEMONSTRATED)]
