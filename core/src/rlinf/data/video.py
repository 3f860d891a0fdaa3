"""Random access to the frames of a video, by PyAV."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


class VideoError(ValueError):
    """A video cannot be opened, or does not hold the frames that are asked for."""


@dataclass(frozen=True, kw_only=True)
class VideoIndex:
    """The frames of a video in the order of display: int64 `pts` and `dts` in the stream's time base, and the
    numbers of the key frames."""

    pts: np.ndarray
    dts: np.ndarray
    key_frames: list[int]


class VideoFile:
    """An open video. Frames come by their time; the decoder goes on from where it is where that is nearer
    than the last key frame before the target.

    What time each frame has and which are key frames is known without decoding; `index` saves looking it up
    again. One decoding thread: loaders run several processes.
    """

    def __init__(self, path: Path, index: VideoIndex | None = None) -> None:
        import av
        from av.video.reformatter import VideoReformatter

        self.path = path
        try:
            self._container = av.open(str(path))
            self._stream = self._container.streams.video[0]
        except FileNotFoundError:
            raise VideoError(f"{path}: no such file") from None
        except (av.FFmpegError, IndexError) as error:
            raise VideoError(f"{path}: not a readable video ({error})") from None
        context = self._stream.codec_context
        if context is None:
            raise VideoError(f"{path}: not a readable video (its codec is unknown)")
        context.thread_type, context.thread_count = "NONE", 1
        # One converter for all frames: a frame's own one would be built anew for every frame.
        self._reformatter = VideoReformatter()
        assert self._stream.time_base is not None
        self._unit = float(self._stream.time_base)
        self.index = index or _index(self._container, self._stream)
        #: Seconds from the first frame.
        self._times = (self.index.pts - self.index.pts[:1]) * self._unit
        self._decoded: Iterator | None = None
        self._next = 0
        self.shape = (context.height, context.width, 3)

    def __len__(self) -> int:
        return len(self.index.pts)

    def close(self) -> None:
        self._container.close()

    def indices(self, seconds: np.ndarray, tolerance: float) -> np.ndarray:
        """Numbers of the frames at these times, int64. Raises `VideoError` where the nearest frame is further
        away than `tolerance` seconds."""
        if len(self.index.pts) == 0:
            raise VideoError(f"{self.path}: holds no frame")
        times = self._times
        right = np.minimum(np.searchsorted(times, seconds), len(times) - 1)
        left = np.maximum(right - 1, 0)
        nearest = np.where(np.abs(times[right] - seconds) < np.abs(times[left] - seconds), right, left)
        off = np.abs(times[nearest] - seconds)
        if off.max(initial=0) > tolerance:
            first = int(np.flatnonzero(off > tolerance)[0])
            raise VideoError(
                f"{self.path}: has no frame at {seconds[first]:.4f} s; it holds {len(times)} frames from 0 "
                f"to {times[-1]:.4f} s"
            )
        return nearest

    def frames(self, indices: Sequence[int]) -> np.ndarray:
        """The frames of these numbers (any order, repeats allowed) as RGB, uint8 [n,H,W,3]."""
        import av

        wanted = np.unique(indices)
        found: dict[int, np.ndarray] = {}
        for index in wanted.tolist():
            try:
                found[index] = self._frame(index)
            except (av.FFmpegError, StopIteration) as error:
                self._decoded = None
                raise VideoError(f"{self.path}: frame {index} cannot be decoded ({error})") from None
        return np.stack([found[int(index)] for index in indices])

    def _frame(self, number: int) -> np.ndarray:
        index = self.index
        key_frame = index.key_frames[max(bisect.bisect_right(index.key_frames, number) - 1, 0)]
        if self._decoded is None or self._next > number or key_frame > self._next:
            self._container.seek(int(index.dts[key_frame]), stream=self._stream)
            self._decoded = self._container.decode(self._stream)
        target = index.pts[number]
        for frame in self._decoded:
            if frame.pts is not None and frame.pts >= target:
                if frame.pts != target:
                    break
                self._next = number + 1
                return self._reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
        self._decoded = None
        raise StopIteration("the stream ends before it")


def _index(container: Any, stream: Any) -> VideoIndex:
    """From the container's own table where it tells all, else by reading every packet, without decoding."""
    entries = [entry for entry in stream.index_entries if not entry.is_discard]
    if entries and not stream.codec_context.has_b_frames and stream.frames == len(entries):
        rows = [(entry.timestamp, entry.timestamp, entry.is_keyframe) for entry in entries]
    else:
        packets = (packet for packet in container.demux(stream) if packet.pts is not None)
        rows = [
            (packet.pts, packet.dts if packet.dts is not None else packet.pts, packet.is_keyframe)
            for packet in packets
        ]
    rows.sort()
    return VideoIndex(
        pts=np.array([row[0] for row in rows], np.int64),
        dts=np.array([row[1] for row in rows], np.int64),
        key_frames=[number for number, row in enumerate(rows) if row[2]],
    )
