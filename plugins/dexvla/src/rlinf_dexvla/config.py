"""Configuration subtree `model.dexvla`. Light: imports no torch."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

#: A camera's key in the observation: a plain one, or a view of `extra_view_images`.
CAMERA_KEY = re.compile(r"main_images|wrist_images|extra_view_images\.\d+")


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CameraConfig(_Block):
    """One camera: where its image comes from, and the size at which the model sees it."""

    key: str = Field(
        default="main_images",
        description="main_images, wrist_images or extra_view_images.N (view N of extra_view_images).",
    )
    name: str | None = Field(
        default=None, description="Name of the camera in datasets, such as cam_high; null: the key."
    )
    height: int = Field(
        default=224, ge=28, description="Pixels; rounded to a multiple of the vision tower's patch."
    )
    width: int = Field(default=224, ge=28, description="Pixels; rounded likewise.")

    @model_validator(mode="after")
    def _known_key(self) -> CameraConfig:
        if not CAMERA_KEY.fullmatch(self.key):
            raise ValueError(
                f"key: expected main_images, wrist_images or extra_view_images.N, got {self.key!r}"
            )
        return self

    @property
    def dataset_name(self) -> str:
        return self.name or self.key


class VlmConfig(_Block):
    """The vision-language model, where `model_path` names no folder with a config.json."""

    family: Literal["qwen2_vl", "qwen2_5_vl", "qwen3_vl"] = Field(
        default="qwen2_vl", description="Architecture; sizes default to the family's smallest (2B, 3B, 2B)."
    )
    text: dict[str, Any] = Field(
        default={}, description="Changes to the language model's configuration (names of transformers)."
    )
    vision: dict[str, Any] = Field(default={}, description="Changes to the vision tower's configuration.")


class HeadConfig(_Block):
    """A size of ScaleDP of one's own."""

    depth: int = Field(..., ge=1, description="Transformer blocks.")
    width: int = Field(..., ge=8, description="Width of a token; a multiple of num_heads.")
    num_heads: int = Field(..., ge=1, description="Attention heads.")
    mlp_ratio: float = Field(
        default=4.0, gt=0, description="Hidden width of the blocks' MLP, in units of width."
    )

    @model_validator(mode="after")
    def _divisible(self) -> HeadConfig:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        return self


class RlConfig(_Block):
    """Reinforcement learning of the denoising chain (DPPO, Ren et al. 2024, arXiv:2409.00588)."""

    finetuned_steps: int | None = Field(
        default=None, ge=1, description="The last so many denoising steps are trained; null: all of them."
    )
    eta: float = Field(default=1.0, gt=0, le=1, description="Scale of DDIM's noise in the trained steps.")
    min_std: float = Field(
        default=0.1, gt=0, description="Floor of the noise's standard deviation (the last step's own is 0)."
    )
    step_discount: float = Field(
        default=0.99,
        gt=0,
        le=1,
        description="Advantage of a denoising step = advantage * discount^(steps after it).",
    )
    clip_base: float = Field(
        default=0.1,
        gt=0,
        le=1,
        description="Clip of the noisiest trained step, relative to that of the last; "
        "between them it grows exponentially.",
    )
    train_reasoning: bool = Field(
        default=False, description="Sample the reasoning text and train it by its tokens' log-probabilities."
    )
    temperature: float = Field(
        default=1.0, gt=0, description="Of the reasoning's tokens, when it is sampled."
    )
    top_k: int | None = Field(default=None, ge=1, description="Tokens to sample from; null: all.")


class DexvlaConfig(_Block):
    """DexVLA: a Qwen vision-language model that reasons in text, and ScaleDP, the expert that acts."""

    state_dim: int = Field(..., ge=1, description="Dimensions of the robot's state.")
    prediction_horizon: int | None = Field(
        default=None,
        ge=1,
        description="Steps of a predicted chunk, of which num_action_chunks are executed; null: as many.",
    )
    use_vlm: bool = Field(
        default=True, description="false: stage 1, ScaleDP alone; it sees the state, neither image nor text."
    )
    vlm: VlmConfig = Field(default=VlmConfig(), description="The vision-language model.")
    tokenizer: str | None = Field(
        default=None,
        description="Folder with a tokenizer, or `words` (some fifty words and bytes, for models from random "
        "weights); null: that of model_path, `words` without one.",
    )
    system_prompt: str | None = Field(
        default="You are a helpful assistant.",
        description="System message of the chat template; null: none (Qwen3-VL).",
    )
    cameras: tuple[CameraConfig, ...] = Field(
        default=(CameraConfig(),), min_length=1, description="Cameras in the order of the prompt."
    )
    max_prompt_tokens: int = Field(
        default=1024, ge=8, description="Longest prompt, image tokens included; a longer one is refused."
    )
    use_reasoning: bool = Field(
        default=True, description="Reason in text before acting; false: an empty answer."
    )
    max_reasoning_tokens: int = Field(
        default=256, ge=1, description="Tokens of the longest generated answer."
    )
    using_film: bool = Field(default=True, description="Modulate the condition by the reasoning (FiLM).")
    last_token_hidden: bool = Field(
        default=True,
        description="When acting, include the hidden state of the answer's last token, as training does; "
        "false: leave it out, as the original's evaluate() does.",
    )
    llm_loss_weight: float = Field(default=1.0, ge=0, description="Weight of the language loss in SFT.")
    padded_in_mean: bool = Field(
        default=False,
        description="SFT: padded steps count in the action loss's denominator, as in the original.",
    )
    policy_head_size: Literal["S", "B", "L", "XL", "H"] = Field(default="H", description="Size of ScaleDP.")
    policy_head: HeadConfig | None = Field(
        default=None, description="Another size, instead of policy_head_size."
    )
    timestep_frequencies: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="bfloat16 repeats the rounding of the original's code: for checkpoints trained with it.",
    )
    num_train_timesteps: int = Field(default=100, ge=1, description="Noise levels of training.")
    num_inference_timesteps: int = Field(default=10, ge=1, description="Denoising steps when acting.")
    load_pretrain_dit: str | None = Field(
        default=None,
        description="ScaleDP of stage 1: the original's file, a safetensors file, or a checkpoint of a run.",
    )
    freeze_vision_tower: bool = Field(default=False, description="The vision tower does not train.")
    freeze_backbone: bool = Field(
        default=False, description="The language model does not train; the vision tower has a key of its own."
    )
    stats: str | None = Field(
        default=None,
        description="How states and actions are normalised: norm_stats.json of `rlinf data stats`, or the "
        "original's dataset_stats.pkl; null: dataset_stats.pkl in model_path, or not at all.",
    )
    delta_control: bool = Field(
        default=False,
        description="Predict differences of one action to the next; acting adds them to the measured state.",
    )
    augment: bool = Field(
        default=False, description="SFT: random crops, rotations and colours of the images, as the original."
    )
    value_hidden: tuple[int, ...] = Field(default=(256, 128), description="Hidden widths of the value head.")
    rl: RlConfig = Field(default=RlConfig(), description="Reinforcement learning.")

    @model_validator(mode="after")
    def _consistent(self) -> DexvlaConfig:
        if self.num_train_timesteps < self.num_inference_timesteps:
            raise ValueError(
                f"num_inference_timesteps {self.num_inference_timesteps} exceeds num_train_timesteps "
                f"{self.num_train_timesteps}"
            )
        steps = self.rl.finetuned_steps
        if steps is not None and steps > self.num_inference_timesteps:
            raise ValueError(
                f"rl.finetuned_steps {steps} exceeds num_inference_timesteps {self.num_inference_timesteps}"
            )
        keys = [camera.key for camera in self.cameras]
        if len(set(keys)) < len(keys):
            raise ValueError(f"cameras: a key is given twice: {', '.join(keys)}")
        if self.augment and not self.use_vlm:
            raise ValueError("augment: stage 1 (use_vlm: false) sees no image")
        if self.rl.train_reasoning and not (self.use_vlm and self.use_reasoning):
            raise ValueError("rl.train_reasoning needs use_vlm and use_reasoning")
        return self

    @property
    def finetuned_steps(self) -> int:
        return self.rl.finetuned_steps or self.num_inference_timesteps
