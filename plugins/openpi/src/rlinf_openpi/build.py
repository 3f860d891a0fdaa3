"""Builder of `model_type: openpi`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rlinf.data.stats import NormStats, read_norm_stats
from rlinf.models.factory import plugin_config
from torch import nn

from rlinf_openpi.checkpoint import load_checkpoint
from rlinf_openpi.config import OpenpiConfig
from rlinf_openpi.data_config import DataConfig, load_data_config
from rlinf_openpi.network.sampling import expert_step
from rlinf_openpi.policy import FLOAT32, OpenpiPolicy
from rlinf_openpi.processing import Processor
from rlinf_openpi.tokenizer import Encode, PromptTokenizer, find_tokenizer, hashed_words, load_encode

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
    return policy


def make_processor(
    config: OpenpiConfig, data: DataConfig, action_dim: int, model_path: str | None
) -> Processor:
    """Transforms, with tokenizer and statistics from where the configuration and the checkpoint say."""
    stats = norm_stats(config, data, model_path)
    tokens = PromptTokenizer(
        _encode(config, model_path),
        config.max_token_len or data.max_token_len,
        discrete_state=data.discrete_state_input,
    )
    image_size = config.architecture.vision.image_size
    return Processor(data, tokens, image_size, action_dim, config.max_action_dim, stats)


def norm_stats(config: OpenpiConfig, data: DataConfig, model_path: str | None) -> dict[str, NormStats] | None:
    """Statistics of `norm_stats_path`, else those that the checkpoint brings, else None.

    Raises ValueError when `norm_stats_path` has none, or a checkpoint without any needs some.
    """
    if data.normalization == "none":
        return None
    if config.norm_stats_path is not None:
        path = Path(config.norm_stats_path)
        path = path / "norm_stats.json" if path.is_dir() else path
        return _complete(path)
    if model_path is None:
        return None
    folder = Path(model_path) if Path(model_path).is_dir() else Path(model_path).parent
    places = [folder / "norm_stats.json"]
    if data.asset_id is not None:
        places = [
            folder / "assets" / data.asset_id / "norm_stats.json",
            folder / data.asset_id / "norm_stats.json",
            *places,
        ]
    for place in places:
        if place.is_file():
            return _complete(place)
    looked = ", ".join(str(place) for place in places)
    raise ValueError(
        f"model_path {model_path} brings no normalisation statistics (looked for {looked}): compute them "
        "with `rlinf data stats` and set model.openpi.norm_stats_path"
    )


def _complete(path: Path) -> dict[str, NormStats]:
    """The statistics of state and actions in a file. Raises ValueError naming the file and what it lacks."""
    stats = read_norm_stats(path)
    missing = [name for name in ("state", "actions") if name not in stats]
    if missing:
        raise ValueError(f"normalisation statistics {path} lack {', '.join(missing)}")
    return stats


def _encode(config: OpenpiConfig, model_path: str | None) -> Encode:
    given = config.tokenizer_path or model_path
    if given is None:
        return hashed_words(config.architecture.vocab_size)
    found = find_tokenizer(given)
    if found is None and config.tokenizer_path is None:
        found = find_tokenizer(Path(given).parent)
    if found is None:
        raise ValueError(
            f"no tokenizer in {given}: set model.openpi.tokenizer_path to PaliGemma's tokenizer.json or "
            "paligemma_tokenizer.model"
        )
    return load_encode(found)


def is_head(path: str, module: nn.Module) -> bool:
    """Wrap policy: the heads that there are (value head, noise head)."""
    return getattr(module, "_is_policy_head", False) is True
