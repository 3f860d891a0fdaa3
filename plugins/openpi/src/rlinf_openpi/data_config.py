"""Data configurations: how the data of a robot or simulator become the network's inputs, as YAML files.

Light: imports no torch.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Final, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from rlinf_openpi.architecture import Block

#: The shipped ones.
FOLDER: Final = Path(__file__).parent / "data_configs"
#: Cameras of the published checkpoints, in the order of their tokens.
CAMERAS: Final = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
Camera = Literal["base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"]


class DatasetKeys(Block):
    """Names in a LeRobot dataset."""

    cameras: dict[Camera, str] = Field(description="Camera of the network -> image or video of the dataset.")
    state: list[str] = Field(min_length=1, description="Vectors that, joined, are the state.")
    actions: list[str] = Field(min_length=1, description="Vectors that, joined, are the action.")
    state_indices: list[int] | None = Field(
        default=None, description="Dimensions of the joined state that are used, in this order; null: all."
    )
    action_indices: list[int] | None = Field(default=None, description="Likewise of the joined action.")


class DataConfig(Block):
    """One data configuration."""

    pi05: bool = Field(description="pi0.5 (adaptive norms, state in the prompt or nowhere); else pi0.")
    action_horizon: int = Field(ge=1, description="Actions of the network's chunk.")
    max_token_len: int = Field(ge=2, description="Tokens of the longest prompt.")
    discrete_state_input: bool = Field(
        default=False, description="pi0.5: the normalised state is part of the prompt, in 256 bins."
    )
    normalization: Literal["zscore", "quantile", "none"] = Field(
        description="Of state and actions: mean and std, or q01 and q99 to [-1, 1]."
    )
    asset_id: str | None = Field(
        default=None, description="Folder of norm_stats.json within assets/ of a checkpoint."
    )
    cameras: dict[Camera, str] = Field(
        description="Camera of the network -> main_images, wrist_images, or extra_view_images.N of the "
        "environment's observation."
    )
    state_indices: list[int] | None = Field(
        default=None, description="Dimensions of the environment's state that the network sees; null: all."
    )
    delta_mask: list[int] | None = Field(
        default=None,
        description="Actions are relative to the state: [6, -1] makes 6 dimensions relative and leaves 1.",
    )
    default_prompt: str | None = Field(
        default=None, description="The instruction of every sample; null: the task of the data."
    )
    value_hidden: tuple[int, ...] = Field(
        default=(512, 256, 128), description="Hidden widths of the value head."
    )
    dataset: DatasetKeys = Field(description="Names in a LeRobot dataset.")

    @model_validator(mode="after")
    def _consistent(self) -> DataConfig:
        if self.discrete_state_input and not self.pi05:
            raise ValueError("discrete_state_input is pi0.5's; set pi05: true or leave it out")
        if list(self.cameras) != list(self.dataset.cameras):
            raise ValueError(
                f"cameras names {', '.join(self.cameras)}, dataset.cameras {', '.join(self.dataset.cameras)}"
            )
        order = [CAMERAS.index(camera) for camera in self.cameras]
        if order != sorted(order):
            raise ValueError(f"cameras: expected the order of the checkpoints: {', '.join(CAMERAS)}")
        return self


def shipped_names() -> list[str]:
    """Names of the shipped data configurations."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_data_config(name: str) -> DataConfig:
    """The shipped data configuration of this name, or that of a file (`name` ends in .yaml).

    Raises:
        ValueError: there is none, or it is not as `DataConfig` says; names the file and the keys.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file():
        if path.parent != FOLDER:
            raise ValueError(f"model.openpi.config_name: no such file: {path}")
        known = shipped_names()
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {close[0]}?" if close else " A file of your own is named by a path in .yaml."
        raise ValueError(f"model.openpi.config_name: expected one of {', '.join(known)}; got {name!r}.{hint}")
    try:
        return DataConfig.model_validate(_read(path))
    except ValidationError as error:
        found = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'the file'}: {e['msg']}"
            for e in error.errors(include_url=False)
        )
        raise ValueError(f"data configuration {path}: {found}") from None


def _read(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"data configuration {path} cannot be read: {error}") from None
