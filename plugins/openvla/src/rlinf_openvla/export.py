"""A policy's weights as the original's folder: weights, configuration, statistics, tokenizer, OFT's files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from rlinf.fsdp.export import export_safetensors
from rlinf.models.factory import plugin_config
from rlinf.models.weights import read_weights
from torch import Tensor

from rlinf_openvla.checkpoint import NEW_IN_RL, read_config
from rlinf_openvla.codec import given_statistics
from rlinf_openvla.config import OpenvlaConfig, OpenvlaOftConfig, VlaConfig
from rlinf_openvla.hf import save_processor
from rlinf_openvla.hf_config import OpenVLAConfig
from rlinf_openvla.tokenizers import load_tokenizer
from rlinf_openvla.vision import is_unused

if TYPE_CHECKING:
    from omegaconf import DictConfig

#: OFT keeps these beside the safetensors, each under `module.` as its wrapper for several GPUs left them.
PARTS: Final = ("action_head", "proprio_projector")
_STATISTICS: Final = "dataset_statistics.json"


def export(state: Mapping[str, Tensor], cfg: DictConfig, folder: Path, *, max_shard_bytes: int) -> None:
    """Write `state` (names of the policy's `state_dict`, no adapters) below `folder`.

    Tensors that the policy does not have because nothing reads them are copied from `model_path`, so that the
    original's code finds all it loads. OFT's heads go to files `<head>--latest_checkpoint.pt`.
    """
    config = plugin_config(cfg, OpenvlaOftConfig if cfg.model_type == "openvla_oft" else OpenvlaConfig)
    hf = read_config(config, cfg.model_path)
    base = None if cfg.model_path is None else Path(cfg.model_path)
    weights = dict(state)
    for part in PARTS:
        names = [n for n in state if n.startswith(f"{part}.") and n != NEW_IN_RL]
        tensors = {f"module.{n.removeprefix(f'{part}.')}": weights.pop(n).cpu().clone() for n in names}
        if tensors:
            torch.save(tensors, folder / f"{part}--latest_checkpoint.pt")
    if base is not None:
        depths = [tower.depth for tower in hf.towers]
        weights |= {n: x for n, x in read_weights(base, on_meta=False) if is_unused(n, depths)}
    export_safetensors(folder, weights, max_shard_bytes)
    _write_config(folder, hf, base)
    _write_statistics(folder, base, config)
    save_processor(folder, hf, load_tokenizer(config.tokenizer, cfg.model_path))


def _write_config(folder: Path, hf: OpenVLAConfig, base: Path | None) -> None:
    if base is not None:
        shutil.copy(base / "config.json", folder / "config.json")
        return
    content: dict[str, Any] = hf.to_dict() | {"architectures": ["OpenVLAForActionPrediction"]}
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_statistics(folder: Path, base: Path | None, config: VlaConfig) -> None:
    """The statistics that the policy used, where they are in a file of their own."""
    if config.statistics is not None:
        content = given_statistics(Path(config.statistics), config.unnorm_key)
        (folder / _STATISTICS).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    elif base is not None and (base / _STATISTICS).is_file():
        shutil.copy(base / _STATISTICS, folder / _STATISTICS)
