"""How samples of a dataset become the batch of a model's `sft_forward`: `DataLayout`.

A model says it by `ModelSpec.data_layout`; one that does not gets `observation_layout`, the names of an
environment's observation. The configuration's block `data` may replace the cameras and keys of either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from rlinf.data.episodes import EpisodeDataset
from rlinf.data.errors import DatasetError

#: One sample: the observation at a frame and the actions from there on. Without a transform it holds the
#: layout's cameras (uint8 [H,W,C]), `states` float32 [D], `actions` float32 [horizon, A], `action_is_pad`
#: bool [horizon] (true after the episode's end, where the last action is repeated), `task_descriptions` str.
Sample = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class DataLayout:
    """What a model takes from a dataset. Functions run in the loader's processes, once per sample."""

    #: Name in the sample -> features of the dataset, of which the first that is there is taken.
    cameras: Mapping[str, tuple[str, ...]]
    #: Cameras that a dataset may lack.
    optional: frozenset[str] = frozenset()
    #: Features that make up `states`, concatenated; of each tuple of alternatives the first that is there.
    #: () for a model that reads no state.
    state: tuple[tuple[str, ...], ...] = (("observation.state", "state"),)
    #: Features that make up `actions`, likewise.
    action: tuple[tuple[str, ...], ...] = (("action", "actions"),)
    #: Name in the sample -> text features, of which the first that is there is taken; "" where none is.
    texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    #: Actions per sample.
    action_horizon: int
    #: Width of `actions` after `transform`; None: any.
    action_dim: int | None = None
    #: Seconds from the frame to each action; None: consecutive frames of the dataset.
    action_timestamps: tuple[float, ...] | None = None
    #: The instruction; None: the dataset's.
    prompt: str | None = None
    #: sample -> sample, before the statistics are computed: slices, delta actions. None: as it is. For the
    #: statistics it gets samples without cameras.
    transform: Callable[[Sample], Sample] | None = None
    #: sample -> sample, after that: normalise, resize, tokenise. None: as it is.
    encode: Callable[[Sample], Sample] | None = None
    #: samples -> batch. None: arrays are stacked to tensors, text becomes a list.
    collate: Callable[[Sequence[Sample]], dict[str, Any]] | None = None

    def __post_init__(self) -> None:
        if self.action_horizon < 1:
            raise ValueError(f"DataLayout.action_horizon: expected at least 1, got {self.action_horizon}")
        stamps = self.action_timestamps
        if stamps is not None and len(stamps) != self.action_horizon:
            raise ValueError(
                f"DataLayout.action_timestamps: expected {self.action_horizon} numbers (action_horizon), "
                f"got {len(stamps)}"
            )


def observation_layout(cfg: Any) -> DataLayout:
    """The layout of a model that declares none: names of an environment's observation, as many actions per
    sample as the policy produces. Fits what `rlinf data record` writes."""
    return DataLayout(
        cameras={
            "main_images": ("observation.images.main", "observation.image", "observation.images.image"),
            "wrist_images": ("observation.images.wrist", "observation.images.wrist_image"),
        },
        optional=frozenset({"wrist_images"}),
        action_dim=int(cfg.action_dim),
        action_horizon=int(cfg.num_action_chunks),
    )


def configured(
    layout: DataLayout, cameras: Mapping[str, str], state: Sequence[str], action: Sequence[str]
) -> DataLayout:
    """The layout with the cameras and keys that the configuration gives (empty: as they are)."""
    unknown = [name for name in cameras if name not in layout.cameras]
    if unknown:
        raise DatasetError(
            f"data.cameras: the model takes no camera {unknown[0]!r}; it takes {', '.join(layout.cameras)}"
        )
    changes: dict[str, Any] = {}
    if cameras:
        given = {name: (key,) for name, key in cameras.items()}
        changes = {"cameras": {**layout.cameras, **given}, "optional": layout.optional - set(given)}
    if state:
        changes["state"] = tuple((key,) for key in state)
    if action:
        changes["action"] = tuple((key,) for key in action)
    return replace(layout, **changes)


@dataclass(frozen=True, kw_only=True)
class Columns:
    """A layout resolved against one dataset: which feature is which."""

    cameras: Mapping[str, str]
    state: tuple[str, ...]
    action: tuple[str, ...]
    #: None: the dataset has no such text.
    texts: Mapping[str, str | None]
    #: int64 [horizon], frames from the sample's to each action.
    offsets: np.ndarray


def resolve_columns(layout: DataLayout, dataset: EpisodeDataset) -> Columns:
    """Raises `DatasetError` naming the dataset, what was looked for and what there is."""

    def find(what: str, candidates: Sequence[str], image: bool) -> str:
        for key in candidates:
            if key in dataset.features and dataset.features[key].is_image == image:
                return key
        has = [key for key, feature in dataset.features.items() if feature.is_image == image]
        kind = "images" if image else "features"
        raise DatasetError(
            f"{dataset.source}: has no {' or '.join(candidates)} for {what}; its {kind}: "
            f"{', '.join(has) or 'none'}. Say which one it is with data.{_OPTION[what.partition(' ')[0]]}"
        )

    cameras = {}
    for name, candidates in layout.cameras.items():
        if name in layout.optional and not any(key in dataset.features for key in candidates):
            continue
        cameras[name] = find(f"camera {name}", candidates, True)
    return Columns(
        cameras=cameras,
        state=tuple(find("state", keys, False) for keys in layout.state),
        action=tuple(find("action", keys, False) for keys in layout.action),
        texts={
            name: next((key for key in candidates if key in dataset.features), None)
            for name, candidates in layout.texts.items()
        },
        offsets=action_offsets(layout, dataset),
    )


_OPTION = {"camera": "cameras", "state": "state", "action": "action"}


def action_offsets(layout: DataLayout, dataset: EpisodeDataset) -> np.ndarray:
    """Frames from a sample to each of its actions, int64 [horizon].

    Raises `DatasetError` where the layout's seconds are not frames of the dataset (within 1 % of a frame).
    """
    if layout.action_timestamps is None:
        return np.arange(layout.action_horizon)
    frames = np.asarray(layout.action_timestamps) * dataset.fps
    offsets = np.rint(frames).astype(np.int64)
    off = np.abs(frames - offsets)
    if off.max() > 0.01:
        seconds = layout.action_timestamps[int(off.argmax())]
        raise DatasetError(
            f"{dataset.source}: has {dataset.fps:g} frames per second, and the model wants an action after "
            f"{seconds:g} s, which is between two frames"
        )
    return offsets
