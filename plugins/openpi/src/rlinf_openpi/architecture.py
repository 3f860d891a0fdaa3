"""Sizes of the networks. Light: imports no torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Block(BaseModel):
    """A configuration block: immutable, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class VisionSizes(Block):
    """SigLIP; the defaults are so400m/14 at 224 px."""

    width: int = Field(default=1152, ge=1, description="Width of the patch tokens; a multiple of num_heads.")
    depth: int = Field(default=27, ge=1, description="Blocks.")
    mlp_dim: int = Field(default=4304, ge=1, description="Hidden width of the blocks' MLP.")
    num_heads: int = Field(default=16, ge=1, description="Attention heads.")
    patch_size: int = Field(default=14, ge=1, description="Pixels of a patch's side.")
    image_size: int = Field(
        default=224, ge=1, description="Pixels of an image's side; cameras are resized to it."
    )

    @model_validator(mode="after")
    def _divisible(self) -> VisionSizes:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}"
            )
        return self

    @property
    def tokens(self) -> int:
        """Tokens of one image."""
        return (self.image_size // self.patch_size) ** 2


class GemmaSizes(Block):
    """A stack of Gemma blocks."""

    width: int = Field(ge=2, description="Width of the tokens; even.")
    mlp_dim: int = Field(ge=1, description="Hidden width of the blocks' MLP.")


class Architecture(Block):
    """Sizes of pi0 and pi0.5; the defaults are the published ones (PaliGemma 2B, action expert 300M)."""

    vision: VisionSizes = Field(default=VisionSizes(), description="The vision tower.")
    vlm: GemmaSizes = Field(
        default=GemmaSizes(width=2048, mlp_dim=16384), description="PaliGemma's language model."
    )
    expert: GemmaSizes = Field(default=GemmaSizes(width=1024, mlp_dim=4096), description="The action expert.")
    depth: int = Field(
        default=18, ge=1, description="Blocks of the language model, and of the action expert."
    )
    num_heads: int = Field(default=8, ge=1, description="Query heads of both.")
    num_kv_heads: int = Field(default=1, ge=1, description="Key-value heads of both; divides num_heads.")
    head_dim: int = Field(default=256, ge=2, description="Width of a head; even.")
    vocab_size: int = Field(default=257152, ge=1, description="Rows of the token embedding.")
    rope_theta: float = Field(default=10000.0, gt=1, description="Base of the rotary position embedding.")
    rms_norm_eps: float = Field(default=1e-6, gt=0, description="Epsilon of Gemma's norms.")
    layer_norm_eps: float = Field(default=1e-6, gt=0, description="Epsilon of SigLIP's norms.")
    time_min_period: float = Field(default=4e-3, gt=0, description="Shortest period of the time embedding.")
    time_max_period: float = Field(default=4.0, gt=0, description="Longest period of the time embedding.")

    @model_validator(mode="after")
    def _fit(self) -> Architecture:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if self.head_dim % 2 or self.expert.width % 2:
            raise ValueError(
                f"head_dim {self.head_dim} and expert.width {self.expert.width} must both be even"
            )
        return self
