"""What the builders of all built-in policies do."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from rlinf.models.factory import plugin_config
from rlinf.models.weights import load_pretrained

if TYPE_CHECKING:
    import torch
    from omegaconf import DictConfig

    from rlinf.models.embodiment.config import PolicyConfig
    from rlinf.models.embodiment.gaussian_policy import GaussianPolicy

P = TypeVar("P", bound="GaussianPolicy")


def build_policy(
    policy_class: Callable[..., P], schema: type[PolicyConfig], cfg: DictConfig, torch_dtype: torch.dtype
) -> P:
    """The policy that the block `model` describes, with the weights of `model_path` where it is set."""
    policy = policy_class(
        plugin_config(cfg, schema),
        num_action_chunks=cfg.num_action_chunks,
        action_dim=cfg.action_dim,
        add_value_head=cfg.add_value_head,
    )
    return load_pretrained(policy, cfg.model_path).to(torch_dtype)
