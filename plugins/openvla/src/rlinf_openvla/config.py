"""Configuration subtrees `model.openvla` and `model.openvla_oft`. Light: imports no torch."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

#: A camera's key in the observation: a plain one, or a view of `extra_view_images`.
CAMERA_KEY = re.compile(r"main_images|wrist_images|extra_view_images\.\d+")


class TowerSizes(BaseModel):
    """Sizes of one vision transformer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    depth: int = Field(ge=2, description="Blocks, counting the last one, which is never computed.")
    dim: int = Field(ge=1, description="Width of a token; a multiple of heads.")
    heads: int = Field(ge=1, description="Attention heads.")
    mlp_hidden: int = Field(ge=1, description="Hidden width of the blocks' MLP.")
    patch_size: int = Field(default=14, ge=1, description="Pixels.")
    registers: int | None = Field(
        default=None, ge=0, description="Registers after the class token; null: no class token either."
    )
    layer_scale: bool = Field(default=False, description="Learned factors after attention and MLP.")


class AugmentConfig(BaseModel):
    """Random colours of the images in SFT, drawn for each image; the defaults are the originals'."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    brightness: float = Field(
        default=0.2, ge=0, le=1, description="Up to this share of full white is added or taken away."
    )
    contrast: float = Field(default=0.2, ge=0, le=1, description="Contrast is multiplied by up to 1 +- this.")
    saturation: float = Field(
        default=0.2, ge=0, le=1, description="Saturation is multiplied by up to 1 +- this."
    )
    hue: float = Field(default=0.05, ge=0, le=0.5, description="Hues turn by up to this share of the circle.")


class VlaConfig(BaseModel):
    """What both models share."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    unnorm_key: str | None = Field(
        default=None,
        description="Dataset whose statistics un-normalise actions; null: the checkpoint's only one.",
    )
    statistics: str | None = Field(
        default=None,
        description="A dataset_statistics.json, or what `rlinf data stats` wrote, instead of the "
        "checkpoint's; null, and none there: actions are in [-1, 1] as they are.",
    )
    action_token_len: int | None = Field(
        default=None, ge=1, description="Tokens per action; must equal model.action_dim."
    )
    action_chunks_len: int | None = Field(
        default=None, ge=1, description="Actions per call; must equal model.num_action_chunks."
    )
    vocab_size: int | None = Field(
        default=None,
        ge=1,
        description="Rows of the token embedding, or without the padding to a multiple of 64; must be the "
        "checkpoint's.",
    )
    hidden_size: int | None = Field(
        default=None, ge=1, description="Width of the language model; must be the checkpoint's."
    )
    image_size: list[int] | None = Field(
        default=None, description="[height, width] that the vision towers see; must be the checkpoint's."
    )
    llm: dict[str, Any] = Field(
        default={},
        description="Llama's sizes (names of transformers' LlamaConfig) where there is no checkpoint.",
    )
    vision_towers: list[TowerSizes] | None = Field(
        default=None,
        description="Sizes of DINOv2 and SigLIP where there is no checkpoint; null: the published.",
    )
    tokenizer: str | None = Field(
        default=None, description="Folder of the tokenizer, or words; null: the checkpoint's folder."
    )
    prompt_style: Literal["openvla", "openvla_v01"] = Field(
        default="openvla", description="Text around the instruction."
    )
    max_prompt_tokens: int = Field(default=64, ge=1, description="A longer prompt is an error.")
    cameras: list[str] = Field(
        default=["main_images"],
        min_length=1,
        description="Views in order: main_images, wrist_images, extra_view_images.N.",
    )
    center_crop: bool = Field(
        default=False,
        description="Keep the middle 90 % of the image's area, for checkpoints that were trained on crops; "
        "SFT with augment crops elsewhere.",
    )
    augment: AugmentConfig | None = Field(
        default=None,
        description="SFT: change the images at random, as the originals do; {} takes their figures, null: "
        "as they are.",
    )
    attn_implementation: Literal["sdpa", "eager"] = Field(
        default="sdpa", description="Attention of the language model."
    )
    low_cpu_mem_usage: bool = Field(
        default=True,
        description="Take the checkpoint's tensors as weights, without drawing initial ones first.",
    )
    trust_remote_code: bool = Field(default=False, description="Only false: no code of a checkpoint is run.")
    micro_batch_size: int | None = Field(default=None, description="Only null: it is the trainer's.")
    val_micro_batch_size: int | None = Field(
        default=None, description="Only null: a rollout takes all environments of a stage at once."
    )
    temperature: float = Field(default=1.0, gt=0, description="Of the draws in rollouts, and in training.")
    top_k: int | None = Field(
        default=None, ge=1, description="Draw from the k likeliest action bins; null: all."
    )
    value_hidden: list[int] = Field(default=[512, 128], description="Hidden widths of the value head.")

    @field_validator("attn_implementation", mode="before")
    @classmethod
    def _attention(cls, value: Any) -> Any:
        if value == "flash_attention_2":
            raise ValueError(
                "flash_attention_2 takes no mask, and prompts of several lengths need one (so does the "
                "bidirectional attention of openvla_oft): use sdpa, which picks torch's fused kernels"
            )
        return value

    @field_validator("micro_batch_size")
    @classmethod
    def _trainers(cls, value: int | None) -> None:
        if value is not None:
            raise ValueError("is refused: the trainer has it, actor.micro_batch_size")

    @field_validator("val_micro_batch_size")
    @classmethod
    def _no_validation_batch(cls, value: int | None) -> None:
        if value is not None:
            raise ValueError(
                "is refused: evaluation acts on the environments of a stage at once; env.num_envs and "
                "rollout.pipeline_stages set how many that are"
            )

    @field_validator("trust_remote_code")
    @classmethod
    def _no_remote_code(cls, value: bool) -> bool:
        if value:
            raise ValueError(
                "true is refused: this plugin is the model's code, and code inside a checkpoint is never "
                "run; remove the key or write false"
            )
        return value

    @field_validator("image_size")
    @classmethod
    def _square(cls, value: list[int] | None) -> list[int] | None:
        if value is not None and (len(value) != 2 or value[0] != value[1] or value[0] < 1):
            raise ValueError(f"expected [size, size], the same number twice; got {value}")
        return value

    @field_validator("vision_towers")
    @classmethod
    def _two_towers(cls, value: list[TowerSizes] | None) -> list[TowerSizes] | None:
        if value is not None and len(value) != 2:
            raise ValueError(f"expected two vision towers, DINOv2 and SigLIP; got {len(value)}")
        return value

    @model_validator(mode="after")
    def _known_cameras(self) -> VlaConfig:
        for key in self.cameras:
            if not CAMERA_KEY.fullmatch(key):
                raise ValueError(
                    f"cameras: expected main_images, wrist_images or extra_view_images.N, got {key!r}"
                )
        return self


class OpenvlaConfig(VlaConfig):
    """OpenVLA: one view, one action token after the other."""

    @field_validator("cameras")
    @classmethod
    def _one_view(cls, value: list[str]) -> list[str]:
        if len(value) != 1:
            raise ValueError(f"OpenVLA sees one view; got {len(value)} (openvla_oft takes several)")
        return value


class OpenvlaOftConfig(VlaConfig):
    """OpenVLA-OFT: several views and the state, all actions of a chunk at once."""

    head: Literal["l1", "tokens"] = Field(
        default="l1",
        description="l1: continuous actions by regression (in RL a Gaussian around them); tokens: bins.",
    )
    proprio_dim: int = Field(default=0, ge=0, description="Dimensions of the state; 0: it is not read.")
    attention: Literal["bidirectional", "causal"] = Field(
        default="bidirectional", description="causal: as checkpoints are that RLinf trained without the fork."
    )
    stop_token: bool = Field(
        default=True, description="The original's end-of-text token after the action slots; RLinf has none."
    )
    head_hidden: int | None = Field(
        default=None, ge=1, description="Width of the l1 head; null: that of the language model."
    )
    normalization: Literal["bounds_q99", "bounds"] = Field(
        default="bounds_q99", description="Bounds of the statistics: quantiles, or smallest and largest."
    )
    init_log_std: float = Field(
        default=-2.0, ge=-5, le=2, description="Initial log standard deviation of the l1 head in RL."
    )
