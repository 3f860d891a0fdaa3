"""One place of a vectorised environment: a simulator, its episode, and its restarts."""

from __future__ import annotations

import logging
import re
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import gymnasium
import numpy as np

from rlinf.envs.observations import ObservationCheck, copy
from rlinf.envs.results import EnvError, EpisodeEnd, Observation

logger = logging.getLogger(__name__)

#: Failures in a row, of whatever kind, that stop a run are this many times `max_errors`.
_MIXED_ERRORS_FACTOR: Final = 3


def episode_seed(first_seed: int, episode: int) -> int:
    """Seed of the n-th episode after a reset with `first_seed`; episode 0 is `first_seed` itself.

    Later seeds are hashes in [2^31, 2^32), so they never meet a seed below 2^31 that a user counts up for
    held-out episodes.
    """
    if episode == 0:
        return first_seed
    return int(np.random.SeedSequence([first_seed, episode]).generate_state(1)[0]) | 1 << 31


def error_key(error: Exception) -> str:
    """Type and first line of an error with its numbers masked: errors with equal keys count as the same."""
    lines = str(error).strip().splitlines()
    text = re.sub(r"0x[0-9a-fA-F]+|\d+(\.\d+)?", "#", lines[0] if lines else "")
    return f"{type(error).__name__}: {text[:200]}"


@dataclass(frozen=True, kw_only=True)
class SlotStep:
    """The executed part of a chunk: rewards, terminated, truncated, all [steps]; the episode's end, if any.

    final_obs: the last observation of an episode that was cut off without a terminal state.
    """

    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    final_obs: Observation | None
    episode: EpisodeEnd | None


class EnvSlot:
    """Owns one simulator: builds it, steps it, and replaces it when it fails.

    A failure is any exception, an observation that `check` refuses, or a reward that is not finite. It is
    counted in `errors`; `max_errors` equal ones without a good chunk between them raise EnvError.

    busy: int64 [2], gets `index` and the episode's seed whenever the simulator is called.
    """

    def __init__(
        self,
        index: int,
        make: Callable[[], gymnasium.Env],
        *,
        env_type: str,
        check: ObservationCheck,
        errors: Counter[str],
        auto_reset: bool,
        max_errors: int,
        busy: np.ndarray | None = None,
    ) -> None:
        self._index, self._make, self._env_type = index, make, env_type
        self._check, self._errors = check, errors
        self._auto_reset, self._max_errors = auto_reset, max_errors
        self._busy = np.zeros(2, np.int64) if busy is None else busy
        self._streak = 0
        self._failures = 0
        self._streak_key = ""
        self._env: gymnasium.Env | None = make()
        #: No episode is running: nothing was reset yet, or it ended and auto_reset is off.
        self.idle = True
        self.obs: Observation = {}
        self._first_seed, self._episode, self._seed = 0, 0, 0
        self._length, self._return = 0, 0.0

    @property
    def env(self) -> gymnasium.Env:
        """The simulator; another one after each failure. Raises ValueError while there is none."""
        if self._env is None:
            raise ValueError(f"environment {self._env_type!r} number {self._index} has no simulator now")
        return self._env

    def reset(self, seed: int) -> None:
        """Start the series of episodes that `seed` determines."""
        self._first_seed, self._episode = seed, 0
        self._start_episode()

    def step(self, actions: np.ndarray) -> SlotStep | None:
        """Run actions [chunk, A] up to the first done; None when the simulator failed (see `restart`)."""
        assert self._env is not None and not self.idle
        self._busy[:] = self._index, self._seed
        try:
            obs, rewards, terminated, truncated, info = _run_chunk(self._env, actions)
            if not np.isfinite(rewards).all():
                raise ValueError("a reward is NaN or infinite")
            self._check(obs)
        except EnvError:
            raise
        except Exception as error:
            self._count(error)
            return None
        self._streak = self._failures = 0
        self.obs = dict(obs)
        self._length += len(rewards)
        self._return += float(rewards.sum())
        final: Observation | None = None
        episode: EpisodeEnd | None = None
        if terminated[-1] or truncated[-1]:
            if "success" not in info:
                raise EnvError(f"environment {self._env_type!r}: an episode ended without info['success']")
            if not terminated[-1]:
                # A simulator may reuse its buffers at the reset that follows: copy what must survive it.
                final = copy(self.obs)
            episode = self._end_episode(success=bool(info["success"]))
        return SlotStep(
            rewards=rewards, terminated=terminated, truncated=truncated, final_obs=final, episode=episode
        )

    def restart(self, last_obs: Observation) -> EpisodeEnd:
        """After a failed step: end the episode and, under auto-reset, begin the next in a new simulator.

        last_obs: the observation before the failed chunk, which an idle environment keeps showing.
        """
        self.obs = last_obs
        return self._end_episode(success=False, error=self._streak_key)

    def close(self) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None

    def _end_episode(self, *, success: bool, error: str | None = None) -> EpisodeEnd:
        end = EpisodeEnd(
            index=self._index,
            seed=self._seed,
            success=success,
            length=self._length,
            return_=self._return,
            error=error,
        )
        if self._auto_reset:
            self._episode += 1
            self._start_episode()
        else:
            self.idle = True
        return end

    def _start_episode(self) -> None:
        """Reset to the next seed that the simulator survives."""
        while True:
            self._seed = episode_seed(self._first_seed, self._episode)
            self._busy[:] = self._index, self._seed
            try:
                if self._env is None:
                    self._env = self._make()
                obs, _ = self._env.reset(seed=self._seed)
                self._check(obs)
            except EnvError:
                raise
            except Exception as error:
                self._count(error)
                self._episode += 1
                continue
            self.obs, self.idle = dict(obs), False
            self._length, self._return = 0, 0.0
            return

    def _count(self, error: Exception) -> None:
        """Record a failure and drop the simulator; raise when there were too many in a row."""
        key = error_key(error)
        self._errors[key] += 1
        self._streak = self._streak + 1 if key == self._streak_key else 1
        self._failures += 1
        self._streak_key = key
        if self._streak >= self._max_errors or self._failures >= self._max_errors * _MIXED_ERRORS_FACTOR:
            trace = "".join(traceback.format_exception(error))
            raise EnvError(
                f"environment {self._env_type!r} number {self._index} failed {self._failures} times in a row "
                f"(env.max_errors={self._max_errors}), last in the episode of seed {self._seed}: {key}\n"
                f"Original traceback:\n{trace}"
            )
        logger.warning(
            "environment %r number %d (episode seed %d) failed and is restarted: %s",
            self._env_type, self._index, self._seed, key, exc_info=self._streak == 1,
        )  # fmt: skip
        env, self._env = self._env, None
        if env is not None:
            try:
                env.close()
            except Exception as close_error:  # it is replaced all the same
                logger.warning("its close() failed as well: %s", error_key(close_error))


def _run_chunk(
    env: gymnasium.Env, actions: np.ndarray
) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
    """Execute actions [chunk, A] up to the first done.

    Returns the last observation, rewards, terminated, truncated (all [steps]), and the last info.
    """
    chunk_step = getattr(env, "chunk_step", None)
    if chunk_step is not None:
        obs, rewards, terminated, truncated, info = chunk_step(actions)
        steps = int(info["steps"])
        if not 1 <= steps <= len(actions):
            raise ValueError(f"chunk_step executed {steps} of {len(actions)} actions")
        rewards = np.asarray(rewards[:steps], dtype=np.float32)
        return obs, rewards, np.asarray(terminated[:steps], bool), np.asarray(truncated[:steps], bool), info
    rows: list[tuple[float, bool, bool]] = []
    for action in actions:
        obs, reward, terminated, truncated, info = env.step(action)
        rows.append((float(reward), bool(terminated), bool(truncated)))
        if terminated or truncated:
            break
    table = np.asarray(rows, dtype=np.float32)
    return obs, table[:, 0], table[:, 1] > 0, table[:, 2] > 0, info
