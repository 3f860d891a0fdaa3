"""ALOHA's HDF5 files with random damage: read, or refused with a DatasetError that names the file; never
another error."""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from fuzzing import fuzz
from rlinf.data import DatasetError
from rlinf_dexvla.hdf5.reader import open_aloha
from test_dexvla_hdf5 import write_episode

NAMES = (
    "action", "language_raw", "substep_reasonings", "observations/qpos", "observations/qvel",
    "observations/images/cam_high", "observations/images", "observations",
)  # fmt: skip
#: What may stand where an array of another shape or type is expected.
VALUES: tuple[Any, ...] = (
    0, 1.5, "text", b"x", [], [[1.0]], [b"a", b"b"], np.zeros((4, 0)), np.zeros((4, 14), bool),
    np.zeros((4, 3, 3, 3), np.uint8), np.zeros((0, 14)), np.zeros((4, 14, 2)), np.zeros((4, 14), complex),
    np.full((4, 14), np.nan), np.zeros((4, 24, 32, 3), np.float32), np.zeros((4,), "V3"),
)  # fmt: skip
ATTRIBUTES: tuple[Any, ...] = (0, -1, float("nan"), "text", [1, 2], b"x")


def read_all(path: Path) -> None:
    """Everything that a run reads."""
    dataset = open_aloha(str(path))
    for episode, length in enumerate(dataset.lengths.tolist()):
        dataset.check(episode)
        dataset.read(episode, range(length), list(dataset.features))
        dataset.tasks(episode, range(length))
    dataset.fingerprint()


def change(rng: random.Random, path: Path) -> None:
    """Another value, or none, in place of an attribute or a dataset."""
    with h5py.File(path, "a") as file:
        name, kind = rng.choice(NAMES), rng.random()
        if kind < 0.2:
            file.attrs[rng.choice(["fps", "sim", "compress"])] = rng.choice(ATTRIBUTES)
            return
        del file[name]
        if kind > 0.4:
            file[name] = rng.choice(VALUES)


def damage(rng: random.Random, path: Path) -> None:
    """The file cut short, or bits of it flipped, mostly in its first 4 kB, where the structure is."""
    content = bytearray(path.read_bytes())
    if rng.random() < 0.2:
        del content[rng.randrange(len(content)) :]
    else:
        for _ in range(rng.choice((1, 1, 8, 40))):
            at = rng.randrange(len(content))
            content[at if rng.random() < 0.3 else at % 4000] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


@pytest.mark.parametrize("alter", [change, damage])
def test_a_file_is_read_or_refused_by_name(
    alter: Callable[[random.Random, Path], None], tmp_path: Path
) -> None:
    originals = [write_episode(tmp_path / "a.hdf5", 4), write_episode(tmp_path / "b.hdf5", 4, compress=True)]
    refused, numbers = [], itertools.count()

    def check(rng: random.Random) -> None:
        # A name of its own: a reader that failed holds its file open for as long as its error is kept.
        path = tmp_path / f"altered_{next(numbers)}.hdf5"
        shutil.copy(rng.choice(originals), path)
        alter(rng, path)
        try:
            read_all(path)
        except DatasetError as error:
            assert str(path) in str(error)
            refused.append(error)

    fuzz(check, 150)
    assert len(refused) > 30
