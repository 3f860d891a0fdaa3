"""Batches of samples, in the order of the optimizer's steps, loaded ahead by processes of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rlinf.data.errors import DatasetError
from rlinf.data.samples import EpisodeSamples, Skipped
from rlinf.data.text import TextSamples


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """One micro-batch: the batch of `sft_forward`, and what was skipped for it."""

    batch: dict[str, Any]
    skipped: Skipped = field(default_factory=Skipped)


@dataclass(frozen=True, kw_only=True)
class _Failed:
    """A dataset error of a loading process, as text: it is the user's, and needs no traceback."""

    message: str


def iterate(
    open_samples: Callable[[], EpisodeSamples | TextSamples],
    parts: Callable[[int], np.ndarray],
    first: int,
    last: int,
    *,
    workers: int,
    prefetch: int,
    skip: bool,
) -> Iterator[Loaded]:
    """The micro-batches `first` .. `last - 1` in order; `parts(i)` are the sample numbers of number i.

    workers: processes, forked from this one; each opens the data itself. 0: this process, when asked.
    prefetch: micro-batches that each of them holds ready.
    skip: replace samples that cannot be read; False: raise.

    Raises:
        DatasetError: as of `EpisodeSamples.load`.
    """
    from torch.utils.data import DataLoader

    loader: DataLoader[Any] = DataLoader(
        _Parts(open_samples, parts, skip),  # type: ignore[arg-type]
        batch_size=None,
        sampler=range(first, last),
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        multiprocessing_context="fork" if workers else None,
        collate_fn=_as_it_is,
    )
    for item in loader:
        if isinstance(item, _Failed):
            raise DatasetError(item.message)
        yield item


def _as_it_is(item: Any) -> Any:
    return item


class _Parts:
    """torch's map-style dataset of micro-batches. The samples are opened in the process that loads them."""

    def __init__(
        self,
        open_samples: Callable[[], EpisodeSamples | TextSamples],
        parts: Callable[[int], np.ndarray],
        skip: bool,
    ) -> None:
        self._open, self._parts, self._skip = open_samples, parts, skip
        self._samples: EpisodeSamples | TextSamples | None = None

    def __getitem__(self, number: int) -> Loaded | _Failed:
        try:
            if self._samples is None:
                self._samples = self._open()
            skipped = Skipped()
            samples = self._samples.load(self._parts(number), skipped if self._skip else None)
            return Loaded(batch=self._samples.collate(samples), skipped=skipped)
        except DatasetError as error:
            return _Failed(message=str(error))
