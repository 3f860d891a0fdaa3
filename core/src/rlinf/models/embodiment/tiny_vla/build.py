"""Builder of `model_type: tiny_vla`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlinf.models.embodiment.tiny_vla.config import TinyVlaConfig
from rlinf.models.embodiment.tiny_vla.policy import TinyVla
from rlinf.models.factory import plugin_config
from rlinf.models.weights import load_pretrained

if TYPE_CHECKING:
    import torch
    from omegaconf import DictConfig


def build(cfg: DictConfig, torch_dtype: torch.dtype) -> TinyVla:
    policy = TinyVla(
        plugin_config(cfg, TinyVlaConfig),
        num_action_chunks=cfg.num_action_chunks,
        action_dim=cfg.action_dim,
        add_value_head=cfg.add_value_head,
    )
    return load_pretrained(policy, cfg.model_path).to(torch_dtype)
