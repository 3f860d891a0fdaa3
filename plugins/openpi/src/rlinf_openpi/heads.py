"""The noise head of flow_noise."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, Final

import torch
from torch import Tensor, nn

HIDDEN: Final = (128, 64)


class _Layer(nn.Module):
    """A linear layer under the name that checkpoints have."""

    def __init__(self, size_in: int, size_out: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(size_in, size_out)


class _Mlp(nn.Module):
    """Linear layers with tanh between them."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.moduleList: Any = nn.ModuleList(_Layer(*pair) for pair in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = self.moduleList
        for layer in hidden:
            x = layer.linear_1(x).tanh()
        return last.linear_1(x)


class NoiseHead(nn.Module):
    """The expert's output [..., width] -> standard deviations float32 [..., action_dim] in `std_range`.

    Learned exploration noise (ReinFlow, Zhang et al. 2025): the log-variance is squashed by tanh between the
    two ends of the range.
    """

    #: A FSDP2 unit of its own.
    _fsdp_wrap_name = "noise_head"
    #: Stays trainable under LoRA.
    _is_policy_head = True

    def __init__(self, width: int, action_dim: int, std_range: tuple[float, float]) -> None:
        super().__init__()
        self.mlp_logvar: Any = _Mlp((width, *HIDDEN, action_dim))
        self.logvar_range = tuple(math.log(std**2) for std in std_range)

    def forward(self, hidden: Tensor) -> Tensor:
        low, high = self.logvar_range
        weight = self.mlp_logvar.moduleList[0].linear_1.weight
        squashed = self.mlp_logvar(hidden.to(weight.dtype)).float().tanh()
        return torch.exp(0.5 * (low + (high - low) * (squashed + 1) / 2))
