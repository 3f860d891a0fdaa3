"""An exponential moving average of sharded weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from rlinf.fsdp.optim import local


class WeightAverage:
    """float32 shards beside the parameters' own; every rank averages what it holds, so nothing is sent.

    Args:
        parameters: by name.
        decay: share of the old average that each update keeps, in [0, 1).
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self._parameters = dict(parameters)
        #: The average by the parameters' names; begins as the weights are.
        self.shadow: dict[str, torch.Tensor] = {
            name: parameter.detach().clone().float() for name, parameter in parameters.items()
        }

    @torch.no_grad()
    def update(self) -> None:
        """average = decay * average + (1 - decay) * weights."""
        for name, parameter in self._parameters.items():
            local(self.shadow[name]).lerp_(local(parameter.detach()).float(), 1 - self.decay)

    @torch.no_grad()
    def put(self) -> dict[str, torch.Tensor]:
        """Write the average into the weights; returns this rank's weights as they were, for `restore`."""
        saved = {}
        for name, parameter in self._parameters.items():
            mine = local(parameter.detach())
            saved[name] = mine.clone()
            mine.copy_(local(self.shadow[name]))
        return saved

    @torch.no_grad()
    def restore(self, saved: Mapping[str, torch.Tensor]) -> None:
        """Undo `put`."""
        for name, parameter in self._parameters.items():
            local(parameter.detach()).copy_(saved[name])
