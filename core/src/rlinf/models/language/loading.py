"""Models of transformers for actors: from a folder or as they are, under the same options."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlinf.models.language.lora import apply_lora_configuration
from rlinf.models.language.modality import ActorModality

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ActorOptions:
    """Options of the actors; the names are those of LightRFT's design document."""

    #: Flash attention where it is installed and the model is on a GPU; else SDPA, with a message.
    use_flash_attention_2: bool = False
    #: The implementation by name (eager, sdpa, flex_attention); None: as above.
    attn_implementation: str | None = None
    #: Weights in bfloat16; else float32.
    bf16: bool = False
    #: Base weights in four bits (bitsandbytes); they are frozen, so it needs LoRA.
    load_in_4bit: bool = False
    lora_rank: int = 0
    lora_alpha: int | None = None
    lora_dropout: float = 0.0
    #: Regular expressions on full module paths; None: all linear layers of the language model's blocks.
    target_modules: Sequence[str] | None = None
    #: Adapters and gradients stay out of vision and audio towers.
    freeze_vision_tower: bool = True
    #: `forward` joins the rows of a batch instead of padding them.
    packing_samples: bool = False
    #: `generate` is vLLM's, with these keyword arguments of `vllm.LLM` (models that read only); None: ours.
    vllm: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> ActorOptions:
        """Raises TypeError with the closest name for an option that does not exist."""
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                close = get_close_matches(name, known, n=1, cutoff=0.0)[0]
                raise TypeError(f"unknown actor option {name!r}; did you mean {close!r}?")
        return cls(**options)

    def add_adapters(self, model: nn.Module) -> None:
        """Put LoRA adapters into `model` where `lora_rank` asks for them."""
        if self.lora_rank:
            apply_lora_configuration(
                model,
                lora_rank=self.lora_rank,
                lora_alpha=self.lora_alpha,
                lora_dropout=self.lora_dropout,
                target_modules=self.target_modules,
                freeze_vision_tower=self.freeze_vision_tower,
            )

    def __post_init__(self) -> None:
        if self.load_in_4bit and not self.lora_rank:
            raise ValueError("load_in_4bit freezes the base weights: give lora_rank, or nothing would train")
        if self.load_in_4bit and self.vllm is not None:
            raise ValueError("load_in_4bit and vllm exclude each other: vLLM is given whole weights")
        if self.use_flash_attention_2 and self.attn_implementation:
            raise ValueError("use_flash_attention_2 and attn_implementation exclude each other")


def load_language_model(
    source: str | Path | nn.Module, modality: ActorModality, options: ActorOptions
) -> nn.Module:
    """The model behind an actor. On the meta device a folder's weights are not read.

    Raises:
        ValueError: the folder holds no model of the modality, or an option cannot act on a model that exists.
        ImportError: four-bit weights without bitsandbytes.
    """
    if options.vllm is not None and modality is not ActorModality.LANGUAGE_ONLY:
        raise ValueError(f"vllm answers for models that read only, not for a {modality.value} actor")
    if options.packing_samples and modality is not ActorModality.LANGUAGE_ONLY:
        raise ValueError(
            f"packing_samples: images and audio belong to rows, so a {modality.value} actor cannot join them"
        )
    attention = options.attn_implementation or _attention(options.use_flash_attention_2)
    if isinstance(source, nn.Module):
        if options.load_in_4bit:
            raise ValueError("load_in_4bit acts while weights are loaded: give a folder instead of a model")
        source.set_attn_implementation(attention)  # type: ignore[operator]
        return source.to(torch.bfloat16) if options.bf16 else source
    if not (Path(source) / "config.json").is_file():
        raise ValueError(f"{source}: no config.json; expected a folder that save_pretrained wrote")
    form = {"dtype": torch.bfloat16 if options.bf16 else torch.float32, "attn_implementation": attention}
    if torch.get_default_device().type == "meta":
        from transformers import AutoConfig

        return auto_class(modality).from_config(AutoConfig.from_pretrained(source), **form)
    if options.load_in_4bit:
        form["quantization_config"] = _four_bits()
    return auto_class(modality).from_pretrained(str(source), **form)


def auto_class(modality: ActorModality) -> Any:
    """transformers' class that finds the model of a configuration or folder."""
    import transformers

    if modality is ActorModality.LANGUAGE_ONLY:
        return transformers.AutoModelForCausalLM
    if modality is ActorModality.AUDIO_LANGUAGE:
        return transformers.AutoModelForMultimodalLM
    return transformers.AutoModelForImageTextToText


def _attention(flash: bool) -> str:
    if not flash:
        return "sdpa"
    if torch.cuda.is_available() and importlib.util.find_spec("flash_attn") is not None:
        return "flash_attention_2"
    _log.warning("flash attention needs a GPU and the package flash_attn: SDPA is used instead")
    return "sdpa"


def _four_bits() -> Any:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError("load_in_4bit needs bitsandbytes: pip install 'rlinf-core[quantized]'")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
