"""Tokenizers: a pretrained one of Hugging Face, or words for models that start from nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Protocol

#: Special tokens of Qwen's chat format.
SPECIAL: Final = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
#: What the model's answer ends with, after the reasoning.
ANSWER_END: Final = "Next action:"
PAD, IM_START, IM_END, VISION_START, VISION_END, IMAGE, VIDEO = SPECIAL


class Tokenizer(Protocol):
    """What the prompt needs of a tokenizer."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text in which special tokens are written out."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens left out."""

    def token_id(self, token: str) -> int:
        """The id of a special token."""


#: One token each, with and without a space before it: words of the chat format and of simple instructions.
_WORDS: Final = re.findall(
    r"\w+",
    """
    user assistant and backward blue by cube cylinder down drop for forward from grasp green grip it
    left lift move of on onto open over pick place purple push pushing put raise reach red right slide
    stack tap the to top touch turn up yellow
    """,
)


class WordTokenizer:
    """UTF-8 bytes are ids 0-255, Qwen's special tokens follow, then some fifty words. No file, nothing
    unknown, and what a small model has to read and to say in simple scenes is short."""

    _tokens: Final = (*SPECIAL, ANSWER_END, *_WORDS, *(f" {word}" for word in _WORDS))
    vocab_size: Final = 256 + len(_tokens)
    _ids: Final = {token: 256 + i for i, token in enumerate(_tokens)}
    _pieces: Final = re.compile(
        "|".join(map(re.escape, (*SPECIAL, ANSWER_END))) + f"|(?: |(?<![a-z]))(?:{'|'.join(_WORDS)})(?![a-z])"
    )

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        end = 0
        for match in self._pieces.finditer(text):
            ids += [*text[end : match.start()].encode(), self._ids[match.group()]]
            end = match.end()
        return [*ids, *text[end:].encode()]

    def decode(self, ids: Sequence[int]) -> str:
        first_word = 256 + len(SPECIAL)
        parts = [
            bytes([i]) if i < 256 else self._tokens[i - 256].encode()
            for i in ids
            if not 256 <= i < first_word
        ]
        return b"".join(parts).decode(errors="replace")

    def token_id(self, token: str) -> int:
        return self._ids[token]


class PretrainedTokenizer:
    """A tokenizer of transformers from a local folder."""

    def __init__(self, folder: str) -> None:
        from transformers import AutoTokenizer

        if not Path(folder).is_dir():
            raise ValueError(f"model.dexvla.tokenizer: {folder} is no folder with a tokenizer")
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"model.dexvla.tokenizer: {folder}: no tokenizer can be read: {error}"
            ) from error

    def encode(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def save(self, folder: Path) -> None:
        """Write its files."""
        self._tokenizer.save_pretrained(folder)

    def token_id(self, token: str) -> int:
        found = self._tokenizer.convert_tokens_to_ids(token)
        if found is None or found == self._tokenizer.unk_token_id:
            raise ValueError(f"the tokenizer has no token {token}: it is no Qwen-VL tokenizer")
        return found


def load_tokenizer(name: str | None, model_path: str | None) -> Tokenizer:
    """The tokenizer that `model.dexvla.tokenizer` means. Raises ValueError naming the folder."""
    if name == "words" or (name is None and model_path is None):
        return WordTokenizer()
    return _pretrained(name or str(model_path))


@lru_cache(maxsize=4)
def _pretrained(folder: str) -> PretrainedTokenizer:
    return PretrainedTokenizer(folder)
