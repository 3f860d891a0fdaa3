"""The env worker of reward models: held-out pairs of answers, of which the better is to be found."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlinf.config import plugin_subtree
from rlinf.data.text import Row, read_rows
from rlinf.envs.prompts.config import PreferencesConfig
from rlinf.envs.results import EpisodeEnd, Observation, StepResult
from rlinf.workers.base import Worker, user_errors
from rlinf.workers.env import EnvStats, Kind


class PreferenceWorker(Worker):
    """Evaluation alone: reward models learn by `rlinf sft`, from the pairs of `data.train_data_paths`."""

    @user_errors
    def setup(self) -> None:
        options = plugin_subtree(self.config, "env")
        assert isinstance(options, PreferencesConfig)
        self._held_out = read_rows(options.eval_path, ("prompt", "chosen", "rejected"))
        self._seeds: dict[tuple[Kind, int], list[int]] = {}
        self._obs: dict[tuple[Kind, int], Observation] = {}
        self._running = 0
        self._episodes: list[EpisodeEnd] = []

    def reset_held_out(self, kind: Kind, stage: int, seeds: Sequence[int], blind: bool) -> Observation:
        """Pairs in their order, from `env.eval.seed` on, the chosen answer first; `blind` hides prompts."""
        first = self.config.env.eval.seed
        rows: list[Row] = [self._held_out[(seed - first) % len(self._held_out)] for seed in seeds]
        self._seeds[kind, stage] = list(seeds)
        self._running += len(rows)
        self._obs[kind, stage] = {
            "task_descriptions": ["" if blind else str(row["prompt"]) for row in rows],
            "first": np.array([str(row["chosen"]) for row in rows]),
            "second": np.array([str(row["rejected"]) for row in rows]),
        }
        return self._obs[kind, stage]

    def step(self, kind: Kind, stage: int, actions: np.ndarray) -> StepResult:
        """actions float32 [n, 1, 1]: by how much the chosen answer scores higher."""
        right = actions[:, 0, 0] > 0
        count = len(right)
        first = int(self.layout.indices(stage, self.rank)[0])
        self._episodes += [
            EpisodeEnd(index=first + i, seed=seed, success=bool(right[i]), length=1, return_=float(right[i]))
            for i, seed in enumerate(self._seeds[kind, stage])
        ]
        self._running -= count
        return StepResult(
            obs=self._obs[kind, stage],
            rewards=right[:, None].astype(np.float32),
            terminations=np.ones((count, 1), bool),
            truncations=np.zeros((count, 1), bool),
            valid_steps=np.ones(count, np.int64),
            final_mask=np.zeros(count, bool),
        )

    def take_stats(self) -> EnvStats:
        """Report and forget."""
        stats = EnvStats(frames=0, episodes=self._episodes, errors={})
        self._episodes = []
        return stats

    def running(self, kind: Kind) -> bool:
        """Whether there are pairs without a choice."""
        return self._running > 0

    def close_held_out(self) -> None:
        """Nothing is kept open."""
