"""Every random draw of a run, derived from `runner.seed` and what the draw is for.

A draw never depends on how the work is split over processes, nor on what was drawn before: this is what makes
a resumed run equal an uninterrupted one, and two ranks equal one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Final

import numpy as np


class Stream(IntEnum):
    """What a draw is for; streams never share a number."""

    WEIGHTS = 0
    EPISODE = 1
    ACTION = 2
    SHUFFLE = 3
    SFT = 4
    DEMONSTRATION = 5
    EXPERT = 6
    HELD_OUT = 7
    MIX = 8
    VALIDATION = 9
    NOISE = 10


#: Episode seeds of training and of demonstrations have this bit; held-out seeds (`env.eval.seed`) do not.
TRAINING_BIT: Final = 1 << 31


def derive(seed: int, stream: Stream, *keys: int) -> int:
    """A 32-bit number from the run's seed, the stream and the keys (all non-negative), hashed."""
    return int(np.random.SeedSequence([seed, stream, *keys]).generate_state(1)[0])


def episode_seed(seed: int, iteration: int, group: int) -> int:
    """Seed of the first episode of the environments of `group` in a rollout, in [2^31, 2^32)."""
    return derive(seed, Stream.EPISODE, iteration, group) | TRAINING_BIT


def demonstration_seed(seed: int, attempt: int) -> int:
    """Seed of the expert's `attempt`-th episode, in [2^31, 2^32)."""
    return derive(seed, Stream.DEMONSTRATION, attempt) | TRAINING_BIT


def minibatches(seed: int, iteration: int, epoch: int, samples: np.ndarray, size: int) -> list[np.ndarray]:
    """`samples` (sample numbers) shuffled and cut into parts of about `size`, all within one of each other.

    Parts of equal length keep the last optimizer step from acting on a handful of leftover samples.
    """
    order = np.random.default_rng([seed, Stream.SHUFFLE, iteration, epoch]).permutation(samples)
    return np.array_split(order, max(1, round(len(order) / size)))


class SampleOrder:
    """Which samples each SFT step takes: a pure function of the seed and the step, so that there is no
    sampler state to save, and a run that resumes within an epoch goes on with the same samples.

    Every dataset is gone through in seeded permutations laid end to end, of which each step takes its share.
    A cycle of as many samples as there are in all holds every dataset as often as its weight says, in an
    order that is shuffled anew in each cycle. Samples are numbered through, dataset after dataset.

    Args:
        sizes: samples of each dataset.
        weights: shares of the datasets, in any unit; None: in proportion to their sizes.
    """

    def __init__(
        self, seed: int, sizes: Sequence[int], batch_size: int, weights: Sequence[float] | None = None
    ) -> None:
        self._seed, self._batch_size = seed, batch_size
        self._sizes = np.array(sizes, np.int64)
        self._first = np.concatenate([[0], np.cumsum(self._sizes)])[:-1]
        self._cycle = int(self._sizes.sum())
        self._quota = self._sizes if weights is None else _shares(self._cycle, weights, self._sizes)
        self._cache: dict[tuple[int, ...], np.ndarray] = {}

    def batch(self, step: int) -> np.ndarray:
        """Sample numbers int64 [batch_size] of step `step` (from 0)."""
        positions = np.arange(step * self._batch_size, (step + 1) * self._batch_size)
        batch = np.empty(len(positions), np.int64)
        for cycle in np.unique(positions // self._cycle).tolist():
            mine = positions // self._cycle == cycle
            batch[mine] = self._in_cycle(cycle, positions[mine] % self._cycle)
        return batch

    def _in_cycle(self, cycle: int, places: np.ndarray) -> np.ndarray:
        datasets, occurrence = self._mix(cycle)
        found = np.empty(len(places), np.int64)
        for i, place in enumerate(places.tolist()):
            dataset = int(datasets[place])
            number = cycle * int(self._quota[dataset]) + int(occurrence[place])
            epoch, within = divmod(number, int(self._sizes[dataset]))
            found[i] = self._first[dataset] + self._permutation(dataset, epoch)[within]
        return found

    def _mix(self, cycle: int) -> tuple[np.ndarray, np.ndarray]:
        """The dataset of every place in a cycle, and how often it came before in this cycle."""
        if len(self._sizes) == 1:
            return np.zeros(self._cycle, np.int8), np.arange(self._cycle)

        def make() -> np.ndarray:
            rng = np.random.default_rng([self._seed, Stream.MIX, cycle])
            return rng.permutation(np.repeat(np.arange(len(self._sizes)), self._quota))

        datasets = self._cached((cycle,), make)

        def count() -> np.ndarray:
            occurrence = np.empty(self._cycle, np.int64)
            for dataset, quota in enumerate(self._quota.tolist()):
                occurrence[datasets == dataset] = np.arange(quota)
            return occurrence

        return datasets, self._cached((cycle, 0, 0), count)

    def _permutation(self, dataset: int, epoch: int) -> np.ndarray:
        def make() -> np.ndarray:
            # A first dataset's number, 0, changes nothing: SeedSequence pads what it is given with zeros.
            rng = np.random.default_rng([self._seed, Stream.SFT, epoch, dataset])
            return rng.permutation(int(self._sizes[dataset]))

        return self._cached((epoch, dataset), make)

    def _cached(self, key: tuple[int, ...], make: Callable[[], np.ndarray]) -> np.ndarray:
        if key not in self._cache:
            if len(self._cache) >= 4 * (len(self._sizes) + 1):
                self._cache.pop(next(iter(self._cache)))
            self._cache[key] = make()
        return self._cache[key]


def _shares(total: int, weights: Sequence[float], sizes: np.ndarray) -> np.ndarray:
    """`total` divided in proportion to the weights by largest remainders; nothing for an empty dataset."""
    wanted = np.where(sizes > 0, np.asarray(weights, np.float64), 0.0)
    exact = wanted / wanted.sum() * total
    shares = np.floor(exact).astype(np.int64)
    for dataset in np.argsort(shares - exact, kind="stable")[: total - shares.sum()]:
        shares[dataset] += 1
    return shares
