"""From the language model's hidden states to the condition of the action expert."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def masked_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean over the positions of the mask: [B, H] of hidden [B, S, H] and bool [B, S]; 0 for an empty row."""
    weight = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)


class ActionProjector(nn.Module):
    """Two layers on pooled hidden states [B, H]."""

    _is_policy_head = True

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlps = nn.ModuleList([nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.mlps:
            x = layer(x)
        return x


class FiLM(nn.Module):
    """Feature-wise modulation (Perez et al. 2018, arXiv:1709.07871) that starts as the identity."""

    _is_policy_head = True

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale_fc = nn.Linear(width, width)
        self.shift_fc = nn.Linear(width, width)
        for layer in (self.scale_fc, self.shift_fc):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return torch.addcmul(self.shift_fc(condition), x, 1 + self.scale_fc(condition))
