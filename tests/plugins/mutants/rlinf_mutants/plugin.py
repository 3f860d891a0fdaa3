"""The plugin of all mutants: each has an entry point of its own."""

from __future__ import annotations

from rlinf.plugins import ActionProcessorSpec, ModelSpec, WrapPolicySpec, hookimpl


@hookimpl
def rlinf_model_spec(model_type: str) -> ModelSpec:
    units = WrapPolicySpec(module_path_patterns=(r"layers\.\d+",))
    if model_type == "mutant_wrong_wrap_policy":
        units = WrapPolicySpec(no_split_names=("decoder_layer",))
    return ModelSpec(
        model_type=model_type,
        builder="rlinf_mutants.registry:build",
        wrap_policy=units,
        lora_targets=("encoder",) if model_type == "mutant_wrong_lora_targets" else (r"layers\.\d+",),
    )


@hookimpl
def rlinf_action_processors() -> list[ActionProcessorSpec]:
    def spec(name: str) -> ActionProcessorSpec:
        return ActionProcessorSpec(
            env_type="bench", model_type=f"mutant_{name}", function=f"rlinf_mutants.processors:{name}"
        )

    return [spec("correct"), spec("in_place_processor"), spec("shape_changing_processor")]
