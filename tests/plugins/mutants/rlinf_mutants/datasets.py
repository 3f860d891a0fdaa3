"""A correct dataset format, and formats with one defect each: `DatasetTests` catches them.

A dataset is a folder with `episodes.json` and one `.npy` file per episode and feature.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from rlinf.data import DatasetError, EpisodeError, Feature
from rlinf.plugins import DatasetFormatSpec

_META = "episodes.json"


class Writer:
    """Writes to files of other names until all is there."""

    def __init__(self, folder: Path, features: Mapping[str, Feature], *, fps: float) -> None:
        self.folder, self.features, self.fps = Path(folder), features, fps
        self.episodes: list[dict[str, Any]] = []
        self.folder.mkdir(parents=True)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is None:
            self.finish()

    def finish(self) -> None:
        features = {
            name: {"shape": list(feature.shape), "dtype": feature.dtype, "kind": feature.kind}
            for name, feature in self.features.items()
        }
        text = json.dumps({"fps": self.fps, "features": features, "episodes": self.episodes})
        (self.folder / f"{_META}.part").write_text(text)
        os.replace(self.folder / f"{_META}.part", self.folder / _META)

    def add(self, frames: Mapping[str, np.ndarray], task: str) -> None:
        self.require_fitting(frames)
        number = len(self.episodes)
        hashes = {}
        for name, array in frames.items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            hashes[name] = hashlib.sha256(buffer.getvalue()).hexdigest()
            (self.folder / f"{number}.{name}.npy").write_bytes(buffer.getvalue())
        length = len(next(iter(frames.values())))
        self.episodes.append({"length": length, "task": task, "hashes": hashes})

    def require_fitting(self, frames: Mapping[str, np.ndarray]) -> None:
        lengths = {len(array) for array in frames.values()}
        shapes = {name: array.shape[1:] for name, array in frames.items()}
        expected = {name: feature.shape for name, feature in self.features.items()}
        if shapes != expected or len(lengths) != 1:
            raise DatasetError(f"{self.folder}: expected {expected} of one length, got {shapes}, {lengths}")


class Reader:
    """Reads what `Writer` wrote."""

    def __init__(self, source: str) -> None:
        self.source, self.folder = source, Path(source)
        try:
            self.meta = json.loads((self.folder / _META).read_text())
        except (OSError, ValueError) as error:
            raise DatasetError(f"{source}/{_META}: {error}") from None
        self.fps = float(self.meta["fps"])
        self.features = {
            name: Feature(shape=tuple(found["shape"]), dtype=found["dtype"], kind=found["kind"])
            for name, found in self.meta["features"].items()
        }
        self.lengths = np.array([episode["length"] for episode in self.meta["episodes"]], np.int64)

    def read(self, episode: int, frames: Sequence[int], keys: Sequence[str]) -> dict[str, np.ndarray]:
        self.require_there(episode, frames, keys)
        return {key: self.column(episode, key)[list(frames)] for key in keys}

    def require_there(self, episode: int, frames: Sequence[int], keys: Sequence[str]) -> None:
        unknown = [key for key in keys if key not in self.features]
        if not 0 <= episode < len(self.lengths) or unknown:
            raise EpisodeError(f"{self.source}: no episode {episode}, or no {unknown}", episode)
        if not all(0 <= frame < self.lengths[episode] for frame in frames):
            raise EpisodeError(f"{self.source}: episode {episode} has no frames {list(frames)}", episode)

    def column(self, episode: int, key: str) -> np.ndarray:
        return np.load(self.folder / f"{episode}.{key}.npy")

    def tasks(self, episode: int, frames: Sequence[int]) -> list[str]:
        return [self.meta["episodes"][episode]["task"]] * len(frames)

    def check(self, episode: int) -> None:
        for key, expected in self.meta["episodes"][episode]["hashes"].items():
            data = (self.folder / f"{episode}.{key}.npy").read_bytes()
            if hashlib.sha256(data).hexdigest() != expected:
                raise EpisodeError(f"{self.source}/{episode}.{key}.npy is damaged", episode)

    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self.meta, sort_keys=True).encode()).hexdigest()


def matches(path: Path) -> bool:
    return (path / _META).is_file()


#: Name -> (format, the test that names its law, what is wrong); the first is correct.
FORMATS: dict[str, tuple[DatasetFormatSpec, str, str]] = {}


def _format(breaks: str, wrong: str, **changes: str) -> Any:
    def register(cls: type) -> type:
        target = f"{__name__}:{cls.__name__}"
        role = "writer" if issubclass(cls, Writer) else "reader"
        fields = {"reader": f"{__name__}:Reader", "writer": f"{__name__}:Writer"}
        fields |= {"matches": f"{__name__}:matches", role: target, **changes}
        FORMATS[cls.__name__] = (DatasetFormatSpec(name=cls.__name__, **fields), breaks, wrong)
        return cls

    return register


@_format("", "")
class Correct(Reader):
    pass


@_format("test_opening_describes_the_dataset", "lengths are a list of int32")
class NarrowLengths(Reader):
    def __init__(self, source: str) -> None:
        super().__init__(source)
        self.lengths = self.lengths.astype(np.int32)


@_format("test_frames_are_what_features_say", "vectors come as float64")
class DoubleVectors(Reader):
    def column(self, episode: int, key: str) -> np.ndarray:
        array = super().column(episode, key)
        return array.astype(np.float64) if array.dtype == np.float32 else array


@_format("test_what_was_written_comes_back", "colours come back in the order blue, green, red")
class SwappedColours(Reader):
    def column(self, episode: int, key: str) -> np.ndarray:
        array = super().column(episode, key)
        return array[..., ::-1] if self.features[key].is_image else array


@_format("test_frames_come_in_the_order_asked_for", "frames come sorted")
class SortedFrames(Reader):
    def read(self, episode: int, frames: Sequence[int], keys: Sequence[str]) -> dict[str, np.ndarray]:
        return super().read(episode, sorted(frames), keys)


@_format("test_every_frame_has_an_instruction", "one instruction, however many frames are asked for")
class OneInstruction(Reader):
    def tasks(self, episode: int, frames: Sequence[int]) -> list[str]:
        return super().tasks(episode, [0] if list(frames) != list(range(self.lengths[episode])) else frames)


@_format("test_frames_are_the_callers_own", "a cached array is handed out")
class SharedBuffer(Reader):
    cache: ClassVar[dict[Any, Any]] = {}

    def read(self, episode: int, frames: Sequence[int], keys: Sequence[str]) -> dict[str, np.ndarray]:
        self.require_there(episode, frames, keys)
        key = (self.source, episode, tuple(frames), tuple(keys))
        return dict(self.cache.setdefault(key, super().read(episode, frames, keys)))


@_format("test_what_does_not_exist_is_refused", "negative frames count from the end")
class NegativeFrames(Reader):
    def require_there(self, episode: int, frames: Sequence[int], keys: Sequence[str]) -> None:
        super().require_there(episode, [frame for frame in frames if frame >= 0], keys)


@_format("test_another_process_reads_the_same", "what is read depends on the process")
class OfTheProcess(Reader):
    first: ClassVar[list[int]] = []

    def column(self, episode: int, key: str) -> np.ndarray:
        array = super().column(episode, key)
        is_ours = os.environ.get("RLINF_MUTANT_HOME") == str(os.getpid())
        return array if is_ours else np.roll(array, 1, axis=0)


@_format("test_fingerprint_is_that_of_the_contents", "the path goes into the fingerprint")
class PathInFingerprint(Reader):
    def fingerprint(self) -> str:
        return f"{super().fingerprint()} {self.source}"


@_format("test_fingerprint_is_that_of_the_contents", "the fingerprint is a constant")
class ConstantFingerprint(Reader):
    def fingerprint(self) -> str:
        return "a dataset"


@_format("test_damage_is_found", "check compares nothing")
class ChecksNothing(Reader):
    def check(self, episode: int) -> None:
        time.sleep(0)


@_format("test_damage_is_found", "an error of the JSON parser comes through")
class LibraryErrors(Reader):
    def __init__(self, source: str) -> None:
        path = Path(source) / _META
        if path.is_file():
            json.loads(path.read_text())
        super().__init__(source)


@_format("test_an_unfinished_dataset_is_refused", "the metadata is written although the writer failed")
class FinishesAnyway(Writer):
    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is None or not isinstance(error, DatasetError):
            self.finish()


@_format("test_frames_that_do_not_fit_are_refused", "episodes are written as they come")
class TakesAnything(Writer):
    def require_fitting(self, frames: Mapping[str, np.ndarray]) -> None:
        return None


@_format("test_the_format_knows_its_own", "any folder matches", matches=f"{__name__}:any_folder")
class MatchesAnything(Reader):
    pass


def any_folder(path: Path) -> bool:
    return path.is_dir()
