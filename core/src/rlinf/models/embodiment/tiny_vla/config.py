"""Configuration subtree `model.tiny_vla`. Light: imports no torch."""

from __future__ import annotations

from pydantic import Field, model_validator

from rlinf.models.embodiment.config import PolicyConfig


class TinyVlaConfig(PolicyConfig):
    """A small vision-language-action transformer. Images may have any size from 16 px; the demo uses 64."""

    dim: int = Field(64, ge=16, description="Width of the tokens; a multiple of num_heads.")
    depth: int = Field(2, ge=1, description="Transformer blocks.")
    num_heads: int = Field(4, ge=1, description="Attention heads.")
    mlp_ratio: int = Field(2, ge=1, description="Hidden width of the blocks' MLP, in units of dim.")
    stem_channels: tuple[int, int] = Field(
        (16, 32), description="Channels of the first convolution, and of the two after it."
    )
    visual_tokens: int = Field(8, ge=1, description="Attention maps that read the image out, a token each.")
    hash_rows: int = Field(512, ge=16, description="Rows of the table of hashed words; two rows make a word.")
    max_instruction_tokens: int = Field(24, ge=2, description="Words of the longest instruction, plus one.")

    @model_validator(mode="after")
    def _divisible(self) -> TinyVlaConfig:
        if self.dim % self.num_heads:
            raise ValueError(f"dim {self.dim} is not a multiple of num_heads {self.num_heads}")
        return self
