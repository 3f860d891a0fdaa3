"""`meta/` of a LeRobot dataset: features, tasks, and where each episode lies.

v2.x keeps a parquet file and a video per episode, and JSON lines in `meta/`. v3.0 keeps many episodes in a
file; `meta/episodes/**.parquet` says in which, from which row, and from which second of the videos.
Source: `utils.py` and `convert_dataset_v21_to_v30.py` of huggingface/lerobot.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from rlinf.data.episodes import Feature
from rlinf.data.errors import DatasetError
from rlinf.data.lerobot import INFO

VERSIONS: Final = ("v2.0", "v2.1", "v3.0")
#: Columns that every dataset has beside its features.
INDEX_COLUMNS: Final = ("timestamp", "frame_index", "episode_index", "index", "task_index")


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Where an episode's frames of one camera lie: a file, and the second at which they begin."""

    file: str
    start: float


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Where an episode's numbers lie: a parquet file, its first row there, whether it has the file alone."""

    file: str
    first: int
    alone: bool


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """All that opening a dataset reads. `features` are those that hold numbers or images."""

    root: Path
    version: str
    fps: float
    features: Mapping[str, Feature]
    tasks: Mapping[int, str]
    lengths: np.ndarray
    rows: list[Rows]
    #: Per episode: camera -> clip.
    clips: list[dict[str, Clip]] = field(default_factory=list)


def read_metadata(root: Path) -> Metadata:
    """Read `meta/`. Raises `DatasetError` naming the file and what is wrong with it."""
    path = root / INFO
    info = _json(path)
    version = info.get("codebase_version")
    if version not in VERSIONS:
        raise DatasetError(f"{path}: codebase_version {version!r}; this reads {', '.join(VERSIONS)}")
    missing = [key for key in ("fps", "features", "data_path") if key not in info]
    if missing:
        raise DatasetError(f"{path}: lacks {', '.join(missing)}")
    features = _features(path, info["features"])
    videos = [key for key, feature in features.items() if feature.kind == "video"]
    if videos and not info.get("video_path"):
        raise DatasetError(f"{path}: {videos[0]!r} is a video, but there is no video_path")
    read = _episodes_v3 if version == "v3.0" else _episodes_v2
    lengths, rows, clips = read(root, info, videos)
    if len(lengths) == 0:
        raise DatasetError(f"{root}: the dataset holds no episode")
    if info.get("total_episodes") not in (None, len(lengths)):
        raise DatasetError(
            f"{path}: total_episodes is {info['total_episodes']}, meta/ describes {len(lengths)} episodes"
        )
    return Metadata(
        root=root,
        version=version,
        fps=float(info["fps"]),
        features=features,
        tasks=_tasks_v3(root) if version == "v3.0" else _tasks_v2(root),
        lengths=lengths,
        rows=rows,
        clips=clips,
    )


def _features(path: Path, given: Any) -> dict[str, Feature]:
    features: dict[str, Feature] = {}
    for key, item in given.items():
        try:
            dtype, shape = item["dtype"], tuple(int(n) for n in item["shape"])
            names = _names(item.get("names"))
        except (KeyError, TypeError, ValueError):
            raise DatasetError(f"{path}: feature {key!r} must have dtype and shape, got {item!r}") from None
        if dtype in ("image", "video"):
            if names and names[0].startswith("channel"):
                shape = (shape[1], shape[2], shape[0])
            features[key] = Feature(shape=shape, dtype="uint8", kind=dtype)
        elif dtype not in ("string", "language"):
            features[key] = Feature(shape=shape, dtype=dtype, names=names)
    return features


def _names(names: Any) -> tuple[str, ...]:
    """Names come as a list, as {"motors": [...]}, or not at all."""
    if isinstance(names, Mapping):
        names = next(iter(names.values()), None)
    return tuple(map(str, names)) if isinstance(names, list) else ()


# -- v2.0, v2.1 ---


def _episodes_v2(
    root: Path, info: dict[str, Any], videos: list[str]
) -> tuple[np.ndarray, list[Rows], list[dict[str, Clip]]]:
    path = root / "meta/episodes.jsonl"
    lines = _json_lines(path, ("episode_index", "length"))
    lengths: list[int] = []
    rows, clips = [], []
    for number, line in enumerate(sorted(lines, key=lambda line: line["episode_index"])):
        index = line["episode_index"]
        if index != number:
            raise DatasetError(f"{path}: expected episode {number}, found episode_index {index}")
        where = {"episode_chunk": index // info.get("chunks_size", 1000), "episode_index": index}
        lengths.append(line["length"])
        rows.append(Rows(file=info["data_path"].format(**where), first=0, alone=True))
        clips.append(
            {key: Clip(file=info["video_path"].format(video_key=key, **where), start=0.0) for key in videos}
        )
    return np.array(lengths, np.int64), rows, clips


def _tasks_v2(root: Path) -> dict[int, str]:
    lines = _json_lines(root / "meta/tasks.jsonl", ("task_index", "task"))
    return {line["task_index"]: line["task"] for line in lines}


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such file; a LeRobot dataset has it") from None
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: not readable JSON ({error})") from None
    if not isinstance(content, dict):
        raise DatasetError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def _json_lines(path: Path, keys: tuple[str, ...]) -> list[dict[str, Any]]:
    if not path.is_file():
        raise DatasetError(f"{path}: no such file; a LeRobot v2 dataset has it")
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            line = json.loads(text)
            missing = [key for key in keys if key not in line]
        except (ValueError, TypeError) as error:
            raise DatasetError(f"{path}:{number}: not valid JSON ({error})") from None
        if missing:
            raise DatasetError(f"{path}:{number}: lacks {', '.join(missing)}")
        lines.append(line)
    return lines


# -- v3.0 ---


def _episodes_v3(
    root: Path, info: dict[str, Any], videos: list[str]
) -> tuple[np.ndarray, list[Rows], list[dict[str, Clip]]]:
    per_video = ("chunk_index", "file_index", "from_timestamp")
    columns = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    columns += [f"videos/{key}/{name}" for key in videos for name in per_video]
    files = sorted((root / "meta/episodes").glob("*/*.parquet"))
    if not files:
        raise DatasetError(f"{root}/meta/episodes: holds no parquet file; a LeRobot v3.0 dataset has them")
    table: dict[str, list[Any]] = {name: [] for name in columns}
    for path in files:
        for name, values in read_columns(path, columns).items():
            table[name] += values
    order = np.argsort(np.array(table["episode_index"]), kind="stable")
    if (np.array(table["episode_index"])[order] != np.arange(len(order))).any():
        raise DatasetError(f"{root}/meta/episodes: the episodes are not numbered 0 to {len(order) - 1}")
    table = {name: [values[i] for i in order] for name, values in table.items()}
    rows, clips = [], []
    filled: dict[str, int] = {}
    for i, length in enumerate(table["length"]):
        where = {"chunk_index": table["data/chunk_index"][i], "file_index": table["data/file_index"][i]}
        file = info["data_path"].format(**where)
        rows.append(Rows(file=file, first=filled.get(file, 0), alone=False))
        filled[file] = rows[-1].first + length
        clips.append({key: _clip(info, table, key, i) for key in videos})
    return np.array(table["length"], np.int64), rows, clips


def _clip(info: dict[str, Any], table: dict[str, list[Any]], key: str, episode: int) -> Clip:
    chunk, file, start = (
        table[f"videos/{key}/{name}"][episode] for name in ("chunk_index", "file_index", "from_timestamp")
    )
    name = info["video_path"].format(video_key=key, chunk_index=chunk, file_index=file)
    return Clip(file=name, start=float(start))


def _tasks_v3(root: Path) -> dict[int, str]:
    path = root / "meta/tasks.parquet"
    table = read_columns(path, None)
    # pandas keeps the texts as the index of its table, which has this name when it has none of its own.
    texts = table.get("task", table.get("__index_level_0__"))
    if texts is None or "task_index" not in table:
        raise DatasetError(f"{path}: expected the columns task_index and task, got {', '.join(table)}")
    return dict(zip(table["task_index"], texts))


def read_columns(path: Path, columns: list[str] | None) -> dict[str, list[Any]]:
    """Columns of a small parquet file as Python values. Raises `DatasetError`."""
    from pyarrow import ArrowException, parquet

    try:
        has = parquet.read_schema(path).names
        missing = [name for name in columns or () if name not in has]
        if missing:
            raise DatasetError(f"{path}: lacks the column {missing[0]}; it has {', '.join(has)}")
        return parquet.read_table(path, columns=columns).to_pydict()
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such file; a LeRobot v3.0 dataset has it") from None
    except (ArrowException, OSError) as error:
        raise DatasetError(f"{path}: not a readable parquet file ({error})") from None
