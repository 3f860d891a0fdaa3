"""The checkpoints' `config.json` as a transformers configuration."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import LlamaConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from rlinf_openvla.vision import TowerConfig, tower_configs

#: Published checkpoints name only the language model; this one is in all of them.
LLAMA2_7B: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
}


class OpenVLAConfig(PreTrainedConfig):
    """Sizes and statistics of an OpenVLA checkpoint; keys that this model does not read stay as they are.

    vision_towers: sizes of DINOv2 and SigLIP where `timm_model_ids` do not tell (not in the original).
    """

    model_type = "openvla"
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "text_config": SubConfigSpec(config_class=LlamaConfig)
    }

    vision_backbone_id: str = "dinosiglip-vit-so-224px"
    llm_backbone_id: str = "llama2-7b-pure"
    arch_specifier: str = "no-align+fused-gelu-mlp"
    use_fused_vision_backbone: bool | None = True
    timm_model_ids: list[str] | None = None
    timm_override_act_layers: list[str | None] | None = None
    vision_towers: list[dict[str, Any]] | None = None
    image_sizes: list[int] | None = None
    image_resize_strategy: str = "resize-naive"
    hf_llm_id: str = "meta-llama/Llama-2-7b-hf"
    llm_max_length: int = 2048
    pad_token_id: int | None = 32000
    pad_to_multiple_of: int = 64
    output_projector_states: bool = False
    tie_word_embeddings: bool = False
    text_config: dict[str, Any] | PreTrainedConfig | None = None
    n_action_bins: int = 256
    norm_stats: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.text_config, PreTrainedConfig):
            given = {**LLAMA2_7B, "vocab_size": 32064, **(self.text_config or {})}
            given.pop("model_type", None)
            self.text_config = LlamaConfig(**given)
        # The originals write the library's default at the time, True, and have an output layer of its own.
        self.tie_word_embeddings = self.text_config.tie_word_embeddings = False
        if self.timm_model_ids is None:
            self.timm_model_ids = ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"]
        if self.image_sizes is None:
            self.image_sizes = [224, 224]
        super().__post_init__(**kwargs)

    @property
    def towers(self) -> tuple[TowerConfig, TowerConfig]:
        """Sizes of DINOv2 and SigLIP. Raises ValueError for another backbone."""
        if not self.use_fused_vision_backbone:
            raise ValueError(
                "use_fused_vision_backbone: only the fused DINOv2 + SigLIP backbone is supported"
            )
        assert self.timm_model_ids is not None
        return tower_configs(self.timm_model_ids, self.vision_towers)

    @property
    def vocab_end(self) -> int:
        """Size of the vocabulary without its padding: the action bins are the ids just before."""
        assert isinstance(self.text_config, LlamaConfig)
        return self.text_config.vocab_size - self.pad_to_multiple_of

    @property
    def image_size(self) -> int:
        assert self.image_sizes is not None
        return self.image_sizes[0]
