"""Builder of `model_type: dexvla`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rlinf.models.factory import plugin_config

from rlinf_dexvla.checkpoint import load_backbone, load_dit
from rlinf_dexvla.config import DexvlaConfig
from rlinf_dexvla.normalizer import load_normalizer
from rlinf_dexvla.policy import DexvlaPolicy
from rlinf_dexvla.stats import ORIGINAL_FILE
from rlinf_dexvla.tokenizers import load_tokenizer
from rlinf_dexvla.vlm import vlm_config

if TYPE_CHECKING:
    import torch
    from omegaconf import DictConfig


def build(cfg: DictConfig, torch_dtype: torch.dtype) -> DexvlaPolicy:
    """The policy of the block `model`, with the weights of `model_path` and `load_pretrain_dit`.

    Raises ValueError naming the file, tensor or key that is wrong.
    """
    config = plugin_config(cfg, DexvlaConfig)
    if config.rl.train_reasoning and config.freeze_backbone and not cfg.is_lora:
        raise ValueError(
            "model.dexvla.rl.train_reasoning: freeze_backbone leaves nothing that writes the text"
        )
    tokenizer = load_tokenizer(config.tokenizer, cfg.model_path)
    policy = DexvlaPolicy(
        config,
        vlm_config=vlm_config(config.vlm, cfg.model_path, tokenizer),
        tokenizer=tokenizer,
        normalizer=load_normalizer(
            config.stats or _stats_beside(cfg.model_path),
            state_dim=config.state_dim,
            action_dim=cfg.action_dim,
        ),
        action_dim=cfg.action_dim,
        num_action_chunks=cfg.num_action_chunks,
        add_value_head=cfg.add_value_head,
    )
    if cfg.model_path is not None:
        load_backbone(policy, cfg.model_path)
    if config.load_pretrain_dit is not None:
        load_dit(policy, config.load_pretrain_dit)
    # Parameters alone: rotary tables and statistics lose what they are for in bfloat16.
    for parameter in policy.parameters():
        parameter.data = parameter.data.to(torch_dtype)
    return policy


def _stats_beside(model_path: str | None) -> str | None:
    """The statistics that a checkpoint of the original has in its folder."""
    path = Path(model_path or "") / ORIGINAL_FILE
    return str(path) if model_path is not None and path.is_file() else None
