"""Checks and stacking of observations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from rlinf.envs.results import EnvError, Observation

#: Observation keys that hold uint8 images, and their numbers of dimensions.
IMAGE_KEYS: Final = {"main_images": 3, "wrist_images": 3, "extra_view_images": 4}
#: Pixels that are compared before a whole image is: nearly every good image differs within them.
_PROBE_STRIDE: Final = 37


class BadObservation(ValueError):
    """A simulator returned an observation that cannot be right: NaN, a uniform image, another shape."""


class ObservationCheck:
    """Checks every observation of a simulator against the contract and against its first observation."""

    def __init__(self, env_type: str) -> None:
        self._env_type = env_type
        self._shapes: dict[str, tuple[tuple[int, ...], np.dtype]] = {}

    def __call__(self, obs: Mapping[str, Any]) -> None:
        """Raise BadObservation for a bad value, EnvError for an observation that breaks the contract."""
        if not self._shapes:
            self._shapes = self._contract(obs)
        for key, expected in self._shapes.items():
            value = obs.get(key)
            if not isinstance(value, np.ndarray) or (value.shape, value.dtype) != expected:
                raise BadObservation(f"{key}: expected {_show(expected)}, got {describe(value)}")
            if key in IMAGE_KEYS:
                for view in value if value.ndim == 4 else (value,):
                    if is_uniform(view):
                        raise BadObservation(f"{key}: every pixel is {view[0, 0].tolist()}")
            elif not np.isfinite(value).all():
                raise BadObservation(f"{key}: holds NaN or infinity")

    def _contract(self, obs: Mapping[str, Any]) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        def refuse(problem: str) -> EnvError:
            return EnvError(f"environment {self._env_type!r} breaks the observation contract: {problem}")

        if not isinstance(obs, Mapping):
            raise refuse(f"the observation must be a dict, got {type(obs).__name__}")
        missing = [key for key in ("main_images", "states", "task_descriptions") if key not in obs]
        if missing:
            raise refuse(f"the observation lacks {', '.join(missing)}; it has {', '.join(map(str, obs))}")
        unknown = [key for key in obs if key not in IMAGE_KEYS and key not in ("states", "task_descriptions")]
        if unknown:
            raise refuse(f"unknown observation key {unknown[0]!r}")
        if not isinstance(obs["task_descriptions"], str):
            raise refuse(f"task_descriptions must be a str, got {describe(obs['task_descriptions'])}")
        for key in obs:
            ndim, dtype = (IMAGE_KEYS[key], np.uint8) if key in IMAGE_KEYS else (1, np.float32)
            value = obs[key]
            if key == "task_descriptions":
                continue
            if not isinstance(value, np.ndarray) or value.ndim != ndim or value.dtype != dtype:
                raise refuse(f"{key} must be {np.dtype(dtype)} with {ndim} dimensions, got {describe(value)}")
        return {key: (value.shape, value.dtype) for key, value in obs.items() if key != "task_descriptions"}


def is_uniform(image: np.ndarray) -> bool:
    """Whether all pixels of an image [H,W,C] are equal (what a lost GL context renders)."""
    pixels = image.reshape(-1, image.shape[-1])
    return bool((pixels[::_PROBE_STRIDE] == pixels[0]).all() and (pixels == pixels[0]).all())


def stack(observations: Sequence[Mapping[str, Any]]) -> Observation:
    """N single observations as one batch of new contiguous arrays (strings as a list)."""
    return {
        key: [obs[key] for obs in observations]
        if key == "task_descriptions"
        else np.stack([obs[key] for obs in observations])
        for key in observations[0]
    }


def row(batch: Observation, index: int) -> Observation:
    """A copy of one observation of a batch."""
    return copy({key: value[index] for key, value in batch.items()})


def copy(obs: Mapping[str, Any]) -> Observation:
    """An observation that shares no memory with the simulator's or the batch's buffers."""
    return {key: value.copy() if isinstance(value, np.ndarray) else value for key, value in obs.items()}


def describe(value: Any) -> str:
    """Shape and dtype of an array, the type of anything else; for messages."""
    return _show((value.shape, value.dtype)) if isinstance(value, np.ndarray) else type(value).__name__


def _show(shape_dtype: tuple[tuple[int, ...], np.dtype]) -> str:
    return f"{shape_dtype[1]} {list(shape_dtype[0])}"
