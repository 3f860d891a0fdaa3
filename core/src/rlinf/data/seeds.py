"""Every random draw of a run, derived from `runner.seed` and what the draw is for.

A draw never depends on how the work is split over processes, nor on what was drawn before: this is what makes
a resumed run equal an uninterrupted one, and two ranks equal one.
"""

from __future__ import annotations

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


def sft_batch(seed: int, step: int, num_samples: int, batch_size: int) -> np.ndarray:
    """Sample numbers of SFT step `step`: epochs are seeded permutations laid end to end, cut into batches.

    A pure function of its arguments, so there is no sampler state to save.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs = positions // num_samples
    batch = np.empty(batch_size, np.int64)
    for epoch in np.unique(epochs):
        order = np.random.default_rng([seed, Stream.SFT, int(epoch)]).permutation(num_samples)
        batch[epochs == epoch] = order[positions[epochs == epoch] % num_samples]
    return batch
