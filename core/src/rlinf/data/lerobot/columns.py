"""An episode as a parquet table, and the statistics that LeRobot keeps of it."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from rlinf.data.episodes import Feature

#: `features` of the columns that every dataset has.
INDEX_FEATURES: Final[dict[str, Any]] = {
    "timestamp": {"dtype": "float32", "shape": [1], "names": None},
    **{
        name: {"dtype": "int64", "shape": [1], "names": None}
        for name in ("frame_index", "episode_index", "index", "task_index")
    },
}
Stats = dict[str, dict[str, np.ndarray]]


def arrow_table(columns: Mapping[str, np.ndarray], features: Mapping[str, Feature]) -> Any:
    """The columns in the arrow types of the Hugging Face datasets library; videos have no column."""
    import pyarrow as pa

    arrays: dict[str, Any] = {}
    for key, values in columns.items():
        feature = features.get(key)
        if feature is not None and feature.kind == "video":
            continue
        if feature is not None and feature.kind == "image":
            kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
            rows = [{"bytes": _png(x), "path": f"frame-{i:06d}.png"} for i, x in enumerate(values)]
            arrays[key] = pa.array(rows, kind)
            continue
        array = pa.array(np.ascontiguousarray(values).reshape(-1))
        shape = values.shape[1:]
        if shape != (1,):
            for size in reversed(shape):
                array = pa.FixedSizeListArray.from_arrays(array, size)
        arrays[key] = array
    return pa.table(arrays)


def _png(image: np.ndarray) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG", compress_level=6)
    return stream.getvalue()


def episode_stats(columns: Mapping[str, np.ndarray], features: Mapping[str, Feature]) -> Stats:
    """min, max, mean, std of every column and count [1]; of images per channel [3,1,1], scaled to [0, 1]."""
    stats: Stats = {}
    for key, values in columns.items():
        feature = features.get(key)
        is_image = feature is not None and feature.is_image
        axes: tuple[int, ...] = (0, 1, 2) if is_image else (0,)
        scale = 255.0 if is_image else 1.0
        one = {
            "min": values.min(axes) / scale,
            "max": values.max(axes) / scale,
            "mean": values.mean(axes, dtype=np.float64) / scale,
            "std": values.std(axes, dtype=np.float64) / scale,
        }
        shape = (3, 1, 1) if is_image else values.shape[1:] or (1,)
        stats[key] = {name: np.reshape(x, shape) for name, x in one.items()}
        stats[key]["count"] = np.array([len(values)])
    return stats


def merge_stats(parts: Sequence[Stats]) -> Stats:
    """Statistics of all episodes together (Chan et al. 1979 for the variance)."""
    merged: Stats = {}
    for key in parts[0]:
        rows = [part[key] for part in parts]
        counts = np.array([row["count"][0] for row in rows], np.float64)
        counts = counts.reshape(-1, *[1] * rows[0]["mean"].ndim)
        means, stds = np.stack([row["mean"] for row in rows]), np.stack([row["std"] for row in rows])
        mean = (means * counts).sum(0) / counts.sum()
        variance = ((stds**2 + (means - mean) ** 2) * counts).sum(0) / counts.sum()
        merged[key] = {
            "min": np.min([row["min"] for row in rows], axis=0),
            "max": np.max([row["max"] for row in rows], axis=0),
            "mean": mean,
            "std": np.sqrt(variance),
            "count": np.array([int(counts.sum())]),
        }
    return merged
