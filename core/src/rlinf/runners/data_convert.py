"""`rlinf data convert`."""

from __future__ import annotations

from pathlib import Path

from rlinf.data.convert import convert_dataset
from rlinf.data.errors import DatasetError
from rlinf.data.formats import AUTO, all_formats, installed_formats, open_dataset
from rlinf.plugins import resolve_attr
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
    formats = all_formats(contributed)
    spec = formats.get(target_format)
    if spec is None or spec.writer is None:
        writable = ", ".join(sorted(name for name, one in formats.items() if one.writer is not None))
        raise DatasetError(f"--to: {target_format!r} is no format that can be written; these are: {writable}")
    dataset = open_dataset(source, source_format or AUTO, contributed)
    writer = resolve_attr(spec.writer, of=f"DatasetFormatSpec.writer of {spec.name!r}")
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
    print(f"{target}: {episodes} episodes, {int(dataset.lengths.sum())} frames, {spec.name}")
    return 0
