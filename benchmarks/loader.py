"""Samples per second of the dataset loader, against raw decoding and LeRobot's way of access re-created.

Records a LeRobot v3.0 dataset of two cameras in a temporary folder, encoded as LeRobot encodes (AV1, every
second frame a key frame), and loads the same shuffled batches (two images, a state, a chunk of actions) with
the same number of processes in three ways, which take turns; medians are reported.

    raw decoding   PyAV alone: files stay open; seek, decode, convert to RGB. No tables, no batches to send.
    rlinf          `rlinf.data.loader.iterate`
    LeRobot's way  a map-style torch dataset that does per sample what lerobot's reader does with its PyAV
    backend:
                   rows and action chunks from an arrow table as torch tensors, a container opened per camera
                   and sample, all frames from the key frame on converted, float images, default collate.
                   "kept open, uint8" is the same with its two costliest habits mended.

    python benchmarks/loader.py [--size 224] [--workers 2] [--batches 60] [--repeats 3] [--codec libsvtav1]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import torch
from rlinf.data import DataLayout, Feature
from rlinf.data.formats import open_dataset
from rlinf.data.lerobot import writer
from rlinf.data.loader import iterate
from rlinf.data.samples import EpisodeSamples
from rlinf.data.seeds import SampleOrder
from torch.utils.data import DataLoader

CAMERAS = ("observation.images.main", "observation.images.wrist")
CHUNK, FPS = 16, 10
OPTIONS = {
    "libsvtav1": {"g": "2", "crf": "30", "preset": "12"},
    "libx264": {"g": "2", "bf": "0", "crf": "23", "preset": "veryfast"},
}
#: Batches before the clock starts: processes are up and files open.
WARM = 6


def record(root: Path, size: int, episodes: int, length: int, codec: str) -> None:
    """Episodes of a textured scene in which things move."""
    writer.CODEC, writer.CODEC_OPTIONS = codec, OPTIONS[codec]
    features = {key: Feature(shape=(size, size, 3), dtype="uint8", kind="video") for key in CAMERAS}
    features["observation.state"] = Feature(shape=(8,), dtype="float32")
    features["action"] = Feature(shape=(7,), dtype="float32")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] / size
    with writer.WriterV30(root, features, fps=FPS) as out:
        for _ in range(episodes):
            texture = rng.integers(0, 60, (size, size, 3))
            frames: dict[str, np.ndarray] = {}
            for key in CAMERAS:
                places = np.cumsum(rng.normal(0, 0.02, (length, 2)), 0) + 0.5
                blobs = [np.exp(-60 * ((x - px) ** 2 + (y - py) ** 2))[..., None] * 180 for px, py in places]
                frames[key] = np.stack([np.clip(texture + blob, 0, 255).astype(np.uint8) for blob in blobs])
            frames["observation.state"] = rng.normal(size=(length, 8)).astype(np.float32)
            frames["action"] = rng.normal(size=(length, 7)).astype(np.float32)
            out.add(frames, "move")


def open_samples(root: Path) -> EpisodeSamples:
    dataset = open_dataset(str(root))
    layout = DataLayout(
        cameras={"main_images": CAMERAS[:1], "wrist_images": CAMERAS[1:]}, action_horizon=CHUNK
    )
    return EpisodeSamples([dataset], layout, [np.arange(len(dataset.lengths))])


# -- rlinf ---


def rlinf(root: Path, parts: list[np.ndarray], workers: int) -> float:
    batches = iterate(
        partial(open_samples, root), parts.__getitem__, 0, len(parts), workers=workers, prefetch=2, skip=False
    )
    return clock((loaded.batch for loaded in batches), parts)


def clock(batches: Any, parts: list[np.ndarray]) -> float:
    """Samples per second after the first batches."""
    started = 0.0
    for number, batch in enumerate(batches):
        assert batch["actions"].shape == (len(parts[0]), CHUNK, 7)
        if number + 1 == WARM:
            started = time.perf_counter()
    return sum(map(len, parts[WARM:])) / (time.perf_counter() - started)


# -- raw decoding ---


def raw(root: Path, parts: list[np.ndarray], workers: int) -> float:
    context = multiprocessing.get_context("fork")
    barrier, times = context.Barrier(workers), context.SimpleQueue()
    mine = [parts[WARM:][number::workers] for number in range(workers)]
    processes = [context.Process(target=decode, args=(root, part, barrier, times)) for part in mine]
    for process in processes:
        process.start()
    # Each tells when it began and ended: this process may be woken late on a busy machine.
    began, ended = zip(*(times.get() for _ in processes))
    for process in processes:
        process.join()
    return sum(map(len, parts[WARM:])) / (max(ended) - min(began))


def decode(root: Path, parts: list[np.ndarray], barrier: Any, times: Any) -> None:
    """Frame n of the dataset is frame n of the one video of each camera."""
    opened = []
    for camera in CAMERAS:
        container = av.open(str(root / f"videos/{camera}/chunk-000/file-000.mp4"))
        stream = container.streams.video[0]
        stream.codec_context.thread_type, stream.codec_context.thread_count = "NONE", 1
        opened.append((container, stream, av.video.reformatter.VideoReformatter()))
    barrier.wait()
    began = time.perf_counter()
    for part in parts:
        images = []
        for number in np.sort(part):
            for container, stream, reformatter in opened:
                target = round(number / FPS / stream.time_base)
                container.seek(target, stream=stream)
                frame = next(f for f in container.decode(stream) if f.pts >= target)
                images.append(reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray())
        assert len(images) == 2 * len(part)
    times.put((began, time.perf_counter()))


# -- LeRobot's way ---


class LerobotWay(torch.utils.data.Dataset):
    def __init__(self, root: Path, improved: bool) -> None:
        self.root, self.improved = root, improved
        self.table = pq.read_table(root / "data/chunk-000/file-000.parquet")
        self.episodes = pq.read_table(root / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
        self.opened: dict[str, Any] = {}

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = {key: torch.tensor(value[0]) for key, value in self.rows([index]).items()}
        episode = self.episodes[int(row["episode_index"])]
        first, last = episode["dataset_from_index"], episode["dataset_to_index"] - 1
        steps = [index + step for step in range(CHUNK)]
        chunk = self.rows([min(max(step, first), last) for step in steps])["action"]
        row["actions"] = torch.stack([torch.tensor(action) for action in chunk])
        row["action_is_pad"] = torch.BoolTensor([step > last for step in steps])
        for camera in CAMERAS:
            seconds = episode[f"videos/{camera}/from_timestamp"] + float(row["timestamp"])
            path = str(self.root / f"videos/{camera}/chunk-000/file-000.mp4")
            row[camera] = self.frame(path, seconds)
        return {**row, "task": "move"}

    def rows(self, indices: list[int]) -> dict[str, list[Any]]:
        return self.table.take(indices).to_pydict()

    def frame(self, path: str, seconds: float) -> torch.Tensor:
        if not self.improved:
            with av.open(path) as container:
                return self.decoded(container, seconds).to(torch.float32) / 255
        if path not in self.opened:
            self.opened[path] = av.open(path)
        return self.decoded(self.opened[path], seconds)

    def decoded(self, container: Any, seconds: float) -> torch.Tensor:
        stream = container.streams.video[0]
        container.seek(round(seconds / stream.time_base) - 1, backward=True, stream=stream)
        frames, stamps = [], []
        for frame in container.decode(stream):
            stamps.append(float(frame.pts * stream.time_base))
            image = frame.to_ndarray(format="rgb24")
            frames.append(torch.from_numpy(image).permute(2, 0, 1).contiguous())
            if stamps[-1] >= seconds - 1e-4:
                break
        off = torch.cdist(torch.tensor([[seconds]]), torch.tensor(stamps)[:, None], p=1)
        assert off.min() < 1e-3
        return torch.stack([frames[int(off.argmin())]]).squeeze(0)


def lerobot(root: Path, parts: list[np.ndarray], workers: int, improved: bool) -> float:
    loader = DataLoader(
        LerobotWay(root, improved),
        batch_sampler=[part.tolist() for part in parts],
        num_workers=workers,
        prefetch_factor=2,
        multiprocessing_context="fork",
    )
    return clock(loader, parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in (("size", 224), ("episodes", 12), ("length", 120), ("workers", 2), ("batch", 16)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--batches", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--codec", choices=sorted(OPTIONS), default="libsvtav1")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "set"
        record(root, args.size, args.episodes, args.length, args.codec)
        order = SampleOrder(0, [args.episodes * args.length], args.batch)
        parts = [order.batch(number) for number in range(WARM + args.batches)]
        ways = {
            "raw decoding": raw,
            "rlinf": rlinf,
            "LeRobot's way": partial(lerobot, improved=False),
            "kept open, uint8": partial(lerobot, improved=True),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(args.repeats):
            for name, way in ways.items():
                rates[name].append(way(root, parts, args.workers))
    print(f"{args.workers} processes, 2 cameras of {args.size} px, {args.codec}, batches of {args.batch}")
    for name, found in rates.items():
        # Neighbours in time are compared: the machine may be busy now and idle later.
        ratio = statistics.median(mine / other for mine, other in zip(rates["rlinf"], found))
        print(f"  {name:<18} {statistics.median(found):8.0f} samples/s   rlinf is {ratio:5.2f} x this")
    if args.json:
        args.json.write_text(json.dumps(rates))


if __name__ == "__main__":
    main()
