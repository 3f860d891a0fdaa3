"""The scripted expert: looks at the true state and decides anew at each step, so it recovers from mishaps."""

from __future__ import annotations

from typing import Final

import numpy as np

from rlinf.envs.tabletop import scene
from rlinf.envs.tabletop.env import MAX_STEP, MAX_TURN, TabletopEnv
from rlinf.envs.tabletop.tasks import Task

OPEN, CLOSED = -1.0, 1.0
#: Height at which the hand travels above the objects, and at which it grips and pushes (m).
TRAVEL: Final = 0.085
GRIP: Final = 0.02
#: Height above its goal at which a held object is carried (m).
CLEARANCE: Final = 0.06
#: How far below the top of an object the finger tips aim when they touch it (m).
TOUCH_DEPTH: Final = 0.0275
#: The hand descends when it is that near, horizontally, to where it is going (m).
NEAR: Final = 0.018


class ScriptedExpert:
    """Solves every task of a TabletopEnv; `act` is a function of the simulator's state alone.

    noise_std: standard deviation of Gaussian noise on the action (None: the environment's `expert_noise`).
    task: pursue this task instead of the instructed one (for baselines).
    """

    def __init__(self, env: TabletopEnv, noise_std: float | None = None, task: Task | None = None) -> None:
        self.env = env
        self.noise_std = env.config.expert_noise if noise_std is None else noise_std
        self.task = task
        #: What the last action is for, such as "over the red cube".
        self.reasoning = ""
        self._rng = np.random.default_rng(0)

    def reset(self, rng: np.random.Generator | None = None) -> None:
        """Begin an episode; `rng` draws the noise (default: a fixed one)."""
        self._rng = np.random.default_rng(0) if rng is None else rng

    def act(self) -> np.ndarray:
        """The next action, float32 [7]."""
        task = self.task or self.env.task
        assert task is not None, "reset the environment first"
        goal, grip = getattr(self, f"_{task.name}")(task)
        action = np.zeros(7)
        action[:3] = (goal - self.env.position) / MAX_STEP
        action[:3] /= max(1.0, float(np.abs(action[:3]).max()))
        action[3:6] = -np.array(self.env.rpy) / MAX_TURN
        action[6] = grip
        action += self.noise_std * self._rng.standard_normal(7)
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    def _say(self, what: str) -> None:
        task = self.task or self.env.task
        assert task is not None
        self.reasoning = f"{what} the {self.env.labels[task.target]}"

    def _seen(self, index: int) -> np.ndarray:
        """Where the expert believes an object to be [3] (m)."""
        return self.env.object_positions[index] + np.array(self.env.config.expert_offset)

    def _approach(self, goal: np.ndarray) -> np.ndarray:
        """Towards goal [3]: above the objects while it is far, straight down when it is near."""
        hand = self.env.position
        gap = float(np.hypot(*(goal[:2] - hand[:2])))
        if gap < NEAR:
            self._say("down to")
            return goal
        if hand[2] < TRAVEL - 0.015 and gap > 1.5 * NEAR:
            self._say("up from")
            return np.array([hand[0], hand[1], TRAVEL + 0.02])
        self._say("over to")
        return np.array([goal[0], goal[1], max(TRAVEL, goal[2])])

    def _touch(self, task: Task) -> tuple[np.ndarray, float]:
        goal = self._seen(task.target)
        goal[2] += scene.HALF + scene.TIP - TOUCH_DEPTH
        return self._approach(goal), CLOSED

    def _push(self, task: Task) -> tuple[np.ndarray, float]:
        block, hand = self._seen(task.target), self.env.position
        way = np.array([*task.direction, 0.0])
        offset = hand - block
        along = float(offset @ way)
        across = float(np.hypot(*(offset - along * way)[:2]))
        if along < -scene.HALF and across < 0.015 and hand[2] < GRIP + 0.02:
            self._say("push")
            return block + 0.04 * way, CLOSED
        start = block - 0.05 * way
        start[2] = GRIP
        return self._approach(start), CLOSED

    def _pick(self, task: Task) -> tuple[np.ndarray, float]:
        block = self._seen(task.target)
        if self._holds(task.target):
            self._say("lift")
            return self.env.position + np.array([0.0, 0.0, 0.05]), CLOSED
        return self._grasp(block)

    def _grasp(self, block: np.ndarray) -> tuple[np.ndarray, float]:
        hand = self.env.position
        block[2] = max(block[2], GRIP)
        offset = np.abs(hand - block)
        ready = offset[0] < 0.012 and offset[1] < 0.01 and offset[2] < 0.008
        if not ready:
            return self._approach(block), OPEN
        self._say("grip")
        return block, CLOSED

    def _holds(self, index: int) -> bool:
        """The object is between the closed fingers."""
        offset = np.abs(self.env.position - self._seen(index))
        closed = 0.2 < self.env.opening < 0.7
        return bool(closed and offset.max() < 0.022 and self.env.touched()[index])

    def _place(self, task: Task) -> tuple[np.ndarray, float]:
        return self._carry(task, self.env.zone, GRIP)

    def _stack(self, task: Task) -> tuple[np.ndarray, float]:
        return self._carry(task, self._seen(task.base)[:2], 3 * scene.HALF)

    def _carry(self, task: Task, place: np.ndarray, height: float) -> tuple[np.ndarray, float]:
        self._say("carry")
        hand, block = self.env.position, self._seen(task.target)
        there = float(np.hypot(*(block[:2] - place))) < 0.015
        if there and abs(block[2] - height) < 0.006:
            return hand + np.array([0.0, 0.0, 0.05 if self.env.opening > 0.75 else 0.0]), OPEN
        if not self._holds(task.target):
            return self._grasp(block)
        rise = height + CLEARANCE - block[2]
        if there:
            return np.array([*(hand[:2] + place - block[:2]), height + hand[2] - block[2]]), CLOSED
        if rise > 0.015:
            return hand + np.array([0.0, 0.0, rise + 0.01]), CLOSED
        return hand + np.array([*(place - block[:2]), rise]), CLOSED
