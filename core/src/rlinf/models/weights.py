"""Pretrained weights from safetensors, for models that do not bring a loader of their own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
#: Set on parameters that came from a checkpoint; transformers marks those that `from_pretrained` loaded
#: likewise.
PRETRAINED_MARKS = ("_is_pretrained", "_is_hf_initialized")


def load_pretrained(
    model: M,
    model_path: str | None,
    rename: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] | None = None,
) -> M:
    """Copy weights of the model's own layout into it; None leaves it as it is.

    Of a model on the meta device only names and shapes are compared; no weights are read. Heads that the
    checkpoint lacks (`_is_policy_head`, such as a value head) keep their initial weights; every other
    difference is an error.

    Args:
        model_path: a `.safetensors` file, or a folder with `model.safetensors` or numbered shards and their
            index.
        rename: turns the checkpoint's tensors into the model's, for files of another layout.

    Raises:
        ValueError: names the file and the tensors that are missing, unexpected, or of another shape.
    """
    if model_path is None:
        return model
    own = model.state_dict()
    state = dict(read_weights(Path(model_path), on_meta=all(tensor.is_meta for tensor in own.values())))
    if rename is not None:
        state = rename(state)
    heads = tuple(f"{path}." for path, m in model.named_modules() if getattr(m, "_is_policy_head", False))
    missing = [name for name in own if name not in state and not name.startswith(heads)]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} is {tuple(tensor.shape)} there and {tuple(own[name].shape)} here"
        for name, tensor in state.items()
        if name in own and tensor.shape != own[name].shape
    ]
    for what, names in (("lacks", missing), ("has unknown", unexpected), ("has other shapes:", shapes)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            listed = ", ".join(names[:3]) + more
            raise ValueError(
                f"model_path {model_path}: does not fit {type(model).__name__}: it {what} {listed}"
            )
    model.load_state_dict(state, strict=False)
    for name, parameter in model.named_parameters():
        if name in state:
            setattr(parameter, PRETRAINED_MARKS[0], True)
    return model


def is_pretrained(parameter: nn.Parameter) -> bool:
    """Whether a parameter's values came from a checkpoint."""
    return any(getattr(parameter, mark, False) for mark in PRETRAINED_MARKS)


def read_weights(path: Path, *, on_meta: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors by name of a `.safetensors` file, or of a folder with `model.safetensors` or numbered shards.

    on_meta: only names and shapes, as tensors on the meta device. Raises ValueError for a missing file.
    """
    from safetensors import safe_open
    from safetensors.torch import load_file

    if path.is_dir() and (path / _INDEX).is_file():
        names = json.loads((path / _INDEX).read_text())["weight_map"].values()
        files = [path / name for name in dict.fromkeys(names)]
    elif path.is_dir():
        files = [path / _SINGLE]
    else:
        files = [path]
    for file in files:
        if not file.is_file():
            raise ValueError(f"model_path {path}: {file} does not exist")
        if not on_meta:
            yield from load_file(file).items()
            continue
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118 - not a mapping
                yield name, torch.empty(stored.get_slice(name).get_shape(), device="meta")
