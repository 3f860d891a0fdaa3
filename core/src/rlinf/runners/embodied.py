"""Embodied reinforcement learning: rollout, update, weight sync; again. This file is the loop."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from rlinf.cluster.errors import RunError, fetch, wait_for
from rlinf.runners.session import Session
from rlinf.workers.env import EnvStats, Kind

#: An evaluation asks after this many policy calls whether episodes are still running.
_EVAL_BLOCK: Final = 4
#: Numbers of weight syncs, rising.
_SYNCS: Final = itertools.count()
#: An evaluation whose episodes are longer than this many policy calls has a simulator without a time limit.
_MAX_EVAL_CALLS: Final = 20_000


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Held-out episodes in the order of their seeds: success, instruction; and the simulators' errors."""

    success: list[bool]
    instructions: list[str]
    mean_length: float
    errors: dict[str, int] = field(default_factory=dict)
    #: Means of `EnvStats.scores`, and some of its examples.
    scores: dict[str, float] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)

    @property
    def success_rate(self) -> float:
        return sum(self.success) / len(self.success)

    def by_instruction(self) -> dict[str, float]:
        """Success rate of each instruction."""
        groups: dict[str, list[bool]] = {}
        for instruction, success in zip(self.instructions, self.success):
            groups.setdefault(instruction, []).append(success)
        return {text: sum(group) / len(group) for text, group in sorted(groups.items())}


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """A rollout that was submitted: references to trajectories and environments' reports.

    updates: how many the weights with which it acts have behind them.
    """

    iteration: int
    updates: int
    trajectories: list[Any]
    stats: list[Any]

    def wait(self) -> EnvStats:
        """The environments' report, when all is done."""
        stats = merge_stats(fetch(self.stats))
        wait_for(self.trajectories, len(self.trajectories), fetch_local=False)
        return stats


class EmbodiedRunner:
    """The three steps of an iteration, and evaluation. Iterations are numbered from 0.

    A rollout is submitted to Ray as a whole: every policy call waits for the observations of its stage, every
    environment step for its actions, and Ray starts each as soon as what it waits for is there. With two or
    more `rollout.pipeline_stages` the policy serves one stage while the simulators step another.
    """

    def __init__(self, session: Session, before_update: Callable[[], None] = lambda: None) -> None:
        """before_update: called in each iteration when from here on the weights change."""
        self.session, self._before_update = session, before_update
        self.config = session.config
        self.calls = self.config.env.steps_per_rollout // self.config.model.num_action_chunks
        self._synced_frozen = False
        #: Rollouts that are under way, by iteration; updates so far; the load of weights that is under way.
        self._ahead: deque[Rollout] = deque()
        self._updates = 0
        self._loading: list[Any] = []

    def iterate(self, iteration: int) -> tuple[dict[str, float], EnvStats]:
        """One iteration; returns its metrics and what happened in the environments.

        With `rollout.max_staleness` N, rollouts up to N iterations ahead are under way while the trainer
        works, never more: a trainer that is slow holds the simulators back.
        """
        started = time.perf_counter()
        last = min(iteration + self.config.rollout.max_staleness, self.config.runner.max_steps - 1)
        for ahead in range(self._ahead[-1].iteration + 1 if self._ahead else iteration, last + 1):
            self._ahead.append(self.begin_rollout(ahead))
        rollout = self._ahead.popleft()
        stats = rollout.wait()
        acted = time.perf_counter()
        self._before_update()
        staleness = self._updates - rollout.updates
        train = self.update(iteration, rollout.trajectories, staleness)
        self._updates += 1
        updated = time.perf_counter()
        sync = self.sync_weights(wait=not self._ahead)
        synced = time.perf_counter()
        metrics = {
            **rollout_metrics(stats),
            **train,
            **sync,
            "env/frames_per_s": stats.frames / (synced - started),
            "time/rollout": acted - started,
            "time/update": updated - acted,
            "time/sync": synced - updated,
        }
        if self.config.rollout.max_staleness:
            metrics["rollout/staleness"] = float(staleness)
        return metrics, stats

    def begin_rollout(self, iteration: int) -> Rollout:
        """Submit `steps_per_rollout` steps in every environment, with the weights that the rollout workers
        have when their turn comes.

        The trajectories, one reference per rollout worker, go to the trainers without passing through this
        process.
        """
        env, rollout, layout = self.session.env, self.session.rollout, self.session.layout
        processes, stages = range(layout.processes), range(layout.stages)
        seen = [[env[p].submit("reset", stage, iteration) for p in processes] for stage in stages]
        for call in range(self.calls):
            for stage in stages:
                self._turn("train", stage, seen[stage], "predict", (stage, call, iteration))
        trajectories = [
            rollout[r].submit("finish", *(seen[s][p] for s in stages for p in layout.served_by(r, s)))
            for r in range(layout.rollouts)
        ]
        stats = env.submit("take_stats")
        return Rollout(iteration=iteration, updates=self._updates, trajectories=trajectories, stats=stats)

    def update(self, iteration: int, trajectories: list[Any], staleness: int = 0) -> dict[str, float]:
        """Train on the trajectories, on all ranks; returns the metrics (equal on all)."""
        return self.session.actor.call("update", iteration, staleness, *trajectories)[0]

    def sync_weights(self, wait: bool = True) -> dict[str, float]:
        """Send the trainer's weights to the rollout workers: one buffer through Ray's object store. Frozen
        weights (the base under LoRA, say) travel once.

        wait: until the rollout workers have them; else they take them when the rollouts that are under way
        are over, or, with `rollout.interruptible`, in the middle of one.

        Returns:
            sync/megabytes of the buffer and, with `rollout.interruptible`, sync/early: the share of workers
            that took it in the middle of a rollout. Without waiting, of the buffer before.
        """
        exports = [
            worker.submit("export_weights", self._synced_frozen, num_returns=2)
            for worker in self.session.actor.workers
        ]
        arguments = (*exports[0], next(_SYNCS))
        interruptible = self.config.rollout.interruptible
        if interruptible and not wait:
            for worker in self.session.rollout.workers:
                worker.submit_aside("post_weights", *arguments)
        loaded = self.session.rollout.submit("load_weights", *arguments)
        fetch([index for _, index in exports])
        self._synced_frozen = True
        before, self._loading = self._loading, loaded
        loads = fetch(loaded if wait or not before else before)
        metrics = {"sync/megabytes": loads[0].nbytes / 1e6}
        if interruptible:
            metrics["sync/early"] = sum(load.early for load in loads) / len(loads)
        return metrics

    def _turn(
        self, kind: Kind, stage: int, seen: list[Any], predict: str, args: tuple[int, ...] = ()
    ) -> None:
        """Submit one policy call and environment step of a stage; `seen` holds the latest message of each env
        process, and gets the next."""
        env, rollout, layout = self.session.env, self.session.rollout, self.session.layout
        for r in range(layout.rollouts):
            served = layout.served_by(r, stage)
            if not served:
                continue
            messages = [seen[p] for p in served]
            actions = rollout[r].submit(predict, *args, *messages, num_returns=len(served))
            for p, chunk in zip(served, actions if len(served) > 1 else [actions]):
                seen[p] = env[p].submit("step", kind, stage, chunk)

    # -- evaluation --------------------------------------------------------------------------------------

    def evaluate(
        self,
        *,
        blind: bool = False,
        num_episodes: int | None = None,
        progress: Callable[[int], None] = lambda done: None,
    ) -> Evaluation:
        """Play held-out episodes with the deterministic policy; `blind` hides the instruction.

        progress: called with the number of episodes that are over.
        """
        config = self.config.env.eval
        total = num_episodes or config.num_episodes
        size = self.session.layout.num_envs
        ends: dict[int, tuple[bool, int]] = {}
        instructions: list[str] = []
        waves: list[EnvStats] = []
        for first in range(0, total, size):
            # A wave is always whole; the surplus of the last repeats its seeds and does not count.
            numbers = [first + i % min(size, total - first) for i in range(size)]
            stats, texts = self._wave([config.seed + number for number in numbers], blind)
            instructions += texts[: total - first]
            counted = stats.episodes[: total - first]
            ends |= {first + episode.index: (episode.success, episode.length) for episode in counted}
            scores = {name: values[: total - first] for name, values in stats.scores.items()}
            waves.append(replace(stats, episodes=counted, scores=scores))
            progress(len(ends))
        assert len(ends) == total, "every held-out episode ends once"
        whole = merge_stats(waves)
        return Evaluation(
            success=[ends[number][0] for number in range(total)],
            instructions=instructions,
            mean_length=sum(length for _, length in ends.values()) / total,
            errors=whole.errors,
            scores={name: sum(values) / len(values) for name, values in whole.scores.items()},
            examples=waves[0].examples,
        )

    def _wave(self, seeds: list[int], blind: bool) -> tuple[EnvStats, list[str]]:
        """One held-out episode in each environment; returns the report and the instructions."""
        env, layout = self.session.env, self.session.layout
        processes, stages = range(layout.processes), range(layout.stages)
        seen = []
        for stage in stages:
            mine = [[seeds[i] for i in layout.indices(stage, p)] for p in processes]
            seen.append([env[p].submit("reset_held_out", "eval", stage, mine[p], blind) for p in processes])
        first_obs = fetch([ref for row in seen for ref in row])
        texts = [text for obs in first_obs for text in obs["task_descriptions"]]
        # An answer of a language model is a whole episode of one call.
        block = min(_EVAL_BLOCK, self.calls)
        for _ in range(0, _MAX_EVAL_CALLS, block):
            for _ in range(block):
                for stage in stages:
                    self._turn("eval", stage, seen[stage], "predict_held_out")
            if not any(env.call("running", "eval")):
                return merge_stats(env.call("take_stats")), texts
        raise RunError(
            f"an evaluation episode of env_type {self.config.env.env_type!r} did not end within "
            f"{_MAX_EVAL_CALLS} policy calls: the simulator must truncate its episodes"
        )

    def film(self, episodes: int) -> list[dict[str, Any]]:
        """The first held-out episodes on film: of each `frames` uint8 [T,H,W,3], `instruction`, `success` and
        `texts` (what the policy said at each frame)."""
        env, rollout = self.session.env[0], self.session.rollout[0]
        seeds = [self.config.env.eval.seed + i for i in range(episodes)]
        seen = env.submit("reset_held_out", "film", 0, seeds, False)
        for _ in range(0, _MAX_EVAL_CALLS, _EVAL_BLOCK):
            for _ in range(_EVAL_BLOCK):
                seen = env.submit("step", "film", 0, rollout.submit("predict_filmed", seen))
            if not fetch([env.submit("running", "film")])[0]:
                break
        stats, films, said = fetch(
            [env.submit("take_stats"), env.submit("take_films"), rollout.submit("take_texts")]
        )
        chunk = self.config.model.num_action_chunks
        success = {episode.index: episode.success for episode in stats.episodes}
        return [
            {
                "frames": frames,
                "instruction": text,
                "success": success.get(i, False),
                # Frame t is what the t-th action led to.
                "texts": [said[max(t - 1, 0) // chunk][i] for t in range(len(frames))],
            }
            for i, (frames, text) in enumerate(films)
        ]


def merge_stats(parts: list[EnvStats]) -> EnvStats:
    """The reports of all env processes as one; episodes, and the scores of their answers, in the order of
    their environments."""
    errors: dict[str, int] = {}
    for part in parts:
        for message, count in part.errors.items():
            errors[message] = errors.get(message, 0) + count
    episodes = [episode for part in parts for episode in part.episodes]
    scores: dict[str, list[float]] = {}
    for part in parts:
        for name, values in part.scores.items():
            scores.setdefault(name, []).extend(values)
    # A process holds environments of every pipeline stage: theirs are not next to each other.
    order = sorted(range(len(episodes)), key=lambda i: episodes[i].index)
    return EnvStats(
        frames=sum(part.frames for part in parts),
        episodes=[episodes[i] for i in order],
        errors=errors,
        scores={name: [values[i] for i in order] for name, values in scores.items()},
        examples=[text for part in parts for text in part.examples],
    )


def rollout_metrics(stats: EnvStats) -> dict[str, float]:
    """Means over the episodes that ended in a rollout; without any there is no rate to report."""
    count = len(stats.episodes)
    metrics = {"rollout/episodes": float(count)}
    if count:
        metrics["rollout/success_rate"] = sum(episode.success for episode in stats.episodes) / count
        metrics["rollout/return"] = sum(episode.return_ for episode in stats.episodes) / count
        metrics["rollout/episode_length"] = sum(episode.length for episode in stats.episodes) / count
    for name, values in stats.scores.items():
        metrics[f"rollout/{name}"] = sum(values) / len(values)
    return metrics
