"""Reports of env processes whose environments are not next to each other."""

from __future__ import annotations

from rlinf.envs.results import EpisodeEnd
from rlinf.runners.embodied import merge_stats
from rlinf.workers.env import EnvStats
from rlinf.workers.layout import EnvLayout


def test_scores_follow_their_environments() -> None:
    """A last wave that is not full counts the first environments, and nothing of the others."""
    layout = EnvLayout(num_envs=8, processes=2, stages=2, rollouts=1)
    reports = []
    for process in range(2):
        numbers = [int(i) for stage in range(2) for i in layout.indices(stage, process)]
        ends = [EpisodeEnd(index=i, seed=i, success=True, length=1, return_=0.0) for i in numbers]
        scores = {"reward/match": [float(i) for i in numbers]}
        reports.append(EnvStats(frames=4, episodes=ends, errors={}, scores=scores))
    whole = merge_stats(reports)
    assert [episode.index for episode in whole.episodes] == list(range(8))
    assert whole.scores["reward/match"] == list(map(float, range(8)))
