"""Random examples for the fuzz tests: the same each time, and made small by hypothesis when one fails."""

from __future__ import annotations

import random
from collections.abc import Callable

import hypothesis
from hypothesis import strategies


def fuzz(check: Callable[[random.Random], None], examples: int) -> None:
    """Call `check` with that many sources of random numbers; what fails is tried again with simpler draws,
    and the simplest failure is raised."""
    bounded = hypothesis.settings(max_examples=examples, derandomize=True, deadline=None, database=None)
    bounded(hypothesis.given(strategies.randoms(use_true_random=False))(check))()
