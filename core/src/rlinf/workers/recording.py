"""Episodes for later: the scripted expert's as training data, the policy's as film."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Any

import gymnasium
import numpy as np

from rlinf.data.seeds import Stream, demonstration_seed
from rlinf.envs.vector import env_factory
from rlinf.plugins import PluginError, get_host, resolve_attr


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """One expert episode: the samples of a dataset (see `rlinf.data.demonstrations`; [n, ...], n chunks).

    error: the message of a simulator failure; then there are no samples.
    """

    attempt: int
    success: bool
    instruction: str
    arrays: dict[str, np.ndarray]
    error: str | None = None


class ExpertRecorder:
    """Plays episodes with the environment's expert. What an episode holds depends on its number alone.

    A sample is the observation before a chunk and the chunk of actions that the expert wanted. What is
    executed is that plus Gaussian noise of standard deviation `noise`, so that the data shows recoveries.
    """

    def __init__(
        self, *, env_type: str, subtree: Any, chunk: int, noise: float, seed: int, max_errors: int
    ) -> None:
        spec = get_host().env_spec(env_type)
        if spec.expert is None:
            raise PluginError(
                f"sft.expert_episodes: the environment {env_type!r} brings no scripted expert; give "
                "data.train_data_paths instead"
            )
        self._make = env_factory(env_type, subtree)
        self._expert_class = resolve_attr(spec.expert)
        self._chunk, self._noise, self._seed, self._max_errors = chunk, noise, seed, max_errors
        self._env: gymnasium.Env | None = None
        self._failures = 0

    def __enter__(self) -> ExpertRecorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._env is not None:
            self._env.close()

    def play(self, attempt: int) -> Recorded:
        """Episode number `attempt`. A simulator that fails is rebuilt; `max_errors` in a row raise."""
        if self._env is None:
            self._env = self._make()
            self._expert = self._expert_class(self._env)
        try:
            recorded = self._episode(self._env, attempt)
        except Exception as error:
            self._failures += 1
            self._env = None
            if self._failures >= self._max_errors:
                raise
            return Recorded(
                attempt=attempt,
                success=False,
                instruction="",
                arrays={},
                error=f"{type(error).__name__}: {error}",
            )
        self._failures = 0
        return recorded

    def _episode(self, env: gymnasium.Env, attempt: int) -> Recorded:
        rng = np.random.default_rng([self._seed, Stream.EXPERT, attempt])
        obs, _ = env.reset(seed=demonstration_seed(self._seed, attempt))
        self._expert.reset(rng)
        assert isinstance(env.action_space, gymnasium.spaces.Box)
        low, high = env.action_space.low, env.action_space.high
        instruction = obs["task_descriptions"]
        starts: list[dict[str, np.ndarray]] = []
        actions: list[np.ndarray] = []
        done = False
        while not done:
            if len(actions) % self._chunk == 0:
                starts.append({key: np.array(obs[key]) for key in obs if key != "task_descriptions"})
            action = np.clip(self._expert.act(), low, high).astype(np.float32)
            actions.append(action)
            noise = rng.normal(0.0, self._noise, action.shape) if self._noise else 0.0
            executed = np.clip(action + noise, low, high).astype(np.float32)
            obs, _, terminated, truncated, info = env.step(executed)
            done = bool(terminated or truncated)
        return Recorded(
            attempt=attempt,
            success=bool(info["success"]),
            instruction=instruction,
            arrays=self._arrays(starts, actions),
        )

    def _arrays(
        self, starts: list[dict[str, np.ndarray]], actions: list[np.ndarray]
    ) -> dict[str, np.ndarray]:
        padding = len(starts) * self._chunk - len(actions)
        padded = np.stack(actions + [np.zeros_like(actions[0])] * padding)
        is_pad = np.arange(len(padded)) >= len(actions)
        return {
            **{key: np.stack([start[key] for start in starts]) for key in starts[0]},
            "actions": padded.reshape(len(starts), self._chunk, -1),
            "action_is_pad": is_pad.reshape(len(starts), self._chunk),
        }


class Filmed(gymnasium.Wrapper):
    """Keeps a frame of every step of the current episode. Steps one by one, so that no frame is missed."""

    chunk_step = None

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self._frames: list[np.ndarray] = []
        self._instruction = ""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(**kwargs)
        self._instruction = obs["task_descriptions"]
        self._frames = [self._frame()]
        return obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        out = self.env.step(action)
        self._frames.append(self._frame())
        return out

    def take(self) -> tuple[np.ndarray, str]:
        """The episode's frames uint8 [T,H,W,3] and its instruction."""
        return np.stack(self._frames), self._instruction

    def _frame(self) -> np.ndarray:
        frame = self.env.render()
        if not isinstance(frame, np.ndarray) or frame.ndim != 3:
            raise TypeError(f"{self.env}: to be filmed, render() must return [H,W,3], got {type(frame)}")
        return np.array(frame, np.uint8)
