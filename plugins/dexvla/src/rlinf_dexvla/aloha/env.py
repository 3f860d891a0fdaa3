"""gym-aloha's tasks behind rlinf's observation contract, drawn by the core's fast renderer."""

from __future__ import annotations

import os
import string
from functools import cache
from typing import Any, Final

import gymnasium
import numpy as np
from rlinf.envs.gl import Backend, OffscreenRenderer
from rlinf.envs.results import EnvError

from rlinf_dexvla.aloha.config import AlohaConfig

INSTRUCTIONS: Final = {
    "transfer_cube": "pick up the red cube with the right arm and hand it to the left arm",
    "insertion": "pick up the socket and the peg and insert the peg into the socket",
}
#: Joints of both arms; entries 6 and 13 are the grippers, 0 closed to 1 open.
DIM: Final = 14
_GRIPPERS: Final = (6, 13)
#: The reward of gym-aloha's last stage.
_SUCCESS: Final = 4


def make_env(config: AlohaConfig) -> AlohaEnv:
    """The factory behind env_type `aloha`. Raises EnvError where gym-aloha or OpenGL is not installed."""
    return AlohaEnv(config)


class AlohaEnv(gymnasium.Env):
    """Action [14] float32: joint angles in radians and gripper openings 0..1, left arm first.

    Observation: main_images [H,W,3] uint8; extra_view_images [K,H,W,3], one per entry of `views`;
    states [14] float32, measured in the units of the actions; task_descriptions. Reward: 1 at success, which
    ends the episode, else 0; with `stage_reward` the progress through the task's stages as a potential.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 50}  # noqa: RUF012 (gymnasium's declaration)
    render_mode = "rgb_array"

    def __init__(self, config: AlohaConfig) -> None:
        self.config = config
        self._env = _simulator(config.task)
        self._steps, self._stage = 0, 0.0
        high = np.full(DIM, np.pi, np.float32)
        low = -high
        low[list(_GRIPPERS)], high[list(_GRIPPERS)] = 0, 1
        shape = (config.height, config.width, 3)
        self.action_space = gymnasium.spaces.Box(low, high, dtype=np.float32)
        spaces: dict[str, gymnasium.Space] = {
            "main_images": gymnasium.spaces.Box(0, 255, shape, np.uint8),
            "states": gymnasium.spaces.Box(-np.inf, np.inf, (DIM,), np.float32),
            "task_descriptions": gymnasium.spaces.Text(100, charset=string.printable),
        }
        if config.views:
            views = (len(config.views), *shape)
            spaces["extra_view_images"] = gymnasium.spaces.Box(0, 255, views, np.uint8)
        self.observation_space = gymnasium.spaces.Dict(spaces)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin the episode that `seed` determines (None: a random one)."""
        from gym_aloha.tasks import sim
        from gym_aloha.utils import sample_box_pose, sample_insertion_pose

        super().reset(seed=seed)
        if seed is None:
            seed = int(self.np_random.integers(2**31))
        # The simulator reads where the objects start from this list, and at this moment alone.
        if self.config.task == "transfer_cube":
            sim.BOX_POSE[0] = sample_box_pose(seed)
        else:
            sim.BOX_POSE[0] = np.concatenate(sample_insertion_pose(seed))
        self._env.reset()
        self._steps, self._stage = 0, 0.0
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        obs, rewards, terminated, truncated, info = self.chunk_step(np.asarray(action)[None])
        return obs, float(rewards[0]), bool(terminated[0]), bool(truncated[0]), info

    def chunk_step(
        self, actions: np.ndarray
    ) -> tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Execute actions [chunk, 14] up to the first done, and render once, after the last."""
        rewards = np.zeros(len(actions), np.float32)
        terminated, truncated = np.zeros(len(actions), bool), np.zeros(len(actions), bool)
        for i, action in enumerate(actions):
            stage = float(self._env.step(action.astype(np.float64)).reward)
            self._steps += 1
            success = stage == _SUCCESS
            rewards[i] = float(success)
            if self.config.stage_reward:
                rewards[i] += (stage - self._stage) / _SUCCESS
            self._stage = stage
            terminated[i], truncated[i] = success, self._steps >= self.config.max_episode_steps
            if terminated[i] or truncated[i]:
                break
        return self._observe(), rewards, terminated, truncated, {"success": success, "steps": i + 1}

    @property
    def physics(self) -> Any:
        """dm_control's physics, for a scripted expert."""
        return self._env.physics

    def render(self) -> np.ndarray:
        """An image [H,W,3] uint8 for people, from the policy's camera."""
        return self._image(self.config.camera)

    def _observe(self) -> dict[str, Any]:
        states = self._env.task.get_qpos(self._env.physics).astype(np.float32)
        obs = {
            "main_images": self._image(self.config.camera),
            "states": states,
            "task_descriptions": INSTRUCTIONS[self.config.task],
        }
        if self.config.views:
            obs["extra_view_images"] = np.stack([self._image(view) for view in self.config.views])
        return obs

    def _image(self, name: str) -> np.ndarray:
        config, physics = self.config, self._env.physics
        renderer = _renderer(config.task, config.height, config.width, config.gl)
        camera = physics.model.name2id(name, "camera")
        return renderer.render(physics.model.ptr, physics.data.ptr, camera)


def _simulator(task: str) -> Any:
    """dm_control's environment of a task, which itself draws nothing."""
    before = os.environ.get("MUJOCO_GL")
    os.environ["MUJOCO_GL"] = "disable"  # dm_control makes no OpenGL context of its own
    try:
        from dm_control import mujoco
        from dm_control.rl import control
        from gym_aloha.constants import ASSETS_DIR, DT
        from gym_aloha.tasks.sim import InsertionTask, TransferCubeTask
    except ImportError as error:
        raise EnvError(
            f"env_type 'aloha' needs gym-aloha ({error}): pip install 'rlinf-plugin-dexvla[aloha]'"
        ) from error
    finally:
        if before is None:
            del os.environ["MUJOCO_GL"]
        else:
            os.environ["MUJOCO_GL"] = before
    made = {"transfer_cube": TransferCubeTask, "insertion": InsertionTask}[task]()
    made.get_observation = lambda physics: {}  # it would draw three images of 480 x 640
    physics = mujoco.Physics.from_xml_path(str(ASSETS_DIR / f"bimanual_viperx_{task}.xml"))
    return control.Environment(physics, made, time_limit=float("inf"), control_timestep=DT)


@cache
def _renderer(task: str, height: int, width: int, gl: Backend) -> OffscreenRenderer:
    """One for all environments of this process that draw such images."""
    return OffscreenRenderer(_simulator(task).physics.model.ptr, height, width, gl)
