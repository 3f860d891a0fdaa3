"""The core's own models, offered like any plugin's: entry points of rlinf-core name this module. Imports no
torch."""

from __future__ import annotations

from rlinf.plugins import ModelSpec, WrapPolicySpec, hookimpl

_SPECS = {
    "mlp_policy": ModelSpec(
        model_type="mlp_policy",
        builder="rlinf.models.embodiment.mlp_policy:build",
        config_schema="rlinf.models.embodiment.config:MlpPolicyConfig",
        wrap_policy=WrapPolicySpec(no_split_names=("trunk",)),
        lora_targets=(r"trunk\.\d*[02468]",),
        description="Multi-layer perceptron on the state.",
    ),
    "cnn_policy": ModelSpec(
        model_type="cnn_policy",
        builder="rlinf.models.embodiment.cnn_policy:build",
        config_schema="rlinf.models.embodiment.config:CnnPolicyConfig",
        wrap_policy=WrapPolicySpec(no_split_names=("encoder",)),
        lora_targets=("join", "trunk"),
        description="Convolutions on the camera image, joined with the state.",
    ),
    "tiny_vla": ModelSpec(
        model_type="tiny_vla",
        builder="rlinf.models.embodiment.tiny_vla.build:build",
        config_schema="rlinf.models.embodiment.tiny_vla.config:TinyVlaConfig",
        wrap_policy=WrapPolicySpec(
            transformer_layer_cls_to_wrap=("TinyVlaBlock",),
            no_split_names=("stem", "text_encoder", "action_head"),
        ),
        lora_targets=(r"blocks\.\d+\.(q_proj|kv_proj|o_proj|fc1|fc2)",),
        description="Small vision-language-action transformer: images, instruction, state.",
    ),
    "causal_lm": ModelSpec(
        model_type="causal_lm",
        builder="rlinf.models.language.policy:build_text",
        category="language",
        config_schema="rlinf.models.language.config:ActorConfig",
        processor="rlinf.models.language.policy:processor",
        exporter="rlinf.models.language.export:export",
        lora_root="actor.model",
        description="Any causal language model of transformers.",
    ),
    "vision_language": ModelSpec(
        model_type="vision_language",
        builder="rlinf.models.language.policy:build_vision",
        category="language",
        config_schema="rlinf.models.language.config:ActorConfig",
        processor="rlinf.models.language.policy:processor",
        exporter="rlinf.models.language.export:export",
        lora_root="actor.model",
        description="Qwen2-VL, Qwen2.5-VL, Qwen3-VL and PaliGemma of transformers.",
    ),
    "audio_language": ModelSpec(
        model_type="audio_language",
        builder="rlinf.models.language.policy:build_audio",
        category="language",
        config_schema="rlinf.models.language.config:ActorConfig",
        processor="rlinf.models.language.policy:processor",
        exporter="rlinf.models.language.export:export",
        lora_root="actor.model",
        description="Qwen2-Audio of transformers.",
    ),
    "scalar_reward": ModelSpec(
        model_type="scalar_reward",
        builder="rlinf.models.reward.policy:build_scalar",
        category="reward",
        config_schema="rlinf.models.language.config:RewardModelConfig",
        description="Scores of answers: a causal language model of transformers with a scalar head.",
    ),
    "scalar_reward_vl": ModelSpec(
        model_type="scalar_reward_vl",
        builder="rlinf.models.reward.policy:build_scalar_vision",
        category="reward",
        config_schema="rlinf.models.language.config:RewardModelConfig",
        description="Scores of answers about pictures: a Qwen-VL of transformers with a scalar head.",
    ),
    "scalar_reward_al": ModelSpec(
        model_type="scalar_reward_al",
        builder="rlinf.models.reward.policy:build_scalar_audio",
        category="reward",
        config_schema="rlinf.models.language.config:RewardModelConfig",
        description="Scores of answers about sounds: a Qwen2-Audio of transformers with a scalar head.",
    ),
    "generative_reward_vl": ModelSpec(
        model_type="generative_reward_vl",
        builder="rlinf.models.reward.judge:build",
        category="language",
        config_schema="rlinf.models.language.config:JudgeConfig",
        processor="rlinf.models.reward.judge:processor",
        exporter="rlinf.models.language.export:export",
        lora_root="actor.model",
        description="A judge of answers about pictures that writes: a Qwen-VL of transformers.",
    ),
}


@hookimpl
def rlinf_model_spec(model_type: str) -> ModelSpec | None:
    return _SPECS.get(model_type)
