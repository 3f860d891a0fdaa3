"""How samples of a dataset become the batch of `sft_forward`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rlinf.data import DataLayout
from rlinf.models.factory import plugin_config

from rlinf_openvla.config import OpenvlaConfig, OpenvlaOftConfig

if TYPE_CHECKING:
    from omegaconf import DictConfig

#: Camera of the model -> the usual names of such a feature.
_FEATURES: Final = {
    "main_images": (
        "observation.images.main",
        "observation.images.image",
        "observation.image",
        "observation.images.image_0",
        "observation.image_0",
        "observation.images.primary",
        "image",
    ),
    "wrist_images": (
        "observation.images.wrist",
        "observation.images.wrist_image",
        "observation.images.image2",
        "observation.wrist_image",
        "observation.image_wrist",
        "wrist_image",
    ),
}


def data_layout(cfg: DictConfig) -> DataLayout:
    """Of the block `model`: its views, the state if it reads one, as many actions as it gives."""
    oft = cfg.model_type == "openvla_oft"
    config = plugin_config(cfg, OpenvlaOftConfig if oft else OpenvlaConfig)
    reads_state = isinstance(config, OpenvlaOftConfig) and config.proprio_dim > 0
    return DataLayout(
        cameras={key: _FEATURES.get(key, (key,)) for key in config.cameras},
        state=(("observation.state", "state"),) if reads_state else (),
        action_horizon=int(cfg.num_action_chunks),
    )
