"""mlp_policy: states to action chunks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rlinf.models.embodiment.building import build_policy
from rlinf.models.embodiment.config import MlpPolicyConfig
from rlinf.models.embodiment.gaussian_policy import GaussianPolicy

if TYPE_CHECKING:
    from omegaconf import DictConfig


class MlpPolicy(GaussianPolicy):
    """tanh layers on the state; images and instructions are not looked at."""

    def __init__(
        self, config: MlpPolicyConfig, *, num_action_chunks: int, action_dim: int, add_value_head: bool = True
    ) -> None:
        super().__init__(config)
        self.state_dim = config.state_dim
        self.trunk = mlp(config.state_dim, config.hidden)
        self.make_heads(
            config,
            config.hidden[-1],
            action_dim=action_dim,
            steps=num_action_chunks,
            add_value_head=add_value_head,
        )

    def inputs(self, env_obs: dict[str, Any]) -> dict[str, Tensor]:
        return {"states": self.state_input(env_obs, self.state_dim)}

    def features(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        x = self.trunk(inputs["states"].to(next(self.trunk.parameters()).dtype))
        return x[:, None], x


def mlp(input_dim: int, hidden: tuple[int, ...]) -> nn.Sequential:
    """Linear, tanh, linear, tanh, ..."""
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(input_dim, size), nn.Tanh()]
        input_dim = size
    return nn.Sequential(*layers)


def build(cfg: DictConfig, torch_dtype: torch.dtype) -> MlpPolicy:
    """Builder of `model_type: mlp_policy`."""
    return build_policy(MlpPolicy, MlpPolicyConfig, cfg, torch_dtype)
