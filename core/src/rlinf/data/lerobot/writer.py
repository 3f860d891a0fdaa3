"""Writing LeRobot datasets: `WriterV30` (many episodes per file) and `WriterV21` (a file per episode).

`meta/info.json` comes last, so a folder that has one is a complete dataset.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np

from rlinf.data.episodes import Feature
from rlinf.data.errors import DatasetError
from rlinf.data.lerobot import INFO
from rlinf.data.lerobot.columns import INDEX_FEATURES, arrow_table, episode_stats, merge_stats

CHUNK: Final = 1000
#: Files of v3.0 are closed at the first end of an episode after this many bytes.
DATA_BYTES: Final = 100 * 2**20
VIDEO_BYTES: Final = 200 * 2**20
#: H.264 reads everywhere. Every second frame is a key frame, as in LeRobot's own recordings, for fast random
#: access; crf 18 is hard to tell from the original.
CODEC: Final = "libx264"
CODEC_OPTIONS: Final = {"g": "2", "bf": "0", "crf": "18", "preset": "veryfast"}


class VideoWriter:
    """Frames uint8 [H,W,3] into an MP4."""

    def __init__(self, path: Path, shape: tuple[int, ...], fps: float) -> None:
        import av

        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.frames = path, 0
        self._container = av.open(str(path), "w")
        rate = Fraction(fps).limit_denominator(1000)
        self._stream = self._container.add_stream(CODEC, rate=rate, options=CODEC_OPTIONS)
        self._stream.height, self._stream.width = shape[:2]
        self._stream.pix_fmt = "yuv420p"

    def add(self, images: np.ndarray) -> None:
        """Append frames [n,H,W,3]; the first is a key frame, so that an episode begins with one."""
        import av

        for number, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts = self.frames
            frame.time_base = 1 / Fraction(self._stream.codec_context.framerate)
            if number == 0:
                frame.pict_type = av.video.frame.PictureType.I
            self._container.mux(self._stream.encode(frame))
            self.frames += 1

    def close(self) -> None:
        self._container.mux(self._stream.encode(None))
        self._container.close()


class Writer:
    """What both versions share; see `rlinf.data.EpisodeWriter`.

    Args:
        folder: must be new or empty.
        features: of one frame. Images of kind "video" go to MP4, of kind "image" to PNG in the tables.

    Raises:
        DatasetError: the folder holds something, or a video's sides are odd, which H.264 cannot store.
    """

    version: str
    data_path: str
    video_path: str

    def __init__(self, folder: Path, features: Mapping[str, Feature], *, fps: float) -> None:
        # The layout has no place for a text per frame; it is left out.
        features = {key: feature for key, feature in features.items() if feature.dtype != "str"}
        self.folder, self.features, self.fps = Path(folder), features, fps
        if self.folder.exists() and any(self.folder.iterdir()):
            raise DatasetError(f"{folder}: is not empty; name a new folder")
        for key, feature in features.items():
            if feature.kind == "video" and (feature.shape[0] % 2 or feature.shape[1] % 2):
                raise DatasetError(
                    f"{key}: a video needs even sides, got {list(feature.shape)}; record the images as PNG"
                )
        self.videos = [key for key, feature in features.items() if feature.kind == "video"]
        self.tasks: dict[str, int] = {}
        self.lengths: list[int] = []
        self.stats: list[dict[str, dict[str, np.ndarray]]] = []
        (self.folder / "meta").mkdir(parents=True, exist_ok=True)

    def add(self, frames: Mapping[str, np.ndarray], task: str) -> None:
        """See `EpisodeWriter.add`."""
        frames = {key: values for key, values in frames.items() if values.dtype.kind != "U"}
        length = self._check(frames)
        episode, first = len(self.lengths), sum(self.lengths)
        number = np.arange(length)
        index: dict[str, np.ndarray] = {
            "timestamp": (number / self.fps).astype(np.float32),
            "frame_index": number,
            "episode_index": np.full(length, episode),
            "index": first + number,
            "task_index": np.full(length, self.tasks.setdefault(task, len(self.tasks))),
        }
        table = arrow_table({**frames, **index}, self.features)
        stats = episode_stats({**frames, **index}, self.features)
        self._store(episode, length, table, frames, task)
        self.lengths.append(length)
        self.stats.append(stats)

    def _check(self, frames: Mapping[str, np.ndarray]) -> int:
        if frames.keys() != self.features.keys():
            raise DatasetError(f"an episode must have {', '.join(self.features)}; got {', '.join(frames)}")
        length = len(next(iter(frames.values())))
        for key, feature in self.features.items():
            if frames[key].shape != (length, *feature.shape) or length == 0:
                expected = [length or "at least 1", *feature.shape]
                raise DatasetError(f"{key}: expected {expected}, got {list(frames[key].shape)}")
        return length

    def _store(
        self, episode: int, length: int, table: Any, frames: Mapping[str, np.ndarray], task: str
    ) -> None:
        raise NotImplementedError

    def _finish(self) -> dict[str, Any]:
        """Close files, write the rest of `meta/`; returns the keys of info.json that are this version's."""
        raise NotImplementedError

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        special = self._finish()
        if error is not None or not self.lengths:
            return
        features = {key: _described(feature, self.fps) for key, feature in self.features.items()}
        info = {
            "codebase_version": self.version,
            "robot_type": None,
            "total_episodes": len(self.lengths),
            "total_frames": sum(self.lengths),
            "total_tasks": len(self.tasks),
            "chunks_size": CHUNK,
            "fps": int(self.fps) if self.fps == int(self.fps) else self.fps,
            "splits": {"train": f"0:{len(self.lengths)}"},
            "data_path": self.data_path,
            "video_path": self.video_path if self.videos else None,
            "features": {**features, **INDEX_FEATURES},
            **special,
        }
        aside = self.folder / "meta/info.json.tmp"
        aside.write_text(json.dumps(info, indent=4), encoding="utf-8")
        os.replace(aside, self.folder / INFO)


def _described(feature: Feature, fps: float) -> dict[str, Any]:
    names: list[str] | None = list(feature.names) or None
    dtype = feature.kind if feature.is_image else feature.dtype
    described: dict[str, Any] = {"dtype": dtype, "shape": list(feature.shape), "names": names}
    if feature.is_image:
        described["names"] = ["height", "width", "channels"]
    if feature.kind == "video":
        described["info"] = {
            "video.height": feature.shape[0],
            "video.width": feature.shape[1],
            "video.codec": "h264",
            "video.pix_fmt": "yuv420p",
            "video.is_depth_map": False,
            "video.fps": fps,
            "video.channels": 3,
            "has_audio": False,
        }
    return described


class WriterV21(Writer):
    """LeRobot v2.1."""

    version = "v2.1"
    data_path = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    video_path = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"

    def _store(
        self, episode: int, length: int, table: Any, frames: Mapping[str, np.ndarray], task: str
    ) -> None:
        from pyarrow import parquet

        where = {"episode_chunk": episode // CHUNK, "episode_index": episode}
        path = self.folder / self.data_path.format(**where)
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(table, path)
        for key in self.videos:
            name = self.video_path.format(video_key=key, **where)
            video = VideoWriter(self.folder / name, self.features[key].shape, self.fps)
            video.add(frames[key])
            video.close()
        self._line("episodes", {"episode_index": episode, "tasks": [task], "length": length})

    def _finish(self) -> dict[str, Any]:
        for task, number in self.tasks.items():
            self._line("tasks", {"task_index": number, "task": task})
        for episode, stats in enumerate(self.stats):
            plain = {key: {name: x.tolist() for name, x in one.items()} for key, one in stats.items()}
            self._line("episodes_stats", {"episode_index": episode, "stats": plain})
        episodes = len(self.lengths)
        return {"total_videos": episodes * len(self.videos), "total_chunks": -(-episodes // CHUNK)}

    def _line(self, name: str, content: dict[str, Any]) -> None:
        with (self.folder / f"meta/{name}.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(content) + "\n")


class WriterV30(Writer):
    """LeRobot v3.0."""

    version = "v3.0"
    data_path = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
    video_path = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"

    def __init__(self, folder: Path, features: Mapping[str, Feature], *, fps: float) -> None:
        super().__init__(folder, features, fps=fps)
        self._rows: list[dict[str, Any]] = []
        self._table: Any = None
        self._data_files = 0
        self._open: dict[str, VideoWriter] = {}
        self._video_files = dict.fromkeys(self.videos, 0)

    def _store(
        self, episode: int, length: int, table: Any, frames: Mapping[str, np.ndarray], task: str
    ) -> None:
        first = sum(self.lengths)
        chunk, file = self._write_rows(table)
        row = {
            "episode_index": episode,
            "tasks": [task],
            "length": length,
            "data/chunk_index": chunk,
            "data/file_index": file,
            "dataset_from_index": first,
            "dataset_to_index": first + length,
        }
        for key in self.videos:
            row |= {f"videos/{key}/{name}": x for name, x in self._write_video(key, frames[key]).items()}
        self._rows.append(row | {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0})

    def _write_rows(self, table: Any) -> tuple[int, int]:
        """Append an episode as a row group; returns chunk and file."""
        from pyarrow import parquet

        if self._table is None:
            path = self.folder / self.data_path.format(**_numbered(self._data_files))
            path.parent.mkdir(parents=True, exist_ok=True)
            self._table_path, self._data_files = path, self._data_files + 1
            self._table = parquet.ParquetWriter(path, table.schema)
        self._table.write_table(table)
        where = _numbered(self._data_files - 1)
        if self._table_path.stat().st_size >= DATA_BYTES:
            self._table.close()
            self._table = None
        return where["chunk_index"], where["file_index"]

    def _write_video(self, key: str, images: np.ndarray) -> dict[str, Any]:
        if key not in self._open:
            name = self.video_path.format(video_key=key, **_numbered(self._video_files[key]))
            self._open[key] = VideoWriter(self.folder / name, self.features[key].shape, self.fps)
            self._video_files[key] += 1
        video = self._open[key]
        start = video.frames / self.fps
        video.add(images)
        where = _numbered(self._video_files[key] - 1)
        if video.path.stat().st_size >= VIDEO_BYTES:
            self._open.pop(key).close()
        return {**where, "from_timestamp": start, "to_timestamp": video.frames / self.fps}

    def _finish(self) -> dict[str, Any]:
        import pyarrow as pa
        from pyarrow import parquet

        if self._table is not None:
            self._table.close()
        for video in self._open.values():
            video.close()
        if not self._rows:
            return {}
        for row, stats in zip(self._rows, self.stats):
            row |= {f"stats/{key}/{name}": x.tolist() for key, s in stats.items() for name, x in s.items()}
        episodes = self.folder / "meta/episodes/chunk-000/file-000.parquet"
        episodes.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pa.Table.from_pylist(self._rows), episodes)
        # LeRobot reads this with pandas and expects the texts as its index.
        tasks = pa.table(
            {"task_index": pa.array(range(len(self.tasks)), pa.int64()), "task": list(self.tasks)}
        )
        pandas = {
            "index_columns": ["task"],
            "column_indexes": [],
            "columns": [
                {
                    "name": "task_index",
                    "field_name": "task_index",
                    "pandas_type": "int64",
                    "numpy_type": "int64",
                    "metadata": None,
                },
                {
                    "name": "task",
                    "field_name": "task",
                    "pandas_type": "unicode",
                    "numpy_type": "object",
                    "metadata": None,
                },
            ],
            "pandas_version": "2.0.0",
        }
        parquet.write_table(
            tasks.replace_schema_metadata({"pandas": json.dumps(pandas)}), self.folder / "meta/tasks.parquet"
        )
        stats = {
            key: {name: x.tolist() for name, x in one.items()} for key, one in merge_stats(self.stats).items()
        }
        (self.folder / "meta/stats.json").write_text(json.dumps(stats, indent=4), encoding="utf-8")
        return {
            "data_files_size_in_mb": DATA_BYTES // 2**20,
            "video_files_size_in_mb": VIDEO_BYTES // 2**20,
        }


def _numbered(file: int) -> dict[str, int]:
    return {"chunk_index": file // CHUNK, "file_index": file % CHUNK}
