"""RLDS folders as tensorflow_datasets writes them: an `EpisodeDataset` over their TFRecord files.

The folder holds `features.json` and files such as `libero-train.tfrecord-00000-of-00010`; a record is an
episode, whose steps are in features `steps/...`, one value behind the other.
"""

from __future__ import annotations

import hashlib
import io
import json
import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from rlinf.data.episodes import Feature
from rlinf.data.errors import DatasetError, EpisodeError

from rlinf_openvla.rlds.records import (
    RecordError,
    check_record,
    count,
    example_places,
    record_places,
    values,
)

#: RLDS does not say it; `rlinf data convert --fps` does.
DEFAULT_FPS: Final = 10.0
_STEPS: Final = "steps/"
_TEXT: Final = ("language_instruction", "observation/natural_language_instruction")
_FILES: Final = "*.tfrecord-*"


@dataclass(frozen=True)
class Place:
    """Where an episode is: the number of its file, and its record's bytes."""

    file: int
    start: int
    length: int


def is_rlds(path: Path) -> bool:
    """Whether a path is a folder of tensorflow_datasets with TFRecord files."""
    return (path / "features.json").is_file() and next(path.glob(_FILES), None) is not None


def open_rlds(source: str) -> RldsDataset:
    """The dataset in a folder such as `libero_spatial_no_noops/1.0.0`. Raises DatasetError."""
    return RldsDataset(source)


class RldsDataset:
    """An `EpisodeDataset`. Features have the names of RLDS with dots: `observation.image`, `action`."""

    def __init__(self, source: str) -> None:
        self.source, self.fps = source, DEFAULT_FPS
        folder = Path(source)
        self._files = sorted(folder.glob(_FILES))
        if not self._files:
            raise DatasetError(f"{source}: no file {_FILES}; expected a folder of tensorflow_datasets")
        leaves = dict(_leaves(_read_json(folder / "features.json")))
        self._text = next((_STEPS + name for name in _TEXT if name in leaves), None)
        self._names = {name.replace("/", "."): _STEPS + name for name, f in leaves.items() if f is not None}
        self.features: Mapping[str, Feature] = {
            name.replace("/", "."): feature for name, feature in leaves.items() if feature is not None
        }
        if not self.features:
            raise DatasetError(f"{folder / 'features.json'}: has no steps with arrays or images")
        self._maps: list[mmap.mmap] = [_mapped(file) for file in self._files]
        self._places = [
            Place(number, *place)
            for number, (file, buffer) in enumerate(zip(self._files, self._maps, strict=True))
            for place in _places(file, buffer)
        ]
        self.lengths = np.array([self._length(episode) for episode in range(len(self._places))])

    def read(self, episode: int, frames: Sequence[int], keys: Sequence[str]) -> dict[str, np.ndarray]:
        """See `EpisodeDataset`."""
        self._require(episode, frames, keys)
        return {key: self._column(episode, np.asarray(frames), key) for key in keys}

    def tasks(self, episode: int, frames: Sequence[int]) -> list[str]:
        """See `EpisodeDataset`; "" where the dataset has no instructions."""
        self._require(episode, frames, ())
        if self._text is None:
            return [""] * len(frames)
        texts = self._values(episode, self._text)
        assert isinstance(texts, list)
        return [texts[i].decode("utf-8", "replace") for i in frames]

    def check(self, episode: int) -> None:
        """See `EpisodeDataset`."""
        place = self._places[episode]
        try:
            check_record(self._maps[place.file], place.start, place.length)
        except RecordError as error:
            raise self._error(episode, str(error)) from None
        frames = range(int(self.lengths[episode]))
        self.read(episode, frames, list(self.features))
        self.tasks(episode, frames)

    def fingerprint(self) -> str:
        """See `EpisodeDataset`."""
        features = {name: [list(f.shape), f.dtype] for name, f in sorted(self.features.items())}
        records = [[place.start, place.length] for place in self._places]
        text = json.dumps([self.lengths.tolist(), features, records, self.fps])
        return hashlib.sha256(text.encode()).hexdigest()

    def _require(self, episode: int, frames: Sequence[int], keys: Sequence[str]) -> None:
        if not 0 <= episode < len(self._places):
            raise EpisodeError(f"{self.source}: has no episode {episode} of {len(self._places)}", episode)
        bad = [i for i in frames if not 0 <= i < self.lengths[episode]]
        if bad:
            raise self._error(episode, f"has no step {bad[0]}, its length is {self.lengths[episode]}")
        unknown = [key for key in keys if key not in self.features]
        if unknown:
            raise self._error(
                episode, f"has no feature {unknown[0]!r}; it has {', '.join(sorted(self.features))}"
            )

    def _column(self, episode: int, frames: np.ndarray, key: str) -> np.ndarray:
        feature, found = self.features[key], self._values(episode, self._names[key])
        if isinstance(found, list):
            if not feature.is_image or len(found) != self.lengths[episode]:
                raise self._error(episode, f"{key}: {len(found)} values for {self.lengths[episode]} steps")
            return np.stack([self._image(episode, found[i], feature, key) for i in frames])
        size = int(np.prod(feature.shape))
        if len(found) != size * self.lengths[episode]:
            raise self._error(
                episode, f"{key}: {len(found)} numbers for {self.lengths[episode]} steps of {size}"
            )
        return found.reshape(-1, *feature.shape)[frames].astype(feature.dtype)

    def _image(self, episode: int, encoded: bytes, feature: Feature, key: str) -> np.ndarray:
        from PIL import Image

        try:
            image = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
        except OSError as error:
            raise self._error(episode, f"{key}: an image cannot be decoded: {error}") from error
        if image.shape != feature.shape:
            raise self._error(
                episode, f"{key}: an image is {image.shape}, features.json says {feature.shape}"
            )
        return image

    def _values(self, episode: int, name: str) -> list[bytes] | np.ndarray:
        place = self._places[episode]
        buffer = self._maps[place.file]
        try:
            found = example_places(buffer, place.start, place.length)
            if name not in found:
                raise RecordError(f"has no feature {name!r}; it has {', '.join(sorted(found)) or 'none'}")
            return values(buffer, *found[name])
        except RecordError as error:
            raise self._error(episode, str(error)) from None

    def _length(self, episode: int) -> int:
        """Steps, counted by a feature of one value each."""
        place = self._places[episode]
        buffer = self._maps[place.file]
        try:
            found = example_places(buffer, place.start, place.length)
            for key, feature in self.features.items():
                size = 1 if feature.is_image else int(np.prod(feature.shape))
                if self._names[key] in found:
                    return count(buffer, *found[self._names[key]]) // size
            raise RecordError("has none of the features that features.json names")
        except RecordError as error:
            raise DatasetError(str(self._error(episode, str(error)))) from None

    def _error(self, episode: int, what: str) -> EpisodeError:
        place = self._places[episode]
        return EpisodeError(f"{self._files[place.file]}: episode {episode}: {what}", episode)

    def __getstate__(self) -> dict[str, Any]:
        """Loader processes map the files themselves."""
        return {**self.__dict__, "_maps": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state
        self._maps = [_mapped(file) for file in self._files]


def _mapped(file: Path) -> mmap.mmap:
    with file.open("rb") as opened:
        try:
            return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise DatasetError(f"{file}: is empty") from None


def _places(file: Path, buffer: mmap.mmap) -> list[tuple[int, int]]:
    try:
        return record_places(buffer)
    except RecordError as error:
        raise DatasetError(f"{file}: {error}") from None


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{file}: {error}") from error


def _leaves(features: Any) -> Iterator[tuple[str, Feature | None]]:
    """(name, feature) of the steps; None for texts and flags, which `features` does not offer."""
    steps = _children(features).get("steps", {})
    yield from _walk(steps.get("sequence", {}).get("feature", {}), "")


def _walk(node: Any, name: str) -> Iterator[tuple[str, Feature | None]]:
    children = _children(node)
    for child, below in children.items():
        yield from _walk(below, f"{name}/{child}" if name else child)
    if children or not name:
        return
    image, tensor = node.get("image"), node.get("tensor")
    if image is not None:
        yield name, Feature(shape=_shape(image), dtype="uint8", kind="image")
    elif tensor is not None and tensor.get("dtype") not in ("bool", "string"):
        # A number per step is a vector of one, as in LeRobot's datasets.
        yield name, Feature(shape=_shape(tensor) or (1,), dtype=str(tensor.get("dtype", "float32")))
    else:
        yield name, None


def _children(node: Any) -> dict[str, Any]:
    return node.get("featuresDict", {}).get("features", {})


def _shape(node: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in node.get("shape", {}).get("dimensions", ()))
