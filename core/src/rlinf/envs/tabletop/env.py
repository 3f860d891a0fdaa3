"""The tabletop simulator as a Gymnasium environment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import gymnasium
import mujoco
import numpy as np

from rlinf.envs.tabletop import scene
from rlinf.envs.tabletop.config import TabletopConfig
from rlinf.envs.tabletop.kinematics import inverse, rpy_of
from rlinf.envs.tabletop.raycast import RayCaster, look_at
from rlinf.envs.tabletop.tasks import SHAPES, Situation, Task, draw_task, outcome

#: Metres and radians of an action of 1.
MAX_STEP: Final = 0.03
MAX_TURN: Final = 0.15
#: Where object centres are drawn from (m), and how far apart they are.
PLACES_LOW: Final = (-0.16, -0.14)
PLACES_HIGH: Final = (0.16, 0.07)
SPACING: Final = 0.105
STATE_DIM: Final = 7
#: MuJoCo's warnings after which the state means nothing.
UNSTABLE: Final = (
    mujoco.mjtWarning.mjWARN_BADQPOS,
    mujoco.mjtWarning.mjWARN_BADQVEL,
    mujoco.mjtWarning.mjWARN_BADQACC,
)

_LOW, _HIGH = np.array(scene.WORKSPACE_LOW), np.array(scene.WORKSPACE_HIGH)
_TURN = np.array(scene.ROTATION_LIMIT)


def make_env(config: TabletopConfig) -> TabletopEnv:
    """The factory that the entry point names."""
    return TabletopEnv(config)


class TabletopEnv(gymnasium.Env):
    """An arm above a table with coloured objects, and an instruction about one of them.

    Action float32 [7] in [-1, 1]: the change of the grasp centre's measured position (x right, y away from
    the viewer, z up; 3 cm at 1), of its roll, pitch and yaw (0.15 rad at 1), and the gripper (-1 open, +1
    closed). Observation: main_images uint8 [S, S, 3]; states float32 [7] = position scaled to [-1, 1] over
    the workspace, roll, pitch, yaw in units of their limits, opening of the gripper in [0, 1];
    task_descriptions, the instruction.
    Reward 1 on success, which ends the episode, as does a failure (`info["failure"]` says which: another
    object was moved, say). `reset(seed=)` determines the whole episode.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 - gymnasium's attribute
    render_mode = "rgb_array"

    def __init__(self, config: TabletopConfig | None = None) -> None:
        self.config = config = config or TabletopConfig()
        self.model = mujoco.MjModel.from_xml_string(scene.scene_xml(config.num_objects))
        self.data = mujoco.MjData(self.model)
        size = config.image_size
        self.observation_space = gymnasium.spaces.Dict(
            {
                "main_images": gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8),
                "states": gymnasium.spaces.Box(-np.inf, np.inf, (STATE_DIM,), np.float32),
                "task_descriptions": gymnasium.spaces.Text(
                    128, charset=frozenset("abcdefghijklmnopqrstuvwxyz ")
                ),
            }
        )
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (7,), np.float32)
        self._index_model()
        self._draw = self._renderer(size, samples=1)
        self._film: dict[int, Callable[[], np.ndarray]] = {}
        self.task: Task | None = None
        self.labels: list[str] = []
        self.steps = 0

    def _index_model(self) -> None:
        model, n = self.model, self.config.num_objects
        objects = [model.joint(model.body(f"object{i}").jntadr[0]) for i in range(n)]
        self._object_qpos = [int(joint.qposadr[0]) for joint in objects]
        self._object_body = slice(int(model.body("object0").id), int(model.body("object0").id) + n)
        self._object_geom = np.array([model.geom(f"object{i}").id for i in range(n)])
        self._site = model.site("grasp").id
        self._zone_site = model.site("zone").id
        self._finger = [int(model.joint(name).qposadr[0]) for name in ("left", "right")]
        arm = [int(model.joint(name).qposadr[0]) for name in scene.JOINTS]
        assert arm == list(range(6)), "the arm's joints come first"
        # Which object a geom is (-1: none), and whether it is a part of the hand; for reading contacts.
        self._geom_object = np.full(model.ngeom, -1)
        self._geom_object[self._object_geom] = np.arange(n)
        self._geom_hand = (model.geom_group == scene.HAND) & (model.geom_contype == 2)
        # A cylinder and a cube of the same half sizes share their bounding box; the larger sphere holds both.
        model.geom_rbound[self._object_geom] = np.sqrt(3) * scene.HALF

    # -- episode ---------------------------------------------------------------------------------------------

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        """Begin the episode that `seed` determines (a random one for None). `options` are refused."""
        if options:
            raise ValueError(f"tabletop takes no reset options, got {sorted(options)}")
        super().reset(seed=seed)
        rng = self.np_random
        n = self.config.num_objects
        task = None
        while task is None:
            colors = [list(scene.COLORS)[i] for i in rng.permutation(len(scene.COLORS))[:n]]
            shapes = [SHAPES[i] for i in rng.integers(len(SHAPES), size=n)]
            self.labels = [f"{color} {shape}" for color, shape in zip(colors, shapes)]
            places = _places(rng, n + ("place" in self.config.tasks))
            task = draw_task(rng, self.config.tasks, self.labels, places[:n], self.config.task_weights)
        self.task = task
        self._zone = places[n] if len(places) > n else np.full(2, np.nan)
        self._set_up(rng, colors, shapes, places)
        self.steps = 0
        return self._observe(), {"task": task.name, "success": False}

    def _set_up(
        self, rng: np.random.Generator, colors: list[str], shapes: list[str], places: np.ndarray
    ) -> None:
        model, data = self.model, self.data
        mujoco.mj_resetData(model, data)
        for i, geom in enumerate(self._object_geom):
            model.geom_rgba[geom, :3] = scene.COLORS[colors[i]]
            kind = mujoco.mjtGeom.mjGEOM_BOX if shapes[i] == "cube" else mujoco.mjtGeom.mjGEOM_CYLINDER
            model.geom_type[geom] = kind
            yaw, at = rng.uniform(-0.2, 0.2), self._object_qpos[i]
            pose = (*places[i], scene.HALF, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2))
            data.qpos[at : at + 7] = pose
        with_zone = len(places) > len(colors)
        model.site_rgba[self._zone_site, 3] = float(with_zone)
        model.site_pos[self._zone_site, :2] = places[-1] if with_zone else 0.0
        start = np.array(scene.START) + rng.uniform(-0.015, 0.015, 3)
        data.qpos[:6] = data.ctrl[:6] = inverse(tuple(start.tolist()), (0.0, 0.0, 0.0))
        data.qpos[self._finger] = data.ctrl[6:] = scene.OPENING
        mujoco.mj_forward(model, data)
        self._start = self.object_positions
        for caster in (self._draw, *self._film.values()):
            if isinstance(caster, RayCaster):
                caster.begin(self._zone if with_zone else None)

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        """One control step; see the class for the action."""
        reward, terminated, truncated, info = self._advance(action)
        return self._observe(), reward, terminated, truncated, info

    def chunk_step(self, actions: np.ndarray) -> tuple[dict, np.ndarray, np.ndarray, np.ndarray, dict]:
        """Execute actions [chunk, 7] up to the first done and draw one image at the end.

        Returns the observation, rewards float32 [chunk], terminated and truncated bool [chunk] (zero after
        the done), and the last info with `steps`, the number of executed actions.
        """
        chunk = len(actions)
        rewards = np.zeros(chunk, np.float32)
        terminated, truncated = np.zeros(chunk, bool), np.zeros(chunk, bool)
        info: dict[str, Any] = {}
        for i in range(chunk):
            rewards[i], terminated[i], truncated[i], info = self._advance(actions[i])
            if terminated[i] or truncated[i]:
                break
        return self._observe(), rewards, terminated, truncated, {**info, "steps": i + 1}

    def _advance(self, action: np.ndarray) -> tuple[float, bool, bool, dict]:
        if self.task is None:
            raise RuntimeError("step before reset: call reset(seed=...) first")
        self._command(np.asarray(action, np.float64))
        mujoco.mj_step(self.model, self.data, nstep=self.config.substeps)
        self._check_stable()
        self.steps += 1
        success, failure = outcome(self.task, self.situation())
        truncated = self.steps >= self.config.max_episode_steps and not (success or failure)
        info: dict[str, Any] = {"success": success, "task": self.task.name}
        if failure:
            info["failure"] = failure
        return float(success), bool(success or failure), truncated, info

    def _command(self, action: np.ndarray) -> None:
        """Set the joint targets that realise a clipped action relative to the measured pose."""
        if action.shape != (7,) or not np.isfinite(action).all():
            raise ValueError(f"an action is 7 finite numbers, got shape {action.shape}: {action}")
        action = np.clip(action, -1.0, 1.0)
        position = np.clip(self.position + MAX_STEP * action[:3], _LOW, _HIGH)
        rpy = np.clip(np.array(self.rpy) + MAX_TURN * action[3:6], -_TURN, _TURN)
        self.data.ctrl[:6] = inverse(tuple(position.tolist()), tuple(rpy.tolist()))
        self.data.ctrl[6:] = scene.OPENING * (1.0 - action[6]) / 2

    def _check_stable(self) -> None:
        for kind in UNSTABLE:
            if self.data.warning[kind].number:
                raise RuntimeError(
                    f"tabletop: unstable physics ({kind.name}) in step {self.steps + 1} of {self.task}"
                )

    # -- state -----------------------------------------------------------------------------------------------

    @property
    def position(self) -> np.ndarray:
        """Measured position of the grasp centre [3] (m)."""
        return self.data.site_xpos[self._site].copy()

    @property
    def rpy(self) -> tuple[float, float, float]:
        """Measured roll, pitch and yaw of the hand (rad)."""
        return rpy_of(self.data.site_xmat[self._site].tolist())

    @property
    def opening(self) -> float:
        """Opening of the gripper from 0 (closed) to 1."""
        return float(self.data.qpos[self._finger].mean()) / scene.OPENING

    @property
    def object_positions(self) -> np.ndarray:
        """Centres of the objects [N, 3] (m); privileged."""
        return self.data.xpos[self._object_body].copy()

    @property
    def zone(self) -> np.ndarray:
        """Centre of the target zone [2] (m), NaN where the task `place` is not enabled; privileged."""
        return self._zone

    def touched(self) -> np.ndarray:
        """Which objects are in contact with the hand [N] bool; privileged."""
        touched = np.zeros(self.config.num_objects, bool)
        pairs = self.data.contact.geom
        if len(pairs):
            hand, objects = self._geom_hand[pairs], self._geom_object[pairs]
            touched[objects[:, 1][hand[:, 0] & (objects[:, 1] >= 0)]] = True
            touched[objects[:, 0][hand[:, 1] & (objects[:, 0] >= 0)]] = True
        return touched

    def situation(self) -> Situation:
        """What the rules of the task look at; privileged."""
        return Situation(
            start=self._start, now=self.object_positions, touched=self.touched(), zone=self._zone
        )

    def _observe(self) -> dict[str, Any]:
        assert self.task is not None
        states = np.empty(STATE_DIM, np.float32)
        states[:3] = 2 * (self.position - _LOW) / (_HIGH - _LOW) - 1
        states[3:6] = np.array(self.rpy) / _TURN
        states[6] = self.opening
        return {"main_images": self._draw(), "states": states, "task_descriptions": self.task.instruction}

    # -- images ----------------------------------------------------------------------------------------------

    def render(self, size: int = 256) -> np.ndarray:
        """A smooth image [size, size, 3] uint8 of the scene, for people."""
        if size not in self._film:
            caster = self._film[size] = self._renderer(size, samples=2)
            if isinstance(caster, RayCaster):
                caster.begin(None if np.isnan(self._zone).any() else self._zone)
        return self._film[size]()

    def _renderer(self, size: int, *, samples: int) -> Callable[[], np.ndarray]:
        if self.config.renderer == "raycast":
            return RayCaster(
                self.model, self.data, look_at(), size, samples=samples, shadows=self.config.shadows
            )
        from rlinf.envs.tabletop.gl import GlRenderer

        return GlRenderer(self.model, self.data, look_at(), size, backend=self.config.renderer)

    def close(self) -> None:
        """Release the renderers."""
        for renderer in (self._draw, *self._film.values()):
            if hasattr(renderer, "close"):
                renderer.close()
        self._film.clear()


def _places(rng: np.random.Generator, count: int) -> np.ndarray:
    """Draw `count` places [count, 2] at least SPACING apart."""
    while True:
        places = rng.uniform(PLACES_LOW, PLACES_HIGH, (count, 2))
        gaps = np.linalg.norm(places[:, None] - places[None], axis=-1) + 9 * np.eye(count)
        if gaps.min() > SPACING:
            return places
