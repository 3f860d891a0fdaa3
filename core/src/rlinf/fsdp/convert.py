"""From a training checkpoint (shards) to weights that other tools read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from rlinf.config.schema import ModelConfig
from rlinf.fsdp.export import export_safetensors
from rlinf.fsdp.meta import build_on_meta
from rlinf.fsdp.state import aliases, read_model_state
from rlinf.models.factory import model_config
from rlinf.models.lora import merge_lora
from rlinf.models.lora_files import save_adapters, split_adapters
from rlinf.plugins import get_host

#: What becomes of adapters: folded into the weights, or written beside them.
LoraMode = Literal["merge", "keep"]
#: Folder of adapters that are kept.
ADAPTER_FOLDER = "lora_adapter"


def convert(
    checkpoint: Path, model: ModelConfig, target: Path, *, lora: LoraMode, max_shard_bytes: int
) -> list[Path]:
    """Write the weights of a checkpoint in the layout of the model's family (`ModelSpec.exporter`; without
    one: the model's own names in safetensors). The folder appears when it is complete.

    Raises ValueError where the checkpoint does not fit the model, or the target is taken.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} already exists; name a new folder")
    state = read_model_state(checkpoint)
    adapters: dict[str, Tensor] = {}
    if model.is_lora and lora == "merge":
        state = _merged(model, state)
    elif model.is_lora:
        state, adapters = split_adapters(state)
    aside = target.with_name(f".unfinished_{target.name}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        export(state, model, aside, max_shard_bytes)
        if adapters:
            save_adapters(
                aside / ADAPTER_FOLDER,
                adapters,
                root=get_host().model_spec(model.model_type).lora_root,
                rank=model.lora_rank,
                alpha=model.lora_alpha,
                dropout=model.lora_dropout,
            )
        if target.exists():
            target.rmdir()
        os.replace(aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return sorted(path for path in target.rglob("*") if path.is_file())


def export(
    state: dict[str, Tensor], model: ModelConfig, folder: Path, max_shard_bytes: int = 5 * 10**9
) -> None:
    """Write full weights, without adapters, into a new or empty folder as the model's family has them."""
    folder.mkdir(parents=True, exist_ok=True)
    spec = get_host().model_spec(model.model_type)
    if spec.exporter is None:
        export_safetensors(folder, state, max_shard_bytes)
        return
    exporter: Any = get_host().resolve(spec, "exporter")
    exporter(state, model_config(model), folder, max_shard_bytes=max_shard_bytes)


def _merged(model: ModelConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights with the adapters folded in: built without weights of its own, so it costs one copy."""
    built, _ = build_on_meta(model.model_copy(update={"lora_path": None}))
    shared = aliases(built)
    own = set(built.state_dict()) - shared
    for what, names in (("lacks", own - set(state)), ("has unknown", set(state) - own)):
        if names:
            listed = ", ".join(sorted(names)[:3])
            raise ValueError(f"the checkpoint {what} {len(names)} tensors of the model: {listed}")
    built.load_state_dict(state, assign=True, strict=False)
    with torch.no_grad():
        merged = merge_lora(built).state_dict()
    return {name: tensor for name, tensor in merged.items() if name not in shared}
