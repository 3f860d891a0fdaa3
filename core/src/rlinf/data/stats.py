"""Normalisation statistics: mean, standard deviation, quantiles of 1 % and 99 %, range, in one pass.

Stored in openpi's layout: `{"norm_stats": {"state": {"mean": [...], "std": [...], "q01": [...], "q99":
[...]}, "actions": {...}}}`, to which `min` and `max` are added.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from rlinf.data.errors import DatasetError
from rlinf.data.samples import EpisodeSamples

FILE: Final = "norm_stats.json"
#: What is known of each entry, in the order of the files.
FIELDS: Final = ("mean", "std", "q01", "q99", "min", "max")
#: Quantiles are exact to one part in this of the range of the values.
_BINS: Final = 5000


@dataclass(frozen=True, kw_only=True)
class NormStats:
    """Of each entry of a vector, float64 [D]; quantiles and the range may be missing in files of others."""

    mean: np.ndarray
    std: np.ndarray
    q01: np.ndarray | None = None
    q99: np.ndarray | None = None
    min: np.ndarray | None = None
    max: np.ndarray | None = None


class RunningStats:
    """Statistics of vectors of one width that come in batches, each seen once.

    Mean and variance are merged by the formula of Chan, Golub, LeVeque (1979). Quantiles come from a
    histogram per entry whose range grows with the data; counts of a narrower histogram are moved to the new
    bins at their centres, so a quantile is off by about one bin at most.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean = self._squares = self._low = self._high = np.empty(0)
        self._min, self._max = np.array(np.inf), np.array(-np.inf)
        self._counts = np.empty((0, 0))

    def update(self, values: np.ndarray) -> None:
        """values: [n, D], finite."""
        values = np.asarray(values, np.float64)
        if len(values) == 0:
            return
        if self.count == 0:
            width = values.shape[1]
            self._mean, self._squares = np.zeros(width), np.zeros(width)
            self._low, self._high = values.min(0), values.max(0)
            self._counts = np.zeros((width, _BINS))
        self._min, self._max = np.minimum(self._min, values.min(0)), np.maximum(self._max, values.max(0))
        self._widen(np.minimum(self._low, self._min), np.maximum(self._high, self._max))
        for entry in range(values.shape[1]):
            places = self._places(values[:, entry], entry)
            self._counts[entry] += np.bincount(places, minlength=_BINS)
        total, mean = self.count + len(values), values.mean(0)
        delta = mean - self._mean
        self._squares += ((values - mean) ** 2).sum(0) + delta**2 * self.count * len(values) / total
        self._mean += delta * len(values) / total
        self.count = total

    def result(self) -> NormStats:
        """Raises `DatasetError` when nothing was seen."""
        if self.count == 0:
            raise DatasetError("there is nothing to compute statistics of")
        return NormStats(
            mean=self._mean,
            std=np.sqrt(self._squares / self.count),
            q01=self._quantile(0.01),
            q99=self._quantile(0.99),
            min=self._min,
            max=self._max,
        )

    def _places(self, values: np.ndarray, entry: int) -> np.ndarray:
        low, span = self._low[entry], self._high[entry] - self._low[entry]
        if span == 0:
            return np.zeros(len(values), np.int64)
        return np.minimum(((values - low) / span * _BINS).astype(np.int64), _BINS - 1)

    def _widen(self, low: np.ndarray, high: np.ndarray) -> None:
        changed = np.flatnonzero((low < self._low) | (high > self._high))
        for entry in changed.tolist():
            centres = self._low[entry] + (np.arange(_BINS) + 0.5) / _BINS * (
                self._high[entry] - self._low[entry]
            )
            # Half of what is gained each time is spared: a range that grows slowly is not rebuilt every time.
            gained_low, gained_high = self._low[entry] - low[entry], high[entry] - self._high[entry]
            self._low[entry] = low[entry] - max(gained_low, 0) / 2
            self._high[entry] = high[entry] + max(gained_high, 0) / 2
            places = self._places(centres, entry)
            self._counts[entry] = np.bincount(places, self._counts[entry], _BINS)

    def _quantile(self, share: float) -> np.ndarray:
        cumulative = self._counts.cumsum(1)
        places = (cumulative < share * self.count).sum(1)
        before = np.take_along_axis(cumulative - self._counts, places[:, None], 1)[:, 0]
        inside = np.take_along_axis(self._counts, places[:, None], 1)[:, 0]
        fraction = (share * self.count - before) / np.maximum(inside, 1)
        return self._low + (places + fraction) / _BINS * (self._high - self._low)


def compute_stats(
    samples: EpisodeSamples, progress: Callable[[int], None] = lambda episodes: None
) -> dict[str, NormStats]:
    """Statistics of `states` and `actions` as the layout's `transform` leaves them (it gets no images).
    Actions after an episode's end do not count."""
    running = {"states": RunningStats(), "actions": RunningStats()}
    for done, (dataset, episode) in enumerate(samples.each_episode(), 1):
        length = int(samples.datasets[dataset].lengths[episode])
        rows = [samples.read(dataset, episode, frame, images=False) for frame in range(length)]
        actions = np.stack([row["actions"] for row in rows])
        running["actions"].update(actions[~np.stack([row["action_is_pad"] for row in rows])])
        if "states" in rows[0]:
            running["states"].update(np.stack([row["states"] for row in rows]))
        progress(done)
    names = {"states": "state", "actions": "actions"}
    return {names[key]: stats.result() for key, stats in running.items() if stats.count}


def write_norm_stats(path: Path, stats: Mapping[str, NormStats]) -> None:
    """Write `path` (a file, or a folder that gets `norm_stats.json`)."""
    path = path if path.suffix == ".json" else path / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {
        key: {name: getattr(one, name).tolist() for name in FIELDS if getattr(one, name) is not None}
        for key, one in stats.items()
    }
    path.write_text(json.dumps({"norm_stats": plain}, indent=2), encoding="utf-8")


def read_norm_stats(path: Path) -> dict[str, NormStats]:
    """Statistics from a file or from a folder: a dataset's, or a checkpoint's that keeps them in `assets/`.

    Raises `DatasetError`: there is none, more than one, or it is not laid out so.
    """
    file = path if path.is_file() else _find(path)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))["norm_stats"]
        return {key: _parse(file, key, one) for key, one in content.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(
            f"{file}: expected {{'norm_stats': {{'state': {{'mean': [...], 'std': [...]}}, ...}}}} "
            f"({type(error).__name__}: {error})"
        ) from None


def _find(folder: Path) -> Path:
    if (folder / FILE).is_file():
        return folder / FILE
    found = sorted((folder / "assets").rglob(FILE))
    if len(found) != 1:
        what = f"{len(found)} of them: {', '.join(map(str, found))}" if found else "none"
        raise DatasetError(f"{folder}: expected one {FILE}, here or below assets/; found {what}")
    return found[0]


def _parse(file: Path, key: str, given: Mapping[str, Any]) -> NormStats:
    values = {name: np.asarray(given[name], np.float64) for name in FIELDS if given.get(name) is not None}
    missing = [name for name in ("mean", "std") if name not in values]
    if missing or len({x.shape for x in values.values()}) != 1 or values["mean"].ndim != 1:
        shapes = {name: list(x.shape) for name, x in values.items()}
        raise DatasetError(f"{file}: {key} must have mean and std, vectors of one width; it has {shapes}")
    return NormStats(**values)
