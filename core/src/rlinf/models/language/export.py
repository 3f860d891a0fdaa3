"""Weights of a policy as the folder that transformers writes (`save_pretrained`), with its tokenizer."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from rlinf.models.factory import get_model
from rlinf.models.language.text import CharacterTokenizer, TextProcessor

if TYPE_CHECKING:
    from omegaconf import DictConfig

#: Files of a folder of transformers that belong to tokenizer, processor and sampling.
_KINDS: Final = (".json", ".jinja", ".model", ".txt", ".tiktoken")
#: Such files that belong to weights.
_OF_WEIGHTS: Final = ("config.json", "adapter_config.json")


def export(state: Mapping[str, Tensor], cfg: DictConfig, folder: Path, *, max_shard_bytes: int) -> None:
    """Write `state` (names of the policy's `state_dict`, no adapters) below `folder`: what `from_pretrained`
    and `model.model_path` load.

    Tokenizer and preprocessor are those of `model_path`; a tokenizer of characters is written as one of the
    library tokenizers that gives the same ids. The value head, which transformers does not have, is left out.

    Raises ValueError: the state is not that of the model.
    """
    cfg = cfg.copy()
    cfg.is_lora = False
    with torch.device("meta"):
        policy: Any = get_model(cfg)
    missing = [name for name, _ in policy.named_parameters() if name not in state]
    if missing:
        raise ValueError(f"the state lacks {len(missing)} tensors of the model: {', '.join(missing[:3])}")
    # Names that share a tensor may be there once: `tie_weights` joins them again.
    unknown = policy.load_state_dict(state, strict=False, assign=True).unexpected_keys
    if unknown:
        raise ValueError(f"the state has {len(unknown)} tensors unknown to the model: {unknown[0]}")
    model = policy.actor.model
    model.tie_weights()
    model.save_pretrained(folder, max_shard_size=max_shard_bytes)
    if cfg.model_path is not None:
        _copy_files(Path(cfg.model_path), folder)
        return
    processor: TextProcessor = policy.processor
    assert isinstance(processor.tokenizer, CharacterTokenizer)
    processor.tokenizer.save_pretrained(folder, processor.modality)
    if processor.media is not None:
        processor.media.processor.save_pretrained(folder)


def _copy_files(source: Path, folder: Path) -> None:
    for file in source.iterdir():
        of_weights = file.name in _OF_WEIGHTS or file.name.endswith(".index.json")
        if file.is_file() and file.suffix in _KINDS and not of_weights:
            shutil.copy(file, folder / file.name)
