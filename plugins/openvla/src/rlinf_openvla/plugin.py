"""What this plugin offers. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from rlinf.plugins import ActionProcessorSpec, DatasetFormatSpec, ModelSpec, WrapPolicySpec, hookimpl

_COMMON: Final[dict[str, Any]] = {
    "builder": "rlinf_openvla.build:build",
    "exporter": "rlinf_openvla.export:export",
    "data_layout": "rlinf_openvla.data_layout:data_layout",
    "processor": "rlinf_openvla.hf:model_config_and_processor",
    # As the field's guide on adding models writes them.
    "flat_keys": (
        "action_token_len",
        "action_chunks_len",
        "unnorm_key",
        "micro_batch_size",
        "val_micro_batch_size",
        "vocab_size",
        "hidden_size",
        "image_size",
        "attn_implementation",
        "low_cpu_mem_usage",
        "trust_remote_code",
    ),
    "wrap_policy": WrapPolicySpec(
        transformer_layer_cls_to_wrap=("LlamaDecoderLayer",),
        module_classes_to_wrap=("VisionBlock", "Projector"),
    ),
    # As the original recommends: all linear layers but the output layer.
    "lora_targets": (
        r"language_model\.model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)",
        r"vision_backbone\.(fused_)?featurizer\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.fc[12])",
        r"projector\.fc[123]",
    ),
}
_SPECS: Final = {
    "openvla": ModelSpec(
        model_type="openvla",
        config_schema="rlinf_openvla.config:OpenvlaConfig",
        description="OpenVLA: DINOv2 and SigLIP, Llama 2, actions as tokens.",
        **_COMMON,
    ),
    "openvla_oft": ModelSpec(
        model_type="openvla_oft",
        config_schema="rlinf_openvla.config:OpenvlaOftConfig",
        description="OpenVLA-OFT: several views and the state, chunks of actions in one pass.",
        **_COMMON,
    ),
}


@hookimpl
def rlinf_model_spec(model_type: str) -> ModelSpec | None:
    return _SPECS.get(model_type)


#: Simulator -> function of `rlinf_openvla.actions`, and whether it keeps the shape.
_PROCESSORS: Final = {
    "libero": ("inverted_gripper", True),
    "isaaclab": ("inverted_gripper", True),
    "genesis": ("inverted_gripper", True),
    "polaris": ("inverted_gripper", True),
    "opensora_wm": ("world_model", True),
    "wan_wm": ("world_model", True),
    "calvin": ("calvin", True),
    "maniskill": ("maniskill", True),
    "metaworld": ("metaworld", False),
}


@hookimpl
def rlinf_action_processors() -> Iterable[ActionProcessorSpec]:
    return [
        ActionProcessorSpec(
            env_type=env_type,
            model_type=model_type,
            function=f"rlinf_openvla.actions:{function}",
            keeps_shape=keeps_shape,
        )
        for model_type in _SPECS
        for env_type, (function, keeps_shape) in _PROCESSORS.items()
    ]


@hookimpl
def rlinf_dataset_formats() -> list[DatasetFormatSpec]:
    return [
        DatasetFormatSpec(
            name="rlds",
            reader="rlinf_openvla.rlds.reader:open_rlds",
            matches="rlinf_openvla.rlds.reader:is_rlds",
            description="RLDS in TFRecord files, as tensorflow_datasets writes them.",
        )
    ]
