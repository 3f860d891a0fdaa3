"""Reading: random access to frames over many files, with a bounded number of them open.

A recorded command of a real robot belongs to the observation after it, so without the attribute `sim` the
action at frame t is row max(t - 1, 0) of `/action`, as in the original.
"""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, TypeVar

import h5py
import numpy as np
from rlinf.data.episodes import Feature
from rlinf.data.errors import DatasetError, EpisodeError
from rlinf.data.lru import Lru

from rlinf_dexvla.hdf5.files import (
    ACTION,
    QVEL,
    REASONING,
    VECTORS,
    FileProblem,
    Outline,
    check_values,
    open_file,
    outline,
    read_images,
    read_reasonings,
)

SUFFIX: Final = ".hdf5"
#: Files that are kept open.
_OPEN_FILES: Final = 64
#: Bytes of vectors and texts, and of the images of small files, that are kept in memory.
_KEPT_BYTES, _SMALL_FILE = 96 << 20, 1 << 20

V = TypeVar("V")


def is_aloha(path: Path) -> bool:
    """Whether a path is an HDF5 episode, or a folder that has one at its top."""
    return path.suffix == SUFFIX or (path.is_dir() and next(path.glob(f"*{SUFFIX}"), None) is not None)


def open_aloha(source: str) -> AlohaDataset:
    """The dataset of a folder (with those below it), a file, or a pattern such as `data/*shirt*.hdf5`.

    Raises DatasetError naming the file and the path inside it where a file's layout is wrong.
    """
    return AlohaDataset(source)


def find_files(source: str) -> list[Path]:
    """HDF5 files in the order of their names, `episode_2` before `episode_10`. Raises DatasetError."""
    path = Path(source)
    if path.is_dir():
        found = list(path.rglob(f"*{SUFFIX}"))
    elif path.is_file():
        found = [path]
    else:
        found = [Path(name) for name in glob.glob(source, recursive=True) if name.endswith(SUFFIX)]
    if not found:
        raise DatasetError(f"{source}: no {SUFFIX} file; expected a folder, a file or a pattern of files")
    return sorted(found, key=_natural)


class AlohaDataset:
    """An `EpisodeDataset` over HDF5 files, one per episode."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.files = find_files(source)
        outlines = [self._outline(i, path) for i, path in enumerate(self.files)]
        self.features: Mapping[str, Feature] = outlines[0].features
        for i, other in enumerate(outlines):
            self._require_alike(i, outlines[0], other)
        self.fps = outlines[0].fps
        self.lengths = np.array([o.length for o in outlines])
        self._is_sim = [o.is_sim for o in outlines]
        self._instructions = [o.instruction for o in outlines]
        self._is_small = [path.stat().st_size <= _SMALL_FILE for path in self.files]
        self._open: Lru[h5py.File] = Lru(_OPEN_FILES, close=lambda file: file.close())
        self._kept: Lru[np.ndarray] = Lru(_KEPT_BYTES, cost=_size)

    def read(self, episode: int, frames: Sequence[int], keys: Sequence[str]) -> dict[str, np.ndarray]:
        """See `EpisodeDataset`; texts are arrays of str."""
        wanted = np.asarray(frames)
        unique, inverse = np.unique(wanted, return_inverse=True)
        found: dict[str, np.ndarray] = {}
        for key in keys:
            if key in VECTORS:
                rows = np.maximum(wanted - 1, 0) if key == ACTION and not self._is_sim[episode] else wanted
                found[key] = self._whole(episode, key)[rows]
            elif key == REASONING:
                texts = self._whole(episode, key)
                found[key] = texts[wanted if len(texts) > 1 else np.zeros_like(wanted)]
            else:
                found[key] = self._images(episode, key, unique)[inverse]
        return found

    def tasks(self, episode: int, frames: Sequence[int]) -> list[str]:
        """See `EpisodeDataset`."""
        return [self._instructions[episode]] * len(frames)

    def check(self, episode: int) -> None:
        """See `EpisodeDataset`."""

        def check(file: h5py.File) -> None:
            check_values(file, outline(file))

        self._guard(episode, check)

    def fingerprint(self) -> str:
        """See `EpisodeDataset`."""
        features = {name: [list(f.shape), f.dtype] for name, f in sorted(self.features.items())}
        text = json.dumps([self.lengths.tolist(), features, self._instructions, self.fps, self._is_sim])
        return hashlib.sha256(text.encode()).hexdigest()

    def _whole(self, episode: int, key: str) -> np.ndarray:
        """All of an episode's feature, kept in memory: numbers float32, texts str, images as in the file."""

        def read(file: h5py.File) -> np.ndarray:
            if key == REASONING:
                return read_reasonings(file)
            data = file[key][()]
            return data.astype(np.float32) if key in VECTORS else data

        return self._kept.get((episode, key), lambda: self._guard(episode, read))

    def _images(self, episode: int, key: str, frames: np.ndarray) -> np.ndarray:
        def read(file: h5py.File) -> np.ndarray:
            return read_images(file[key], key, frames)

        if not self._is_small[episode]:
            return self._guard(episode, read)
        try:
            return read_images(self._whole(episode, key), key, frames)
        except FileProblem as problem:
            raise EpisodeError(f"{self.files[episode]}: {problem}", episode) from None

    def _guard(self, episode: int, function: Callable[[h5py.File], V]) -> V:
        path = self.files[episode]
        with _named(path, episode):
            return function(self._open.get(episode, lambda: open_file(path)))

    def _outline(self, episode: int, path: Path) -> Outline:
        status = path.stat()
        with _named(path, episode):
            return _outline(path, status.st_size, status.st_mtime_ns)

    def _require_alike(self, episode: int, first: Outline, other: Outline) -> None:
        """All files have the features and shapes of the first; velocities and reasoning may be absent."""
        for name in {*first.features, *other.features} - {QVEL, REASONING}:
            here, there = first.features.get(name), other.features.get(name)
            if here is None or there is None or here.shape != there.shape:
                shapes = [f"{list(f.shape)}" if f else "absent" for f in (there, here)]
                raise EpisodeError(
                    f"{self.files[episode]}: /{name} is {shapes[0]} there and {shapes[1]} in {self.files[0]}",
                    episode,
                )


@contextmanager
def _named(path: Path, episode: int) -> Iterator[None]:
    """What is wrong with a file, and what h5py raises for one that it cannot read, as EpisodeError."""
    try:
        yield
    except FileProblem as problem:
        raise EpisodeError(f"{path}: {problem}", episode) from None
    except (OSError, KeyError, RuntimeError) as error:
        raise EpisodeError(f"{path}: cannot be read: {error}", episode) from None


@lru_cache(maxsize=1 << 15)
def _outline(path: Path, size: int, changed: int) -> Outline:
    """Of a file as it was at that time: a run opens its data several times, and its loaders once more."""
    with open_file(path) as file:
        return outline(file)


def _size(array: np.ndarray) -> int:
    """Bytes in memory; of an object array those of its entries."""
    return sum(entry.nbytes for entry in array) if array.dtype.hasobject else array.nbytes


def _natural(path: Path) -> list[Any]:
    """Sorting key in which numbers count as numbers."""
    parts: list[Any] = []
    for char in str(path):
        if char.isdigit() and parts and parts[-1][0] == 1:
            parts[-1] = (1, parts[-1][1] * 10 + int(char), "")
        else:
            parts.append((1, int(char), "") if char.isdigit() else (0, 0, char))
    return parts
