"""A policy's weights as the original has them: tensor names, configuration, tokenizer, statistics."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rlinf.fsdp.export import export_safetensors
from rlinf.models.factory import plugin_config
from torch import Tensor

from rlinf_dexvla.checkpoint import original_state
from rlinf_dexvla.config import DexvlaConfig
from rlinf_dexvla.stats import ORIGINAL_FILE, Stats, write_original
from rlinf_dexvla.tokenizers import PretrainedTokenizer, load_tokenizer
from rlinf_dexvla.vlm import vlm_config

if TYPE_CHECKING:
    from omegaconf import DictConfig


def export(state: Mapping[str, Tensor], cfg: DictConfig, folder: Path, *, max_shard_bytes: int) -> None:
    """Write `state` (names of the policy's `state_dict`, no adapters) below `folder`: a `model_path` for the
    next stage, or, of stage 1, a `load_pretrain_dit`. The value head, which the original does not have, is
    left out."""
    config = plugin_config(cfg, DexvlaConfig)
    export_safetensors(folder, original_state(state), max_shard_bytes)
    names = Stats.__dataclass_fields__
    stats = Stats(**{name: tuple(state[f"normalizer.{name}"].float().tolist()) for name in names})
    write_original(folder / ORIGINAL_FILE, stats)
    if not config.use_vlm:
        return
    tokenizer = load_tokenizer(config.tokenizer, cfg.model_path)
    content = vlm_config(config.vlm, cfg.model_path, tokenizer).to_dict()
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if isinstance(tokenizer, PretrainedTokenizer):
        tokenizer.save(folder)
