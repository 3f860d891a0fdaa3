"""What the env workers of language and reward models share: an episode is one policy call long."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlinf.data.text import Row
from rlinf.envs.results import EpisodeEnd, Observation, StepResult
from rlinf.workers.base import Worker
from rlinf.workers.env import Kind


class AnswerWorker(Worker):
    """Shows rows, then ends their episodes. The interface is that of `EnvWorker`, so that the loop does not
    know the difference."""

    def setup(self) -> None:
        """To be called by `setup` of subclasses."""
        self._shown: dict[tuple[Kind, int], tuple[list[Row], list[int], Observation]] = {}
        self._running = 0
        self._episodes: list[EpisodeEnd] = []

    def held_out(self, rows: Sequence[Row], seeds: Sequence[int]) -> list[Row]:
        """The rows of held-out seeds: in their order, from `env.eval.seed` on."""
        first = self.config.env.eval.seed
        return [rows[(seed - first) % len(rows)] for seed in seeds]

    def begin(
        self, kind: Kind, stage: int, rows: list[Row], seeds: Sequence[int], obs: Observation
    ) -> Observation:
        """Episodes begin; returns the observation."""
        self._shown[kind, stage] = rows, list(seeds), obs
        self._running += len(rows)
        return obs

    def end(
        self,
        kind: Kind,
        stage: int,
        success: Sequence[bool],
        returns: np.ndarray,
        lengths: np.ndarray,
        width: int,
    ) -> StepResult:
        """All episodes of `stage` end.

        Args:
            success, returns, lengths: of each episode; its return is the reward of its last action.
            width: actions of a call.
        """
        _, seeds, obs = self._shown[kind, stage]
        count = len(seeds)
        last = (np.arange(count), lengths - 1)
        rewards, terminations = np.zeros((count, width), np.float32), np.zeros((count, width), bool)
        rewards[last] = returns
        # An answer that was cut is over: there is nothing to bootstrap from.
        terminations[last] = True
        first = int(self.layout.indices(stage, self.rank)[0])
        self._episodes += [
            EpisodeEnd(
                index=first + i,
                seed=seeds[i],
                success=bool(success[i]),
                length=int(lengths[i]),
                return_=float(returns[i]),
            )
            for i in range(count)
        ]
        self._running -= count
        return StepResult(
            obs=obs,
            rewards=rewards,
            terminations=terminations,
            truncations=np.zeros((count, width), bool),
            valid_steps=lengths,
            final_mask=np.zeros(count, bool),
        )

    def running(self, kind: Kind) -> bool:
        """Whether there are rows without an answer."""
        return self._running > 0

    def close_held_out(self) -> None:
        """Nothing is kept open."""
