"""Configuration subtree `env.aloha`. Light: imports no simulator."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Camera = Literal["top", "angle", "front_close", "left_pillar", "right_pillar", "left_wrist", "right_wrist"]


class AlohaConfig(BaseModel):
    """Two arms of ALOHA on a table (gym-aloha)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: Literal["transfer_cube", "insertion"] = Field(
        default="transfer_cube", description="Hand the cube over, or put the peg into the socket."
    )
    max_episode_steps: int = Field(default=400, ge=1, description="Control steps of 20 ms.")
    camera: Camera = Field(default="top", description="Camera of main_images.")
    views: tuple[Camera, ...] = Field(
        default=(), description="Cameras of extra_view_images, such as [left_wrist, right_wrist]."
    )
    height: int = Field(default=120, ge=16, description="Pixels of the images.")
    width: int = Field(default=160, ge=16, description="Pixels of the images.")
    stage_reward: bool = Field(
        default=False,
        description="Also reward progress: a quarter for each of the task's four stages (touch, lift, ...).",
    )
    gl: Literal["auto", "egl", "osmesa"] = Field(default="auto", description="OpenGL backend.")
