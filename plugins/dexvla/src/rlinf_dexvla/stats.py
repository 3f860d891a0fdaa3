"""Statistics by which states and actions are normalised: those of `rlinf data stats`, and the original's
`dataset_stats.pkl`. Imports no torch."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from rlinf.data.errors import DatasetError
from rlinf.data.stats import NormStats, read_norm_stats

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
#: The original's file beside a checkpoint of its.
ORIGINAL_FILE: Final = "dataset_stats.pkl"


@dataclass(frozen=True, kw_only=True)
class Stats:
    """Per dimension: mean and standard deviation of states, smallest and largest action."""

    state_mean: tuple[float, ...]
    state_std: tuple[float, ...]
    action_min: tuple[float, ...]
    action_max: tuple[float, ...]


def read_stats(path: Path) -> Stats:
    """Statistics from the `norm_stats.json` of `rlinf data stats` (the file, or a folder with it), or from
    the original's pickle of numpy arrays (`.pkl`).

    Raises ValueError naming the file, and the key where one is missing or not finite.
    """
    if not path.exists():
        raise ValueError(
            f"{path}: no such file; expected norm_stats.json (rlinf data stats) or {ORIGINAL_FILE}"
        )
    if path.suffix == ".pkl":
        found = _read_pickle(path)
        names = _ORIGINAL
    else:
        found = _of_norm_stats(path, read_norm_stats(path))
        names = {name: name for name in _ORIGINAL}
    values: dict[str, tuple[float, ...]] = {}
    for name, key in names.items():
        if key not in found:
            raise ValueError(f"{path}: lacks {key}; it has {', '.join(map(str, found)) or 'nothing'}")
        array = np.asarray(found[key], dtype=np.float64)
        if array.ndim != 1 or not np.isfinite(array).all():
            raise ValueError(f"{path}: {key}: expected a list of finite numbers, got shape {array.shape}")
        values[name] = tuple(array.tolist())
    return Stats(**values)


def write_original(path: Path, stats: Stats) -> None:
    """Write the arrays of the original's file that acting reads, float32."""
    arrays = {key: np.array(getattr(stats, name), np.float32) for name, key in _ORIGINAL.items()}
    path.write_bytes(pickle.dumps(arrays, protocol=4))


def _of_norm_stats(path: Path, stats: Mapping[str, NormStats]) -> dict[str, np.ndarray]:
    state, actions = stats.get("state"), stats.get("actions")
    if state is None or actions is None or actions.min is None or actions.max is None:
        raise DatasetError(
            f"{path}: expected mean and std of `state`, min and max of `actions`: compute it with "
            "rlinf data stats and this model's configuration"
        )
    return {
        "state_mean": state.mean,
        "state_std": np.maximum(state.std, MIN_STD),
        "action_min": actions.min - RANGE_MARGIN,
        "action_max": actions.max + RANGE_MARGIN,
    }


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
