"""The env worker of reward models: held-out pairs of answers, of which the better is to be found."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlinf.config import plugin_subtree
from rlinf.data.media import MediaShape, check_media, media_of
from rlinf.data.text import read_rows
from rlinf.envs.prompts.config import PreferencesConfig
from rlinf.envs.results import Observation, StepResult
from rlinf.workers.answers import AnswerWorker
from rlinf.workers.base import user_errors
from rlinf.workers.env import EnvStats, Kind


class PreferenceWorker(AnswerWorker):
    """Evaluation alone: reward models learn by `rlinf sft`, from the pairs of `data.train_data_paths`."""

    @user_errors
    def setup(self) -> None:
        super().setup()
        options = plugin_subtree(self.config, "env")
        assert isinstance(options, PreferencesConfig)
        self._held_out_rows = read_rows(*options.sources[0])
        self._shape = MediaShape.of(check_media(options.eval_path, self._held_out_rows))

    def reset_held_out(self, kind: Kind, stage: int, seeds: Sequence[int], blind: bool) -> Observation:
        """Held-out pairs, the chosen answer first; `blind` hides prompts."""
        rows = self.held_out(self._held_out_rows, seeds)
        obs = {
            "task_descriptions": ["" if blind else str(row["prompt"]) for row in rows],
            "first": np.array([str(row["chosen"]) for row in rows]),
            "second": np.array([str(row["rejected"]) for row in rows]),
            **media_of(rows, self._shape),
        }
        return self.begin(kind, stage, rows, seeds, obs)

    def step(self, kind: Kind, stage: int, actions: np.ndarray) -> StepResult:
        """actions float32 [n, 1, 1]: by how much the chosen answer scores higher."""
        right = actions[:, 0, 0] > 0
        return self.end(kind, stage, right.tolist(), right.astype(float), np.ones(len(right), np.int64), 1)

    def take_stats(self) -> EnvStats:
        """Report and forget."""
        stats = EnvStats(frames=0, episodes=self._episodes, errors={})
        self._episodes = []
        return stats
