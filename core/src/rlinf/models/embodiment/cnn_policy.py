"""cnn_policy: camera image and state to action chunks."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlinf.models.embodiment.building import build_policy
from rlinf.models.embodiment.config import CnnPolicyConfig
from rlinf.models.embodiment.gaussian_policy import GaussianPolicy
from rlinf.models.embodiment.modules.spatial import SHARPNESS, soft_argmax

if TYPE_CHECKING:
    from omegaconf import DictConfig


class CnnEncoder(nn.Module):
    """Images uint8 [B, H, W, 3] -> features [B, 2 * C]: where each channel of the last map is strongest
    (spatial soft-argmax), which is all that a reaching policy must know and is the same for every image
    size."""

    _fsdp_wrap_name = "encoder"

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        sizes = (3, *channels)
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1) for before, after in pairwise(sizes)
        )
        self.sharpness = nn.Parameter(torch.full((channels[-1], 1), SHARPNESS))

    def forward(self, images: Tensor) -> Tensor:
        x = images.permute(0, 3, 1, 2).to(self.sharpness.dtype) / 127.5 - 1
        for conv in self.convs[:-1]:
            x = F.relu(conv(x))
        return soft_argmax(self.convs[-1](x), self.sharpness).flatten(1)


class CnnPolicy(GaussianPolicy):
    """Convolutions on the image, joined with the state; instructions are not looked at."""

    _no_split_names = ("encoder",)

    def __init__(
        self, config: CnnPolicyConfig, *, num_action_chunks: int, action_dim: int, add_value_head: bool = True
    ) -> None:
        super().__init__(config)
        self.state_dim = config.state_dim
        self.encoder = CnnEncoder(config.channels)
        self.join = nn.Linear(2 * config.channels[-1] + config.state_dim, config.hidden)
        self.trunk = nn.Linear(config.hidden, config.hidden)
        self.make_heads(
            config,
            config.hidden,
            action_dim=action_dim,
            steps=num_action_chunks,
            add_value_head=add_value_head,
        )

    def inputs(self, env_obs: dict[str, Any]) -> dict[str, Tensor]:
        return {
            "main_images": self.image_input(env_obs),
            "states": self.state_input(env_obs, self.state_dim),
        }

    def features(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        points = self.encoder(inputs["main_images"])
        x = F.relu(self.join(torch.cat([points, inputs["states"].to(points.dtype)], dim=-1)))
        x = F.relu(self.trunk(x))
        return x[:, None], x


def build(cfg: DictConfig, torch_dtype: torch.dtype) -> CnnPolicy:
    """Builder of `model_type: cnn_policy`."""
    return build_policy(CnnPolicy, CnnPolicyConfig, cfg, torch_dtype)
