"""What can be wrong with a dataset."""

from __future__ import annotations


class DatasetError(ValueError):
    """A dataset that cannot be read or does not fit the run; names the file and what was expected."""


class EpisodeError(DatasetError):
    """One episode cannot be read; the others may. `data.on_error: skip` passes over it."""

    def __init__(self, message: str, episode: int) -> None:
        super().__init__(message)
        self.episode = episode

    def __reduce__(self) -> tuple[type[EpisodeError], tuple[str, int]]:
        return type(self), (str(self), self.episode)
