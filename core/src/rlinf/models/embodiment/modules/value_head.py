"""State-value head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import nn

#: Name -> (module, gain of the preceding layer's init). torch knows no gain for GELU and SiLU; they approach
#: ReLU for large inputs, so theirs is ReLU's.
ACTIVATIONS: Final[dict[str, tuple[type[nn.Module], float]]] = {
    "gelu": (nn.GELU, math.sqrt(2)),
    "relu": (nn.ReLU, math.sqrt(2)),
    "silu": (nn.SiLU, math.sqrt(2)),
    "tanh": (nn.Tanh, 5 / 3),
}


class ValueHead(nn.Module):
    """MLP from features [..., input_dim] to values float32 [..., output_dim].

    State-dict keys are `mlp.{0,2,4,...}.weight|bias`; the last layer has no bias unless `bias_last`.

    Raises ValueError for an unknown activation.
    """

    #: A FSDP2 unit of its own.
    _fsdp_wrap_name = "value_head"
    #: Stays trainable under LoRA.
    _is_policy_head = True

    def __init__(
        self,
        input_dim: int,
        hidden_sizes: Sequence[int] = (512, 128),
        output_dim: int = 1,
        activation: str = "gelu",
        bias_last: bool = False,
    ) -> None:
        super().__init__()
        if activation.lower() not in ACTIVATIONS:
            raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}; got {activation!r}")
        act, gain = ACTIVATIONS[activation.lower()]
        layers: list[nn.Module] = []
        for size in hidden_sizes:
            hidden = nn.Linear(input_dim, size)
            nn.init.normal_(hidden.weight, std=gain / math.sqrt(size))  # Kaiming, by fan-out
            nn.init.zeros_(hidden.bias)
            layers += [hidden, act()]
            input_dim = size
        last = nn.Linear(input_dim, output_dim, bias=bias_last)
        nn.init.normal_(last.weight, std=0.02)
        if bias_last:
            nn.init.zeros_(last.bias)
        self.mlp = nn.Sequential(*layers, last)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        first = self.mlp[0]
        assert isinstance(first, nn.Linear)
        return self.mlp(features.to(first.weight.dtype)).float()
