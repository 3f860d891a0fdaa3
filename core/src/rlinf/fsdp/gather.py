"""From shards to one full copy on rank 0, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from rlinf.fsdp.weights import Index, layout, unpack

#: Shards travel to rank 0 in collectives of about this many bytes of full tensors.
BUCKET_BYTES = 64 * 2**20


def gather_packed(state: Mapping[str, torch.Tensor], device: torch.device) -> tuple[np.ndarray, Index] | None:
    """Collect sharded (dim 0, 1-D mesh) and replicated tensors into one packed buffer on rank 0; None
    elsewhere.

    Only rank 0 ever holds a full tensor; the others send their shards. All ranks must call it with equal
    names.
    """
    world, rank = dist.get_world_size(), dist.get_rank()
    nbytes, index = layout(state)
    buffer = np.empty(nbytes if rank == 0 else 0, dtype=np.uint8)
    full = unpack(buffer, index) if rank == 0 else {}
    bucket: dict[str, DTensor] = {}
    for name, tensor in state.items():
        if not isinstance(tensor, DTensor) or world == 1:
            if rank == 0:
                full[name].copy_(tensor.to_local() if isinstance(tensor, DTensor) else tensor)
            continue
        bucket[name] = tensor
        if sum(map(_full_bytes, bucket.values())) >= BUCKET_BYTES:
            _gather_bucket(bucket, full, device)
            bucket = {}
    if bucket:
        _gather_bucket(bucket, full, device)
    return (buffer, index) if rank == 0 else None


def _gather_bucket(
    bucket: Mapping[str, DTensor], full: dict[str, torch.Tensor], device: torch.device
) -> None:
    """One `gather` of all shards of the bucket as bytes; rank 0 writes them into `full`."""
    world, rank = dist.get_world_size(), dist.get_rank()
    # Rank 0 always has the largest share of every tensor, so its total is what every message is padded to.
    length = sum(_shard_bytes(tensor, 0, world) for tensor in bucket.values())
    message = torch.zeros(length, dtype=torch.uint8, device=device)
    offset = 0
    for tensor in bucket.values():
        shard = tensor.to_local().contiguous().view(-1).view(torch.uint8)
        assert shard.numel() == _shard_bytes(tensor, rank, world)
        message[offset : offset + shard.numel()] = shard
        offset += shard.numel()
    received = [torch.empty_like(message) for _ in range(world)] if rank == 0 else None
    dist.gather(message, received, dst=0)
    for source, part in enumerate(received or []):
        part, offset = part.cpu(), 0
        for name, tensor in bucket.items():
            size = _shard_bytes(tensor, source, world)
            start = _shard_bytes(tensor, 0, world) * source
            full[name].view(-1).view(torch.uint8)[start : start + size] = part[offset : offset + size]
            offset += size


def _full_bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _shard_bytes(tensor: torch.Tensor, rank: int, world: int) -> int:
    """Bytes of a rank's shard: `torch.chunk` of dimension 0."""
    rows = tensor.shape[0]
    per_rank = math.ceil(rows / world)
    held = max(0, min(rows, (rank + 1) * per_rank) - rank * per_rank)
    return held * _full_bytes(tensor) // rows if rows else 0


def scatter_into(
    state: Mapping[str, torch.Tensor], full: Mapping[str, torch.Tensor], device: torch.device
) -> None:
    """Write rank 0's full tensors into everyone's shards, in place; `full` is read on rank 0 only.

    One full tensor at a time exists on the other ranks. Names and shapes must have been checked on rank 0.
    """
    world, rank = dist.get_world_size(), dist.get_rank()
    with torch.no_grad():
        for name, tensor in state.items():
            value = full[name].to(device, tensor.dtype) if rank == 0 else tensor.new_empty(0)
            if world > 1:
                value = (
                    value.contiguous()
                    if rank == 0
                    else torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
                )
                dist.broadcast(value, src=0)
            if not isinstance(tensor, DTensor):
                tensor.copy_(value)
                continue
            rows = math.ceil(tensor.shape[0] / world)
            tensor.to_local().copy_(value[rank * rows : (rank + 1) * rows])
