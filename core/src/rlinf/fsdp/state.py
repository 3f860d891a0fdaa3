"""Sharded model and optimizer state on disk, by torch DCP in its safetensors format: no pickle is written or
read.

DCP's default storage keeps a pickled `.metadata` and unpickles it (and every non-tensor value) on load. Its
safetensors storage has neither: each rank writes one file whose header says where its shards belong.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import STORAGE_TYPES, TensorStorageMetadata

from rlinf.fsdp.optim import local

_STATE_DIR = "state"
_MODEL, _MOMENTS, _STEPS, _AVERAGE = "model.", "optim.", "optim_steps", "ema."
_MOMENT_NAMES = ("exp_avg", "exp_avg_sq")


def save_sharded(
    directory: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Mapping[str, torch.Tensor] = MappingProxyType({}),
) -> None:
    """Write `directory/state/*.safetensors`; a collective, every rank its own shards. `average`: the moving
    average of weights by their names."""
    path = directory / _STATE_DIR
    path.mkdir(parents=True, exist_ok=True)
    dcp.save(
        _tensors(model, optimizer, set(_with_moments(optimizer)), average),
        storage_writer=HuggingFaceStorageWriter(str(path), save_distributed=True),
    )


def load_sharded(
    directory: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Mapping[str, torch.Tensor] = MappingProxyType({}),
) -> None:
    """Read into model, optimizer and average in place, resharding where the number of ranks changed; a
    collective.

    Raises `ValueError` naming the tensors that the checkpoint or the model lacks, or whose shapes differ.
    """
    path = directory / _STATE_DIR
    if not path.is_dir():
        raise ValueError(f"{path} is missing: {directory} holds no sharded state")
    reader = HuggingFaceStorageReader(str(path))
    stored = reader.read_metadata().state_dict_metadata
    suffix = f".{_MOMENT_NAMES[0]}"
    stepped = {key[len(_MOMENTS) : -len(suffix)] for key in stored if key.endswith(suffix)}
    tensors = _tensors(model, optimizer, stepped, average)
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


def local_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """This rank's shards of all that training changes: trainable parameters, buffers, moments, step counters.
    Frozen parameters are left out: who builds the model anew has them."""
    frozen = {name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}
    tensors = _tensors(model, optimizer, set(_with_moments(optimizer)), {})
    return {
        name: local(tensor)
        for name, tensor in tensors.items()
        if not (name.startswith(_MODEL) and name.removeprefix(_MODEL) in frozen)
    }


def set_local_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]
) -> None:
    """Take over what `local_tensors` gave on the same rank of an equal group."""
    own = {f"{_MODEL}{name}": local(value) for name, value in model.state_dict().items()}
    with torch.no_grad():
        for name, tensor in tensors.items():
            if name.startswith(_MODEL):
                own[name].copy_(tensor)
    optimizer.state.clear()
    steps = tensors[_STEPS]
    for position, (name, parameter) in enumerate(_named(optimizer)):
        if f"{_MOMENTS}{name}.{_MOMENT_NAMES[0]}" in tensors:
            moments = {}
            for key in _MOMENT_NAMES:
                moments[key] = torch.zeros_like(parameter).detach()
                local(moments[key]).copy_(tensors[f"{_MOMENTS}{name}.{key}"])
            step = steps[position].clone().to(_step_device(parameter))
            optimizer.state[parameter] = {"step": step, **moments}


def read_model_state(directory: Path) -> dict[str, torch.Tensor]:
    """The full weights of a checkpoint as CPU tensors, in one process without a process group.

    Raises `ValueError` for a folder without sharded state.
    """
    path = directory / _STATE_DIR
    if not path.is_dir():
        raise ValueError(f"{path} is missing: {directory} holds no sharded state")
    stored = HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
    tensors = {}
    for key, entry in stored.items():
        if key.startswith(_MODEL):
            assert isinstance(entry, TensorStorageMetadata)
            tensors[key] = torch.empty(entry.size, dtype=entry.properties.dtype)
    dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=True)
    return {key.removeprefix(_MODEL): tensor for key, tensor in tensors.items()}


def load_model_state(model: nn.Module, directory: Path) -> None:
    """Copy the full weights of a checkpoint into a model on one process.

    Raises `ValueError` for a folder without sharded state, RuntimeError for one of another model.
    """
    state = read_model_state(directory)
    own = model.state_dict()
    model.load_state_dict({**state, **{name: own[name] for name in aliases(model)}})


def aliases(model: nn.Module) -> set[str]:
    """Further names of parameters that have several (tied embeddings); a checkpoint has the first."""
    return {name for name, _ in model.named_parameters(remove_duplicate=False)} - {
        name for name, _ in model.named_parameters()
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
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    stepped: set[str],
    average: Mapping[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """The flat state: model tensors and step counters; moments (zeros where none) of those in `stepped`.

    A parameter with two names (tied embeddings) is there once, under the first: files hold no aliases.
    """
    shared = aliases(model)
    tensors: dict[str, torch.Tensor] = {
        f"{_MODEL}{name}": value for name, value in model.state_dict().items() if name not in shared
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
    tensors |= {f"{_AVERAGE}{name}": value for name, value in average.items()}
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
