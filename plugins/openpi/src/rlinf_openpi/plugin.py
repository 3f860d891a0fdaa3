"""What the core reads of this plugin before it builds anything. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from rlinf.plugins import ActionProcessorSpec, ModelSpec, WrapPolicySpec, hookimpl

#: Simulators whose actions are others than the policy's: name -> whether the processor keeps the shape.
#: libero, metaworld and robotwin take them as they are.
_PROCESSORS = {
    "maniskill": True,
    "calvin": True,
    "polaris": True,
    "frankasim": False,
    "d4rl": False,
    "robocasa": False,
}


@hookimpl
def rlinf_model_spec() -> ModelSpec:
    return ModelSpec(
        model_type="openpi",
        builder="rlinf_openpi.build:build",
        config_schema="rlinf_openpi.config:OpenpiConfig",
        wrap_policy=WrapPolicySpec(
            transformer_layer_cls_to_wrap=("GemmaBlock",),
            module_classes_to_wrap=("SiglipBlock", "SiglipEmbeddings", "Projector", "Embedding"),
        ),
        data_layout="rlinf_openpi.data_layout:data_layout",
        exporter="rlinf_openpi.checkpoint:export",
        description="pi0 and pi0.5: flow matching on PaliGemma with an action expert",
    )


@hookimpl
def rlinf_action_processors() -> Iterable[ActionProcessorSpec]:
    return [
        ActionProcessorSpec(
            env_type=env_type,
            model_type="openpi",
            function=f"rlinf_openpi.actions:{env_type}",
            keeps_shape=keeps_shape,
        )
        for env_type, keeps_shape in _PROCESSORS.items()
    ]
