"""`rlinf data convert`."""

from __future__ import annotations

from pathlib import Path

from rlinf.data.convert import convert_dataset
from rlinf.data.formats import AUTO, installed_formats, open_dataset, writer_of
from rlinf.runners.progress import TrainingProgress


def convert_episodes(
    source: str,
    target: str,
    *,
    source_format: str | None = None,
    target_format: str = "lerobot",
    fps: float | None = None,
    rename: dict[str, str] | None = None,
    png: bool = False,
) -> int:
    """Write the dataset `source` anew; prints what came of it. Returns the exit status.

    Raises:
        DatasetError: no such format, one that cannot be written, a dataset that cannot be read, or a target
            that is taken.
    """
    contributed = installed_formats()
    writer = writer_of(target_format, contributed, "--to")
    dataset = open_dataset(source, source_format or AUTO, contributed)
    with TrainingProgress() as progress:
        progress.phase("convert", len(dataset.lengths))
        episodes = convert_dataset(
            dataset,
            writer,
            Path(target),
            fps=fps,
            rename=rename,
            images="image" if png else "video",
            progress=progress.update,
        )
    print(f"{target}: {episodes} episodes, {int(dataset.lengths.sum())} frames, {target_format}")
    return 0
