"""What this plugin offers. Imports no torch."""

from __future__ import annotations

from rlinf.plugins import DatasetFormatSpec, ModelSpec, WrapPolicySpec, hookimpl

_SPEC = ModelSpec(
    model_type="dexvla",
    builder="rlinf_dexvla.build:build",
    config_schema="rlinf_dexvla.config:DexvlaConfig",
    data_layout="rlinf_dexvla.data:data_layout",
    exporter="rlinf_dexvla.export:export",
    wrap_policy=WrapPolicySpec(
        module_path_patterns=(
            r"(vlm\.model\.(language_model\.layers|visual\.blocks)|policy_head\.blocks)\.\d+",
            r"vlm\.model\.visual\.(patch_embed|merger|deepstack_merger_list\.\d+)|policy_head\.final_layer"
            r"|policy_head\.combine",
        ),
    ),
    lora_targets=(
        r"vlm\.model\.language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)",
        r"vlm\.model\.visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(fc1|fc2|(gate|up|down)_proj|linear_fc[12]))",
    ),
    description="Qwen2-VL that reasons in text, and the ScaleDP diffusion expert that acts.",
)


@hookimpl
def rlinf_model_spec(model_type: str) -> ModelSpec | None:
    return _SPEC if model_type == _SPEC.model_type else None


_FORMAT = DatasetFormatSpec(
    name="aloha_hdf5",
    reader="rlinf_dexvla.hdf5.reader:open_aloha",
    writer="rlinf_dexvla.hdf5.writer:create_aloha",
    matches="rlinf_dexvla.hdf5.reader:is_aloha",
    description="Episodes of ALOHA, ACT and DexVLA: one HDF5 file each.",
)


@hookimpl
def rlinf_dataset_formats() -> list[DatasetFormatSpec]:
    return [_FORMAT]
