"""A tokenizer for tests that need one and must not download it."""

from __future__ import annotations

from typing import Final

from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, UNK = SPECIALS = ("<pad>", "<s>", "</s>", "<unk>")
_FIRST_BYTE: Final = len(SPECIALS)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Token ids: the specials (<pad> is 0), then the 256 bytes in the order of GPT-2's alphabet, sorted."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(SPECIALS)}
    vocabulary |= {letter: _FIRST_BYTE + i for i, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS, unk_token=UNK
    )
