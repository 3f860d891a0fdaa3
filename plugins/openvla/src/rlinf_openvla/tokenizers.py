"""The tokenizer of a checkpoint's folder, or one without files for models that are trained from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

_SPECIALS: Final = ("<pad>", "<s>", "</s>", "<unk>")
#: One token each: the prompt's own words, and those of simple instructions.
_WORDS: Final = """
In What action should the robot take to Out and backward blue by cube cylinder for forward grasp green it
left lift move of on onto open pick place purple push pushing put raise reach red right slide stack tap
target top touch turn up yellow
"""


def load_tokenizer(name: str | None, model_path: str | None) -> Any:
    """name: a folder, "words", or None for the checkpoint's folder. Raises ValueError."""
    if name == "words":
        return word_tokenizer()
    folder = Path(name or model_path or "")
    if not (name or model_path):
        raise ValueError(
            "tokenizer: there is no checkpoint to take it from (model_path is null); name a folder, or words"
        )
    if not folder.is_dir() or not any((folder / f).is_file() for f in ("tokenizer.json", "tokenizer.model")):
        raise ValueError(f"tokenizer: {folder} has no tokenizer.json or tokenizer.model")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def word_tokenizer() -> Any:
    """Behind <pad> 0, <s> 1, </s> 2 and <unk> 3 a token per byte, then one for each of some fifty words: all
    text can be told apart, and what a small network has to tell apart is short. BOS comes first."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(_SPECIALS)}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary |= {letter: len(_SPECIALS) + i for i, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_tokens([AddedToken(word, single_word=True, lstrip=True) for word in _WORDS.split()])
    pad, bos, eos, unk = _SPECIALS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, bos_token=bos, eos_token=eos, unk_token=unk
    )
