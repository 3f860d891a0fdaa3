"""The core's own models, offered like any plugin's: entry points of rlinf-core name this module. Imports no
torch."""

from __future__ import annotations

from rlinf.plugins import ModelSpec, WrapPolicySpec, hookimpl

_SPECS = {
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
}


@hookimpl
def rlinf_model_spec(model_type: str) -> ModelSpec | None:
    return _SPECS.get(model_type)
