"""Policies with the recorded weights of a case, loaded from a folder like the original's checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from rlinf_openvla.checkpoint import LoadReport, load_checkpoint, read_config
from rlinf_openvla.codec import ActionStats, select_statistics
from rlinf_openvla.config import OpenvlaConfig, OpenvlaOftConfig
from rlinf_openvla.oft import OpenvlaOftPolicy
from rlinf_openvla.openvla import OpenvlaPolicy
from rlinf_openvla.processing import PromptEncoder
from rlinf_openvla.tokenizers import load_tokenizer
from safetensors.torch import save_file


def towers(plain: dict[str, Any], reference: dict[str, Any]) -> list[dict[str, Any]]:
    dino, siglip = reference["dino"], reference["siglip"]
    size = {"patch_size": plain["patch_size"]}
    return [
        {**size, **dino, "mlp_hidden": plain["dino_mlp_hidden"], "registers": 4, "layer_scale": True},
        {**size, **siglip, "mlp_hidden": plain["siglip_mlp_hidden"]},
    ]


def write_checkpoint(folder: Path, base: Any, weights: dict[str, torch.Tensor]) -> Path:
    """A checkpoint folder of the base case's sizes with these tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {**base.config["hf_config"]}
    content["vision_towers"] = towers(base.config["plain"], base.config["reference"])
    (folder / "config.json").write_text(json.dumps(content))
    save_file(weights, folder / "model.safetensors")
    return folder


def load(
    folder: Path, config: OpenvlaConfig, stats: ActionStats, *, chunk: int, value_head: bool = True
) -> tuple[OpenvlaPolicy | OpenvlaOftPolicy, LoadReport]:
    hf = read_config(config, str(folder))
    prompts = PromptEncoder(load_tokenizer("words", None), style="openvla", max_tokens=64)
    parts: dict[str, Any] = {
        "prompts": prompts,
        "stats": stats,
        "num_action_chunks": chunk,
        "action_dim": stats.dim,
        "add_value_head": value_head,
        "skip_init": True,
    }
    policy: OpenvlaPolicy | OpenvlaOftPolicy
    if isinstance(config, OpenvlaOftConfig):
        policy = OpenvlaOftPolicy(config, hf, proprio_stats=None, **parts)
    else:
        policy = OpenvlaPolicy(config, hf, **parts)
    report = load_checkpoint(policy, hf, str(folder), torch.float32)
    return policy.eval(), report


def statistics(reference: dict[str, Any], key: str) -> ActionStats:
    return select_statistics(reference["norm_stats"], key)
