"""Texts and pictures to a language model's inputs, and tokens to text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch
from torch import Tensor

from rlinf.models.language.config import LanguageConfig

#: Special tokens that a tokenizer of characters has before its alphabet.
PAD, END, IMAGE, IMAGE_START, IMAGE_END, VIDEO = range(6)
_FIRST: Final = 6


class Tokenizer(Protocol):
    """What is asked of a tokenizer."""

    eos_token_id: int
    pad_token_id: int

    def encode(self, text: str, add_special_tokens: bool = ...) -> list[int]: ...

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = ...) -> str: ...


class CharacterTokenizer:
    """Every character of an alphabet is a token. Needs no file."""

    pad_token_id, eos_token_id = PAD, END

    def __init__(self, characters: str) -> None:
        """Raises ValueError for a character that is there twice, and for no character."""
        if not characters or len(set(characters)) < len(characters):
            raise ValueError(f"characters: expected one or more, each once, got {characters!r}")
        self.characters = characters
        self._ids = {character: _FIRST + i for i, character in enumerate(characters)}

    def __len__(self) -> int:
        return _FIRST + len(self.characters)

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Raises ValueError for a character outside the alphabet."""
        for character in text:
            if character not in self._ids:
                raise ValueError(
                    f"{character!r} in {text[:80]!r} is not in the alphabet of the tokenizer (characters)"
                )
        return [self._ids[character] for character in text]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Special tokens have no text."""
        return "".join(self.characters[i - _FIRST] for i in ids if _FIRST <= i < len(self))


@dataclass(frozen=True, kw_only=True)
class TextProcessor:
    """Prompts to token ids (and pictures to patches); answers back to text."""

    tokenizer: Tokenizer
    max_prompt_length: int
    chat_template: bool = False
    #: transformers' image processor of the Qwen-VL families; None: the model reads text only.
    images: Any = None
    #: Ids of the tokens that stand for a picture's patches, its start and its end.
    image_tokens: tuple[int, int, int] = (IMAGE, IMAGE_START, IMAGE_END)

    def prompts(
        self, texts: Sequence[str], pictures: np.ndarray | None = None
    ) -> tuple[list[list[int]], dict[str, Tensor]]:
        """Token ids of each prompt, its picture first, and the pictures' inputs, batch first.

        Args:
            pictures: uint8 [B, H, W, 3], or None.

        Raises:
            ValueError: a prompt is longer than `max_prompt_length`; pictures for a model without eyes.
        """
        inputs: dict[str, Tensor] = {}
        prefix: list[list[int]] = [[] for _ in texts]
        if pictures is not None:
            inputs, prefix = self._see(pictures)
        ids = [[*first, *self._encode(text)] for first, text in zip(prefix, texts, strict=True)]
        for text, row in zip(texts, ids, strict=True):
            if len(row) > self.max_prompt_length:
                raise ValueError(
                    f"the prompt {text[:80]!r} has {len(row)} tokens; max_prompt_length is "
                    f"{self.max_prompt_length}"
                )
        return ids, inputs

    def answer(self, text: str) -> list[int]:
        """Token ids of an answer with its end."""
        return [*self.tokenizer.encode(text, add_special_tokens=False), self.tokenizer.eos_token_id]

    def decode(self, ids: Sequence[int]) -> str:
        """Tokens of an answer as text, without its end."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def _encode(self, text: str) -> list[int]:
        if not self.chat_template:
            return self.tokenizer.encode(text)
        messages = [{"role": "user", "content": text}]
        return self.tokenizer.apply_chat_template(  # type: ignore[attr-defined]
            messages, add_generation_prompt=True, return_dict=False
        )

    def _see(self, pictures: np.ndarray) -> tuple[dict[str, Tensor], list[list[int]]]:
        if self.images is None:
            raise ValueError("prompts with pictures need a vision_language model")
        patch, start, end = self.image_tokens
        seen = self.images(images=list(pictures), return_tensors="pt")
        grids, merged = seen["image_grid_thw"], self.images.merge_size**2
        patches = seen["pixel_values"].view(len(pictures), -1, seen["pixel_values"].shape[-1])
        counts = (grids.prod(-1) // merged).tolist()
        prefix = [[start, *[patch] * count, end] for count in counts]
        return {"pixel_values": patches.float(), "image_grid_thw": grids}, prefix


def pad_left(rows: Sequence[Sequence[int]], width: int, pad: int) -> tuple[Tensor, Tensor]:
    """Token ids and mask, int64 [B, width]."""
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        if row:
            ids[i, width - len(row) :] = torch.tensor(row)
            mask[i, width - len(row) :] = 1
    return ids, mask


def text_processor(config: LanguageConfig, model_path: str | None) -> TextProcessor:
    """The processor that belongs to a model.

    Raises:
        ValueError: neither a folder nor an alphabet, or both.
    """
    common: dict[str, Any] = {
        "max_prompt_length": config.max_prompt_length,
        "chat_template": config.chat_template,
    }
    if model_path is None:
        if config.characters is None or config.config is None:
            raise ValueError(
                "expected model.model_path (a folder of transformers), or `config` and `characters`, from "
                "which a small model with random weights is made"
            )
        tokenizer = CharacterTokenizer(config.characters)
        return TextProcessor(tokenizer=tokenizer, images=_tiny_images(config.config), **common)
    if config.config is not None or config.characters is not None:
        raise ValueError("config and characters describe a new model, and model.model_path names one: remove")
    return _pretrained(model_path, common)


def _pretrained(model_path: str, common: Mapping[str, Any]) -> TextProcessor:
    from transformers import AutoConfig, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model_path)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    known = AutoConfig.from_pretrained(model_path)
    if not hasattr(known, "vision_config") or not (Path(model_path) / "preprocessor_config.json").is_file():
        return TextProcessor(tokenizer=tokenizer, **common)
    from transformers import AutoImageProcessor

    tokens = (known.image_token_id, known.vision_start_token_id, known.vision_end_token_id)
    images = AutoImageProcessor.from_pretrained(model_path)
    return TextProcessor(tokenizer=tokenizer, images=images, image_tokens=tokens, **common)


def _tiny_images(config: Mapping[str, Any]) -> Any:
    """The image processor of a new Qwen2-VL: pictures keep their size up to whole patches."""
    vision = config.get("vision_config")
    if vision is None:
        return None
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    unit = vision["patch_size"] * vision["spatial_merge_size"]
    return Qwen2VLImageProcessorPil(
        patch_size=vision["patch_size"],
        merge_size=vision["spatial_merge_size"],
        temporal_patch_size=vision["temporal_patch_size"],
        min_pixels=unit**2,
        max_pixels=(unit * 64) ** 2,
    )
