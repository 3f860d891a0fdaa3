"""From one format of recorded episodes to another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlinf.data.episodes import EpisodeDataset, Feature, Kind
from rlinf.data.errors import DatasetError

#: Called with the number of episodes done; the frames of one are in memory at a time.
Progress = Callable[[int], None]


def convert_dataset(
    dataset: EpisodeDataset,
    writer: Callable[..., Any],
    target: Path,
    *,
    fps: float | None = None,
    rename: dict[str, str] | None = None,
    images: Kind | None = None,
    progress: Progress = lambda done: None,
) -> int:
    """Write all episodes anew; returns how many.

    Args:
        writer: of the new format, `f(folder, features, *, fps)`.
        fps: frames per second; None: the dataset's.
        rename: feature of the dataset -> its name in the new one; others keep theirs.
        images: "video" or "image" (lossless, in the tables); None: as the dataset has them.

    Raises:
        DatasetError: a feature to rename is not there, two get one name, or the instruction changes within an
            episode, for which the new format has no place.
    """
    names = {key: (rename or {}).get(key, key) for key in dataset.features}
    unknown = [key for key in rename or {} if key not in names]
    if unknown:
        raise DatasetError(f"{dataset.source}: has no {unknown[0]}; it has {', '.join(names)}")
    if len(set(names.values())) < len(names):
        raise DatasetError(f"{dataset.source}: two features would have one name: {sorted(names.values())}")
    features = {names[key]: _feature(feature, images) for key, feature in dataset.features.items()}
    with writer(target, features, fps=fps or dataset.fps) as out:
        for episode, length in enumerate(dataset.lengths.tolist()):
            tasks = set(dataset.tasks(episode, range(length)))
            if len(tasks) != 1:
                raise DatasetError(
                    f"{dataset.source}: episode {episode} has {len(tasks)} instructions: {sorted(tasks)[:3]}"
                )
            frames = dataset.read(episode, range(length), list(names))
            shaped = {names[key]: x.reshape(length, *features[names[key]].shape) for key, x in frames.items()}
            out.add(shaped, tasks.pop())
            progress(episode + 1)
    return len(dataset.lengths)


def _feature(feature: Feature, images: Kind | None) -> Feature:
    if feature.is_image:
        return replace(feature, kind=images or feature.kind)
    return feature if feature.shape else replace(feature, shape=(1,))  # other formats know no scalars
