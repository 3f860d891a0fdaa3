"""Action heads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: Standard deviations between 0.007 and 7.4: beyond, densities overflow or the policy is noise.
LOG_STD_RANGE = (-5.0, 2.0)


class GaussianHead(nn.Module):
    """Features [B, T, input_dim] -> mean and log-std, float32 [B, chunk, action_dim], with chunk = T * steps.

    Actions are unbounded: the environment clips what it executes, and log-probabilities are those of the
    sample before clipping.

    Args:
        input_dim: width of the features.
        action_dim: dimensions of one action.
        steps: actions that each of the T features stands for.
        init_log_std: initial log standard deviation.
        state_dependent_std: predict the log-std from the features; else it is one parameter per dimension.
    """

    #: A FSDP2 unit of its own.
    _fsdp_wrap_name = "action_head"
    #: Stays trainable under LoRA.
    _is_policy_head = True

    def __init__(
        self,
        input_dim: int,
        action_dim: int,
        *,
        steps: int = 1,
        init_log_std: float = -1.0,
        state_dependent_std: bool = False,
    ) -> None:
        super().__init__()
        if not LOG_STD_RANGE[0] <= init_log_std <= LOG_STD_RANGE[1]:
            raise ValueError(f"init_log_std: expected a number in {LOG_STD_RANGE}, got {init_log_std}")
        self.action_dim = action_dim
        self.mean = nn.Linear(input_dim, steps * action_dim)
        # Small: the first actions are near 0, whatever the features are.
        nn.init.normal_(self.mean.weight, std=0.01)
        nn.init.zeros_(self.mean.bias)
        self.log_std_layer: nn.Linear | None = None
        if state_dependent_std:
            self.log_std_layer = nn.Linear(input_dim, steps * action_dim)
            nn.init.zeros_(self.log_std_layer.weight)
            nn.init.constant_(self.log_std_layer.bias, init_log_std)
        else:
            self.log_std = nn.Parameter(torch.full((action_dim,), init_log_std))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        features = features.to(self.mean.weight.dtype)
        mean = self.mean(features).float().unflatten(-1, (-1, self.action_dim)).flatten(1, 2)
        if self.log_std_layer is None:
            log_std = self.log_std.float().expand_as(mean)
        else:
            log_std = self.log_std_layer(features).float().reshape(mean.shape)
        return mean, log_std.clamp(*LOG_STD_RANGE)
