"""Full weights as safetensors files in the layout that the field's tools read (shards and an index)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"


def export_safetensors(
    directory: str | Path, state: Mapping[str, torch.Tensor], max_shard_bytes: int = 5 * 10**9
) -> list[Path]:
    """Write `state` into `directory`: one `model.safetensors`, or numbered shards with an index.

    A shard exceeds `max_shard_bytes` only where a single tensor does. Returns the files written. Raises
    `ValueError` if there is nothing to write or the folder already holds weights.
    """
    from safetensors.torch import save_file

    if not state:
        raise ValueError(f"export to {directory}: no tensors (only rank 0 holds the full state)")
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    present = [path.name for path in target.iterdir() if path.name.endswith((".safetensors", INDEX_NAME))]
    if present:
        raise ValueError(f"export to {target}: the folder already holds {present[0]}; choose another folder")

    shards = split_by_size(state, max_shard_bytes)
    total = len(shards)
    names = (
        [SINGLE_NAME]
        if total == 1
        else [f"model-{i:05d}-of-{total:05d}.safetensors" for i in range(1, total + 1)]
    )
    weight_map: dict[str, str] = {}
    for file_name, keys in zip(names, shards, strict=True):
        # Clones: safetensors refuses tensors that share storage (tied weights, views of one packed buffer).
        tensors = {key: state[key].detach().cpu().contiguous().clone() for key in keys}
        save_file(tensors, target / file_name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(keys, file_name)
    written = [target / name for name in names]
    if total > 1:
        size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        (target / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n")
        written.append(target / INDEX_NAME)
    return written


def split_by_size(state: Mapping[str, torch.Tensor], max_bytes: int) -> list[list[str]]:
    """Names in their order, cut into runs of at most `max_bytes` (a larger tensor stands alone)."""
    shards: list[list[str]] = [[]]
    used = 0
    for name, tensor in state.items():
        nbytes = tensor.numel() * tensor.element_size()
        if shards[-1] and used + nbytes > max_bytes:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += nbytes
    return shards


def load_safetensors(directory: str | Path) -> dict[str, torch.Tensor]:
    """Read what `export_safetensors` (or any tool of the same layout) wrote: `{name: CPU tensor}`.

    Raises `ValueError` naming the folder, file or tensor that is missing.
    """
    from safetensors.torch import load_file

    source = Path(directory)
    if (source / SINGLE_NAME).is_file():
        return load_file(source / SINGLE_NAME)
    index_path = source / INDEX_NAME
    if not index_path.is_file():
        raise ValueError(f"{source}: expected {SINGLE_NAME} or {INDEX_NAME}, found neither")
    weight_map: dict[str, str] = json.loads(index_path.read_text())["weight_map"]
    state: dict[str, torch.Tensor] = {}
    for file_name in dict.fromkeys(weight_map.values()):
        if not (source / file_name).is_file():
            raise ValueError(f"{source / file_name}: named in {INDEX_NAME}, but the file is missing")
        state |= load_file(source / file_name)
    missing = sorted(set(weight_map) - set(state))
    if missing:
        raise ValueError(f"{source}: {INDEX_NAME} names {missing[0]}, which {weight_map[missing[0]]} lacks")
    return {name: state[name] for name in weight_map}
