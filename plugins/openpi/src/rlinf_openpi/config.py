"""Configuration subtree `model.openpi`. Light: imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rlinf_openpi.architecture import Architecture, Block


class OpenpiConfig(Block):
    """pi0 and pi0.5. Names of keys are those that the field uses."""

    config_name: str = Field(
        description="Data configuration: the name of a shipped one, or the path of a YAML file."
    )
    architecture: Architecture = Field(
        default=Architecture(), description="Sizes of the networks; the default are the published ones."
    )
    max_action_dim: int = Field(
        default=32,
        ge=1,
        description="Dimensions of the network's actions and state; shorter ones are padded.",
    )
    action_horizon: int | None = Field(
        default=None, ge=1, description="Actions of the network's chunk; null: the data configuration's."
    )
    max_token_len: int | None = Field(
        default=None, ge=2, description="Tokens of the longest prompt; null: the data configuration's."
    )
    tokenizer_path: str | None = Field(
        default=None,
        description="PaliGemma's tokenizer.json or paligemma_tokenizer.model, or a folder with one; null: "
        "that of model_path, and without a model_path words are hashed.",
    )
    norm_stats_path: str | None = Field(
        default=None,
        description="norm_stats.json, or a folder with it; null: that of model_path. Without either, "
        "states and actions are not normalised.",
    )
    num_steps: int = Field(default=10, ge=1, description="Denoising steps.")
    noise_method: Literal["flow_sde", "flow_noise", "flow_cps", "flow_ode"] = Field(
        default="flow_sde",
        description="How training rollouts explore; flow_ode is deterministic (evaluation and SFT only).",
    )
    noise_level: float = Field(default=0.5, gt=0, description="Noise of flow_sde and flow_cps.")
    noise_anneal: bool = Field(default=False, description="Let the noise level follow noise_params.")
    noise_params: tuple[float, float, int] = Field(
        default=(0.7, 0.3, 400), description="First and last noise level, and RL iterations between them."
    )
    noise_logvar_range: tuple[float, float] = Field(
        default=(0.08, 0.16), description="Smallest and largest standard deviation that flow_noise learns."
    )
    joint_logprob: bool | None = Field(
        default=None,
        description="Every denoising step explores and counts, not a random one per sample; null: only with "
        "flow_noise.",
    )
    joint_reduction: Literal["mean", "sum"] = Field(
        default="mean", description="Of the log-probabilities of all steps under joint_logprob."
    )
    ignore_last: bool = Field(
        default=False,
        description="The random step is never the last one (flow_cps has no noise there anyway).",
    )
    value_after_vlm: bool = Field(
        default=False,
        description="The value head reads the language model's output; else the action expert's.",
    )
    value_vlm_mode: Literal["mean_token", "first_token", "last_token"] = Field(
        default="mean_token", description="Which of its tokens."
    )
    value_hidden: tuple[int, ...] | None = Field(
        default=None, description="Hidden widths of the value head; null: the data configuration's."
    )
    num_images_in_input: int | None = Field(
        default=None, ge=0, description="Cameras whose tokens mean_token averages; null: all that there are."
    )
    chunk_critic_input: bool = Field(
        default=False, description="The expert's value head reads the executed actions' tokens only."
    )
    detach_critic_input: bool = Field(default=False, description="The value loss does not train the expert.")
    reference_conventions: bool = Field(
        default=False,
        description="As RLinf: a rollout's value averages all denoising steps, that of training is one "
        "step's; flow_sde and flow_cps report no entropy; a value on the language model averages padding.",
    )
    train_expert_only: bool = Field(default=False, description="Freeze vision tower and language model.")
    cache_prefix: bool = Field(
        default=False,
        description="The rollout records the frozen language model's keys and values, and training does not "
        "run it at all.",
    )
    lora_targets: Literal["expert", "vlm", "all"] = Field(
        default="all", description="What LoRA adapts: the action expert, PaliGemma, or both."
    )
    export_layout: Literal["openpi", "transformers", "lerobot"] = Field(
        default="openpi", description="Layout of exported checkpoints."
    )
    compile: Literal["off", "default", "cuda_graphs"] = Field(
        default="off",
        description="torch.compile the blocks and the denoising step; cuda_graphs: and replay the latter as "
        "a CUDA graph.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> OpenpiConfig:
        if self.cache_prefix and not self.train_expert_only:
            raise ValueError("cache_prefix needs a frozen language model: set train_expert_only: true")
        if self.cache_prefix and self.value_after_vlm and self.reference_conventions:
            raise ValueError("cache_prefix does not keep the padding that reference_conventions averages")
        if self.noise_anneal and self.noise_method not in ("flow_sde", "flow_cps"):
            raise ValueError(f"noise_anneal cannot act: noise_method {self.noise_method} has no noise_level")
        smallest, largest = self.noise_logvar_range
        if not 0 < smallest < largest:
            raise ValueError(
                f"noise_logvar_range: expected 0 < smallest < largest, got {smallest}, {largest}"
            )
        if self.noise_params[2] < 1 or min(self.noise_params[:2]) <= 0:
            raise ValueError("noise_params: expected two levels > 0 and a number of iterations >= 1")
        if self.num_steps == 1 and (self.ignore_last or self.noise_method == "flow_cps"):
            raise ValueError("num_steps is 1: flow_cps and ignore_last leave no step with noise")
        return self

    @property
    def joint(self) -> bool:
        """Whether every denoising step explores."""
        if self.joint_logprob is None:
            return self.noise_method == "flow_noise"
        return self.joint_logprob
