"""The prompt's tokens: PaliGemma's tokenizer from a file, or hashed words where there is no checkpoint."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from rlinf_openpi.transforms import clean_instruction, pi05_prompt

BOS: Final = 2
#: Files that hold PaliGemma's tokenizer.
FILES: Final = ("tokenizer.json", "paligemma_tokenizer.model", "tokenizer.model")
#: Ids below are special; those of 0..255 and of words follow.
_FIRST_NUMBER: Final = 4
_FIRST_WORD: Final = _FIRST_NUMBER + 256
_NEWLINE: Final = 3
_WORD: Final = re.compile(r"\w+|\n|[^\w\s]")

#: Text -> ids, without BOS.
Encode = Callable[[str], list[int]]


class PromptTokenizer:
    """Instructions (and for pi0.5 states) -> ids and mask, padded to `max_tokens`."""

    def __init__(self, encode: Encode, max_tokens: int, *, discrete_state: bool) -> None:
        self.encode, self.max_tokens, self.discrete_state = encode, max_tokens, discrete_state

    def __call__(
        self, instructions: Sequence[str], states: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """ids int64 [B, max_tokens] and mask bool [B, max_tokens].

        states: normalised [B, D], unpadded; looked at with discrete_state only.

        Raises ValueError for a prompt of more than `max_tokens` tokens: cut, two tasks could look alike.
        """
        ids = np.zeros((len(instructions), self.max_tokens), np.int64)
        mask = np.zeros(ids.shape, np.bool_)
        for row, instruction in enumerate(instructions):
            tokens = self._tokens(instruction, None if states is None else states[row])
            if len(tokens) > self.max_tokens:
                raise ValueError(
                    f"the prompt of {instruction!r} has {len(tokens)} tokens; model.openpi.max_token_len = "
                    f"{self.max_tokens}, raise it"
                )
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = True
        return ids, mask

    def _tokens(self, instruction: str, state: np.ndarray | None) -> list[int]:
        if self.discrete_state:
            return [BOS, *self.encode(pi05_prompt(instruction, state))]
        return [BOS, *self.encode(clean_instruction(instruction)), *self.encode("\n")]


def hashed_words(vocab_size: int) -> Encode:
    """Words by their hash, numbers up to 255 and line breaks by themselves: needs no file."""
    rows = vocab_size - _FIRST_WORD
    if rows < 64:
        raise ValueError(
            f"architecture.vocab_size: hashed words need at least {_FIRST_WORD + 64} rows, got {vocab_size}"
        )

    def encode(text: str) -> list[int]:
        return [_word_id(word, rows) for word in _WORD.findall(text.lower())]

    return encode


def _word_id(word: str, rows: int) -> int:
    if word == "\n":
        return _NEWLINE
    if word.isdecimal() and int(word) < 256:
        return _FIRST_NUMBER + int(word)
    return _FIRST_WORD + zlib.crc32(word.encode("utf-8")) % rows


def find_tokenizer(path: str | Path) -> Path | None:
    """The tokenizer's file: `path` itself, or one of `FILES` in the folder."""
    path = Path(path)
    if path.is_file():
        return path if path.suffix in (".json", ".model") else None
    return next((path / name for name in FILES if (path / name).is_file()), None)


def load_encode(path: Path) -> Encode:
    """PaliGemma's tokenizer from a file of `tokenizers` (.json) or sentencepiece (.model).

    Raises ValueError naming the file when it cannot be read.
    """
    if path.suffix == ".model":
        return _sentencepiece(path)
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise ValueError(f"tokenizer {path} cannot be read: {error}") from None
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def _sentencepiece(path: Path) -> Encode:
    try:
        import sentencepiece
    except ImportError:
        raise ValueError(
            f"tokenizer {path} needs sentencepiece: pip install 'rlinf-plugin-openpi[sentencepiece]', or "
            "give a tokenizer.json"
        ) from None
    try:
        processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise ValueError(f"tokenizer {path} cannot be read: {error}") from None
    return processor.encode
