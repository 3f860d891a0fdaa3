"""AdamW over sharded parameters: groups, warm-up, global norm of the gradients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from rlinf.config.schema import OptimConfig
from rlinf.models.embodiment.modules.value_head import ValueHead


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Groups (policy, value head) x (decay, no decay); every trainable parameter is in exactly one.

    Biases, norms and everything one-dimensional do not decay. A group carries `name`, `params`,
    `param_names`, `weight_decay`, `lr` and `is_value`; empty groups are left out. Raises `ValueError` if
    nothing is trainable.
    """
    value_heads = [
        path
        for path, module in model.named_modules()
        if isinstance(module, ValueHead) or path.rpartition(".")[2] == "value_head"
    ]
    norms = {path for path, module in model.named_modules() if "norm" in type(module).__name__.lower()}
    members: dict[tuple[bool, bool], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_value = any(name.startswith(head + ".") for head in value_heads)
        module_path, _, leaf = name.rpartition(".")
        decays = parameter.dim() > 1 and "bias" not in leaf and module_path not in norms
        members.setdefault((is_value, decays), []).append((name, parameter))
    if not members:
        raise ValueError(f"{type(model).__name__} has no trainable parameter")

    groups: list[dict[str, Any]] = [
        {
            "name": f"{'value' if is_value else 'policy'}/{'decay' if decays else 'no_decay'}",
            "param_names": [name for name, _ in named],
            "params": [parameter for _, parameter in named],
            "weight_decay": config.weight_decay if decays else 0.0,
            "is_value": is_value,
            "lr": (config.value_lr or config.lr) if is_value else config.lr,
        }
        for (is_value, decays), named in sorted(members.items())
    ]
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted({id(p) for p in model.parameters() if p.requires_grad})
    return groups


def warmup_factor(step: int, warmup_steps: int) -> float:
    """Linear warm-up: factor of the learning rate at optimizer step `step` (from 0)."""
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps > 0 else 1.0


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's shard, sharing memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def global_grad_norm(parameters: Iterable[nn.Parameter], device: torch.device) -> torch.Tensor:
    """L2 norm of all gradients over all ranks, float64 scalar; one collective.

    Each rank squares the norms of its shards; parameters are sharded on exactly one rank each, so the squares
    add up.
    """
    grads = [local(p.grad) for p in parameters if p.grad is not None]
    norms = torch._foreach_norm(grads, dtype=torch.float32) if grads else []
    squared = (
        torch.stack(list(norms)).double().square().sum() if norms else torch.zeros((), dtype=torch.float64)
    )
    squared = squared.to(device)
    dist.all_reduce(squared)
    return squared.sqrt()


def scale_grads(parameters: Sequence[nn.Parameter], factor: float) -> None:
    """Multiply all gradients in place."""
    torch._foreach_mul_([local(p.grad) for p in parameters if p.grad is not None], factor)
