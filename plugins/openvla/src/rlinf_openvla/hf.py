"""For use outside this framework: importing this module registers the model with transformers' Auto classes.

import rlinf_openvla.hf
processor = AutoProcessor.from_pretrained(folder)
model = AutoModelForImageTextToText.from_pretrained(folder)
actions = model.predict_action(**processor(["pick up the cube"], images), unnorm_key="bridge_orig")
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rlinf.models.factory import model_config, plugin_config
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    BatchFeature,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_base import BatchFeature as ImageFeature

from rlinf_openvla.checkpoint import read_config
from rlinf_openvla.codec import select_statistics
from rlinf_openvla.config import OpenvlaConfig, OpenvlaOftConfig
from rlinf_openvla.hf_config import OpenVLAConfig
from rlinf_openvla.network import VlaNetwork
from rlinf_openvla.processing import PromptEncoder, normalize_images, resize_images
from rlinf_openvla.tokenizers import load_tokenizer

if TYPE_CHECKING:
    from omegaconf import DictConfig


class PrismaticImageProcessor(PilBackend):
    """Images of any size -> pixel_values float32 [B, 6, S, S]. The name is that in the checkpoints."""

    model_input_names = ["pixel_values"]  # noqa: RUF012

    def __init__(self, input_sizes: Sequence[Sequence[int]] = ((3, 224, 224),), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.input_sizes = [list(size) for size in input_sizes]

    def __call__(self, images: Any, *args: Any, **kwargs: Any) -> ImageFeature:
        """images: one or several of PIL, numpy or torch, [H,W,3] uint8."""
        views = images if isinstance(images, list | tuple) else [images]
        size = self.input_sizes[0][-1]
        resized = [resize_images(torch.as_tensor(np.asarray(image))[None], size) for image in views]
        return ImageFeature({"pixel_values": normalize_images(torch.stack(resized))})


class PrismaticProcessor(ProcessorMixin):
    """Instructions and images -> input_ids, attention_mask, pixel_values of a batch."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, **kwargs: Any) -> None:
        super().__init__(image_processor, tokenizer)

    def __call__(
        self, instructions: str | Sequence[str], images: Any, *, prompt_style: str = "openvla", **kwargs: Any
    ) -> BatchFeature:
        """instructions: without the prompt around them; one per image."""
        texts = [instructions] if isinstance(instructions, str) else list(instructions)
        longest = max(
            len(PromptEncoder(self.tokenizer, style=prompt_style, max_tokens=0).ids(t)) for t in texts
        )
        ids, mask = PromptEncoder(self.tokenizer, style=prompt_style, max_tokens=longest)(texts)
        pixels = self.image_processor(images)["pixel_values"]
        return BatchFeature({"input_ids": ids, "attention_mask": mask, "pixel_values": pixels})


class OpenVLAForActionPrediction(PreTrainedModel, VlaNetwork):
    """The network with the checkpoints' names, for batches of prompts of any padding."""

    config_class = OpenVLAConfig
    base_model_prefix = ""
    _no_split_modules = ["LlamaDecoderLayer", "VisionBlock"]  # noqa: RUF012 - the base declares it so
    _supports_sdpa = True
    #: In the checkpoints, and read by nothing (see `rlinf_openvla.vision`); or heads of a policy.
    _keys_to_ignore_on_load_unexpected = [  # noqa: RUF012
        r"vision_backbone\.(fused_)?featurizer\.(blocks\.\d+|norm|attn_pool)\.",
        r"value_head\.",
        r"action_head\.",
        r"proprio_projector\.",
    ]

    def __init__(self, config: OpenVLAConfig) -> None:
        super().__init__(config)
        self.make_network(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Modules of torch have drawn theirs."""

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.lm_head

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor, **kwargs: Any
    ) -> Tensor:
        """Logits [B,S,V] of the whole multimodal sequence: BOS, patches, padding, prompt."""
        prompt = self.prompt(input_ids, attention_mask, pixel_values)
        return self.language_model.lm_head(self.hidden(prompt))

    @torch.no_grad()
    def predict_action(
        self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor, unnorm_key: str | None = None
    ) -> Tensor:
        """The likeliest action, float32 [B,A] in the units of the dataset `unnorm_key`."""
        stats = select_statistics(self.config.norm_stats or {}, unnorm_key)
        prompt = self.prompt(input_ids, attention_mask, pixel_values)
        first = self.tokens.first_id
        tokens, _ = self.generate(prompt, stats.dim, lambda h: self.action_logits(h).argmax(-1) + first)
        return stats.unnormalize(self.tokens.decode(tokens))


def register() -> None:
    """Make transformers' Auto classes know the model; again is the same as once."""
    AutoConfig.register("openvla", OpenVLAConfig, exist_ok=True)
    AutoImageProcessor.register(
        OpenVLAConfig, image_processor_classes={"pil": PrismaticImageProcessor}, exist_ok=True
    )
    AutoProcessor.register(OpenVLAConfig, PrismaticProcessor, exist_ok=True)
    for auto in (AutoModel, AutoModelForImageTextToText):
        auto.register(OpenVLAConfig, OpenVLAForActionPrediction, exist_ok=True)


register()


def model_config_and_processor(cfg: DictConfig) -> tuple[OpenVLAConfig, PrismaticProcessor]:
    """For `rlinf.models.get_model_config_and_processor`: of a whole configuration. The tokenizer is that of
    `tokenizer.tokenizer_model` where published configurations name one.

    Raises ValueError naming the folder or key that is wrong.
    """
    block = model_config(cfg.model)
    oft = block.model_type == "openvla_oft"
    config = plugin_config(block, OpenvlaOftConfig if oft else OpenvlaConfig)
    hf = read_config(config, block.model_path)
    named = (cfg.get("tokenizer") or {}).get("tokenizer_model")
    tokenizer = load_tokenizer(named or config.tokenizer, block.model_path)
    size = hf.image_size
    return hf, PrismaticProcessor(PrismaticImageProcessor([[3, size, size]]), tokenizer)


def save_processor(folder: Path, hf: OpenVLAConfig, tokenizer: Any) -> None:
    """Tokenizer, `preprocessor_config.json` and `processor_config.json` as `AutoProcessor` reads them."""
    size = hf.image_size
    PrismaticProcessor(PrismaticImageProcessor([[3, size, size]]), tokenizer).save_pretrained(folder)
