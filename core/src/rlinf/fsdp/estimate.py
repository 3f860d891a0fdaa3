"""Bytes per rank that a wrap plan will take, from shapes and dtypes alone.

FSDP2 cuts each parameter along its first dimension into `ceil(rows / ranks)` rows per rank and pads the last
ranks' shards to that size (torch/distributed/fsdp/_fully_shard/_fsdp_param.py), so the first rank holds most.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from rlinf.config.schema import FsdpConfig
from rlinf.fsdp.sharding import compute_dtype
from rlinf.fsdp.wrap import WrapPlan

#: AdamW's step counter: one float32 per trainable parameter.
_STEP_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class RankBytes:
    """What rank 0, which holds most, needs at a world size; in bytes. Activations are not in it."""

    world_size: int
    #: Shards in the dtype in which the model was built.
    parameters: int
    #: Shards of trainable parameters' gradients, in the same dtype.
    gradients: int
    #: AdamW's two moments of trainable parameters, in the same dtype, and its step counters.
    optimizer: int
    #: Buffers, whole on every rank.
    buffers: int
    #: Parameters that are whole at one time at most: the root's, and those of the largest unit together with
    #: the units around it (of all units without `reshard_after_forward`), in the compute dtype.
    gathered: int
    #: The largest single all-gather (with one rank a copy), in the compute dtype.
    largest_all_gather: int
    #: The unit that it belongs to; "" is the root.
    largest_unit: str

    @property
    def total(self) -> int:
        """Sum of what is held together at the peak."""
        return self.parameters + self.gradients + self.optimizer + self.buffers + self.gathered


def estimate(model: nn.Module, plan: WrapPlan, config: FsdpConfig, world_size: int) -> RankBytes:
    """The bytes of rank 0 of `world_size` ranks that train `model` (on any device) under `plan`.

    Raises ValueError for `mixed_precision.param_dtype` fp16, which the trainer refuses.
    """
    parameters = dict(model.named_parameters())
    trainable = [parameter for parameter in parameters.values() if parameter.requires_grad]
    compute = compute_dtype(config.mixed_precision)
    gathers = {
        name: sum(_gathered_bytes(parameters[key], compute, world_size) for key in keys)
        for name, keys in [("", plan.remainder), *((unit.name, unit.parameters) for unit in plan.units)]
    }
    largest = max(gathers, key=lambda name: gathers[name])
    gradients = _shard_bytes(trainable, world_size)
    return RankBytes(
        world_size=world_size,
        parameters=_shard_bytes(parameters.values(), world_size),
        gradients=gradients,
        optimizer=2 * gradients + _STEP_BYTES * len(trainable),
        buffers=sum(buffer.numel() * buffer.element_size() for buffer in model.buffers()),
        gathered=_peak(gathers) if config.reshard_after_forward else sum(gathers.values()),
        largest_all_gather=gathers[largest],
        largest_unit=largest,
    )


def shard_numel(shape: Sequence[int], world_size: int) -> int:
    """Elements of a padded shard of a parameter of this shape (at least one dimension)."""
    rows, *rest = shape
    numel = -(-rows // world_size)
    for size in rest:
        numel *= size
    return numel


def _shard_bytes(parameters: Iterable[torch.Tensor], world_size: int) -> int:
    return sum(shard_numel(p.shape, world_size) * p.element_size() for p in parameters)


def _gathered_bytes(parameter: torch.Tensor, compute: torch.dtype, world_size: int) -> int:
    dtype = compute if parameter.is_floating_point() else parameter.dtype
    return world_size * shard_numel(parameter.shape, world_size) * dtype.itemsize


def _peak(gathers: dict[str, int]) -> int:
    """The root stays whole from its forward to the end of backward; a unit while it or a unit inside runs."""
    chains = [
        sum(size for outer, size in gathers.items() if outer and f"{name}.".startswith(f"{outer}."))
        for name in gathers
        if name
    ]
    return gathers[""] + max(chains, default=0)
