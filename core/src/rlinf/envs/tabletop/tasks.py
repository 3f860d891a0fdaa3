"""What an episode asks for: instruction templates, the drawn task, and the rules of success and failure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from rlinf.envs.tabletop.config import TASK_NAMES
from rlinf.envs.tabletop.scene import COLORS, HALF, TABLE, TABLE_CENTRE, WORKSPACE_LOW, ZONE_RADIUS

SHAPES: Final = ("cube", "cylinder")
#: Unit vectors of the push directions, as the camera sees them.
DIRECTIONS: Final[dict[str, tuple[float, float]]] = {
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "forward": (0.0, 1.0),
    "backward": (0.0, -1.0),
}
#: {a}: the object, {b}: the object to stack on, {d}: the direction.
TEMPLATES: Final[dict[str, tuple[str, ...]]] = {
    "touch": ("touch the {a}", "tap the {a}", "reach for the {a} and touch it"),
    "push": ("push the {a} {d}", "slide the {a} {d}", "move the {a} {d} by pushing it"),
    "pick": ("pick up the {a}", "lift the {a}", "grasp the {a} and raise it"),
    "place": ("place the {a} on the target", "put the {a} onto the purple target"),
    "stack": ("stack the {a} on the {b}", "put the {a} on top of the {b}"),
}
#: Metres. How far a push must go, how far it may stray, how high a lift must be.
PUSH_DISTANCE: Final = 0.05
PUSH_STRAY: Final = 0.04
LIFT_HEIGHT: Final = 0.05
#: How far another object may be moved, and the touched one.
WRONG_TOLERANCE: Final = 0.02
TOUCH_TOLERANCE: Final = 0.03
#: Horizontal tolerance of place and stack, and the one of a resting height.
PLACE_TOLERANCE: Final = 0.6 * ZONE_RADIUS
STACK_TOLERANCE: Final = 0.022
REST_TOLERANCE: Final = 0.008


@dataclass(frozen=True, kw_only=True)
class Task:
    """One instruction and what it means.

    target: index of the object to act on. base: index of the object to stack on, -1 for none.
    direction: horizontal unit vector of a push, zeros for the other tasks.
    """

    name: str
    instruction: str
    target: int
    base: int = -1
    direction: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What the rules look at after a control step.

    start, now: object centres [N, 3] (m) at reset and now. touched [N] bool: in contact with the hand.
    zone: centre of the target zone [2] (m).
    """

    start: np.ndarray
    now: np.ndarray
    touched: np.ndarray
    zone: np.ndarray


def vocabulary() -> list[str]:
    """All words that instructions can hold, sorted."""
    text = " ".join(phrase for phrases in TEMPLATES.values() for phrase in phrases)
    words = set(re.sub(r"\{.\}", " ", text).split())
    return sorted(words | set(COLORS) | set(SHAPES) | set(DIRECTIONS))


def instruction(name: str, variant: int, *, a: str, b: str = "", d: str = "") -> str:
    """The text of a template; a, b: object names ("red cube"), d: a direction."""
    return TEMPLATES[name][variant].format(a=a, b=b, d=d)


def draw_task(
    rng: np.random.Generator,
    names: Sequence[str],
    labels: Sequence[str],
    centres: np.ndarray,
    weights: Sequence[float] | None = None,
) -> Task | None:
    """Draw task, object and wording; None where the drawn push has no free way in any direction.

    labels: the objects' names; centres [N, 2]: their places. weights: relative frequencies of `names`.
    """
    shares = None if weights is None else np.array(weights) / sum(weights)
    name = names[int(rng.choice(len(names), p=shares))]
    target = int(rng.integers(len(labels)))
    variant = int(rng.integers(len(TEMPLATES[name])))
    if name == "push":
        free = [d for d, way in DIRECTIONS.items() if way_is_free(target, np.array(way), centres)]
        if not free:
            return None
        word = free[rng.integers(len(free))]
        text = instruction(name, variant, a=labels[target], d=word)
        return Task(name=name, instruction=text, target=target, direction=DIRECTIONS[word])
    if name == "stack":
        base = int(rng.choice([i for i in range(len(labels)) if i != target]))
        text = instruction(name, variant, a=labels[target], b=labels[base])
        return Task(name=name, instruction=text, target=target, base=base)
    return Task(name=name, instruction=instruction(name, variant, a=labels[target]), target=target)


def way_is_free(target: int, way: np.ndarray, centres: np.ndarray) -> bool:
    """Whether the hand fits behind the object and the object can slide 9 cm without meeting another."""
    others = np.delete(centres, target, axis=0) - centres[target]
    along, across = others @ way, np.abs(others @ np.array([-way[1], way[0]]))
    end = centres[target] + 0.09 * way
    on_table = abs(end[0]) < TABLE[0] - 0.1 and WORKSPACE_LOW[1] < end[1] < -WORKSPACE_LOW[1]
    behind = centres[target] - 0.06 * way
    reachable = abs(behind[0]) < 0.21 and -0.185 < behind[1] < 0.175
    blocked = (across < 0.055) & (along > -0.10) & (along < 0.15)
    return bool(on_table and reachable and not blocked.any())


def outcome(task: Task, state: Situation) -> tuple[bool, str]:
    """(success, reason of failure); (False, "") while neither is decided."""
    moved = np.linalg.norm(state.now - state.start, axis=1)
    others = np.ones(len(moved), bool)
    others[task.target] = False
    limit = np.full(len(moved), WRONG_TOLERANCE)
    if task.base >= 0:
        limit[task.base] = TOUCH_TOLERANCE
    if (others & (moved > limit)).any():
        return False, "another object was moved"
    if (np.abs(state.now[:, :2] - TABLE_CENTRE) > TABLE).any():
        return False, "an object left the table"
    shift = state.now[task.target] - state.start[task.target]
    if task.name == "touch":
        return _touch(task, state, float(moved[task.target]), others)
    if task.name == "push":
        return _push(task, shift)
    if task.name == "pick":
        return bool(shift[2] > LIFT_HEIGHT), ""
    return _set_down(task, state), ""


def _touch(task: Task, state: Situation, moved: float, others: np.ndarray) -> tuple[bool, str]:
    if (state.touched & others).any():
        return False, "another object was touched"
    if moved > TOUCH_TOLERANCE:
        return False, "the object was pushed away instead of touched"
    return bool(state.touched[task.target]), ""


def _push(task: Task, shift: np.ndarray) -> tuple[bool, str]:
    way = np.array(task.direction)
    along = float(shift[:2] @ way)
    across = abs(float(shift[0] * way[1] - shift[1] * way[0]))
    if across > PUSH_STRAY or along < -PUSH_STRAY:
        return False, "the object was pushed in another direction"
    if shift[2] > PUSH_STRAY:
        return False, "the object was lifted instead of pushed"
    return along > PUSH_DISTANCE, ""


def _set_down(task: Task, state: Situation) -> bool:
    """Released, resting, and above the middle of the zone or of the base."""
    x, y, z = state.now[task.target]
    goal, height, tolerance = state.zone, HALF, PLACE_TOLERANCE
    if task.base >= 0:
        goal, height, tolerance = state.now[task.base, :2], 3 * HALF, STACK_TOLERANCE
    near = float(np.hypot(x - goal[0], y - goal[1])) < tolerance
    return near and abs(float(z) - height) < REST_TOLERANCE and not state.touched[task.target]


assert set(TEMPLATES) == set(TASK_NAMES)
