"""Samples of datasets under a model's layout: what a loader loads and SFT learns from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from rlinf.data.episodes import EpisodeDataset
from rlinf.data.errors import DatasetError, EpisodeError
from rlinf.data.layout import DataLayout, Sample, resolve_columns
from rlinf.data.seeds import Stream, derive

#: An episode that cannot be read is replaced by the next; after this many in a row the dataset is given up.
_MAX_REPLACEMENTS: Final = 20


@dataclass
class Skipped:
    """Samples that were replaced because their episodes cannot be read, and the first reason."""

    count: int = 0
    reason: str = ""


class EpisodeSamples:
    """Every frame of the chosen episodes is a sample; samples are numbered dataset by dataset, episode by
    episode, frame by frame.

    Args:
        episodes: for each dataset the numbers of its episodes that take part.

    Raises:
        DatasetError: a dataset lacks what the layout takes, images of datasets differ in size and the layout
            does not make them alike, or there is no sample.
    """

    def __init__(
        self, datasets: Sequence[EpisodeDataset], layout: DataLayout, episodes: Sequence[np.ndarray]
    ) -> None:
        self.datasets, self.layout = list(datasets), layout
        self.columns = [resolve_columns(layout, dataset) for dataset in datasets]
        self._of_dataset = np.concatenate([np.full(len(e), d) for d, e in enumerate(episodes)])
        self._episode = np.concatenate(episodes).astype(np.int64)
        lengths = [dataset.lengths[chosen] for dataset, chosen in zip(datasets, episodes)]
        self._length = np.concatenate(lengths)
        self._start = np.concatenate([[0], np.cumsum(self._length)])
        #: Samples of each dataset.
        self.sizes: list[int] = [int(part.sum()) for part in lengths]
        self._bad: set[tuple[int, int]] = set()
        if len(self) == 0:
            raise DatasetError(f"{', '.join(d.source for d in datasets)}: there is no episode to learn from")
        self._check_images()

    def __len__(self) -> int:
        return int(self._start[-1])

    def load(self, numbers: np.ndarray, skipped: Skipped | None = None) -> list[Sample]:
        """The samples, in this order; they are read in the order of their files.

        skipped: an episode that cannot be read is replaced by the next one of its dataset and counted here;
            None: it raises `EpisodeError`.
        """
        samples: list[Sample | None] = [None] * len(numbers)
        for position in np.argsort(numbers, kind="stable"):
            at = int(np.searchsorted(self._start, numbers[position], side="right") - 1)
            frame = int(numbers[position] - self._start[at])
            samples[position] = self._load(at, frame, skipped)
        return samples  # type: ignore[return-value]

    def collate(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Samples as the batch of `sft_forward`."""
        return (self.layout.collate or collate)(samples)

    def read(self, dataset: int, episode: int, frame: int, *, images: bool = True) -> Sample:
        """A sample after the layout's `transform` and before its `encode`. Raises `EpisodeError`."""
        data, columns = self.datasets[dataset], self.columns[dataset]
        cameras = columns.cameras if images else {}
        now = data.read(episode, [frame], list(dict.fromkeys([*cameras.values(), *columns.state])))
        steps = frame + columns.offsets
        last = int(data.lengths[episode]) - 1
        actions = data.read(episode, np.clip(steps, 0, last).tolist(), columns.action)
        sample: Sample = {name: now[key][0] for name, key in cameras.items()}
        if columns.state:
            sample["states"] = _joined([now[key][0] for key in columns.state])
        sample["actions"] = _joined([actions[key] for key in columns.action])
        sample["action_is_pad"] = (steps < 0) | (steps > last)
        for name, key in columns.texts.items():
            sample[name] = "" if key is None else str(data.read(episode, [frame], [key])[key][0])
        prompt = self.layout.prompt
        sample["task_descriptions"] = data.tasks(episode, [frame])[0] if prompt is None else prompt
        if self.layout.transform is not None:
            sample = self.layout.transform(sample)
        wanted, width = self.layout.action_dim, sample["actions"].shape[-1]
        if wanted not in (None, width):
            raise DatasetError(
                f"{data.source}: its actions have {width} numbers, the model takes {wanted} "
                "(model.action_dim)"
            )
        return sample

    def each_episode(self) -> list[tuple[int, int]]:
        """(dataset, episode) of all that take part."""
        return list(zip(self._of_dataset.tolist(), self._episode.tolist()))

    # -- inside ---

    def _load(self, at: int, frame: int, skipped: Skipped | None) -> Sample:
        for position in self._candidates(at) if skipped is not None else [at]:
            where = int(self._of_dataset[position]), int(self._episode[position])
            if where in self._bad:
                continue
            try:
                sample = self.read(*where, min(frame, int(self._length[position]) - 1))
            except EpisodeError as error:
                if skipped is None:
                    raise
                self._bad.add(where)
                skipped.reason = skipped.reason or str(error)
                continue
            if position != at:
                assert skipped is not None
                skipped.count += 1
            return sample if self.layout.encode is None else self.layout.encode(sample)
        source = self.datasets[int(self._of_dataset[at])].source
        raise DatasetError(
            f"{source}: {_MAX_REPLACEMENTS} episodes in a row cannot be read; see rlinf data check. "
            f"The first: {skipped.reason if skipped else ''}"
        )

    def _candidates(self, at: int) -> list[int]:
        """The episode itself, then those after it in its dataset, around its end."""
        mine = np.flatnonzero(self._of_dataset == self._of_dataset[at])
        first = int(np.flatnonzero(mine == at)[0])
        return np.roll(mine, -first)[: _MAX_REPLACEMENTS + 1].tolist()

    def _check_images(self) -> None:
        if self.layout.encode is not None or self.layout.collate is not None:
            return
        seen: dict[str, tuple[tuple[int, ...], str]] = {}
        for dataset, columns in zip(self.datasets, self.columns):
            for name, key in columns.cameras.items():
                shape = dataset.features[key].shape
                other, source = seen.setdefault(name, (shape, dataset.source))
                if other != shape:
                    raise DatasetError(
                        f"{dataset.source}: {key} has images of {list(shape)}, those of {source} are "
                        f"{list(other)}; this model takes images as they are, so all must be alike"
                    )
        names = {tuple(columns.cameras) for columns in self.columns}
        if len(names) > 1:
            raise DatasetError(f"datasets with different cameras cannot be mixed: {sorted(names)}")


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """Float32, concatenated along the last axis; what has more axes than one is flattened by nobody."""
    return np.concatenate([np.asarray(part, np.float32) for part in parts], -1)


def collate(samples: Sequence[Sample]) -> dict[str, Any]:
    """Arrays and tensors stacked to tensors, numbers to tensors, everything else to lists."""
    import torch

    batch: dict[str, Any] = {}
    for name, first in samples[0].items():
        values = [sample[name] for sample in samples]
        if isinstance(first, np.ndarray):
            batch[name] = torch.from_numpy(np.stack(values))
        elif isinstance(first, torch.Tensor):
            batch[name] = torch.stack(values)
        elif isinstance(first, bool | int | float | np.generic):
            batch[name] = torch.tensor(values)
        else:
            batch[name] = values
    return batch


def split_episodes(count: int, held_out: float, seed: int, dataset: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the episodes to train on and of those held out, sorted; the share is rounded, but at least
    one is held out when any is to be and there are two."""
    if held_out == 0 or count < 2:
        return np.arange(count), np.arange(0)
    order = np.random.default_rng(derive(seed, Stream.HELD_OUT, dataset)).permutation(count)
    number = min(max(round(held_out * count), 1), count - 1)
    return np.sort(order[number:]), np.sort(order[:number])
