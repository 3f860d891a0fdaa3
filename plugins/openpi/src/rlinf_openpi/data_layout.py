"""How samples of a LeRobot dataset become the batch of `sft_forward`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from rlinf.data import DataLayout, Sample
from rlinf.models.factory import plugin_config

from rlinf_openpi.config import OpenpiConfig
from rlinf_openpi.data_config import DataConfig, load_data_config
from rlinf_openpi.transforms import bool_mask, to_relative

if TYPE_CHECKING:
    from omegaconf import DictConfig


def data_layout(cfg: DictConfig) -> DataLayout:
    """Of the block `model`: cameras and keys of the data configuration, and the network's action horizon."""
    config = plugin_config(cfg, OpenpiConfig)
    data = load_data_config(config.config_name)
    keys = data.dataset
    return DataLayout(
        cameras={source: (keys.cameras[camera],) for camera, source in data.cameras.items()},
        state=tuple((key,) for key in keys.state),
        action=tuple((key,) for key in keys.actions),
        action_horizon=config.action_horizon or data.action_horizon,
        prompt=data.default_prompt,
        transform=_Prepare(data),
    )


class _Prepare:
    """Choose the dimensions of state and actions and make actions relative, before statistics are computed.

    `prepared` tells `sft_forward` that this is done.
    """

    def __init__(self, data: DataConfig) -> None:
        self.data = data

    def __call__(self, sample: Sample) -> Sample:
        keys = self.data.dataset
        state, actions = sample["states"], sample["actions"]
        if keys.state_indices is not None:
            state = state[..., keys.state_indices]
        if keys.action_indices is not None:
            actions = actions[..., keys.action_indices]
        if self.data.delta_mask is not None:
            actions = to_relative(actions, state, bool_mask(self.data.delta_mask))
        return {**sample, "states": state, "actions": actions, "prepared": np.True_}
