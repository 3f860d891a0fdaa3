"""States and actions between the robot's units and the model's."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from rlinf_dexvla.stats import Stats, read_stats


class Normalizer(nn.Module):
    """z-scores of states, actions from [min, max] to [-1, 1]; the identity without statistics."""

    def __init__(self, stats: Stats | None, *, state_dim: int, action_dim: int) -> None:
        super().__init__()
        ones = torch.ones
        given = {
            "state_mean": torch.zeros(state_dim),
            "state_std": ones(state_dim),
            "action_min": -ones(action_dim),
            "action_max": ones(action_dim),
        }
        if stats is not None:
            given = {name: torch.tensor(getattr(stats, name), dtype=torch.float32) for name in given}
        for name, tensor in given.items():
            self.register_buffer(name, tensor)

    state_mean: Tensor
    state_std: Tensor
    action_min: Tensor
    action_max: Tensor

    def states(self, states: Tensor) -> Tensor:
        """float32 [B, D] in units of the standard deviation."""
        return (states.float() - self.state_mean.float()) / self.state_std.float()

    def actions(self, actions: Tensor) -> Tensor:
        """float32 [..., A] in [-1, 1]."""
        low, high = self.action_min.float(), self.action_max.float()
        return (actions.float() - low) / (high - low) * 2 - 1

    def robot_actions(self, actions: Tensor) -> Tensor:
        """The inverse of `actions`, of actions cut to [-1, 1]."""
        low, high = self.action_min.float(), self.action_max.float()
        return (actions.clamp(-1, 1) + 1) / 2 * (high - low) + low


def load_normalizer(path: str | None, *, state_dim: int, action_dim: int) -> Normalizer:
    """The normaliser of a statistics file. Raises ValueError where its dimensions are not the model's."""
    stats = None if path is None else read_stats(Path(path))
    if stats is not None:
        for what, have, want in (
            ("states", len(stats.state_mean), state_dim),
            ("actions", len(stats.action_min), action_dim),
        ):
            if have != want:
                raise ValueError(
                    f"model.dexvla.stats {path}: {what} have {have} dimensions there, the model has {want}"
                )
    return Normalizer(stats, state_dim=state_dim, action_dim=action_dim)
