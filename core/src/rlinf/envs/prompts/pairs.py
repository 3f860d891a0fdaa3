"""Questions about two digits that a picture shows or a sound says, always the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

_HELD_OUT, _TRAIN, _DEMONSTRATED = 256, 4000, 2000
_SUM: Final = "sum"


@dataclass(frozen=True, kw_only=True)
class PairProblems:
    """Problems whose prompts are the questions for one of the digits or for their sum."""

    #: The questions for the first digit and for the second.
    questions: tuple[str, str]
    #: Column of the picture or the sound, and what makes one of a generator and the two digits.
    column: str
    make: Callable[[np.random.Generator, int, int], np.ndarray]

    def held_out(self) -> list[dict[str, Any]]:
        """256 problems that no other method gives."""
        return [self._row(number) for number in range(_HELD_OUT)]

    def train(self) -> list[dict[str, Any]]:
        """4,000 problems."""
        return [self._row(_HELD_OUT + number) for number in range(_TRAIN)]

    def demonstrations(self) -> list[dict[str, Any]]:
        """2,000 of the problems of `train` with their answers."""
        return [self._row(_HELD_OUT + number) for number in range(_DEMONSTRATED)]

    def _row(self, number: int) -> dict[str, Any]:
        """Problem `number`: the digits, what is asked and all that `make` draws follow from it."""
        rng = np.random.default_rng(number)
        first, second = rng.integers(0, 10, 2).tolist()
        question = (*self.questions, _SUM)[number % 3]
        answer = (first, second, first + second)[number % 3]
        return {"prompt": question, "answer": str(answer), self.column: self.make(rng, first, second)}
