"""Builder of `model_type: tiny_vla`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlinf.models.embodiment.building import build_policy
from rlinf.models.embodiment.tiny_vla.config import TinyVlaConfig
from rlinf.models.embodiment.tiny_vla.policy import TinyVla

if TYPE_CHECKING:
    import torch
    from omegaconf import DictConfig


def build(cfg: DictConfig, torch_dtype: torch.dtype) -> TinyVla:
    return build_policy(TinyVla, TinyVlaConfig, cfg, torch_dtype)
