"""The parquet files of a LeRobot dataset: numbers as numpy arrays, images as their encoded bytes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from rlinf.data.episodes import Feature
from rlinf.data.errors import DatasetError
from rlinf.data.lerobot.meta import Rows, file_within
from rlinf.data.lru import Lru

#: Bytes of numbers that one process keeps in memory.
_MEMORY: Final = 1 << 30
#: Image tables that one process keeps mapped.
_MAPPED: Final = 64


class Tables:
    """Files are read when first needed; numbers stay in memory, images in memory-mapped copies on disk.

    A row of a parquet file cannot be read alone, so image columns are copied once, uncompressed, to where
    caches live (`$XDG_CACHE_HOME/rlinf`, else `~/.cache/rlinf`), named by the file's path, size and time.
    """

    def __init__(self, root: Path, numbers: Mapping[str, Feature], images: Sequence[str]) -> None:
        self._root, self._features, self._image_keys = root, numbers, list(images)
        self._numbers: Lru[dict[str, np.ndarray]] = Lru(_MEMORY, cost=_nbytes)
        self._images: Lru[Any] = Lru(_MAPPED)

    def column(self, rows: Rows, length: int, key: str) -> np.ndarray:
        """A column of numbers of the `length` rows from `rows.first`, [length, *shape].

        Raises `DatasetError` when the file cannot be read, is too short, or a column is not as declared.
        """
        columns = self._numbers.get(rows.file, lambda: self._read_numbers(rows.file))
        total = len(columns["timestamp"])
        if rows.first + length > total or (rows.alone and total != length):
            raise DatasetError(f"holds {total} rows, meta/ says {rows.first + length}")
        return columns[key][rows.first : rows.first + length]

    def image(self, rows: Rows, frame: int, key: str) -> bytes:
        """The encoded image of one frame. Raises `DatasetError`."""
        table = self._images.get(rows.file, lambda: self._map_images(rows.file))
        if rows.first + frame >= table.num_rows:
            raise DatasetError(f"holds {table.num_rows} rows, asked for row {rows.first + frame}")
        try:
            value = table.column(key)[rows.first + frame].as_py()
        except UnicodeDecodeError as error:
            raise DatasetError(f"the path of the image is no text ({error})") from None
        content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (None, None)
        if content and isinstance(content, bytes):
            return content
        if not path or not isinstance(path, str):
            raise DatasetError("there is neither an image nor the path of one")
        return (self._root / file_within(self._root / rows.file, path)).read_bytes()

    def _read_numbers(self, file: str) -> dict[str, np.ndarray]:
        path = self._root / file
        table = _read(path, list(self._features))
        return {key: _to_numpy(path, key, table.column(key), f) for key, f in self._features.items()}

    def _map_images(self, file: str) -> Any:
        import pyarrow as pa

        path = self._root / file
        try:
            stat = path.stat()
        except OSError as error:
            raise DatasetError(f"{path}: {error.strerror}") from None
        identity = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
        copy = cache_folder() / f"{hashlib.sha256(identity.encode()).hexdigest()}.arrow"
        if not copy.exists():
            table = _read(path, self._image_keys)
            copy.parent.mkdir(parents=True, exist_ok=True)
            aside = copy.with_suffix(f".{os.getpid()}")
            with pa.OSFile(str(aside), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
            os.replace(aside, copy)
        return pa.ipc.open_file(pa.memory_map(str(copy))).read_all()


def cache_folder() -> Path:
    """Where copies of image columns lie; may be deleted at any time between runs."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "rlinf" / "images"


def _nbytes(columns: dict[str, np.ndarray]) -> float:
    return sum(column.nbytes for column in columns.values())


def _read(path: Path, columns: list[str]) -> Any:
    from pyarrow import ArrowException, parquet

    try:
        has = parquet.read_schema(path).names
        missing = [name for name in columns if name not in has]
        if missing:
            raise DatasetError(f"{path}: lacks the column {missing[0]}; it has {', '.join(has)}")
        # Loaders run several processes; threads of each would only compete.
        return parquet.read_table(path, columns=columns, use_threads=False)
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such file") from None
    except (ArrowException, OSError) as error:
        raise DatasetError(f"{path}: not a readable parquet file ({error})") from None


def _to_numpy(path: Path, key: str, column: Any, feature: Feature) -> np.ndarray:
    """A column as [rows, *shape] of the declared dtype."""
    import pyarrow as pa

    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], column.type)
    rows = len(array)
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if array.null_count:
        raise DatasetError(f"{path}: {key} has no value at row {_first(array.is_null())}")
    while _is_list(array.type):
        if not pa.types.is_fixed_size_list(array.type):
            lengths = array.value_lengths().to_numpy(zero_copy_only=False)
            if rows and (lengths != lengths[0]).any():
                odd = int(np.flatnonzero(lengths != lengths[0])[0])
                raise DatasetError(
                    f"{path}: {key} has {lengths[odd]} numbers at row {odd}, and {lengths[0]} at row 0; "
                    f"meta/info.json says {list(feature.shape)}"
                )
        array = array.flatten()
        if array.null_count:
            raise DatasetError(f"{path}: {key} holds an empty value in row {_first(array.is_null())}")
    width = len(array) // rows if rows else 1
    if rows and width != int(np.prod(feature.shape, dtype=np.int64)):
        raise DatasetError(
            f"{path}: {key} has {width} numbers per row, meta/info.json says {list(feature.shape)}"
        )
    if not (
        pa.types.is_integer(array.type) or pa.types.is_floating(array.type) or pa.types.is_boolean(array.type)
    ):
        raise DatasetError(f"{path}: {key} holds {array.type}, meta/info.json says {feature.dtype}")
    values = array.to_numpy(zero_copy_only=False)
    try:
        with np.errstate(invalid="raise"):
            cast = np.ascontiguousarray(values, np.dtype(feature.dtype))
    except FloatingPointError:
        raise DatasetError(f"{path}: {key} holds numbers that are no {feature.dtype}") from None
    return cast.reshape(rows, *feature.shape)


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _first(mask: Any) -> int:
    return int(np.flatnonzero(mask.to_numpy(zero_copy_only=False))[0])
