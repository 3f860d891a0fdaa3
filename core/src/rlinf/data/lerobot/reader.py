"""Reading LeRobot datasets: `LeRobotDataset` is an `EpisodeDataset`."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from rlinf.data.episodes import Feature
from rlinf.data.errors import DatasetError, EpisodeError
from rlinf.data.lerobot.hub import resolve_source
from rlinf.data.lerobot.meta import INDEX_COLUMNS, Clip, Metadata, read_metadata
from rlinf.data.lerobot.tables import Tables
from rlinf.data.lru import Lru
from rlinf.data.video import VideoError, VideoFile, VideoIndex

#: Videos that one process keeps open; each holds a file handle and a decoder.
_OPEN_VIDEOS: Final = 64
#: A frame counts as found when the video has one within this share of a frame's duration.
_TOLERANCE: Final = 0.25


def open_dataset(source: str) -> LeRobotDataset:
    """A local folder, or `owner/name[@revision]` on the hub. Raises `DatasetError`."""
    try:
        import av
        import pyarrow  # noqa: F401

        del av
    except ModuleNotFoundError as error:
        raise DatasetError(
            f"{source}: reading LeRobot datasets needs {error.name}; pip install 'rlinf-core[data]'"
        ) from None
    return LeRobotDataset(source, read_metadata(resolve_source(source)))


class LeRobotDataset:
    """See `rlinf.data.EpisodeDataset`. Not for several threads at once."""

    def __init__(self, source: str, meta: Metadata) -> None:
        self.source, self.meta = source, meta
        self.fps: float = meta.fps
        self.features: Mapping[str, Feature] = {
            key: feature for key, feature in meta.features.items() if key not in INDEX_COLUMNS
        }
        self.lengths: np.ndarray = meta.lengths
        numbers = {key: feature for key, feature in self.features.items() if not feature.is_image}
        numbers |= {
            key: feature
            for key, feature in _INDEX_FEATURES.items()
            if key in meta.features or key in ("timestamp", "task_index")
        }
        self._tables = Tables(meta.root, numbers, [k for k, f in self.features.items() if f.kind == "image"])
        self._videos: Lru[VideoFile] = Lru(_OPEN_VIDEOS, close=VideoFile.close)
        self._indices: dict[str, VideoIndex] = {}

    def read(self, episode: int, frames: Sequence[int], keys: Sequence[str]) -> dict[str, np.ndarray]:
        """See `EpisodeDataset.read`."""
        numbers = np.asarray(frames, np.int64)
        if not 0 <= episode < len(self.lengths):
            raise EpisodeError(f"{self.source}: has {len(self.lengths)} episodes, no {episode}", episode)
        if numbers.size and (numbers.min() < 0 or numbers.max() >= self.lengths[episode]):
            count = self.lengths[episode]
            raise EpisodeError(
                f"{self.source}: episode {episode} has {count} frames, asked for {list(frames)}", episode
            )
        unknown = [key for key in keys if key not in self.features]
        if unknown:
            has = ", ".join(self.features)
            raise EpisodeError(f"{self.source}: has no feature {unknown[0]!r}; it has {has}", episode)
        found: dict[str, np.ndarray] = {}
        for key in keys:
            kind = self.features[key].kind
            if kind == "array":
                found[key] = self._column(episode, key)[numbers]
            elif kind == "image":
                found[key] = self._images(episode, numbers, key)
            else:
                found[key] = self._video(episode, numbers, key)
        return found

    def tasks(self, episode: int, frames: Sequence[int]) -> list[str]:
        """See `EpisodeDataset.tasks`."""
        numbers = self._scalars(episode, "task_index")[np.asarray(frames, np.int64)]
        try:
            return [self.meta.tasks[int(number)] for number in numbers]
        except KeyError as error:
            raise self._error(
                episode,
                self.meta.rows[episode].file,
                f"task_index {error} is none of the {len(self.meta.tasks)} tasks of meta/",
            ) from None

    def check(self, episode: int) -> None:
        """See `EpisodeDataset.check`: every number, every image, and what the index columns say."""
        length = len(self._scalars(episode, "timestamp"))  # that the file has so many rows comes first
        every = np.arange(length)
        file = self.meta.rows[episode].file
        for key, feature in self.features.items():
            values = self.read(episode, [] if feature.kind == "video" else every.tolist(), [key])[key]
            if feature.kind == "array" and values.dtype.kind == "f" and not np.isfinite(values).all():
                frame = int(np.flatnonzero(~np.isfinite(values.reshape(length, -1)).all(-1))[0])
                raise self._error(episode, file, f"{key} holds NaN or infinity at frame {frame}")
        self._check_videos(episode)
        for name, expected in (("frame_index", every), ("episode_index", np.full(length, episode))):
            if name in self.meta.features:
                found = self._scalars(episode, name)
                if (found != expected).any():
                    frame = int(np.flatnonzero(found != expected)[0])
                    raise self._error(
                        episode,
                        file,
                        f"{name} at frame {frame} is {found[frame]}, expected {expected[frame]}",
                    )
        self.tasks(episode, every.tolist())

    def fingerprint(self) -> str:
        """See `EpisodeDataset.fingerprint`."""
        features = {key: (f.kind, f.dtype, f.shape) for key, f in sorted(self.features.items())}
        content = [self.fps, features, self.lengths.tolist(), sorted(self.meta.tasks.items())]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    # -- inside ---

    def _column(self, episode: int, key: str) -> np.ndarray:
        """A whole column of an episode, [length, *shape]."""
        rows, length = self.meta.rows[episode], int(self.lengths[episode])
        try:
            return self._tables.column(rows, length, key)
        except DatasetError as error:
            raise self._error(episode, rows.file, str(error)) from None

    def _scalars(self, episode: int, key: str) -> np.ndarray:
        return self._column(episode, key)[:, 0]

    def _images(self, episode: int, numbers: np.ndarray, key: str) -> np.ndarray:
        from PIL import Image, UnidentifiedImageError

        rows = self.meta.rows[episode]
        images = []
        for number in numbers.tolist():
            try:
                content = self._tables.image(rows, number, key)
                with Image.open(io.BytesIO(content)) as image:
                    images.append(np.asarray(image.convert("RGB")))
            except (DatasetError, UnidentifiedImageError, OSError) as error:
                raise self._error(episode, rows.file, f"{key} at frame {number}: {error}") from None
            self._check_shape(episode, rows.file, key, images[-1].shape)
        return np.stack(images) if images else np.empty((0, *self.features[key].shape), np.uint8)

    def _video(self, episode: int, numbers: np.ndarray, key: str) -> np.ndarray:
        clip = self.meta.clips[episode][key]
        try:
            video = self._open(clip)
            self._check_shape(episode, clip.file, key, video.shape)
            if len(numbers) == 0:
                return np.empty((0, *self.features[key].shape), np.uint8)
            # The time in the table, not number / fps, is what LeRobot looks up.
            seconds = clip.start + self._scalars(episode, "timestamp")[numbers].astype(np.float64)
            return video.frames(video.indices(seconds, _TOLERANCE / self.fps).tolist())
        except VideoError as error:
            self._videos.drop(clip.file)
            raise self._error(episode, clip.file, str(error)) from None

    def _open(self, clip: Clip) -> VideoFile:
        def make() -> VideoFile:
            return VideoFile(self.meta.root / clip.file, self._indices.get(clip.file))

        video = self._videos.get(clip.file, make)
        self._indices[clip.file] = video.index
        return video

    def _check_videos(self, episode: int) -> None:
        """Every frame of every video, and as many as the table has rows."""
        for key, clip in self.meta.clips[episode].items():
            length = int(self.lengths[episode])
            self._video(episode, np.arange(length), key)
            # In a file of one episode nothing else may lie; in one of many the next begins there.
            alone = self.meta.version != "v3.0"
            found = len(self._open(clip))
            if alone and found != length:
                raise self._error(episode, clip.file, f"holds {found} frames, meta/ says {length}")

    def _check_shape(self, episode: int, file: str, key: str, shape: tuple[int, ...]) -> None:
        if shape != self.features[key].shape:
            raise self._error(
                episode,
                file,
                f"{key} has images of {list(shape)}, meta/info.json says {list(self.features[key].shape)}",
            )

    def _error(self, episode: int, file: str, problem: str) -> EpisodeError:
        path = str(self.meta.root / file)
        problem = problem if problem.startswith(path) else f"{path}: {problem}"
        return EpisodeError(f"episode {episode}: {problem}", episode)


#: One number per frame, whatever `meta/info.json` says about them.
_INDEX_FEATURES: Final = {
    name: Feature(shape=(1,), dtype="float32" if name == "timestamp" else "int64") for name in INDEX_COLUMNS
}
