"""A scripted expert of gym-aloha's cube transfer: waypoints of both tools, inverse kinematics, joint angles.

It looks at where the cube lies when the episode begins, plans both arms' ways, and follows them by time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import mujoco
import numpy as np
from rlinf.envs.results import EnvError

from rlinf_dexvla.aloha.env import DIM, AlohaEnv

#: Metres from the gripper's link, along it, to where the fingers grip.
TOOL: Final = 0.135
#: Angle below the horizontal at which the right gripper takes the cube (rad).
PITCH: Final = 1.05
#: Where the cube is handed over, centre between the arms, and how high the cube lies on the table (m).
MEETING, RESTING = np.array([0.0, 0.5, 0.3]), 0.02
#: From there to where a hand waits, and to where it goes afterwards (m).
SIDEWAYS: Final = np.array([0.12, 0, 0])
OPEN, CLOSED = 1.0, 0.0
_ARMS: Final = ("left", "right")
#: Joints of an arm in the simulator's state and in the action, each followed by the gripper's.
_QPOS: Final = {"left": 0, "right": 8}
_ACTION: Final = {"left": 0, "right": 7}
#: Of the inverse kinematics: damping, and Newton steps per control step.
_DAMPING, _ITERATIONS = 1e-3, 4


@dataclass(frozen=True)
class Waypoint:
    """Where a tool is at control step `step`: position [3] (m), pitch (down) and roll (rad), gripper 0..1."""

    step: int
    position: np.ndarray
    pitch: float
    roll: float
    gripper: float


class AlohaExpert:
    """`act` follows the plan made at `reset`; `reasoning` says what the present part of it is for.

    Raises EnvError for tasks other than transfer_cube.
    """

    def __init__(self, env: AlohaEnv) -> None:
        if env.config.task != "transfer_cube":
            raise EnvError(f"the expert of aloha does the task transfer_cube, not {env.config.task!r}")
        self.env = env
        self.reasoning = ""
        physics = env.physics
        self._model, self._data = physics.model.ptr, mujoco.MjData(physics.model.ptr)
        self._bodies = {arm: self._model.body(f"vx300s_{arm}/gripper_link").id for arm in _ARMS}
        self._plan: dict[str, list[Waypoint]] = {}

    def reset(self, rng: np.random.Generator | None = None) -> None:
        """Plan the episode that the environment has begun; the expert draws nothing."""
        self._step = 0
        self._data.qpos[:] = self.env.physics.data.qpos
        cube = np.array([*self._data.qpos[16:18], RESTING])
        mujoco.mj_kinematics(self._model, self._data)
        self._plan = {
            "right": _right_arm(self._tool("right")[0], cube),
            "left": _left_arm(self._tool("left")[0]),
        }

    def act(self) -> np.ndarray:
        """The next action, float32 [14]."""
        self._step += 1
        self.reasoning = _phase(self._step)
        action = np.zeros(DIM, np.float32)
        for arm in _ARMS:
            goal = _at(self._plan[arm], self._step)
            at = _ACTION[arm]
            action[at : at + 6] = self._solve(arm, goal)
            action[at + 6] = goal.gripper
        return action

    def _tool(self, arm: str) -> tuple[np.ndarray, np.ndarray]:
        """Position [3] and orientation [3, 3] of a tool in the planned state."""
        body = self._bodies[arm]
        rotation = self._data.xmat[body].reshape(3, 3)
        return self._data.xpos[body] + TOOL * rotation[:, 0], rotation

    def _solve(self, arm: str, goal: Waypoint) -> np.ndarray:
        """Joint angles [6] of the goal, by damped least squares from those of the step before."""
        at = _QPOS[arm]
        joints = self._data.qpos[at : at + 6]
        low, high = self._model.jnt_range[at : at + 6].T
        jacobian = np.zeros((6, self._model.nv))
        for _ in range(_ITERATIONS):
            mujoco.mj_kinematics(self._model, self._data)
            mujoco.mj_comPos(self._model, self._data)
            position, rotation = self._tool(arm)
            error = np.concatenate([goal.position - position, _turn(_rotation(arm, goal), rotation)])
            body = self._bodies[arm]
            mujoco.mj_jac(self._model, self._data, jacobian[:3], jacobian[3:], position, body)
            own = jacobian[:, at : at + 6]
            step = own.T @ np.linalg.solve(own @ own.T + _DAMPING * np.eye(6), error)
            joints[:] = np.clip(joints + step, low, high)
        return joints.copy()


def _right_arm(start: np.ndarray, cube: np.ndarray) -> list[Waypoint]:
    """Take the cube from above, bring it to the middle, let go when the other hand holds it, back off."""
    above = cube + np.array([0, 0, 0.1])
    away = MEETING + SIDEWAYS
    return [
        Waypoint(0, start, 0.0, 0.0, OPEN),
        Waypoint(80, above, PITCH, 0.0, OPEN),
        Waypoint(120, cube, PITCH, 0.0, OPEN),
        Waypoint(140, cube, PITCH, 0.0, CLOSED),
        Waypoint(230, MEETING, PITCH, 0.0, CLOSED),
        Waypoint(290, MEETING, PITCH, 0.0, CLOSED),
        Waypoint(310, MEETING, PITCH, 0.0, OPEN),
        Waypoint(350, away, PITCH, 0.0, OPEN),
        Waypoint(400, away, PITCH, 0.0, OPEN),
    ]


def _left_arm(start: np.ndarray) -> list[Waypoint]:
    """Wait beside the middle with the fingers one above the other, take the cube, back off with it."""
    beside = MEETING - SIDEWAYS
    roll = np.pi / 2
    return [
        Waypoint(0, start, 0.0, 0.0, OPEN),
        Waypoint(120, beside, 0.0, roll, OPEN),
        Waypoint(230, beside, 0.0, roll, OPEN),
        Waypoint(265, MEETING, 0.0, roll, OPEN),
        Waypoint(285, MEETING, 0.0, roll, CLOSED),
        Waypoint(310, MEETING, 0.0, roll, CLOSED),
        Waypoint(350, beside, 0.0, roll, CLOSED),
        Waypoint(400, beside, 0.0, roll, CLOSED),
    ]


#: Until which step a part of the plan lasts, and what it is for.
_PHASES: Final = (
    (80, "move the right gripper above the cube"),
    (120, "lower the right gripper around the cube"),
    (140, "close the right gripper"),
    (230, "carry the cube to the middle"),
    (265, "reach for the cube with the left gripper"),
    (290, "close the left gripper"),
    (310, "open the right gripper"),
)


def _phase(step: int) -> str:
    return next((text for last, text in _PHASES if step <= last), "take the cube away with the left arm")


def _at(plan: Sequence[Waypoint], step: int) -> Waypoint:
    """Linear between the waypoints around a step."""
    last = next((i for i, point in enumerate(plan) if point.step >= step), len(plan) - 1)
    before, after = plan[max(last - 1, 0)], plan[last]
    share = min((step - before.step) / max(after.step - before.step, 1), 1.0)

    def mix(one: Any, other: Any) -> Any:
        return one + share * (other - one)

    return Waypoint(
        step,
        mix(before.position, after.position),
        mix(before.pitch, after.pitch),
        mix(before.roll, after.roll),
        mix(before.gripper, after.gripper),
    )


def _rotation(arm: str, goal: Waypoint) -> np.ndarray:
    """Orientation [3, 3] of a gripper's link: its x axis is where it points, the arms face each other."""
    facing = np.diag([1.0, 1.0, 1.0] if arm == "left" else [-1.0, -1.0, 1.0])
    cos, sin = np.cos(goal.pitch), np.sin(goal.pitch)
    pitch = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
    cos, sin = np.cos(goal.roll), np.sin(goal.roll)
    roll = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    return facing @ pitch @ roll


def _turn(goal: np.ndarray, now: np.ndarray) -> np.ndarray:
    """The rotation vector [3] from `now` to `goal`, to first order."""
    return 0.5 * np.cross(now, goal, axisa=0, axisb=0).sum(axis=0)
