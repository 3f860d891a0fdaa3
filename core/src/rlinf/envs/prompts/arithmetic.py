"""Additions of two-digit numbers as text: prompts, demonstrations and preference pairs, always the same."""

from __future__ import annotations

import random
from typing import Any, Final

#: Problems that evaluation holds out, and problems that SFT sees demonstrated, of the 10,000 there are.
_HELD_OUT, _DEMONSTRATED = 256, 1500
_ALL: Final = random.Random(0).sample([(a, b) for a in range(100) for b in range(100)], 10_000)


def _row(a: int, b: int) -> dict[str, Any]:
    """Digits of the sum come last first: each then depends on two digits and a carry."""
    return {"prompt": f"{a:02d}+{b:02d}=", "answer": str(a + b)[::-1]}


def held_out() -> list[dict[str, Any]]:
    """256 problems that no other function gives."""
    return [_row(a, b) for a, b in _ALL[:_HELD_OUT]]


def train() -> list[dict[str, Any]]:
    """All problems but the held-out ones."""
    return [_row(a, b) for a, b in _ALL[_HELD_OUT:]]


def demonstrations() -> list[dict[str, Any]]:
    """1,500 of the problems of `train` with their answers."""
    return [_row(a, b) for a, b in _ALL[_HELD_OUT : _HELD_OUT + _DEMONSTRATED]]


def preferences() -> list[dict[str, Any]]:
    """Pairs on the problems of `train`: the right answer, and one that differs from it."""
    return _pairs(_ALL[_HELD_OUT:])


def held_out_preferences() -> list[dict[str, Any]]:
    """Pairs on the problems of `held_out`."""
    return _pairs(_ALL[:_HELD_OUT])


def _pairs(problems: list[tuple[int, int]]) -> list[dict[str, Any]]:
    rng = random.Random(1)
    rows = []
    for a, b in problems:
        row = _row(a, b)
        rejected = row["answer"]
        while rejected == row["answer"]:
            off = rng.choice([-20, -11, -10, -9, -2, -1, 1, 2, 9, 10, 11, 20, 100])
            rejected = str(max(a + b + off, 0))[::-1]
        rows.append({"prompt": row["prompt"], "chosen": row["answer"], "rejected": rejected})
    return rows
