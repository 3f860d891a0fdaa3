"""`VecEnv`: N simulators in one process, stepped by chunks of actions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np

from rlinf.envs.observations import ObservationCheck, describe, row, stack
from rlinf.envs.results import EnvError, EpisodeEnd, Observation, StepResult
from rlinf.envs.slot import EnvSlot
from rlinf.plugins import PluginError, get_host


def env_factory(env_type: str, config: Any) -> Callable[[], gymnasium.Env]:
    """The function that builds one simulator of the environment plugin `env_type`.

    config: the plugin's subtree, as an object of its schema or as a mapping that is validated with it here.
    Raises PluginError for an unknown env_type, pydantic's ValidationError for a bad subtree.
    """
    host = get_host()
    spec = host.env_spec(env_type)
    if spec.config_schema is not None and (config is None or isinstance(config, Mapping)):
        config = host.resolve(spec, "config_schema").model_validate(dict(config or {}))
    if spec.factory is None:
        raise PluginError(f"env_type {env_type!r} is no simulator: it makes no gymnasium.Env")
    factory = host.resolve(spec, "factory")
    return lambda: factory(config)


class VecEnv:
    """N simulators of one kind, reset by seeds and stepped together, one after the other, in this process.

    An episode ends where the simulator says so. With `auto_reset` the next begins at once, with a seed that
    is a pure function of the environment's reset seed and the episode's number; without it the environment
    idles (rewards 0, valid_steps 0) until `reset`. A rollout is a pure function of reset seeds and actions.

    A simulator that throws, or returns NaN or a uniform image, is closed, rebuilt and reset to its next seed;
    its episode counts as failed. `max_errors` equal failures in a row of one environment raise EnvError.

    make: builds one simulator; None takes the plugin's factory for `env_type`.
    busy: int64 [2], gets number and episode seed of the simulator that is about to be called.
    """

    def __init__(
        self,
        env_type: str,
        config: Any,
        num_envs: int,
        *,
        auto_reset: bool = True,
        max_errors: int = 10,
        make: Callable[[], gymnasium.Env] | None = None,
        busy: np.ndarray | None = None,
    ) -> None:
        if num_envs < 1 or max_errors < 1:
            raise ValueError(f"num_envs and max_errors must be at least 1, got {num_envs} and {max_errors}")
        make = make or env_factory(env_type, config)
        self.env_type, self.auto_reset = env_type, auto_reset
        self._errors: Counter[str] = Counter()
        check = ObservationCheck(env_type)
        self._slots: list[EnvSlot] = []
        try:
            for index in range(num_envs):
                self._slots.append(
                    EnvSlot(
                        index,
                        make,
                        env_type=env_type,
                        check=check,
                        errors=self._errors,
                        auto_reset=auto_reset,
                        max_errors=max_errors,
                        busy=busy,
                    )
                )
        except BaseException:
            self.close()
            raise
        #: Of one environment.
        self.action_space = _checked_action_space(env_type, self._slots[0].env.action_space)
        self._obs: Observation | None = None

    @property
    def num_envs(self) -> int:
        return len(self._slots)

    @property
    def observation_space(self) -> gymnasium.Space:
        """Of one environment."""
        return self._slots[0].env.observation_space

    @property
    def action_dim(self) -> int:
        return self.action_space.shape[0]

    def reset(self, seeds: Sequence[int]) -> Observation:
        """Begin an episode in every environment; seeds: N integers in [0, 2^32). Returns the observations."""
        if len(seeds) != self.num_envs:
            raise ValueError(f"reset needs a seed for each of {self.num_envs} environments, got {len(seeds)}")
        for slot, seed in zip(self._slots, seeds):
            slot.reset(int(seed))
        self._obs = stack([slot.obs for slot in self._slots])
        return self._obs

    def chunk_step(self, actions: np.ndarray) -> StepResult:
        """Execute actions [N, chunk, A], clipped to the action space, each environment up to its first done.

        Raises ValueError for actions of a wrong shape or that are not finite, EnvError as the class says.
        """
        if self._obs is None:
            raise ValueError("chunk_step before reset: call reset(seeds) first")
        actions = self._checked_actions(actions)
        shape = actions.shape[:2]
        rewards = np.zeros(shape, np.float32)
        terminations, truncations = np.zeros(shape, bool), np.zeros(shape, bool)
        valid_steps, final_mask = np.zeros(shape[0], np.int64), np.zeros(shape[0], bool)
        finals: list[Observation] = []
        episodes: list[EpisodeEnd] = []
        for i, slot in enumerate(self._slots):
            if slot.idle:
                continue
            step = slot.step(actions[i])
            if step is None:
                last_obs = row(self._obs, i)
                truncations[i, 0] = final_mask[i] = True
                finals.append(last_obs)
                episodes.append(slot.restart(last_obs))
                continue
            steps = valid_steps[i] = len(step.rewards)
            rewards[i, :steps] = step.rewards
            terminations[i, :steps] = step.terminated
            truncations[i, :steps] = step.truncated
            if step.final_obs is not None:
                final_mask[i] = True
                finals.append(step.final_obs)
            if step.episode is not None:
                episodes.append(step.episode)
        self._obs = stack([slot.obs for slot in self._slots])
        errors = Counter(self._errors)
        self._errors.clear()
        return StepResult(
            obs=self._obs,
            rewards=rewards,
            terminations=terminations,
            truncations=truncations,
            valid_steps=valid_steps,
            final_mask=final_mask,
            final_obs=stack(finals) if finals else None,
            episodes=episodes,
            errors=errors,
        )

    def render(self, index: int = 0) -> np.ndarray:
        """An image [H,W,3] uint8 for people of one environment; raises ValueError where it has none."""
        image = self._slots[index].env.render()
        if not isinstance(image, np.ndarray) or image.ndim != 3 or image.dtype != np.uint8:
            raise ValueError(
                f"environment {self.env_type!r}: render() gave no [H,W,3] uint8 image: {describe(image)}"
            )
        return image

    def close(self) -> None:
        """Close the simulators; the object cannot be used afterwards."""
        for slot in self._slots:
            slot.close()

    def _checked_actions(self, actions: np.ndarray) -> np.ndarray:
        expected = (self.num_envs, self.action_dim)
        if not isinstance(actions, np.ndarray) or actions.ndim != 3 or actions.shape[::2] != expected:
            raise ValueError(
                f"environment {self.env_type!r} takes actions [{expected[0]}, chunk, {expected[1]}], "
                f"got {describe(actions)}"
            )
        if actions.shape[1] < 1 or not np.issubdtype(actions.dtype, np.floating):
            raise ValueError(f"actions must be floating point, at least one step; got {describe(actions)}")
        finite = np.isfinite(actions).all(axis=(1, 2))
        if not finite.all():
            bad = np.flatnonzero(~finite).tolist()
            raise ValueError(f"the policy's actions for environments {bad} hold NaN or infinity")
        low, high = self.action_space.low, self.action_space.high
        return np.clip(actions.astype(np.float32, copy=False), low, high)


def _checked_action_space(env_type: str, space: gymnasium.Space) -> gymnasium.spaces.Box:
    if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
        raise EnvError(f"environment {env_type!r}: the action space must be a 1-dimensional Box, got {space}")
    return space
