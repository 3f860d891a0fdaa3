"""Words to hashes: a tokenizer without a vocabulary file."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch

PAD: Final = 0
#: Starts every instruction, so that an empty one still has a token to attend to.
START: Final = 1
_WORD = re.compile(r"\w+|[^\w\s]")


def hash_word(word: str) -> int:
    """A stable 31-bit number >= 2 (Python's own hash differs between processes)."""
    return max(2, zlib.crc32(word.encode("utf-8")) & 0x7FFFFFFF)


def tokenize(instructions: Sequence[str], max_tokens: int) -> torch.Tensor:
    """int32 [B, max_tokens]: START, then a hash per lower-cased word or punctuation mark, then PAD.

    Raises ValueError for an instruction with more than `max_tokens - 1` words: cutting it silently would make
    two tasks look alike.
    """
    out = np.zeros((len(instructions), max_tokens), dtype=np.int32)
    out[:, 0] = START
    for row, text in zip(out, instructions, strict=True):
        words = _WORD.findall(text.lower())
        if len(words) >= max_tokens:
            raise ValueError(
                f"instruction {text!r} has {len(words)} words; model.tiny_vla.max_instruction_tokens = "
                f"{max_tokens} admits {max_tokens - 1}, raise it"
            )
        row[1 : len(words) + 1] = [hash_word(word) for word in words]
    return torch.from_numpy(out)
