"""Additions of two-digit numbers as text: prompts, demonstrations and preference pairs, always the same."""

from __future__ import annotations

import random
from typing import Any, Final

#: Problems that evaluation holds out, and problems that SFT sees demonstrated, of the 10,000 there are.
_HELD_OUT, _DEMONSTRATED = 256, 1500
_ALL: Final = random.Random(0).sample([(a, b) for a in range(100) for b in range(100)], 10_000)


def _written(total: int) -> str:
    """Digits of a sum, the last one first: each then depends on two digits and a carry."""
    return str(total)[::-1]


def _row(a: int, b: int) -> dict[str, Any]:
    return {"prompt": f"{a:02d}+{b:02d}=", "answer": _written(a + b)}


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
    """32 pairs for each problem of `train`: the right answer, and one that differs from it."""
    return _pairs(_ALL[_HELD_OUT:], 32)


def held_out_preferences() -> list[dict[str, Any]]:
    """Eight pairs for each problem of `held_out`."""
    return _pairs(_ALL[:_HELD_OUT], 8)


def _pairs(problems: list[tuple[int, int]], count: int) -> list[dict[str, Any]]:
    rng = random.Random(1)
    rows = []
    for a, b in problems:
        row = _row(a, b)
        for _ in range(count):
            rejected = row["answer"]
            while rejected == row["answer"]:
                rejected = rng.choice(_MISTAKES)(rng, a + b)
            rows.append({"prompt": row["prompt"], "chosen": row["answer"], "rejected": rejected})
    return rows


# Ways to be wrong: f(rng, sum) -> an answer, which may be right by chance.
def _wrong_digit(rng: random.Random, total: int) -> str:
    """One digit, most often too large or too small by one, as a forgotten carry leaves it."""
    digits = list(_written(total))
    place = rng.randrange(len(digits))
    off = rng.choice([1, 1, 1, 9, 9, 9, 2, 3, 4, 5, 6, 7, 8])
    digits[place] = str((int(digits[place]) + off) % 10)
    return "".join(digits)


def _digit_too_many(rng: random.Random, total: int) -> str:
    digits = _written(total)
    place = rng.randrange(len(digits) + 1)
    return digits[:place] + rng.choice("0123456789") + digits[place:]


def _digit_too_few(rng: random.Random, total: int) -> str:
    digits = _written(total)
    place = rng.randrange(len(digits))
    return digits[:place] + digits[place + 1 :]


def _near(rng: random.Random, total: int) -> str:
    off = rng.choice([-20, -11, -10, -9, -2, -1, 1, 2, 9, 10, 11, 20, 100])
    return _written(max(total + off, 0))


def _other_sum(rng: random.Random, total: int) -> str:
    return _written(rng.randrange(199))


def _noise(rng: random.Random, total: int) -> str:
    return "".join(rng.choices("0123456789+=", k=rng.randrange(6)))


#: A kind of mistake that no pair shows is one that RL will find.
_MISTAKES: Final = (
    *[_wrong_digit] * 4,
    *[_near] * 2,
    _digit_too_many,
    _digit_too_few,
    _other_sum,
    _noise,
)
