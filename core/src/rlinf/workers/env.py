"""The env worker: simulators of one process, stepped by chunks of actions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from rlinf.config import plugin_subtree
from rlinf.data.seeds import demonstration_seed
from rlinf.envs.action_utils import prepare_actions
from rlinf.envs.results import EpisodeEnd, Observation, StepResult
from rlinf.envs.vector import VecEnv, env_factory
from rlinf.workers.base import Worker, user_errors
from rlinf.workers.deadline import deadline
from rlinf.workers.hangs import Watch
from rlinf.workers.recording import ExpertRecorder, Filmed, Recorded

Kind = Literal["train", "eval", "film"]


@dataclass(frozen=True, kw_only=True)
class EnvStats:
    """What happened since the last report: executed actions, ended episodes (`index` is the environment's
    number within the run), and simulator failures {message: count}."""

    frames: int
    episodes: list[EpisodeEnd]
    errors: dict[str, int]
    #: Of language models: what the rewards gave each answer, by name; a few answers as text.
    scores: dict[str, list[float]] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)


class EnvWorker(Worker):
    """Holds one VecEnv per pipeline stage, and further ones for evaluation and film, made when first used."""

    @user_errors
    def setup(self) -> None:
        self._subtree = plugin_subtree(self.config, "env")
        self._envs: dict[tuple[Kind, int], VecEnv] = {}
        self._films: list[Filmed] = []
        self._blind = False
        self._watch = Watch.open(self.config.runner.output_dir, self.rank)
        self._clear_stats()

    def _deadline(self, kind: Kind = "film", stage: int = 0) -> AbstractContextManager[None]:
        """For a call of the simulators of `stage`; those of films and experts count from 0."""
        self._watch.first = self._first(kind, stage)
        return deadline(self.config.env.step_timeout_s, self._watch.stacks)

    def _first(self, kind: Kind, stage: int) -> int:
        """Number within the run of the first environment of `stage`; those of films count from 0."""
        return 0 if kind == "film" else int(self.layout.indices(stage, self.rank)[0])

    @user_errors
    def reset(self, stage: int, iteration: int) -> Observation:
        """Begin a rollout in the environments of `stage`; a GRPO group starts from one seed."""
        seeds = self.episode_seeds(stage, iteration)
        with self._deadline("train", stage):
            return self._env("train", stage).reset(seeds)

    @user_errors
    def reset_held_out(self, kind: Kind, stage: int, seeds: Sequence[int], blind: bool) -> Observation:
        """Begin held-out episodes, one per seed; `blind` hides the instruction from the policy."""
        self._blind = blind
        with self._deadline(kind, stage):
            return self._seen(self._env(kind, stage, len(seeds)).reset(seeds), kind)

    def step(self, kind: Kind, stage: int, actions: np.ndarray) -> StepResult:
        """Execute the policy's actions [n, chunk, dim] in the environments of `stage`."""
        env = self._env(kind, stage)
        prepared = prepare_actions(
            actions,
            self.config.env.env_type,
            self.config.model.model_type,
            action_space=env.action_space,
        )
        with self._deadline(kind, stage):
            result = env.chunk_step(prepared)
        first = self._first(kind, stage)
        self._frames += int(result.valid_steps.sum())
        self._errors.update(result.errors)
        self._episodes += [replace(episode, index=first + episode.index) for episode in result.episodes]
        return replace(result, obs=self._seen(result.obs, kind))

    def take_stats(self) -> EnvStats:
        """Report and forget."""
        stats = EnvStats(frames=self._frames, episodes=self._episodes, errors=dict(self._errors))
        self._clear_stats()
        return stats

    def running(self, kind: Kind) -> bool:
        """Whether an episode of this kind has not ended yet (held-out episodes do not restart)."""
        return self._episodes_begun(kind) > len(self._episodes)

    def take_films(self) -> list[tuple[np.ndarray, str]]:
        """The frames uint8 [T,H,W,3] and instruction of each filmed episode, in the order of the seeds."""
        return [film.take() for film in self._films]

    @user_errors
    def record_expert(self, attempts: Sequence[int]) -> list[Recorded]:
        """Let the environment's scripted expert play the episodes numbered `attempts`."""
        assert self.config.sft is not None
        recorder = ExpertRecorder(
            env_type=self.config.env.env_type,
            subtree=self._subtree,
            chunk=self.config.model.num_action_chunks,
            noise=self.config.sft.expert_noise,
            seed=self.seed,
            max_errors=self.config.env.max_errors,
        )
        with recorder:
            return [self._play(recorder, attempt) for attempt in attempts]

    def _play(self, recorder: ExpertRecorder, attempt: int) -> Recorded:
        with self._deadline():
            self._watch.busy[:] = 0, demonstration_seed(self.seed, attempt)
            return recorder.play(attempt)

    def close_held_out(self) -> None:
        """Close the simulators of evaluation and filming; they are rebuilt when needed."""
        for key in [key for key in self._envs if key[0] != "train"]:
            self._envs.pop(key).close()
        self._films.clear()

    def _env(self, kind: Kind, stage: int, size: int | None = None) -> VecEnv:
        key = (kind, stage)
        if key not in self._envs:
            self._envs[key] = VecEnv(
                self.config.env.env_type,
                self._subtree,
                size or self.layout.group_size,
                auto_reset=kind == "train" and self.config.env.auto_reset,
                max_errors=self.config.env.max_errors,
                make=self._make_filmed if kind == "film" else None,
                busy=self._watch.busy,
            )
        return self._envs[key]

    def _make_filmed(self) -> Filmed:
        film = Filmed(env_factory(self.config.env.env_type, self._subtree)())
        self._films.append(film)
        return film

    def _episodes_begun(self, kind: Kind) -> int:
        return sum(env.num_envs for key, env in self._envs.items() if key[0] == kind)

    def _seen(self, obs: Observation, kind: Kind) -> Observation:
        """What the policy is shown."""
        if kind == "train" or not self._blind:
            return obs
        return {**obs, "task_descriptions": [""] * len(obs["task_descriptions"])}

    def _clear_stats(self) -> None:
        self._frames = 0
        self._episodes: list[EpisodeEnd] = []
        self._errors: Counter[str] = Counter()
