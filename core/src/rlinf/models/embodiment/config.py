"""Configuration that the built-in policies share. Light: imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class PolicyConfig(BaseModel):
    """Keys of every built-in policy."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    state_dim: int = Field(..., ge=1, description="Dimensions of the environment's state vector.")
    init_log_std: float = Field(-1.0, ge=-5, le=2, description="Initial log standard deviation of actions.")
    state_dependent_std: bool = Field(False, description="Predict the log standard deviation per state.")
    value_hidden: tuple[int, ...] = Field((128,), description="Hidden widths of the value head.")
    sft_loss: Literal["l1", "mse", "huber", "nll"] = Field(
        "l1", description="Imitation loss; nll also trains the standard deviation, the others leave it."
    )


class MlpPolicyConfig(PolicyConfig):
    """Subtree `model.mlp_policy`: states in, action chunk out; images and instructions are not looked at."""

    hidden: tuple[int, ...] = Field((256, 256), min_length=1, description="Hidden widths.")


class CnnPolicyConfig(PolicyConfig):
    """Subtree `model.cnn_policy`: image and state in, action chunk out; instructions are not looked at."""

    channels: tuple[int, ...] = Field((16, 32, 64), min_length=1, description="Stride-2 convolutions.")
    hidden: int = Field(256, ge=1, description="Width of the layer that joins image and state.")
