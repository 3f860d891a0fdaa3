"""Builders of `model_type: openvla` and `openvla_oft`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlinf.models.factory import plugin_config

from rlinf_openvla.checkpoint import load_checkpoint, read_config
from rlinf_openvla.codec import ActionStats, given_statistics, read_statistics, select_statistics
from rlinf_openvla.config import OpenvlaConfig, OpenvlaOftConfig, VlaConfig
from rlinf_openvla.oft import OpenvlaOftPolicy
from rlinf_openvla.openvla import OpenvlaPolicy
from rlinf_openvla.policy import VlaPolicy
from rlinf_openvla.processing import PromptEncoder
from rlinf_openvla.tokenizers import load_tokenizer

if TYPE_CHECKING:
    import torch
    from omegaconf import DictConfig

    from rlinf_openvla.hf_config import OpenVLAConfig


def build(cfg: DictConfig, torch_dtype: torch.dtype) -> VlaPolicy:
    """The policy of the block `model`. Raises ValueError naming the file, tensor or key that is wrong."""
    oft = cfg.model_type == "openvla_oft"
    config = plugin_config(cfg, OpenvlaOftConfig if oft else OpenvlaConfig)
    _require_equal("action_token_len", config.action_token_len, "action_dim", cfg.action_dim)
    _require_equal("action_chunks_len", config.action_chunks_len, "num_action_chunks", cfg.num_action_chunks)
    hf = read_config(config, cfg.model_path)
    parts: dict[str, Any] = {
        "prompts": PromptEncoder(
            load_tokenizer(config.tokenizer, cfg.model_path),
            style=config.prompt_style,
            max_tokens=config.max_prompt_tokens,
        ),
        "stats": statistics(config, hf, cfg.model_path, "action", cfg.action_dim),
        "num_action_chunks": cfg.num_action_chunks,
        "action_dim": cfg.action_dim,
        "add_value_head": cfg.add_value_head,
        "skip_init": cfg.model_path is not None and config.low_cpu_mem_usage,
    }
    policy: VlaPolicy
    if isinstance(config, OpenvlaOftConfig):
        proprio = None
        if config.proprio_dim:
            proprio = statistics(config, hf, cfg.model_path, "proprio", config.proprio_dim)
        policy = OpenvlaOftPolicy(config, hf, proprio_stats=proprio, **parts)
    else:
        policy = OpenvlaPolicy(config, hf, **parts)
    if cfg.model_path is not None:
        load_checkpoint(policy, hf, cfg.model_path, torch_dtype)
    # Parameters alone: rotary tables lose what they are for in bfloat16.
    for parameter in policy.parameters():
        parameter.data = parameter.data.to(torch_dtype)
    return policy


def statistics(
    config: VlaConfig, hf: OpenVLAConfig, model_path: str | None, part: str, dim: int
) -> ActionStats:
    """Bounds of actions or states, checked against their number of dimensions."""
    if config.statistics is not None:
        stats = given_statistics(Path(config.statistics), config.unnorm_key)
    elif model_path is not None:
        stats = read_statistics(Path(model_path) / "dataset_statistics.json", hf.norm_stats)
    else:
        stats = {}
    if not stats and config.unnorm_key is None:  # trained on actions that were in [-1, 1]
        return ActionStats.identity(dim)
    normalization = config.normalization if isinstance(config, OpenvlaOftConfig) else "bounds_q99"
    found = select_statistics(stats, config.unnorm_key, part=part, normalization=normalization)
    if found.dim != dim:
        key = "action_dim" if part == "action" else "proprio_dim"
        raise ValueError(f"{key} is {dim}, but the statistics of {part} have {found.dim} dimensions")
    return found


def _require_equal(key: str, value: int | None, core_key: str, core_value: int) -> None:
    if value is not None and value != core_value:
        raise ValueError(f"{key} is {value}, but model.{core_key} is {core_value}; they mean the same")
