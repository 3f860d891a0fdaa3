"""Configuration of the MetaWorld environment: the subtree `env.metaworld`. Light: imports no simulator."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from rlinf.envs.metaworld.tasks import INSTRUCTIONS

Camera = Literal["corner", "corner2", "corner3", "corner4", "topview", "behindGripper", "gripperPOV"]


class MetaworldConfig(BaseModel):
    """MetaWorld tasks with a camera image, an instruction, and the hand's own state."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tasks: tuple[str, ...] = Field(
        ("button-press-topdown-v3", "drawer-open-v3", "door-unlock-v3"),
        min_length=1,
        description="Tasks of the run; the seed of an episode decides which one it is.",
    )
    image_size: int = Field(64, ge=16, le=480, description="Height and width of the camera image in pixels.")
    render_size: int = Field(256, ge=16, le=2000, description="The same, of the images made for people.")
    camera: Camera = Field(
        "corner2", description="Camera of the MetaWorld scene; an upside-down one is turned upright."
    )
    fovy: float | None = Field(
        25.0,
        gt=1,
        lt=120,
        description="Vertical field of view in degrees; null: the camera's own.",
    )
    renderer: Literal["auto", "egl", "osmesa"] = Field(
        "auto", description="OpenGL backend; auto takes EGL where it is installed, else OSMesa."
    )
    max_episode_steps: int = Field(
        500, ge=1, le=500, description="Steps after which an episode is cut off; the benchmark's own is 500."
    )
    expert_speed: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of full speed at which the expert moves the hand, as a careful teleoperator does.",
    )
    expert_offset: tuple[float, float, float] = Field(
        (0.0, 0.0, 0.0),
        description="By how much the expert mistakes the place of what it handles, in metres.",
    )
    dense_reward: bool = Field(
        False,
        description="Add the change of MetaWorld's shaped reward, scaled to 0..1, to the sparse reward.",
    )

    @field_validator("tasks")
    @classmethod
    def _known(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        for task in tasks:
            if task not in INSTRUCTIONS:
                close = get_close_matches(task, INSTRUCTIONS, n=1, cutoff=0.0)[0]
                raise ValueError(f"unknown MetaWorld task {task!r}; did you mean {close!r}?")
        if len(set(tasks)) != len(tasks):
            raise ValueError(f"a task is named twice: {', '.join(tasks)}")
        return tasks
