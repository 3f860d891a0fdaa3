"""Reading: random access to frames over many files, with a bounded number of them open.

A recorded command of a real robot belongs to the observation after it, so without the attribute `sim` the
action at frame t is row max(t - 1, 0) of `/action`, as in the original.
"""

from __future__ import annotations

import glob
import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import h5py
import numpy as np
from rlinf.data.episodes import Feature
from rlinf.data.errors import DatasetError, EpisodeError

from rlinf_dexvla.hdf5.files import (
    ACTION,
    QVEL,
    REASONING,
    VECTORS,
    FileProblem,
    Outline,
    check_values,
    instruction,
    open_file,
    outline,
    read_frames,
)

SUFFIX: Final = ".hdf5"
#: Files that are kept open; episodes whose vectors are kept in memory (some 100 KB each).
_OPEN_FILES, _CACHED_VECTORS = 64, 512

K = TypeVar("K")
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
        self._open: Lru[int, h5py.File] = Lru(_OPEN_FILES, lambda file: file.close())
        self._vectors: Lru[tuple[int, str], np.ndarray] = Lru(_CACHED_VECTORS)

    def read(self, episode: int, frames: Sequence[int], keys: Sequence[str]) -> dict[str, np.ndarray]:
        """See `EpisodeDataset`; texts are arrays of str."""
        wanted = np.asarray(frames)
        unique, inverse = np.unique(wanted, return_inverse=True)
        found: dict[str, np.ndarray] = {}
        for key in keys:
            if key in VECTORS:
                rows = np.maximum(wanted - 1, 0) if key == ACTION and not self._is_sim[episode] else wanted
                found[key] = self._vector(episode, key)[rows]
            else:
                found[key] = self._guard(episode, partial(read_frames, name=key, frames=unique))[inverse]
        return found

    def tasks(self, episode: int, frames: Sequence[int]) -> list[str]:
        """See `EpisodeDataset`."""
        return [self._guard(episode, instruction)] * len(frames)

    def check(self, episode: int) -> None:
        """See `EpisodeDataset`."""

        def check(file: h5py.File) -> None:
            check_values(file, outline(file))

        self._guard(episode, check)

    def fingerprint(self) -> str:
        """See `EpisodeDataset`."""
        features = {name: [list(f.shape), f.dtype] for name, f in sorted(self.features.items())}
        tasks = [self.tasks(episode, [0])[0] for episode in range(len(self.files))]
        text = json.dumps([self.lengths.tolist(), features, tasks, self.fps, self._is_sim])
        return hashlib.sha256(text.encode()).hexdigest()

    def _vector(self, episode: int, key: str) -> np.ndarray:
        """All of an episode's actions or states, float32, kept in memory."""

        def load() -> np.ndarray:
            return self._guard(episode, lambda file: file[key][()].astype(np.float32))

        return self._vectors.get((episode, key), load)

    def _guard(self, episode: int, function: Callable[[h5py.File], V]) -> V:
        path = self.files[episode]
        try:
            return function(self._open.get(episode, lambda: open_file(path)))
        except FileProblem as problem:
            raise EpisodeError(f"{path}: {problem}", episode) from None
        except (OSError, KeyError, RuntimeError) as error:
            raise EpisodeError(f"{path}: cannot be read: {error}", episode) from None

    def _outline(self, episode: int, path: Path) -> Outline:
        try:
            with open_file(path) as file:
                return outline(file)
        except FileProblem as problem:
            raise EpisodeError(f"{path}: {problem}", episode) from None

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


class Lru(OrderedDict[K, V]):
    """The `size` entries that were used last; `drop` is called with what falls out."""

    def __init__(self, size: int, drop: Callable[[V], Any] = lambda value: None) -> None:
        super().__init__()
        self._size, self._drop = size, drop

    def get(self, key: K, make: Callable[[], V]) -> V:  # type: ignore[override]
        """The entry, made if it is not there."""
        if key not in self:
            self[key] = make()
            if len(self) > self._size:
                self._drop(self.popitem(last=False)[1])
        self.move_to_end(key)
        return self[key]


def _natural(path: Path) -> list[Any]:
    """Sorting key in which numbers count as numbers."""
    parts: list[Any] = []
    for char in str(path):
        if char.isdigit() and parts and parts[-1][0] == 1:
            parts[-1] = (1, parts[-1][1] * 10 + int(char), "")
        else:
            parts.append((1, int(char), "") if char.isdigit() else (0, 0, char))
    return parts
