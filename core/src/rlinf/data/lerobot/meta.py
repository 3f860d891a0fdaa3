"""`meta/` of a LeRobot dataset: features, tasks, and where each episode lies.

v2.x keeps a parquet file and a video per episode, and JSON lines in `meta/`. v3.0 keeps many episodes in a
file; `meta/episodes/**.parquet` says in which, from which row, and from which second of the videos.
Source: `utils.py` and `convert_dataset_v21_to_v30.py` of huggingface/lerobot.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Final, TypeVar

import numpy as np
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic import Field as Checked

from rlinf.data.episodes import Feature
from rlinf.data.errors import DatasetError
from rlinf.data.lerobot import INFO

VERSIONS: Final = ("v2.0", "v2.1", "v3.0")
#: Columns that every dataset has beside its features.
INDEX_COLUMNS: Final = ("timestamp", "frame_index", "episode_index", "index", "task_index")


#: Episodes, frames, files and pixels are counted up to here.
Count = Annotated[int, Checked(ge=0, le=1 << 40)]
Seconds = Annotated[float, Checked(allow_inf_nan=False)]
T = TypeVar("T")


class _FeatureInfo(BaseModel):
    dtype: str
    shape: tuple[Count, ...]
    names: Any = None


class _Info(BaseModel):
    """What is read of `meta/info.json`."""

    codebase_version: str
    fps: Annotated[float, Checked(gt=0, allow_inf_nan=False)]
    features: dict[str, _FeatureInfo]
    data_path: str
    video_path: str | None = None
    chunks_size: Annotated[int, Checked(ge=1)] = 1000
    total_episodes: Count | None = None


class _EpisodeLine(BaseModel):
    episode_index: Count
    length: Count


class _TaskLine(BaseModel):
    task_index: Count
    task: str


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
    content = _json(path)
    version = content.get("codebase_version")
    if version not in VERSIONS:
        raise DatasetError(f"{path}: codebase_version {version!r}; this reads {', '.join(VERSIONS)}")
    info = checked(_Info, content, str(path))
    features = _features(path, info.features)
    videos = [key for key, feature in features.items() if feature.kind == "video"]
    if videos and not info.video_path:
        raise DatasetError(f"{path}: {videos[0]!r} is a video, but there is no video_path")
    read = _episodes_v3 if version == "v3.0" else _episodes_v2
    lengths, rows, clips = read(root, info, videos)
    if len(lengths) == 0:
        raise DatasetError(f"{root}: the dataset holds no episode")
    if info.total_episodes not in (None, len(lengths)):
        raise DatasetError(
            f"{path}: total_episodes is {info.total_episodes}, meta/ describes {len(lengths)} episodes"
        )
    return Metadata(
        root=root,
        version=version,
        fps=info.fps,
        features=features,
        tasks=_tasks_v3(root) if version == "v3.0" else _tasks_v2(root),
        lengths=lengths,
        rows=rows,
        clips=clips,
    )


def checked(kind: type[T], content: Any, where: str) -> T:
    """`content` as a pydantic model or another type. Raises `DatasetError` that begins with `where`."""
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "missing":
            raise DatasetError(f"{where}: lacks {key}") from None
        raise DatasetError(f"{where}: {key}: {first['msg']}; got {str(first['input'])[:200]!r}") from None


def file_within(origin: Path, name: str) -> str:
    """The name, which `origin` gives, of a file of the dataset. Raises `DatasetError` if it leads out."""
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\0" in name:
        raise DatasetError(f"{origin}: {name!r} is no file within the dataset")
    return name


def _file(path: Path, pattern: str, **where: Any) -> str:
    try:
        name = pattern.format(**where)
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise DatasetError(
            f"{path}: {pattern!r} does not give the name of a file ({type(error).__name__}: {error})"
        ) from None
    return file_within(path, name)


def _features(path: Path, given: Mapping[str, _FeatureInfo]) -> dict[str, Feature]:
    features: dict[str, Feature] = {}
    for key, item in given.items():
        dtype, shape, names = item.dtype, item.shape, _names(item.names)
        if dtype in ("image", "video"):
            if len(shape) != 3:
                raise DatasetError(f"{path}: feature {key!r}: an image has 3 dimensions, got {list(shape)}")
            if names and names[0].startswith("channel"):
                shape = (shape[1], shape[2], shape[0])
            features[key] = Feature(shape=shape, dtype="uint8", kind="image" if dtype == "image" else "video")
        elif dtype not in ("string", "language"):
            if dtype not in np.sctypeDict or np.dtype(dtype).kind not in "biuf":
                raise DatasetError(f"{path}: feature {key!r}: {dtype!r} is no type of numbers")
            features[key] = Feature(shape=shape, dtype=dtype, names=names)
    return features


def _names(names: Any) -> tuple[str, ...]:
    """Names come as a list, as {"motors": [...]}, or not at all."""
    if isinstance(names, Mapping):
        names = next(iter(names.values()), None)
    return tuple(map(str, names)) if isinstance(names, list) else ()


# -- v2.0, v2.1 ---


def _episodes_v2(
    root: Path, info: _Info, videos: list[str]
) -> tuple[np.ndarray, list[Rows], list[dict[str, Clip]]]:
    path = root / "meta/episodes.jsonl"
    lines = _json_lines(path, _EpisodeLine)
    rows, clips = [], []
    lines.sort(key=lambda line: line.episode_index)
    for number, line in enumerate(lines):
        index = line.episode_index
        if index != number:
            raise DatasetError(f"{path}: expected episode {number}, found episode_index {index}")
        where = {"episode_chunk": index // info.chunks_size, "episode_index": index}
        rows.append(Rows(file=_file(root / INFO, info.data_path, **where), first=0, alone=True))
        clips.append({key: Clip(file=_video_file(root, info, key, where), start=0.0) for key in videos})
    return np.array([line.length for line in lines], np.int64), rows, clips


def _video_file(root: Path, info: _Info, key: str, where: Mapping[str, int]) -> str:
    assert info.video_path is not None
    return _file(root / INFO, info.video_path, video_key=key, **where)


def _tasks_v2(root: Path) -> dict[int, str]:
    return {line.task_index: line.task for line in _json_lines(root / "meta/tasks.jsonl", _TaskLine)}


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such file; a LeRobot dataset has it") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: not readable JSON ({error})") from None
    if not isinstance(content, dict):
        raise DatasetError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def _json_lines(path: Path, kind: type[T]) -> list[T]:
    if not path.is_file():
        raise DatasetError(f"{path}: no such file; a LeRobot v2 dataset has it")
    lines = []
    for number, text in enumerate(path.read_bytes().splitlines(), 1):
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{path}:{number}: not valid JSON ({error})") from None
        lines.append(checked(kind, content, f"{path}:{number}"))
    return lines


# -- v3.0 ---


def _episodes_v3(
    root: Path, info: _Info, videos: list[str]
) -> tuple[np.ndarray, list[Rows], list[dict[str, Clip]]]:
    counts = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    counts += [f"videos/{key}/{name}" for key in videos for name in ("chunk_index", "file_index")]
    columns: dict[str, Any] = dict.fromkeys(counts, list[Count])
    columns |= {f"videos/{key}/from_timestamp": list[Seconds] for key in videos}
    files = sorted((root / "meta/episodes").glob("*/*.parquet"))
    if not files:
        raise DatasetError(f"{root}/meta/episodes: holds no parquet file; a LeRobot v3.0 dataset has them")
    table: dict[str, list[Any]] = {name: [] for name in columns}
    for path in files:
        for name, values in read_columns(path, list(columns)).items():
            table[name] += checked(columns[name], values, f"{path}: column {name}")
    order = np.argsort(np.array(table["episode_index"]), kind="stable")
    if (np.array(table["episode_index"])[order] != np.arange(len(order))).any():
        raise DatasetError(f"{root}/meta/episodes: the episodes are not numbered 0 to {len(order) - 1}")
    table = {name: [values[i] for i in order] for name, values in table.items()}
    rows, clips = [], []
    filled: dict[str, int] = {}
    for i, length in enumerate(table["length"]):
        where = {"chunk_index": table["data/chunk_index"][i], "file_index": table["data/file_index"][i]}
        file = _file(root / INFO, info.data_path, **where)
        rows.append(Rows(file=file, first=filled.get(file, 0), alone=False))
        filled[file] = rows[-1].first + length
        clips.append({key: _clip(root, info, table, key, i) for key in videos})
    return np.array(table["length"], np.int64), rows, clips


def _clip(root: Path, info: _Info, table: dict[str, list[Any]], key: str, episode: int) -> Clip:
    where = {name: table[f"videos/{key}/{name}"][episode] for name in ("chunk_index", "file_index")}
    file = _video_file(root, info, key, where)
    return Clip(file=file, start=table[f"videos/{key}/from_timestamp"][episode])


def _tasks_v3(root: Path) -> dict[int, str]:
    path = root / "meta/tasks.parquet"
    table = read_columns(path, None)
    # pandas keeps the texts as the index of its table, which has this name when it has none of its own.
    texts = table.get("task", table.get("__index_level_0__"))
    if texts is None or "task_index" not in table:
        raise DatasetError(f"{path}: expected the columns task_index and task, got {', '.join(table)}")
    numbers = checked(list[Count], table["task_index"], f"{path}: column task_index")
    return dict(zip(numbers, checked(list[str], texts, f"{path}: column task")))


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
