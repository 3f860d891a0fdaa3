"""LeRobot datasets as the two versions prescribe them, written with pyarrow, PyAV and json alone."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

FPS, SIZE = 10, 64
LENGTHS = (7, 5, 6)
TASKS = ("push the red cube", "open the drawer")
#: Task of each episode.
TASK_OF = (0, 1, 0)


def level(episode: int, frame: int) -> int:
    """The grey of a frame: tells episode and frame apart beyond what encoding does to it."""
    return 20 + 70 * episode + 8 * frame


def picture(episode: int, frame: int) -> np.ndarray:
    return np.full((SIZE, SIZE, 3), level(episode, frame), np.uint8)


def state(episode: int, frame: int) -> list[float]:
    return [float(episode), float(frame), 0.5]


def action(episode: int, frame: int) -> list[float]:
    return [episode + frame / 100, -frame / 10]


def features(images: str) -> dict[str, Any]:
    scalar = {"shape": [1], "names": None}
    return {
        "observation.state": {"dtype": "float32", "shape": [3], "names": {"motors": ["x", "y", "grip"]}},
        "action": {"dtype": "float32", "shape": [2], "names": {"motors": ["dx", "dy"]}},
        "observation.images.main": {
            "dtype": images,
            "shape": [SIZE, SIZE, 3],
            "names": ["height", "width", "channels"],
        },
        "timestamp": {"dtype": "float32", **scalar},
        "frame_index": {"dtype": "int64", **scalar},
        "episode_index": {"dtype": "int64", **scalar},
        "index": {"dtype": "int64", **scalar},
        "task_index": {"dtype": "int64", **scalar},
    }


def table(episodes: range, images: str) -> pa.Table:
    """The rows of some episodes, in the types of the Hugging Face datasets library."""
    rows = [(e, f) for e in episodes for f in range(LENGTHS[e])]
    first = sum(LENGTHS[: episodes.start])
    columns: dict[str, pa.Array] = {
        "observation.state": pa.array([state(*row) for row in rows], pa.list_(pa.float32(), 3)),
        "action": pa.array([action(*row) for row in rows], pa.list_(pa.float32())),
        "timestamp": pa.array([f / FPS for _, f in rows], pa.float32()),
        "frame_index": pa.array([f for _, f in rows], pa.int64()),
        "episode_index": pa.array([e for e, _ in rows], pa.int64()),
        "index": pa.array(range(first, first + len(rows)), pa.int64()),
        "task_index": pa.array([TASK_OF[e] for e, _ in rows], pa.int64()),
    }
    if images == "image":
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        content = [{"bytes": png(picture(*row)), "path": f"frame_{row[1]:06d}.png"} for row in rows]
        columns["observation.images.main"] = pa.array(content, kind)
    return pa.table(columns)


def png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def video(path: Path, episodes: range, codec: str = "libx264", **options: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS, options={"crf": "10", "g": "2", **options})
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for episode in episodes:
            for frame in range(LENGTHS[episode]):
                image = av.VideoFrame.from_ndarray(picture(episode, frame), format="rgb24")
                container.mux(stream.encode(image))
        container.mux(stream.encode(None))


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=4))


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_v21(root: Path, images: str = "video", version: str = "v2.1") -> Path:
    info = {
        "codebase_version": version,
        "robot_type": "panda",
        "total_episodes": len(LENGTHS),
        "total_frames": sum(LENGTHS),
        "total_tasks": len(TASKS),
        "total_videos": len(LENGTHS) if images == "video" else 0,
        "total_chunks": 2,
        "chunks_size": 2,
        "fps": FPS,
        "splits": {"train": f"0:{len(LENGTHS)}"},
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": features(images),
    }
    write_json(root / "meta/info.json", info)
    write_lines(root / "meta/tasks.jsonl", [{"task_index": i, "task": t} for i, t in enumerate(TASKS)])
    write_lines(
        root / "meta/episodes.jsonl",
        [{"episode_index": e, "tasks": [TASKS[TASK_OF[e]]], "length": n} for e, n in enumerate(LENGTHS)],
    )
    for e in range(len(LENGTHS)):
        path = root / f"data/chunk-{e // 2:03d}/episode_{e:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table(range(e, e + 1), images), path)
        if images == "video":
            name = f"videos/chunk-{e // 2:03d}/observation.images.main/episode_{e:06d}.mp4"
            video(root / name, range(e, e + 1))
    return root


def write_v30(root: Path, images: str = "video", codec: str = "libx264", **options: str) -> Path:
    """Episodes 0 and 1 in the first data file and 2 in the second; all in one video."""
    info = {
        "codebase_version": "v3.0",
        "robot_type": "panda",
        "total_episodes": len(LENGTHS),
        "total_frames": sum(LENGTHS),
        "total_tasks": len(TASKS),
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": FPS,
        "splits": {"train": f"0:{len(LENGTHS)}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": {key: {**item, "fps": FPS} for key, item in features(images).items()},
    }
    write_json(root / "meta/info.json", info)
    pandas = {"index_columns": ["task"], "column_indexes": [], "pandas_version": "2.2.3", "columns": []}
    tasks = pa.table({"task_index": pa.array(range(len(TASKS)), pa.int64()), "task": pa.array(TASKS)})
    pq.write_table(tasks.replace_schema_metadata({"pandas": json.dumps(pandas)}), root / "meta/tasks.parquet")
    starts = np.cumsum([0, *LENGTHS])
    key = "videos/observation.images.main"
    rows = [
        {
            "episode_index": e,
            "tasks": [TASKS[TASK_OF[e]]],
            "length": n,
            "data/chunk_index": 0,
            "data/file_index": int(e == 2),
            "dataset_from_index": int(starts[e]),
            "dataset_to_index": int(starts[e + 1]),
            f"{key}/chunk_index": 0,
            f"{key}/file_index": 0,
            f"{key}/from_timestamp": starts[e] / FPS,
            f"{key}/to_timestamp": starts[e + 1] / FPS,
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
        }
        for e, n in enumerate(LENGTHS)
    ]
    if images == "image":
        rows = [{name: v for name, v in row.items() if not name.startswith("videos/")} for row in rows]
    (root / "meta/episodes/chunk-000").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), root / "meta/episodes/chunk-000/file-000.parquet")
    (root / "data/chunk-000").mkdir(parents=True)
    pq.write_table(table(range(2), images), root / "data/chunk-000/file-000.parquet")
    pq.write_table(table(range(2, 3), images), root / "data/chunk-000/file-001.parquet")
    if images == "video":
        name = root / "videos/observation.images.main/chunk-000/file-000.mp4"
        video(name, range(len(LENGTHS)), codec, **options)
    return root
