"""How samples of a dataset become what DexVLA learns from (`ModelSpec.data_layout`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from rlinf.data.layout import DataLayout, Sample
from rlinf.models.factory import plugin_config

from rlinf_dexvla.config import CameraConfig, DexvlaConfig
from rlinf_dexvla.hdf5.files import QPOS, REASONING

if TYPE_CHECKING:
    from omegaconf import DictConfig

#: The observation's cameras in datasets that are named as LeRobot's are.
_COMMON = {
    "main_images": ("observation.images.main", "observation.image", "observation.images.image"),
    "wrist_images": ("observation.images.wrist", "observation.images.wrist_image"),
}


def data_layout(cfg: DictConfig) -> DataLayout:
    """Cameras by the names of `model.dexvla.cameras`, positions as the state, reasoning where there is."""
    config = plugin_config(cfg, DexvlaConfig)
    horizon = config.prediction_horizon or cfg.num_action_chunks
    cameras = config.cameras if config.use_vlm else ()
    return DataLayout(
        cameras={camera.key: _candidates(camera) for camera in cameras},
        state=((QPOS, "observation.state", "state"),),
        texts={"reasonings": (REASONING,)} if config.use_vlm and config.use_reasoning else {},
        action_horizon=horizon + config.delta_control,
        transform=delta_actions if config.delta_control else None,
    )


def _candidates(camera: CameraConfig) -> tuple[str, ...]:
    name = camera.dataset_name
    return (f"observations/images/{name}", f"observation.images.{name}", *_COMMON.get(camera.key, ()))


def delta_actions(sample: Sample) -> Sample:
    """The sample with `actions` [H + 1, A] as H differences of one action to the next."""
    pad = sample["action_is_pad"][1:]
    return {**sample, "actions": np.diff(sample["actions"], axis=0), "action_is_pad": pad}
