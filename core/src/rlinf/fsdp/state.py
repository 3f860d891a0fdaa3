"""Sharded model and optimizer state on disk, by torch DCP in its safetensors format: no pickle is written or
read.

DCP's default storage keeps a pickled `.metadata` and unpickles it (and every non-tensor value) on load. Its
safetensors storage has neither: each rank writes one file whose header says where its shards belong.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import STORAGE_TYPES, TensorStorageMetadata

_STATE_DIR = "state"
_MODEL, _MOMENTS, _STEPS = "model.", "optim.", "optim_steps"
_MOMENT_NAMES = ("exp_avg", "exp_avg_sq")


def save_sharded(directory: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write `directory/state/*.safetensors`; a collective, every rank its own shards."""
    path = directory / _STATE_DIR
    path.mkdir(parents=True, exist_ok=True)
    dcp.save(
        _tensors(model, optimizer, set(_with_moments(optimizer))),
        storage_writer=HuggingFaceStorageWriter(str(path), save_distributed=True),
    )


def load_sharded(directory: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Read into model and optimizer in place, resharding where the number of ranks changed; a collective.

    Raises `ValueError` naming the tensors that the checkpoint or the model lacks, or whose shapes differ.
    """
    path = directory / _STATE_DIR
    if not path.is_dir():
        raise ValueError(f"{path} is missing: {directory} holds no sharded state")
    reader = HuggingFaceStorageReader(str(path))
    stored = reader.read_metadata().state_dict_metadata
    suffix = f".{_MOMENT_NAMES[0]}"
    stepped = {key[len(_MOMENTS) : -len(suffix)] for key in stored if key.endswith(suffix)}
    tensors = _tensors(model, optimizer, stepped)
    _check(directory, stored, tensors)
    dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(path)))
    # Buffers and parameters were filled in place; moments and counters start in fresh tensors.
    optimizer.state.clear()
    steps = tensors[_STEPS]
    for position, (name, parameter) in enumerate(_named(optimizer)):
        if name in stepped:
            moments = {key: tensors[f"{_MOMENTS}{name}.{key}"] for key in _MOMENT_NAMES}
            optimizer.state[parameter] = {
                "step": steps[position].clone().to(_step_device(parameter)),
                **moments,
            }


def _named(optimizer: torch.optim.Optimizer) -> list[tuple[str, nn.Parameter]]:
    return [
        (name, parameter)
        for group in optimizer.param_groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
    ]


def _with_moments(optimizer: torch.optim.Optimizer) -> list[str]:
    return [name for name, parameter in _named(optimizer) if optimizer.state.get(parameter)]


def _step_device(parameter: torch.Tensor) -> torch.device:
    """Fused AdamW keeps its step counters beside the parameters."""
    return parameter.device


def _tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, stepped: set[str]
) -> dict[str, torch.Tensor]:
    """The flat state: model tensors and step counters; moments (zeros where none) of those in `stepped`."""
    tensors: dict[str, torch.Tensor] = {
        f"{_MODEL}{name}": value for name, value in model.state_dict().items()
    }
    steps = []
    for name, parameter in _named(optimizer):
        state = optimizer.state.get(parameter) or {}
        steps.append(float(state["step"]) if state else 0.0)
        if name in stepped:
            for key in _MOMENT_NAMES:
                tensors[f"{_MOMENTS}{name}.{key}"] = (
                    state[key] if state else torch.zeros_like(parameter).detach()
                )
    tensors[_STEPS] = torch.tensor(steps)
    return tensors


def _check(directory: Path, stored: dict[str, STORAGE_TYPES], wanted: dict[str, torch.Tensor]) -> None:
    for what, names in (
        ("lacks", sorted(set(wanted) - set(stored))),
        ("holds, unknown to this model and optimizer,", sorted(set(stored) - set(wanted))),
    ):
        if names:
            raise ValueError(
                f"{directory} {what} {len(names)} tensors: {', '.join(names[:5])}"
                f"{' ...' if len(names) > 5 else ''}. "
                "Was it written with another model configuration (model_type, is_lora, add_value_head)?"
            )
    for name, tensor in wanted.items():
        entry = stored[name]
        assert isinstance(entry, TensorStorageMetadata)
        if entry.size != tensor.shape:
            raise ValueError(
                f"{directory}: {name} has shape {list(entry.size)} there and {list(tensor.shape)} here"
            )
