"""Statistics of a dataset: JSON of one's own, and the original's `dataset_stats.pkl`. Imports no torch."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

#: Standard deviations below this count as this: a joint that never moved must not blow up.
MIN_STD: Final = 1e-2
#: The action range is widened by this on both sides, so that it is never empty.
RANGE_MARGIN: Final = 1e-4
#: Field here -> its name in the original's file.
_ORIGINAL: Final = {
    "state_mean": "qpos_mean",
    "state_std": "qpos_std",
    "action_min": "action_min",
    "action_max": "action_max",
}


@dataclass(frozen=True, kw_only=True)
class Stats:
    """Per dimension: mean and standard deviation of states, smallest and largest action."""

    state_mean: tuple[float, ...]
    state_std: tuple[float, ...]
    action_min: tuple[float, ...]
    action_max: tuple[float, ...]


def compute_stats(episodes: Iterable[tuple[np.ndarray, np.ndarray]]) -> Stats:
    """Statistics of (states [T, D], actions [T, A]) of each episode, in one pass and float64.

    The deviation is the sample's (divided by n - 1), as the original's. Raises ValueError without any step.
    """
    count, total, square = 0, np.zeros(1), np.zeros(1)
    low, high = np.full(1, np.inf), np.full(1, -np.inf)
    for states, actions in episodes:
        states = states.astype(np.float64)
        count += len(states)
        total = total + states.sum(axis=0)
        square = square + np.square(states).sum(axis=0)
        low = np.minimum(low, actions.min(axis=0))
        high = np.maximum(high, actions.max(axis=0))
    if count == 0:
        raise ValueError("statistics: there is no step in any episode")
    mean = total / count
    variance = np.maximum(square - count * np.square(mean), 0) / max(count - 1, 1)
    return Stats(
        state_mean=_floats(mean),
        state_std=_floats(np.maximum(np.sqrt(variance), MIN_STD)),
        action_min=_floats(low - RANGE_MARGIN),
        action_max=_floats(high + RANGE_MARGIN),
    )


def write_stats(path: Path, stats: Stats) -> None:
    """Write the statistics as JSON."""
    path.write_text(json.dumps(asdict(stats), indent=1) + "\n", encoding="utf-8")


def read_stats(path: Path) -> Stats:
    """Statistics from JSON, or from the original's pickle of numpy arrays (`.pkl`).

    Raises ValueError naming the file, and the key where one is missing or not finite.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected dataset_stats.json or the original's .pkl")
    data = _read_pickle(path) if path.suffix == ".pkl" else _read_json(path)
    names = _ORIGINAL if path.suffix == ".pkl" else {name: name for name in _ORIGINAL}
    values: dict[str, tuple[float, ...]] = {}
    for name, key in names.items():
        if key not in data:
            raise ValueError(f"{path}: lacks {key}; it has {', '.join(map(str, data)) or 'nothing'}")
        array = np.asarray(data[key], dtype=np.float64)
        if array.ndim != 1 or not np.isfinite(array).all():
            raise ValueError(f"{path}: {key}: expected a list of finite numbers, got shape {array.shape}")
        values[name] = _floats(array)
    return Stats(**values)


def _floats(array: np.ndarray) -> tuple[float, ...]:
    return tuple(float(x) for x in array)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected a mapping, got {type(data).__name__}")
    return data


class _ArraysOnly(pickle.Unpickler):
    """Unpickles dictionaries, lists, numbers, text and numpy arrays; nothing else is looked up."""

    _admitted: Final = {
        ("_codecs", "encode"),  # how protocol 2 writes bytes
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy._core.numeric", "_frombuffer"),
        ("numpy.core.numeric", "_frombuffer"),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._admitted:
            raise pickle.UnpicklingError(f"it names {module}.{name}; only numpy arrays are admitted")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _read_pickle(path: Path) -> dict[str, Any]:
    try:
        data = _ArraysOnly(io.BytesIO(path.read_bytes())).load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{path}: not a pickle of numpy arrays: {error}") from None
    if not isinstance(data, dict) or any(
        isinstance(v, np.ndarray) and v.dtype.hasobject for v in data.values()
    ):
        raise ValueError(f"{path}: expected a dictionary of numeric arrays, got {type(data).__name__}")
    return data
