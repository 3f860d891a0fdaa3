"""Which process and pipeline stage holds which environments, and which rollout worker serves them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class EnvLayout:
    """`num_envs` environments, numbered 0..N-1 and cut into equal groups: by stage, then by env process.

    The numbering, and with it every random draw, does not depend on how many processes or stages there are.
    """

    num_envs: int
    processes: int
    stages: int
    rollouts: int

    def __post_init__(self) -> None:
        if self.num_envs % (self.processes * self.stages):
            raise ValueError(
                f"env.num_envs {self.num_envs} is no multiple of {self.processes} env processes x "
                f"{self.stages} pipeline_stages"
            )

    @property
    def group_size(self) -> int:
        """Environments per group, that is per vectorised environment."""
        return self.num_envs // (self.processes * self.stages)

    def indices(self, stage: int, process: int) -> np.ndarray:
        """Numbers of the environments in the group of `stage` and env `process`, int64."""
        first = (stage * self.processes + process) * self.group_size
        return np.arange(first, first + self.group_size, dtype=np.int64)

    def served_by(self, rollout: int, stage: int) -> tuple[int, ...]:
        """Env processes whose group in `stage` the rollout worker serves; a group has exactly one server."""
        return tuple(
            process
            for process in range(self.processes)
            if (stage * self.processes + process) % self.rollouts == rollout
        )

    def served_indices(self, rollout: int, stage: int) -> np.ndarray:
        """Numbers of the environments that the rollout worker serves in `stage`, int64."""
        groups = [self.indices(stage, process) for process in self.served_by(rollout, stage)]
        return np.concatenate(groups) if groups else np.empty(0, np.int64)
