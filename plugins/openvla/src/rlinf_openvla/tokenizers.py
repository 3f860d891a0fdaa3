"""The tokenizer of a checkpoint's folder, or one of bytes for models that are trained from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

_SPECIALS: Final = ("<pad>", "<s>", "</s>", "<unk>")


def load_tokenizer(name: str | None, model_path: str | None) -> Any:
    """name: a folder, "bytes", or None for the checkpoint's folder. Raises ValueError."""
    if name == "bytes":
        return byte_tokenizer()
    folder = Path(name or model_path or "")
    if not (name or model_path):
        raise ValueError(
            "tokenizer: there is no checkpoint to take it from (model_path is null); name a folder, or bytes"
        )
    if not folder.is_dir() or not any((folder / f).is_file() for f in ("tokenizer.json", "tokenizer.model")):
        raise ValueError(f"tokenizer: {folder} has no tokenizer.json or tokenizer.model")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def byte_tokenizer() -> Any:
    """A token per byte behind <pad> 0, <s> 1, </s> 2 and <unk> 3; BOS comes first."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(_SPECIALS)}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary |= {letter: len(_SPECIALS) + i for i, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    pad, bos, eos, unk = _SPECIALS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, bos_token=bos, eos_token=eos, unk_token=unk
    )
