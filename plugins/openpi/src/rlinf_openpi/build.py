"""Builder of `model_type: openpi`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from rlinf.models.factory import plugin_config

from rlinf_openpi.assets import encoder, norm_stats
from rlinf_openpi.checkpoint import load_checkpoint
from rlinf_openpi.config import OpenpiConfig
from rlinf_openpi.data_config import DataConfig, load_data_config
from rlinf_openpi.network.gemma import GemmaBlock
from rlinf_openpi.network.pi0 import Pi0
from rlinf_openpi.network.sampling import expert_step
from rlinf_openpi.network.siglip import SiglipBlock
from rlinf_openpi.policy import FLOAT32, OpenpiPolicy
from rlinf_openpi.processing import Processor
from rlinf_openpi.tokenizer import PromptTokenizer

if TYPE_CHECKING:
    from omegaconf import DictConfig


def build(cfg: DictConfig, torch_dtype: torch.dtype) -> OpenpiPolicy:
    """The policy that the block `model` describes, with the weights of `model_path` where it is set."""
    config = plugin_config(cfg, OpenpiConfig)
    data = load_data_config(config.config_name)
    horizon = config.action_horizon or data.action_horizon
    if cfg.num_action_chunks > horizon:
        raise ValueError(
            f"model.num_action_chunks {cfg.num_action_chunks} is more than the network's action_horizon "
            f"{horizon}"
        )
    if cfg.action_dim > config.max_action_dim:
        raise ValueError(
            f"model.action_dim {cfg.action_dim} is more than model.openpi.max_action_dim "
            f"{config.max_action_dim}"
        )
    if config.compile == "cuda_graphs" and not torch.cuda.is_available():
        raise ValueError(
            "model.openpi.compile: cuda_graphs needs a CUDA device, and there is none; use default or off"
        )
    policy = OpenpiPolicy(
        config,
        data,
        num_action_chunks=cfg.num_action_chunks,
        action_dim=cfg.action_dim,
        add_value_head=cfg.add_value_head,
        processor=make_processor(config, data, cfg.action_dim, cfg.model_path),
    )
    load_checkpoint(policy, cfg.model_path)
    policy.to(torch_dtype)
    for name in FLOAT32:
        if hasattr(policy, name):
            getattr(policy, name).float()
    if config.compile != "off":
        mode = "reduce-overhead" if config.compile == "cuda_graphs" else None
        policy.compile_step(torch.compile(expert_step, mode=mode))
        compile_blocks(policy)
    return policy


def compile_blocks(network: Pi0) -> None:
    """Fuse what stands between the blocks' matrix products, in training's backward pass, too.

    All blocks of a kind share what is compiled; the kinds, gradients or none, growing batches and the last
    layer of the prefix make more variants than torch's limit of 8.
    """
    for module in network.modules():
        if isinstance(module, (GemmaBlock, SiglipBlock)):
            module.forward = torch.compile(module.forward, recompile_limit=64)  # type: ignore[method-assign,call-overload]


def make_processor(
    config: OpenpiConfig, data: DataConfig, action_dim: int, model_path: str | None
) -> Processor:
    """Transforms, with tokenizer and statistics from where the configuration and the checkpoint say."""
    stats = norm_stats(config, data, model_path)
    tokens = PromptTokenizer(
        encoder(config, model_path),
        config.max_token_len or data.max_token_len,
        discrete_state=data.discrete_state_input,
    )
    image_size = config.architecture.vision.image_size
    return Processor(data, tokens, image_size, action_dim, config.max_action_dim, stats)
