"""Configuration of the tabletop simulator (pydantic only: neither mujoco nor torch is imported)."""

from __future__ import annotations

from typing import Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

TaskName = Literal["touch", "push", "pick", "place", "stack"]
#: Every task, in the order in which the documentation lists them.
TASK_NAMES: Final[tuple[TaskName, ...]] = get_args(TaskName)


class TabletopConfig(BaseModel):
    """The subtree `env.tabletop`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image_size: int = Field(
        default=64, ge=16, le=512, description="Height and width of main_images in pixels."
    )
    tasks: tuple[TaskName, ...] = Field(
        default=("touch", "push", "pick"),
        min_length=1,
        description="Enabled tasks (touch, push, pick, place, stack); each episode draws one of them.",
    )
    task_weights: tuple[float, ...] | None = Field(
        default=None, description="How often each of the tasks is drawn, relatively; null: all alike."
    )
    num_objects: int = Field(
        default=3, ge=1, le=4, description="Objects on the table, each of another colour."
    )
    max_episode_steps: int = Field(
        default=40, ge=1, description="Control steps after which an episode is truncated."
    )
    substeps: int = Field(default=8, ge=1, le=40, description="Physics steps of 10 ms in one control step.")
    renderer: Literal["raycast", "egl", "osmesa"] = Field(
        default="raycast",
        description="raycast needs no system library; egl and osmesa draw with MuJoCo's OpenGL renderer.",
    )
    shadows: bool = Field(default=True, description="Whether the ray caster draws shadows on the table.")
    expert_offset: tuple[float, float, float] = Field(
        default=(0.0, 0.0, 0.0),
        description="Metres (x, y, z) by which the expert misjudges where objects are: a bad calibration.",
    )
    expert_noise: float = Field(
        default=0.0,
        ge=0.0,
        le=2.0,
        description="Standard deviation of the Gaussian noise on the expert's actions.",
    )

    @model_validator(mode="after")
    def _possible(self) -> TabletopConfig:
        if len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"tasks names one task twice: {', '.join(self.tasks)}")
        weights = self.task_weights
        if weights is not None and (len(weights) != len(self.tasks) or min(weights) <= 0):
            raise ValueError(f"task_weights: expected {len(self.tasks)} positive numbers, one per task")
        if "stack" in self.tasks and self.num_objects < 2:
            raise ValueError("the task stack needs num_objects of at least 2")
        return self
