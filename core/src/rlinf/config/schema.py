"""The typed configuration: one frozen pydantic model per YAML block; unknown keys are refused.

Every field that exists acts. Plugins own the subtrees `model.<model_type>` and `env.<env_type>`; they are
validated with the schema that the plugin names in its spec (see `rlinf.config.load`).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from rlinf.config.placement import COMPONENTS

AdvType = Literal["gae", "grpo", "reinforce++"]
LossType = Literal["actor_critic", "actor"]
LogprobType = Literal["token_level", "action_level", "chunk_level"]
RewardType = Literal["action_level", "chunk_level"]
Precision = Literal["fp32", "bf16", "fp16"]


class Block(BaseModel):
    """A configuration block: immutable, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PluginsConfig(Block):
    """Which plugins may take part, and who wins a conflict."""

    allow: list[str] | None = Field(
        default=None, description="Distribution names that may be loaded; null means all."
    )
    deny: list[str] = Field(default=[], description="Distribution names that are never loaded.")
    override: dict[str, str] = Field(
        default={}, description="Entry-point name -> distribution that wins a conflict."
    )
    load: list[str] = Field(
        default=[], description="Further plugins whose hooks (processors, observers) join the run."
    )


class NodeGroupConfig(Block):
    """Some of the run's nodes, under a name that placements can use."""

    label: str = Field(min_length=1, description="Name of the group.")
    node_ranks: str | int | None = Field(
        default=None, description="The nodes by rank, such as 0-3. See docs/cluster.md for who has which."
    )
    ray_labels: dict[str, str] = Field(
        default={}, description="The nodes that carry all these Ray labels (ray start --labels)."
    )


class ComponentPlacementConfig(Block):
    """Placement of a component within a node group."""

    node_group: str | None = Field(default=None, description="Label of a node group; null: all nodes.")
    placement: str | int = Field(description="Places in that group, as in component_placement.")


class ClusterConfig(Block):
    """Where the processes run."""

    num_nodes: int = Field(default=1, ge=1, description="Number of Ray nodes the run takes.")
    address: str | None = Field(default=None, description="Ray address to join; null starts a local Ray.")
    node_timeout_s: float = Field(
        default=300.0, gt=0, description="How long to wait until num_nodes nodes have joined."
    )
    collective_timeout_s: float = Field(
        default=600.0, gt=0, description="After this long without the other ranks a trainer rank gives up."
    )
    node_groups: list[NodeGroupConfig] = Field(
        default=[], description="Named groups of nodes, for placement on unlike hardware."
    )
    component_placement: dict[str, str | int | ComponentPlacementConfig] = Field(
        default={"actor": 0, "env": 0, "rollout": 0},
        description="Component (or 'actor,env,rollout') -> accelerators, counted through over the nodes, one "
        "process each, such as 0-3; 0-3:0-1 is two processes of two, 0:0-1 two that share one. Where the "
        "nodes have no accelerators the numbers are CPU cores. {node_group, placement} counts in that group.",
    )


class RunnerConfig(Block):
    """The loop around everything."""

    max_steps: int = Field(ge=0, description="RL iterations (rollout, update, weight sync).")
    seed: int = Field(
        default=0, ge=0, description="Every random draw of the run is derived from this number."
    )
    output_dir: Path = Field(
        default=Path("runs/default"), description="Run folder; must be new unless resuming."
    )
    resume: bool = Field(
        default=False, description="Continue from the newest complete checkpoint in output_dir."
    )
    eval_interval: int = Field(
        default=0, ge=0, description="Evaluate every N iterations; 0: only at the ends."
    )
    save_interval: int = Field(
        default=0, ge=0, description="Checkpoint every N iterations; 0: only at the end."
    )
    keep_checkpoints: int = Field(default=2, ge=1, description="How many of the newest checkpoints are kept.")
    max_restarts: int = Field(
        default=3, ge=0, description="How often the processes are started again when one, or a node, is lost."
    )
    snapshot_interval: int = Field(
        default=1,
        ge=0,
        description="Keep the trainer's state in Ray's memory every N iterations, to restart from; 0: never, "
        "then from the newest checkpoint.",
    )
    loggers: list[Literal["tensorboard", "wandb"]] = Field(
        default=["tensorboard"], description="Metric sinks."
    )
    report: bool = Field(
        default=True, description="Write learning curve PNG and before/after video at the end."
    )


class EvalConfig(Block):
    """Evaluation on held-out episodes, deterministic policy."""

    num_episodes: int = Field(
        default=128, ge=1, description="Episodes per evaluation; all get distinct seeds."
    )
    seed: int = Field(
        default=1_000_000, ge=0, description="First held-out episode seed; training never reaches it."
    )
    blind: bool = Field(
        default=False, description="Evaluate once more at the end with the instruction hidden."
    )


class RuntimeEnvConfig(Block):
    """A Python environment of their own for the processes of a component (Ray's `runtime_env`)."""

    py_executable: str = Field(
        description="Python of a virtual environment, an absolute path on every node of these processes. In "
        "it: Python, Ray and rlinf-core in the driver's versions, and the plugins of the component."
    )
    env_vars: dict[str, str] = Field(default={}, description="Variables for these processes.")

    @field_validator("py_executable")
    @classmethod
    def _absolute(cls, value: str) -> str:
        if not value.startswith("/"):
            raise ValueError(f"expected an absolute path, the same on all nodes; got {value!r}")
        return value


#: `env_type` of a run without the block `env`: it trains on datasets alone and evaluates nowhere.
NO_SIMULATOR: Final = "none"


class EnvConfig(BaseModel):
    """The simulator. `env.<env_type>` is the subtree of the environment's plugin."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    env_type: str = Field(description="Name of an entry point in the group rlinf.envs.")
    num_envs: int = Field(ge=1, description="Parallel training environments over all env processes.")
    steps_per_rollout: int = Field(
        ge=1, description="Environment steps per environment and iteration; a multiple of the chunk."
    )
    auto_reset: bool = Field(
        default=True,
        description="Start a new episode within a rollout when one ends; false masks the rest (GRPO).",
    )
    max_errors: int = Field(
        default=10, ge=1, description="This many equal simulator errors in a row stop the run."
    )
    step_timeout_s: float | None = Field(
        default=600.0,
        gt=0,
        description="A simulator call (reset, or step of all environments of a stage) that takes longer "
        "hangs: its process is ended and the run restarts; null: no limit.",
    )
    runtime_env: RuntimeEnvConfig | None = Field(
        default=None,
        description="An environment for the env processes alone, for a simulator whose requirements conflict "
        "with the model's; null: the driver's.",
    )
    eval: EvalConfig = Field(default=EvalConfig(), description="Held-out evaluation.")


class RolloutConfig(Block):
    """Action generation."""

    pipeline_stages: int = Field(
        default=2, ge=1, description="Groups of environments whose stepping overlaps inference."
    )
    max_staleness: int = Field(
        default=0,
        ge=0,
        description="0: each rollout waits for the newest weights. N: rollouts run up to N ahead of the "
        "trainer; weights are at most N updates old when their data trains (decoupled PPO objective).",
    )
    interruptible: bool = Field(
        default=False,
        description="A rollout that is under way takes new weights as soon as they are there, between two "
        "policy calls and, in language models, between two tokens. When they come is a matter of time: such "
        "a run cannot be repeated exactly.",
    )


class RewardFilterConfig(Block):
    """DAPO's dynamic sampling: groups whose mean score is outside the bounds do not train."""

    lower: float = Field(description="Smallest group-mean score that is kept.")
    upper: float = Field(description="Largest group-mean score that is kept.")


class AlgorithmConfig(Block):
    """Advantages and losses; names and defaults follow the field."""

    adv_type: AdvType = Field(default="gae", description="Advantage estimator.")
    loss_type: LossType = Field(
        default="actor_critic", description="actor_critic trains the value head as well."
    )
    logprob_type: LogprobType = Field(
        default="chunk_level", description="Granularity of the probability ratio."
    )
    reward_type: RewardType = Field(
        default="chunk_level", description="Granularity of rewards, values, advantages."
    )
    gamma: float = Field(
        default=0.99, ge=0, le=1, description="Discount per step (or per chunk at chunk level)."
    )
    gae_lambda: float = Field(default=0.95, ge=0, le=1, description="GAE lambda.")
    group_size: int = Field(default=1, ge=1, description="Environments that share an episode seed (GRPO).")
    group_scores: Literal["raw", "best_of_group"] = Field(
        default="raw",
        description="GRPO: the scores of a group as they are, or each answer's probability to be the best of "
        "its group, if they are those of a reward model trained on preferences.",
    )
    normalize_advantages: bool = Field(default=True, description="Whiten advantages over the whole batch.")
    clip_ratio_low: float = Field(default=0.2, gt=0, description="PPO clip: ratio >= 1 - clip_ratio_low.")
    clip_ratio_high: float = Field(default=0.2, gt=0, description="PPO clip: ratio <= 1 + clip_ratio_high.")
    clip_ratio_c: float | None = Field(
        default=None, gt=1, description="Dual-clip bound for negative advantages."
    )
    behavior_weight_cap: float = Field(
        default=5.0,
        gt=0,
        description="Largest weight of stale data in the decoupled objective (rollout.max_staleness > 0).",
    )
    clip_log_ratio: float | None = Field(default=None, gt=0, description="Clamp |log ratio| to this bound.")
    value_clip: float | None = Field(default=0.2, gt=0, description="Clip of the value update; null: none.")
    huber_delta: float = Field(default=10.0, gt=0, description="Huber threshold of the value loss.")
    value_coef: float = Field(default=0.5, ge=0, description="Weight of the value loss.")
    bootstrap_truncations: bool = Field(
        default=True,
        description="The return of an episode that ran out of time goes on with the critic's value of its "
        "last state. false: running out of time is failing.",
    )
    critic_warmup_steps: int = Field(
        default=0, ge=0, description="RL iterations at the start in which only the value head learns."
    )
    entropy_bonus: float = Field(default=0.0, ge=0, description="Weight of the entropy term.")
    kl_beta: float = Field(
        default=0.0,
        ge=0,
        description="Weight of the KL divergence from the policy that RL began with, in the loss; 0: none.",
    )
    kl_type: Literal["k1", "k2", "k3", "abs"] = Field(
        default="k3",
        description="Its estimator per token. As a loss, k1 has a gradient of mean zero: take k2 or k3.",
    )
    high_entropy_fraction: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Only this share of the actions, those of highest entropy, trains the policy.",
    )
    update_epoch: int = Field(default=2, ge=1, description="Passes over each rollout.")
    target_kl: float | None = Field(
        default=None, gt=0, description="Stop the passes when approx_kl exceeds this."
    )
    filter_rewards: RewardFilterConfig | None = Field(
        default=None, description="Keep only informative groups."
    )


class OptimConfig(Block):
    """AdamW."""

    lr: float = Field(default=3e-4, gt=0, description="Learning rate.")
    value_lr: float | None = Field(
        default=None, gt=0, description="The value head's learning rate; null: lr."
    )
    non_lora_lr: float | None = Field(
        default=None,
        gt=0,
        description="LoRA: the learning rate of what trains beside adapters and value head; null: lr.",
    )
    weight_decay: float = Field(
        default=0.0, ge=0, description="Decoupled weight decay; none on biases and norms."
    )
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="Adam betas.")
    eps: float = Field(default=1e-8, gt=0, description="Adam epsilon.")
    lr_scale: dict[str, float] = Field(
        default={},
        description="Regular expression of whole parameter names -> factor of the learning rate; the first "
        "that matches counts.",
    )
    clip_grad: float = Field(default=1.0, gt=0, description="Largest global gradient norm.")
    skip_grad_norm: float | None = Field(
        default=None,
        gt=0,
        description="Steps with a larger norm are skipped and counted; null: clipped only.",
    )
    max_skipped_steps: int = Field(
        default=10,
        ge=1,
        description="This many skipped steps in a row (NaN, or skip_grad_norm) stop the run.",
    )
    lr_warmup_steps: int = Field(default=0, ge=0, description="Linear warm-up of RL, in optimizer steps.")
    lr_schedule: Literal["constant", "linear"] = Field(
        default="constant",
        description="linear: RL's learning rates fall to 0 over runner.max_steps iterations.",
    )


class WrapPolicyConfig(Block):
    """Custom FSDP rules; they go before the plugin's and the model's own."""

    transformer_layer_cls_to_wrap: list[str] = Field(
        default=[], description="Class names of transformer blocks."
    )
    module_classes_to_wrap: list[str] = Field(default=[], description="Class names of further modules.")
    no_split_names: list[str] = Field(default=[], description="Values of a module's _fsdp_wrap_name.")


class MixedPrecisionConfig(Block):
    """FSDP2 mixed precision."""

    param_dtype: Precision = Field(default="fp32", description="Compute dtype of the sharded parameters.")
    reduce_dtype: Precision = Field(default="fp32", description="Dtype of the gradient reduction.")


class FsdpConfig(Block):
    """FSDP2 sharding."""

    wrap_policy: WrapPolicyConfig = Field(default=WrapPolicyConfig(), description="Custom wrap rules.")
    mixed_precision: MixedPrecisionConfig = Field(default=MixedPrecisionConfig(), description="dtypes.")
    gradient_checkpointing: bool = Field(
        default=False, description="Recompute the units' activations in backward."
    )
    reshard_after_forward: bool = Field(default=True, description="Free gathered parameters after forward.")
    min_num_params: int = Field(
        default=0, ge=0, description="Units of fewer parameters join the unit around them."
    )


class ActorConfig(Block):
    """The trainer."""

    micro_batch_size: int = Field(ge=1, description="Samples (chunks) per forward, per rank.")
    global_batch_size: int = Field(ge=1, description="Samples per optimizer step, over all ranks.")
    optim: OptimConfig = Field(default=OptimConfig(), description="Optimizer.")
    fsdp_config: FsdpConfig = Field(default=FsdpConfig(), description="Sharding.")


class ModelConfig(BaseModel):
    """The policy. `model.<model_type>` is the subtree of the model's plugin."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    model_type: str = Field(description="Name of an entry point in the group rlinf.models.")
    model_path: str | None = Field(
        default=None, description="Pretrained weights; null: random initialisation."
    )
    precision: Precision = Field(default="fp32", description="dtype in which the weights are built.")
    action_dim: int = Field(default=7, ge=1, description="Dimensions of one action.")
    num_action_chunks: int = Field(default=1, ge=1, description="Actions per policy call.")
    add_value_head: bool = Field(default=True, description="Build the value head that actor_critic needs.")
    is_lora: bool = Field(
        default=False, description="Train low-rank adapters and new heads; freeze the rest."
    )
    lora_rank: int = Field(default=32, ge=1, description="LoRA rank.")
    lora_alpha: int | None = Field(default=None, ge=1, description="LoRA alpha; null: the rank.")
    lora_dropout: float = Field(default=0.0, ge=0, lt=1, description="LoRA dropout.")
    lora_path: str | None = Field(
        default=None, description="Adapters to begin with, a folder in peft's layout; null: new ones."
    )

    @model_validator(mode="after")
    def _finite_extras(self) -> ModelConfig:
        """What a model without a schema receives must survive JSON, which has no infinity and no NaN."""
        for key, value in (self.model_extra or {}).items():
            if not _is_finite(value):
                raise ValueError(f"{key}: expected finite numbers, got {value!r}")
        return self


def _is_finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


class SftConfig(Block):
    """Supervised fine-tuning: alone with `rlinf sft`, as the warm start with `rlinf train`."""

    max_steps: int = Field(ge=1, description="Optimizer steps.")
    batch_size: int = Field(default=64, ge=1, description="Samples per optimizer step, over all ranks.")
    lr: float = Field(default=1e-3, gt=0, description="Learning rate.")
    non_lora_lr: float | None = Field(
        default=None, gt=0, description="LoRA: the learning rate of all but the adapters; null: lr."
    )
    lr_schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant",
        description="linear, cosine: the learning rate falls over max_steps; cosine from the warm-up's end.",
    )
    lr_min_ratio: float = Field(
        default=0.0, ge=0, le=1, description="What it falls to, as a share of lr (linear and cosine)."
    )
    lr_warmup_steps: int = Field(default=0, ge=0, description="Linear warm-up, in optimizer steps.")
    ema_decay: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Keep a moving average of the weights, which is evaluated and becomes the result.",
    )
    val_interval: int = Field(
        default=0, ge=0, description="Loss on held-out episodes every N steps; needs data.val_fraction."
    )
    val_samples: int = Field(default=256, ge=1, description="Samples of that loss, evenly spaced.")
    eval_interval: int = Field(
        default=0, ge=0, description="Play held-out episodes in the simulator every N steps; 0: at the end."
    )
    save_interval: int = Field(default=0, ge=0, description="Checkpoint every N steps; 0: at the end.")
    export: bool = Field(
        default=False, description="Write the resulting weights to export/ in the run folder as well."
    )
    expert_episodes: int = Field(
        default=0, ge=0, description="Episodes to record from the environment's expert."
    )
    expert_noise: float = Field(default=0.0, ge=0, description="Std of the noise on executed expert actions.")


class DataConfig(Block):
    """Recorded episodes that SFT learns from."""

    train_data_paths: list[str] = Field(
        default=[], description="Datasets: folders, files or hub ids (owner/name[@revision]); one or a list."
    )
    format: str = Field(default="auto", description="Format of all of them; auto: as each looks.")
    weights: list[float] | None = Field(
        default=None,
        description="Shares of the samples that come from each dataset; null: all samples alike.",
    )
    val_fraction: float = Field(
        default=0.0, ge=0, lt=1, description="Share of each dataset's episodes that is held out of training."
    )
    cameras: dict[str, str] = Field(
        default={}, description="Camera of the model -> feature of the dataset; empty: as the model says."
    )
    state: list[str] = Field(
        default=[], description="Features that make up the state; empty: as the model says."
    )
    action: list[str] = Field(
        default=[], description="Features that make up the action; empty: as the model says."
    )
    workers: int = Field(
        default=2, ge=0, description="Processes that load samples, per trainer; 0: the trainer itself."
    )
    prefetch: int = Field(default=2, ge=1, description="Batches that each of them holds ready.")
    on_error: Literal["fatal", "skip"] = Field(
        default="fatal",
        description="skip: an episode that cannot be read is replaced by another, and counted.",
    )

    @field_validator("train_data_paths", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | Path) else value


class Config(Block):
    """A whole run."""

    runner: RunnerConfig
    cluster: ClusterConfig = ClusterConfig()
    plugins: PluginsConfig = PluginsConfig()
    env: EnvConfig = Field(
        default=EnvConfig(env_type=NO_SIMULATOR, num_envs=1, steps_per_rollout=1),
        description="The simulator; without this block `rlinf sft` trains on datasets alone.",
    )
    model: ModelConfig
    rollout: RolloutConfig = RolloutConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    actor: ActorConfig
    data: DataConfig = DataConfig()
    sft: SftConfig | None = Field(default=None, description="Warm start (train) or the whole job (sft).")

    @property
    def has_simulator(self) -> bool:
        """Whether environments are stepped at all, be it to evaluate."""
        return self.env.env_type != NO_SIMULATOR

    @property
    def components(self) -> tuple[str, ...]:
        """The components that have processes."""
        return COMPONENTS if self.has_simulator else ("actor",)

    def subtree(self, block: Literal["model", "env"]) -> dict[str, Any]:
        """The plugin's own subtree `model.<model_type>` or `env.<env_type>` (empty when absent)."""
        node = getattr(self, block)
        name = node.model_type if block == "model" else node.env_type
        return dict((node.model_extra or {}).get(name) or {})
