"""Around `fully_shard`: agreement of ranks, equal weights, casts of inputs, recomputed activations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.distributed_c10d import _get_default_store
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from rlinf.config.schema import FsdpConfig, MixedPrecisionConfig
from rlinf.fsdp.errors import LostRank
from rlinf.fsdp.wrap import WrapPlan, is_new_head

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def require_agreement(items: Mapping[str, Any]) -> None:
    """Compare `items` (anything with a stable `str`) over all ranks, through the group's store: before any
    collective, so that a rank that is not there is named after the store's timeout.

    Raises `ValueError` on every rank, naming the ranks that differ from rank 0 and the item, and `LostRank`
    for a rank that does not answer.
    """
    store, rank, world = _get_default_store(), dist.get_rank(), dist.get_world_size()
    turn = store.add(f"agreement/{rank}", 1)
    store.set(f"agreement/{turn}/{rank}", json.dumps({key: str(value) for key, value in items.items()}))
    everyone = [_answer(store, turn, other) for other in range(world)]
    for key in sorted(set().union(*everyone)):
        values = [theirs.get(key, "absent") for theirs in everyone]
        others = [i for i, value in enumerate(values) if value != values[0]]
        if others:
            raise ValueError(
                f"the ranks differ: {key} is {values[0]} on rank 0 and {values[others[0]]} on rank "
                f"{', '.join(map(str, others))}. "
                "Every rank must build the same model from the same configuration and packages"
            )


def _answer(store: dist.Store, turn: int, rank: int) -> dict[str, str]:
    key = f"agreement/{turn}/{rank}"
    try:
        store.wait([key])
    except RuntimeError:  # of every kind of store; TCPStore's is a subclass
        raise LostRank(
            f"rank {rank} has not reported its plan in time: it hangs or is gone before the first collective"
        ) from None
    return json.loads(store.get(key))


def plan_items(model: nn.Module, plan: WrapPlan) -> dict[str, str]:
    """What `require_agreement` compares of a model: each unit and parameter by name, and the digest."""
    units = {f"unit {unit.name}": f"{unit.cls} by {unit.rule}" for unit in plan.units}
    parameters = {
        f"parameter {name}": f"{p.dtype} {list(p.shape)} {'trainable' if p.requires_grad else 'frozen'}"
        for name, p in model.named_parameters()
    }
    return {**units, **parameters, "plan digest": plan.digest}


def broadcast_weights(model: nn.Module) -> None:
    """Give every rank the weights and buffers of rank 0; shards of different initial weights would mix."""
    if dist.get_world_size() == 1:
        return
    for tensor in [*model.parameters(), *model.buffers()]:
        dist.broadcast(tensor.detach(), src=0)


def shard(model: nn.Module, plan: WrapPlan, config: FsdpConfig, mesh: DeviceMesh) -> FSDPModule:
    """Apply the plan inside-out, in place; the root takes what the units leave. Returns the same model."""
    compute = compute_dtype(config.mixed_precision)
    reduce = _dtype(config.mixed_precision.reduce_dtype, "reduce_dtype")
    if config.gradient_checkpointing:
        _recompute_units(model, plan)
    _cast_inputs_of_remainder(model, plan, compute)
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=reduce)
    for unit in plan.application_order:
        module = model.get_submodule(unit.name)
        module.register_forward_hook(_own_outputs)
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=config.reshard_after_forward)
    model.register_forward_hook(_own_outputs)
    # The root's inputs are the batch: recorded actions and noise must reach the log-probabilities unrounded,
    # so only the layers that hold parameters cast what they get. Backward starts at the root: it need not be
    # freed before.
    root_policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=reduce, cast_forward_inputs=False)
    return fully_shard(model, mesh=mesh, mp_policy=root_policy, reshard_after_forward=False)


def free_gathered(model: nn.Module) -> None:
    """Drop gathered parameters, so that the next forward gathers what the shards hold then."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def compute_dtype(config: MixedPrecisionConfig) -> torch.dtype:
    """The dtype in which sharded parameters are gathered and computed with."""
    return _dtype(config.param_dtype, "param_dtype")


def _dtype(name: str, key: str) -> torch.dtype:
    if name not in _DTYPES:
        raise ValueError(
            f"fsdp_config.mixed_precision.{key}: {name!r} needs loss scaling, which the trainer does not do; "
            "expected 'bf16' or 'fp32'"
        )
    return _DTYPES[name]


def _recompute_units(model: nn.Module, plan: WrapPlan) -> None:
    """Free the activations inside each innermost block and compute them again in backward.

    The forward of the instance is replaced, beneath FSDP's hooks: parameters are gathered once for the
    recomputation and no name in the state dict changes. Heads are left alone: they have next to nothing to
    free.
    """
    from torch.utils.checkpoint import checkpoint

    names = [unit.name for unit in plan.units]
    for unit in plan.units:
        holds_units = any(name.startswith(unit.name + ".") for name in names)
        module = model.get_submodule(unit.name)
        if holds_units or is_new_head(module):
            continue
        module.forward = _recomputing(module.forward, checkpoint)


def _recomputing(forward: Any, checkpoint: Any) -> Any:
    def recomputing_forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return recomputing_forward


def _cast_inputs_of_remainder(model: nn.Module, plan: WrapPlan, dtype: torch.dtype) -> None:
    """Let the root's own layers (a Linear outside every unit, say) accept inputs of another float dtype."""
    parameters = dict(model.named_parameters())
    for path in dict.fromkeys(name.rpartition(".")[0] for name in plan.remainder):
        module = model.get_submodule(path)
        is_leaf = next(module.children(), None) is None
        own = [parameters[name].dtype for name in plan.remainder if name.rpartition(".")[0] == path]
        if path and is_leaf and any(d != dtype for d in own):
            module.register_forward_pre_hook(_InputCast(dtype), with_kwargs=True)


class _InputCast:
    """Forward pre-hook that casts floating-point tensors among the arguments."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __call__(self, _module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return tuple(map(self._cast, args)), {key: self._cast(value) for key, value in kwargs.items()}

    def _cast(self, value: Any) -> Any:
        return (
            value.to(self.dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        )


def _own_outputs(_module: nn.Module, _args: Any, output: Any) -> Any:
    """Forward hook: copy outputs that are views (a Linear's on three dimensions is one).

    FSDP hangs its backward hook on the outputs; an in-place operation on a view would drop it silently and
    with it the gathering of the parameters for backward.
    """
    if isinstance(output, torch.Tensor):
        return output.clone() if output.requires_grad and output._is_view() else output
    if type(output) in (tuple, list):
        return type(output)(_own_outputs(_module, _args, item) for item in output)
    if type(output) is dict:
        return {key: _own_outputs(_module, _args, item) for key, item in output.items()}
    return output
