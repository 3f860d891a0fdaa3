"""Configuration subtree `model.tiny_vla`. Light: imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class TinyVlaConfig(BaseModel):
    """A small vision-language-action transformer. Any image size works; 64 px is what the demo uses."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    state_dim: int = Field(..., ge=1, description="Dimensions of the environment's state vector.")
    dim: int = Field(64, ge=16, description="Width of the tokens; a multiple of num_heads.")
    depth: int = Field(2, ge=1, description="Transformer blocks.")
    num_heads: int = Field(4, ge=1, description="Attention heads.")
    mlp_ratio: int = Field(2, ge=1, description="Hidden width of the blocks' MLP, in units of dim.")
    stem_channels: tuple[int, int] = Field((16, 32), description="Channels of the first two convolutions.")
    hash_rows: int = Field(512, ge=16, description="Rows of the table of hashed words; two rows make a word.")
    max_instruction_tokens: int = Field(24, ge=2, description="Words of the longest instruction, plus one.")
    init_log_std: float = Field(-1.0, ge=-5, le=2, description="Initial log standard deviation of actions.")
    state_dependent_std: bool = Field(False, description="Predict the log standard deviation per state.")
    value_hidden: tuple[int, ...] = Field((128,), description="Hidden widths of the value head.")
    sft_loss: Literal["l1", "mse", "huber", "nll"] = Field(
        "mse", description="Imitation loss; nll also trains the standard deviation, the others leave it."
    )

    @model_validator(mode="after")
    def _divisible(self) -> TinyVlaConfig:
        if self.dim % self.num_heads:
            raise ValueError(f"dim {self.dim} is not a multiple of num_heads {self.num_heads}")
        return self
