"""MetaWorld's simulators, shared within a process: a scene takes 30 MB, and an episode needs only one."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import numpy as np

from rlinf.envs.gl import OffscreenRenderer, find_backend
from rlinf.envs.metaworld.config import MetaworldConfig
from rlinf.envs.results import EnvError

#: MetaWorld's shaped rewards lie between 0 and this.
_MAX_SHAPED_REWARD: Final = 10.0


class Simulator:
    """One MetaWorld scene with fully observable state, reset as a pure function of a seed."""

    def __init__(self, task: str, config: MetaworldConfig) -> None:
        env_class = _environments()[task]
        self.task: Final = task
        self._env: Any = env_class()
        # As MetaWorld's goal-observable classes do: the expert reads the goal, each reset draws a layout.
        self._env._partially_observable = False
        # The space is cached with the goal's bounds at zero, and observations are clipped to it.
        self._env.__dict__.pop("sawyer_observation_space", None)
        self._env._freeze_rand_vec = False
        self._env.seeded_rand_vec = True
        self._env._set_task_called = True
        self.model, self.data = self._env.model, self._env.data
        self.camera: Final = self.model.camera(config.camera).id
        if config.fovy is not None:
            self.model.cam_fovy[self.camera] = config.fovy
        #: MetaWorld's full observation [39] float64, goal and objects included; not for policies.
        self.full_obs = np.zeros(39)

    def reset(self, seed: int) -> None:
        self._env.seed(seed)
        self.full_obs, _ = self._env.reset()

    def step(self, action: np.ndarray) -> tuple[float, bool]:
        """Execute an action [4]; returns (shaped reward in 0..1, success)."""
        self.full_obs, reward, _, _, info = self._env.step(action)
        return float(reward) / _MAX_SHAPED_REWARD, bool(info["success"])

    def check_stable(self) -> None:
        """Raise if MuJoCo reset the state by itself because it had diverged."""
        import mujoco

        kinds = mujoco.mjtWarning
        for kind in (kinds.mjWARN_BADQPOS, kinds.mjWARN_BADQVEL, kinds.mjWARN_BADQACC):
            if self.data.warning[kind].number:
                raise RuntimeError(f"{self.task}: the physics diverged ({kind.name})")


class SimulatorPool:
    """Idle simulators and the renderers of one configuration, for all environments of this process.

    A renderer holds a scene's meshes and textures, which are alike for all simulators of a task.
    """

    def __init__(self, config: MetaworldConfig) -> None:
        self._config = config
        self._idle: dict[str, list[Simulator]] = {}
        self._renderers: dict[tuple[str, int], OffscreenRenderer] = {}
        self._users = 0

    def enter(self) -> None:
        """Register an environment; the last one that leaves frees everything."""
        self._users += 1

    def leave(self, simulator: Simulator | None) -> None:
        """An environment closes, perhaps because its simulator or its GL context is broken: keep neither."""
        self._users -= 1
        if not self._users:
            self._idle.clear()
        for key in list(self._renderers):
            if not self._users or (simulator is not None and key[0] == simulator.task):
                self._renderers.pop(key).close()

    def take(self, task: str) -> Simulator:
        idle = self._idle.get(task)
        return idle.pop() if idle else Simulator(task, self._config)

    def give(self, simulator: Simulator) -> None:
        self._idle.setdefault(simulator.task, []).append(simulator)

    def render(self, simulator: Simulator, size: int) -> np.ndarray:
        """Camera image [size,size,3] uint8."""
        key = (simulator.task, size)
        renderer = self._renderers.get(key)
        if renderer is None:
            renderer = OffscreenRenderer(simulator.model, size, size, self._config.renderer)
            self._renderers[key] = renderer
        return renderer.render(simulator.model, simulator.data, simulator.camera)


@cache
def shared_pool(config: MetaworldConfig) -> SimulatorPool:
    """The pool of this process for that configuration; fails early where something is not installed."""
    _environments()
    find_backend(config.renderer)
    return SimulatorPool(config)


@cache
def _environments() -> dict[str, Any]:
    try:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    except ImportError as error:
        raise EnvError(
            f"env_type 'metaworld' needs MetaWorld ({error}): pip install 'rlinf-core[metaworld]'"
        ) from error
    return dict(ALL_V3_ENVIRONMENTS)
