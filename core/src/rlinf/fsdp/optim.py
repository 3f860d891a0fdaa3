"""AdamW over sharded parameters: groups, warm-up, global norm of the gradients."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from rlinf.config.schema import OptimConfig
from rlinf.models.embodiment.modules.value_head import ValueHead
from rlinf.models.lora import is_lora_parameter

#: What a parameter belongs to; without LoRA there is no "lora".
Kind = Literal["lora", "policy", "value"]


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Groups (policy, LoRA adapters, value head) x (decay, no decay) x scale of the learning rate; every
    trainable parameter is in exactly one.

    Biases, norms and everything one-dimensional do not decay. A group carries `name`, `params`,
    `param_names`, `weight_decay`, `lr`, `lr_scale` and `kind`; empty groups are left out. Raises
    `ValueError` if nothing is trainable, or a pattern of `optim.lr_scale` matches no trainable parameter.
    """
    value_heads = [
        path
        for path, module in model.named_modules()
        if isinstance(module, ValueHead) or path.rpartition(".")[2] == "value_head"
    ]
    norms = {path for path, module in model.named_modules() if "norm" in type(module).__name__.lower()}
    members: dict[tuple[Kind, bool, float], list[tuple[str, nn.Parameter]]] = {}
    unused = set(config.lr_scale)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_value = any(name.startswith(head + ".") for head in value_heads)
        kind: Kind = "value" if is_value else "lora" if is_lora_parameter(name) else "policy"
        module_path, _, leaf = name.rpartition(".")
        decays = parameter.dim() > 1 and "bias" not in leaf and module_path not in norms
        pattern = next((p for p in config.lr_scale if re.fullmatch(p, name)), None)
        unused.discard(str(pattern))
        scale = 1.0 if pattern is None else config.lr_scale[pattern]
        members.setdefault((kind, decays, scale), []).append((name, parameter))
    if not members:
        raise ValueError(f"{type(model).__name__} has no trainable parameter")
    if unused:
        names = ", ".join(name for name, _ in next(iter(members.values()))[:4])
        raise ValueError(
            f"actor.optim.lr_scale: {sorted(unused)[0]!r} matches no trainable parameter, or an earlier "
            f"pattern takes them; the first parameters: {names}"
        )

    rates = learning_rates(config.lr, config.value_lr, config.non_lora_lr)
    groups: list[dict[str, Any]] = [
        {
            "name": f"{kind}/{'decay' if decays else 'no_decay'}" + (f"/x{scale:g}" if scale != 1 else ""),
            "param_names": [name for name, _ in named],
            "params": [parameter for _, parameter in named],
            "weight_decay": config.weight_decay if decays else 0.0,
            "kind": kind,
            "lr_scale": scale,
            "lr": scale * rates[kind],
        }
        for (kind, decays, scale), named in sorted(members.items(), key=lambda item: item[0])
    ]
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted({id(p) for p in model.parameters() if p.requires_grad})
    return groups


def learning_rates(lr: float, value_lr: float | None, non_lora_lr: float | None) -> dict[Kind, float]:
    """Of each kind of parameters; None: `lr`. `policy` is what is neither adapter nor value head."""
    return {"lora": lr, "policy": non_lora_lr or lr, "value": value_lr or lr}


def warmup_factor(step: int, warmup_steps: int) -> float:
    """Linear warm-up: factor of the learning rate at optimizer step `step` (from 0)."""
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps > 0 else 1.0


def schedule_factor(
    schedule: str, step: int, max_steps: int, warmup_steps: int, smallest: float = 0.0
) -> float:
    """Factor of the learning rate at `step` (from 0) without the warm-up, in [smallest, 1].

    linear: from 1 at the first step to `smallest` at `max_steps`. cosine: 1 until the warm-up's end, then
    half a cosine to `smallest` at `max_steps` (Loshchilov and Hutter 2017, without restarts).
    """
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        left = 1 - step / max_steps
    else:
        progress = (step - warmup_steps) / max(max_steps - warmup_steps, 1)
        left = 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))
    return smallest + (1 - smallest) * left


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
