"""What a dataset of recorded episodes is to the rest of the framework, whatever its format on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, runtime_checkable

import numpy as np

#: How a feature's frames are kept on disk; a reader gives images as uint8 [H,W,C] whichever it is.
Kind = Literal["array", "image", "video"]


@dataclass(frozen=True, kw_only=True)
class Feature:
    """One column of a dataset: what `read` gives for one frame.

    shape: of one frame; [H,W,C] of images. dtype: numpy's name, "uint8" for images.
    names: what the entries of a vector mean, where the dataset says so.
    """

    shape: tuple[int, ...]
    dtype: str
    kind: Kind = "array"
    names: tuple[str, ...] = ()

    @property
    def is_image(self) -> bool:
        return self.kind != "array"


@runtime_checkable
class EpisodeDataset(Protocol):
    """Recorded episodes. Opening reads the metadata only; `read` may be called from several processes,
    each with a dataset that it opened itself, and in any order (neighbours in time are cheapest)."""

    #: What the user gave: a path or a hub id; for messages.
    source: str
    #: Frames per second.
    fps: float
    #: Name -> feature, in the dataset's own names.
    features: Mapping[str, Feature]
    #: int64 [episodes], frames in each.
    lengths: np.ndarray

    def read(self, episode: int, frames: Sequence[int], keys: Sequence[str]) -> dict[str, np.ndarray]:
        """The frames (numbers within the episode, any order, repeats allowed) of some features:
        {key: [len(frames), *shape]}. Raises `EpisodeError`."""

    def tasks(self, episode: int, frames: Sequence[int]) -> list[str]:
        """The instruction at each of the frames. Raises `EpisodeError`."""

    def check(self, episode: int) -> None:
        """Read all of an episode and compare it with the metadata. Raises `EpisodeError`."""

    def fingerprint(self) -> str:
        """A digest that is equal for equal metadata (episodes, lengths, features, tasks) wherever the
        dataset lies, and otherwise differs: a resumed run checks that it reads the same data."""


class EpisodeWriter(Protocol):
    """Writes a new dataset, episode by episode; complete when the `with` block ends without an error."""

    def add(self, frames: Mapping[str, np.ndarray], task: str) -> None:
        """Append an episode: {feature: [length, *shape]}. Raises `DatasetError` where they do not fit."""

    def __enter__(self) -> EpisodeWriter: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
