"""MetaWorld as a vision-language-action environment."""

from __future__ import annotations

import string
from typing import Any

import gymnasium
import numpy as np

from rlinf.envs.metaworld.config import MetaworldConfig
from rlinf.envs.metaworld.simulators import Simulator, shared_pool
from rlinf.envs.metaworld.tasks import INSTRUCTIONS

_STATE_DIM = 4


def make_env(config: MetaworldConfig) -> MetaworldEnv:
    """The factory behind env_type `metaworld`. Raises EnvError where MetaWorld or OpenGL is not installed."""
    return MetaworldEnv(config)


class MetaworldEnv(gymnasium.Env):
    """One of several MetaWorld tasks per episode, chosen by the episode's seed.

    Action [4] float32 in [-1,1]: hand displacement x, y, z (1 cm each at 1) and gripper effort (1 closes).
    Observation: main_images [S,S,3] uint8; states [4] float32: hand x, y, z in metres and gripper opening
    0..1, without the goal or any object; task_descriptions: the task's instruction.
    Reward: 1 at success, which ends the episode, else 0. With `dense_reward`, MetaWorld's shaped reward is
    added as a potential, by its difference between steps (Ng, Harada and Russell 1999).
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (gymnasium's own declaration)
    render_mode = "rgb_array"

    def __init__(self, config: MetaworldConfig) -> None:
        self.config = config
        self._pool = shared_pool(config)
        self._pool.enter()
        self._closed = False
        self._simulator: Simulator | None = None
        self._steps = 0
        self._potential: float | None = None
        size = config.image_size
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (4,), np.float32)
        self.observation_space = gymnasium.spaces.Dict(
            {
                "main_images": gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8),
                "states": gymnasium.spaces.Box(-np.inf, np.inf, (_STATE_DIM,), np.float32),
                "task_descriptions": gymnasium.spaces.Text(100, charset=string.printable),
            }
        )

    @property
    def simulator(self) -> Simulator:
        """The simulator of the running episode, for experts; it knows what a policy must not."""
        if self._simulator is None:
            raise RuntimeError("no episode is running: call reset(seed=...) first")
        return self._simulator

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin the episode that `seed` determines, task included (None: a random one)."""
        super().reset(seed=seed)
        if seed is None:
            seed = int(self.np_random.integers(2**31))
        tasks = self.config.tasks
        task = tasks[np.random.default_rng([seed, len(tasks)]).integers(len(tasks))]
        if self._simulator is not None:
            self._pool.give(self._simulator)
            self._simulator = None
        self._simulator = self._pool.take(task)
        self._simulator.reset(seed)
        self._steps, self._potential = 0, None
        return self._observe(), {"task": task}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        obs, rewards, terminated, truncated, info = self.chunk_step(np.asarray(action)[None])
        return obs, float(rewards[0]), bool(terminated[0]), bool(truncated[0]), info

    def chunk_step(
        self, actions: np.ndarray
    ) -> tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Execute actions [chunk, 4] up to the first done, and render once, after the last.

        Returns the observation; rewards float32, terminated and truncated bool, each [chunk]; info with
        `success`, `task` and `steps`, the number of executed actions.
        """
        simulator = self.simulator
        chunk = len(actions)
        rewards = np.zeros(chunk, np.float32)
        terminated, truncated = np.zeros(chunk, bool), np.zeros(chunk, bool)
        success = False
        for i, action in enumerate(actions):
            shaped, success = simulator.step(action)
            self._steps += 1
            rewards[i] = float(success) + self._shaping(shaped)
            terminated[i], truncated[i] = success, self._steps >= self.config.max_episode_steps
            if terminated[i] or truncated[i]:
                break
        simulator.check_stable()
        info = {"success": success, "task": simulator.task, "steps": i + 1}
        return self._observe(), rewards, terminated, truncated, info

    def render(self) -> np.ndarray:
        """An image [R,R,3] uint8 for people, of `render_size` pixels, from the policy's camera."""
        return self._pool.render(self.simulator, self.config.render_size)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            simulator, self._simulator = self._simulator, None
            self._pool.leave(simulator)

    def _shaping(self, shaped: float) -> float:
        if not self.config.dense_reward:
            return 0.0
        difference = 0.0 if self._potential is None else shaped - self._potential
        self._potential = shaped
        return difference

    def _observe(self) -> dict[str, Any]:
        simulator = self.simulator
        return {
            "main_images": self._pool.render(simulator, self.config.image_size),
            "states": simulator.full_obs[:_STATE_DIM].astype(np.float32),
            "task_descriptions": INSTRUCTIONS[simulator.task],
        }
