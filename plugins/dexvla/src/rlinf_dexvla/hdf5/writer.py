"""Writing episodes: what `rlinf data record` and the tests use."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final

import h5py
import numpy as np
from rlinf.data.episodes import Feature
from rlinf.data.errors import DatasetError

from rlinf_dexvla.hdf5.files import (
    ACTION,
    EPISODE_REASONING,
    IMAGES,
    INSTRUCTION,
    QPOS,
    QVEL,
    REASONING,
    encode_image,
)

#: Names of others for the vectors of this layout.
_VECTORS: Final = {
    ACTION: ACTION,
    "actions": ACTION,
    QPOS: QPOS,
    "observation.state": QPOS,
    "state": QPOS,
    "states": QPOS,
    QVEL: QVEL,
    "observation.velocity": QVEL,
    REASONING: REASONING,
    EPISODE_REASONING: REASONING,
}
_JPEG_QUALITY: Final = 95


def create_aloha(folder: str | Path, features: Mapping[str, Feature], *, fps: float) -> AlohaWriter:
    """A writer of a new dataset of simulated episodes.

    Raises DatasetError: the folder holds episodes already, or a feature has no place in the layout.
    """
    return AlohaWriter(Path(folder), features, fps)


class AlohaWriter:
    """An `EpisodeWriter`: `episode_N.hdf5` per episode, images as JPEG. A file appears when it is complete.

    Velocities that are not given are differences of the positions.
    """

    def __init__(self, folder: Path, features: Mapping[str, Feature], fps: float) -> None:
        self.folder, self.fps = folder, fps
        self._paths = {name: _path(name, feature) for name, feature in features.items()}
        self._count = 0
        missing = [path for path in (ACTION, QPOS) if path not in self._paths.values()]
        if missing:
            raise DatasetError(
                f"{folder}: the ALOHA layout needs /{missing[0]}; given: {', '.join(features)}"
            )
        if next(folder.glob("*.hdf5"), None) is not None:
            raise DatasetError(f"{folder} already holds episodes; name a new folder")

    def add(self, frames: Mapping[str, np.ndarray], task: str) -> None:
        """See `EpisodeWriter`."""
        lengths = {name: len(array) for name, array in frames.items()}
        if frames.keys() != self._paths.keys() or len(set(lengths.values())) != 1:
            raise DatasetError(
                f"{self.folder}: expected {', '.join(self._paths)} of one length, got {lengths}"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        final = self.folder / f"episode_{self._count}.hdf5"
        aside = final.with_suffix(".tmp")
        with h5py.File(aside, "w") as file:
            file.attrs.update({"sim": True, "compress": True, "fps": self.fps})
            file[INSTRUCTION] = [task.encode()]
            for name, array in frames.items():
                self._write(file, self._paths[name], array)
            if QVEL not in file:
                file[QVEL] = _velocities(file[QPOS][()], self.fps)
        os.replace(aside, final)
        self._count += 1

    def _write(self, file: h5py.File, path: str, array: np.ndarray) -> None:
        if path == REASONING:
            file.create_dataset(path, data=[str(text).encode() for text in array])
        elif path.startswith(IMAGES):
            encoded = [encode_image(image, _JPEG_QUALITY) for image in array]
            kind = h5py.vlen_dtype(np.uint8)
            data = file.create_dataset(path, (len(encoded),), dtype=kind)
            for i, image in enumerate(encoded):
                data[i] = image
        else:
            file[path] = array.astype(np.float32)

    def __enter__(self) -> AlohaWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for leftover in self.folder.glob("*.tmp"):
            leftover.unlink()


def _velocities(positions: np.ndarray, fps: float) -> np.ndarray:
    return np.gradient(positions, axis=0) * fps if len(positions) > 1 else np.zeros_like(positions)


def _path(name: str, feature: Feature) -> str:
    if feature.is_image:
        camera = name.rpartition("/")[2].removeprefix("observation.images.").removeprefix("observation.")
        return f"{IMAGES}/{camera}"
    if name not in _VECTORS:
        raise DatasetError(f"feature {name!r} has no place in the ALOHA layout; known: {', '.join(_VECTORS)}")
    return _VECTORS[name]
