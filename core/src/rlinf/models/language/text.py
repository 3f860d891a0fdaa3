"""Texts, with pictures or sounds, to a language model's inputs, and tokens to text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from rlinf.models.language.config import LanguageConfig
from rlinf.models.language.media import (
    Media,
    Pictures,
    attach,
    media_in,
    pretrained_media,
    small_media,
)
from rlinf.models.language.modality import ActorModality

#: Special tokens that a tokenizer of characters has before its alphabet.
PAD, END, PIECE, MEDIA_START, MEDIA_END, VIDEO = range(6)
_FIRST: Final = 6
#: Their names in files: as Qwen2-VL and Qwen2-Audio have them.
_NAMES: Final = (
    *("<|endoftext|>", "<|im_end|>", "<|image_pad|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|video_pad|>"),
)
_AUDIO_NAMES: Final = (*_NAMES[:2], "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>", _NAMES[-1])


class Tokenizer(Protocol):
    """What is asked of a tokenizer."""

    eos_token_id: int
    pad_token_id: int
    bos_token_id: int | None

    def encode(self, text: str, add_special_tokens: bool = ...) -> list[int]: ...

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = ...) -> str: ...


class CharacterTokenizer:
    """Every character of an alphabet is a token. Needs no file."""

    pad_token_id, eos_token_id = PAD, END
    bos_token_id: int | None = None

    def __init__(self, characters: str) -> None:
        """characters: each once."""
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

    def convert_tokens_to_ids(self, tokens: Sequence[str]) -> list[int]:
        """Ids of the special tokens of sounds."""
        return [_AUDIO_NAMES.index(token) for token in tokens]

    def save_pretrained(self, folder: str | Path, modality: ActorModality) -> None:
        """Write a tokenizer that gives the same ids: `PreTrainedTokenizerFast.from_pretrained` reads it."""
        from tokenizers import Regex, decoders, models, pre_tokenizers
        from tokenizers import Tokenizer as TokenizersTokenizer
        from transformers import PreTrainedTokenizerFast

        names = _AUDIO_NAMES if modality is ActorModality.AUDIO_LANGUAGE else _NAMES
        # Without a token for the unknown, a character outside the alphabet is an error there too.
        words = models.WordLevel({token: i for i, token in enumerate((*names, *self.characters))})
        tokenizer = TokenizersTokenizer(words)
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        tokenizer.decoder = decoders.Fuse()
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token=names[PAD],
            eos_token=names[END],
            additional_special_tokens=list(names[PIECE:]),
            characters=self.characters,
        ).save_pretrained(folder)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> CharacterTokenizer | None:
        """The tokenizer that `save_pretrained` wrote there; None where the folder has another one."""
        file = Path(folder) / "tokenizer_config.json"
        characters = json.loads(file.read_text()).get("characters") if file.is_file() else None
        return None if characters is None else cls(characters)


@dataclass(frozen=True, kw_only=True)
class TextProcessor:
    """Prompts to token ids, their pictures or sounds to a model's inputs; answers back to text."""

    tokenizer: Tokenizer
    max_prompt_length: int
    chat_template: bool = False
    #: What the model sees or hears; None: it reads text only.
    media: Media | None = None

    @property
    def modality(self) -> ActorModality:
        """The kind of model that this belongs to."""
        return ActorModality.LANGUAGE_ONLY if self.media is None else self.media.modality

    def prompts(
        self, texts: Sequence[str], obs: Mapping[str, Any] | None = None
    ) -> tuple[list[list[int]], dict[str, Tensor]]:
        """Token ids of each prompt with its picture or sound, and the inputs of those, batch first. A prompt
        without any token, such as one that an evaluation hides, is the one that begins a text.

        Args:
            obs: where the prompts have them, main_images uint8 [B, H, W, 3] or object [B], a list of
                pictures [H, W, 3] each, or audios float32 [B, N] at 16 kHz, NaN after a sound's end. Other
                keys are not looked at.

        Raises:
            ValueError: a prompt is longer than `max_prompt_length`; pictures for a model without eyes, sounds
            for one without ears, or a sound that it cannot take.
        """
        inputs: dict[str, Tensor] = {}
        counts: Sequence[Sequence[int]] = [()] * len(texts)
        for key, values in media_in(obs or {}).items():
            if self.media is None or key != self.media.key:
                raise ValueError(f"the prompts have {key}, which a {self.modality.value} model does not take")
            inputs, counts = self.media.read(values, self.max_prompt_length)
        return [self._prompt(text, count) for text, count in zip(texts, counts, strict=True)], inputs

    def check(self, text: str, sizes: Sequence[tuple[int, ...]]) -> None:
        """Raises ValueError, as `prompts` does, for a prompt with pictures or a sound of these sizes
        (`Media.pieces`)."""
        if sizes and (self.media is None or self.media.axes != len(sizes[0])):
            what = "picture" if len(sizes[0]) == Pictures.axes else "sound"
            raise ValueError(f"the prompt has a {what}, which a {self.modality.value} model does not take")
        self._prompt(text, [] if self.media is None else [self.media.pieces(size) for size in sizes])

    def answer(self, text: str) -> list[int]:
        """Token ids of an answer with its end."""
        return [*self.tokenizer.encode(text, add_special_tokens=False), self.tokenizer.eos_token_id]

    def decode(self, ids: Sequence[int]) -> str:
        """Tokens of an answer as text, without its end."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def flat(self, ids: Tensor, inputs: Mapping[str, Tensor], answers: int = 0) -> dict[str, Tensor]:
        """The inputs that `prompts` gave, or rows of them, as transformers has them for token ids [B, S]
        whose last `answers` columns are no prompt."""
        return self.media.flat(ids, inputs, answers) if inputs and self.media is not None else {}

    def _prompt(self, text: str, pieces: Sequence[int]) -> list[int]:
        if self.media is not None and self.media.one and len(pieces) != 1:
            raise ValueError(
                f"the prompt {text[:80]!r} has {len(pieces)} pictures; the model takes exactly one"
            )
        ids = self._encode(text, len(pieces))
        if pieces and self.media is not None:
            ids = attach(ids, self.media.tokens, pieces)
        if not ids:
            start = self.tokenizer.bos_token_id
            ids = [self.tokenizer.eos_token_id if start is None else start]
        if len(ids) > self.max_prompt_length:
            raise ValueError(
                f"the prompt {text[:80]!r} has {len(ids)} tokens; max_prompt_length is "
                f"{self.max_prompt_length}"
            )
        return ids

    def _encode(self, text: str, media: int) -> list[int]:
        if not self.chat_template:
            if media and self.media is not None and self.media.suffix is not None:
                return self.tokenizer.encode(text + self.media.suffix, add_special_tokens=False)
            return self.tokenizer.encode(text)
        content: Any = text
        if media and self.media is not None:
            content = [*({"type": self.media.part} for _ in range(media)), {"type": "text", "text": text}]
        messages = [{"role": "user", "content": content}]
        return self.tokenizer.apply_chat_template(  # type: ignore[attr-defined]
            messages, add_generation_prompt=True, return_dict=False
        )


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
        media = small_media(config.config, PIECE, MEDIA_START, MEDIA_END)
        return TextProcessor(tokenizer=tokenizer, media=media, **common)
    if config.config is not None or config.characters is not None:
        raise ValueError("config and characters describe a new model, and model.model_path names one: remove")
    return _pretrained(model_path, common)


def _pretrained(model_path: str, common: Mapping[str, Any]) -> TextProcessor:
    from transformers import AutoConfig, AutoTokenizer

    # AutoTokenizer puts a family's own class in the place of what the files of some families say.
    tokenizer: Any = CharacterTokenizer.from_pretrained(model_path)
    tokenizer = tokenizer or AutoTokenizer.from_pretrained(model_path)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    known = AutoConfig.from_pretrained(model_path)
    try:
        media = pretrained_media(model_path, known, tokenizer)
    except OSError as error:
        raise ValueError(f"{model_path}: no preprocessor of pictures or sounds: {error}") from None
    return TextProcessor(tokenizer=tokenizer, media=media, **common)
