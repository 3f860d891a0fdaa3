"""`VecEnv` behind gymnasium's vector API, for the algorithms and wrappers of other libraries.

The training loops use `VecEnv` itself: gymnasium's API has no chunks of actions and no idle environments.
What both share is the automatic reset within the step (`AutoresetMode.SAME_STEP`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from rlinf.envs.observations import row
from rlinf.envs.results import Observation
from rlinf.envs.vector import VecEnv


class GymVectorEnv(VectorEnv):
    """Steps a `VecEnv` with `auto_reset=True` by single actions [N, A].

    infos of a step in which episodes ended hold, for those (mask `_final_info`), `final_info` with `success`,
    `episode_return` and `episode_length`; for truncated ones (mask `_final_obs`) `final_obs`, their last
    observation.
    """

    def __init__(self, env: VecEnv) -> None:
        if not env.auto_reset:
            raise ValueError("gymnasium's vector API resets automatically: VecEnv needs auto_reset=True")
        self._env = env
        self.num_envs = env.num_envs
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.single_action_space: gymnasium.Space = env.action_space
        self.single_observation_space: gymnasium.Space = env.observation_space
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """seed: one for each environment, or the first of consecutive ones; None draws them."""
        if seed is None:
            seed = [int(draw) for draw in self.np_random.integers(2**31, size=self.num_envs)]
        seeds = range(seed, seed + self.num_envs) if isinstance(seed, int) else seed
        return _with_tuples(self._env.reset(seeds)), {}

    def step(
        self, actions: np.ndarray
    ) -> tuple[Observation, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        result = self._env.chunk_step(np.asarray(actions)[:, None])
        infos: dict[str, Any] = {}
        if result.episodes:
            index = [end.index for end in result.episodes]
            info: dict[str, list[Any]] = {
                "success": [end.success for end in result.episodes],
                "episode_return": [end.return_ for end in result.episodes],
                "episode_length": [end.length for end in result.episodes],
            }
            infos["final_info"] = {key: self._scatter(index, value) for key, value in info.items()}
            infos["_final_info"] = self._scatter(index, [True] * len(index))
        if result.final_obs is not None:
            index = np.flatnonzero(result.final_mask).tolist()
            final = np.full(self.num_envs, None, dtype=object)
            for i, position in enumerate(index):
                final[position] = row(result.final_obs, i)
            infos["final_obs"], infos["_final_obs"] = final, result.final_mask
        terminated, truncated = result.terminations[:, 0], result.truncations[:, 0]
        return _with_tuples(result.obs), result.rewards[:, 0], terminated, truncated, infos

    def close_extras(self, **kwargs: Any) -> None:
        self._env.close()

    def _scatter(self, index: list[int], values: list[Any]) -> np.ndarray:
        array = np.zeros(self.num_envs, np.asarray(values).dtype)
        array[index] = values
        return array


def _with_tuples(obs: Observation) -> Observation:
    """gymnasium batches a Text space as a tuple of strings."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in obs.items()}
