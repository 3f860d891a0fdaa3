"""How samples of a dataset become what DexVLA learns from (`ModelSpec.data_layout`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from rlinf.data.layout import DataLayout, Sample
from rlinf.models.factory import plugin_config

from rlinf_dexvla.config import CameraConfig, DexvlaConfig
from rlinf_dexvla.hdf5.files import IMAGES, QPOS, REASONING

if TYPE_CHECKING:
    from omegaconf import DictConfig

#: Names of the observation's cameras in datasets of others; `main`, `wrist` and `extra_N` are the recorder's.
_COMMON = {
    "main_images": ("main", "image"),
    "wrist_images": ("wrist", "wrist_image"),
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
    recorded = _COMMON.get(camera.key, (camera.key.replace("_view_images.", "_"),))
    names = [camera.dataset_name, *recorded]
    found = [f"{prefix}{name}" for name in names for prefix in (f"{IMAGES}/", "observation.images.")]
    return (*found, "observation.image") if camera.key == "main_images" else tuple(found)


def delta_actions(sample: Sample) -> Sample:
    """The sample with `actions` [H + 1, A] as H differences of one action to the next."""
    pad = sample["action_is_pad"][1:]
    return {**sample, "actions": np.diff(sample["actions"], axis=0), "action_is_pad": pad}
