"""Weights as one contiguous buffer: what travels through Ray's object store from the trainer to the rollout.

One flat `uint8` array costs one allocation and one copy to put and none to get, where a dict of tensors costs
a pickle. The index is plain JSON: `{name: [dtype, shape, byte offset]}`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

#: Every tensor starts at a multiple of this many bytes (a cache line; more than any dtype needs).
ALIGNMENT = 64

#: `{name: [dtype name, shape, byte offset]}`, JSON-able.
Index = dict[str, list[Any]]


def layout(state: Mapping[str, torch.Tensor]) -> tuple[int, Index]:
    """Bytes and index of the buffer that holds `state`; only shapes and dtypes of the tensors are read."""
    index: Index = {}
    offset = 0
    for name, tensor in state.items():
        index[name] = [str(tensor.dtype).removeprefix("torch."), list(tensor.shape), offset]
        nbytes = tensor.numel() * tensor.element_size()
        offset += math.ceil(nbytes / ALIGNMENT) * ALIGNMENT
    return offset, index


def pack(state: Mapping[str, torch.Tensor]) -> tuple[np.ndarray, Index]:
    """Copy the tensors (any device, dtype, strides) into one `uint8` array of their own bytes.

    Returns the array `[bytes]` and the index that `unpack` needs.
    """
    nbytes, index = layout(state)
    buffer = np.empty(nbytes, dtype=np.uint8)
    for name, view in unpack(buffer, index).items():
        view.copy_(state[name].detach())
    return buffer, index


def unpack(buffer: np.ndarray, index: Index) -> dict[str, torch.Tensor]:
    """Tensors that share the buffer's memory (no copy).

    An array out of Ray's object store is read-only, and so must the tensors be treated: copy from them
    (`copy_into`), never write to them. Raises `ValueError` if the index reaches beyond the buffer.
    """
    with warnings.catch_warnings():
        # Torch has no read-only tensors and warns about each such array; the contract above is the answer.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        flat = torch.from_numpy(buffer)
    state = {}
    for name, (dtype_name, shape, offset) in index.items():
        dtype = getattr(torch, dtype_name, None)
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"weights index: {name} has the unknown dtype {dtype_name!r}")
        end = offset + math.prod(shape) * dtype.itemsize
        if end > flat.numel():
            raise ValueError(f"weights index: {name} ends at byte {end}, but the buffer has {flat.numel()}")
        state[name] = flat[offset:end].view(dtype).view(shape)
    return state


def copy_into(model: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Copy `state` into the parameters and buffers of an unsharded model (dtype and device are converted).

    Names that the state lacks keep their values (a state of adapters only is welcome). Raises `ValueError`
    naming every tensor that the model has not, or has in another shape.
    """
    own = model.state_dict(keep_vars=True)
    unknown = sorted(set(state) - set(own))
    if unknown:
        raise ValueError(
            f"{type(model).__name__} has no tensor named {', '.join(unknown[:5])}"
            f"{' ...' if len(unknown) > 5 else ''} ({len(unknown)} of {len(state)} names are unknown): "
            "the sender built another model (compare model_type, is_lora and add_value_head on both sides)"
        )
    wrong = [
        f"{name}: {list(own[name].shape)} here, {list(tensor.shape)} sent"
        for name, tensor in state.items()
        if own[name].shape != tensor.shape
    ]
    if wrong:
        raise ValueError(f"{type(model).__name__}: shapes differ: {'; '.join(wrong[:5])}")
    with torch.no_grad():
        for name, tensor in state.items():
            own[name].copy_(tensor)
