"""LoRA through peft, in place: the policy keeps its class, its methods and its module paths."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import nn

from rlinf.models.weights import is_pretrained

_BLOCK_INDEX = re.compile(r"(^|\.)\d+\.")


def apply_lora(
    model: nn.Module,
    *,
    rank: int,
    alpha: int | None = None,
    dropout: float = 0.0,
    targets: Sequence[str] = (),
) -> list[str]:
    """Put low-rank adapters beside the target layers and freeze what they adapt.

    Trainable afterwards: the adapters, and whatever is new: heads (`_is_policy_head`, such as `ValueHead`),
    and, where the model was loaded from a checkpoint, every parameter that the checkpoint did not have. All
    else is frozen.

    Args:
        alpha: the update is scaled by alpha / rank; None means the rank (scale 1).
        dropout: on the adapters' input, in training mode.
        targets: regular expressions, each to match full module paths from start to end; empty: every linear
            layer inside a repeated block (a path with a number in it), heads excepted.

    Returns:
        the paths of the adapted layers.

    Raises:
        ValueError: a target matches nothing, or something that is no linear, convolution or embedding layer.
    """
    from peft import LoraConfig, inject_adapter_in_model

    heads = head_paths(model)
    paths = _explicit(model, targets) if targets else _default(model, heads)
    pretrained = {name for name, p in model.named_parameters() if is_pretrained(p)}
    names = [name for name, _ in model.named_parameters()]
    # One expression over full paths: peft matches plain names as suffixes, which reach other towers too.
    pattern = "|".join(re.escape(path) for path in paths)
    config = LoraConfig(
        r=rank, lora_alpha=rank if alpha is None else alpha, lora_dropout=dropout, target_modules=pattern
    )
    inject_adapter_in_model(config, model)
    adapted = tuple(f"{path}." for path in paths)
    new = {
        n
        for n in names
        if n.startswith(tuple(f"{h}." for h in heads)) or (pretrained and n not in pretrained)
    }
    for name, parameter in model.named_parameters():
        original = name.replace(".base_layer.", ".")
        is_adapter = name.startswith(adapted) and ".lora_" in name
        parameter.requires_grad_(is_adapter or (original in new and not name.startswith(adapted)))
    return paths


def merge_lora(model: nn.Module) -> nn.Module:
    """Fold the adapters into the layers they adapt, in place; the model has its own layout again."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for path, layer in list(model.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge(safe_merge=True)
            base = layer.get_base_layer()
            assert isinstance(base, nn.Module)
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, base)
    if hasattr(model, "peft_config"):
        del model.peft_config
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model


def is_lora_parameter(name: str) -> bool:
    """Whether a parameter's name is that of an adapter."""
    return ".lora_" in name


def head_paths(model: nn.Module) -> list[str]:
    """Paths of the modules that are heads of a policy (`_is_policy_head`)."""
    return [
        path for path, module in model.named_modules() if getattr(module, "_is_policy_head", False) is True
    ]


def _explicit(model: nn.Module, targets: Sequence[str]) -> list[str]:
    found: dict[str, None] = {}
    for target in targets:
        hits = {path: module for path, module in model.named_modules() if path and re.fullmatch(target, path)}
        if not hits:
            raise ValueError(f"LoRA target {target!r} matches no module of {type(model).__name__}")
        for path, module in hits.items():
            if not isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Embedding):
                raise ValueError(
                    f"LoRA target {target!r} matches {path}, a {type(module).__name__}; expected linear, "
                    "convolution or embedding layers"
                )
        found |= dict.fromkeys(hits)
    return list(found)


def _default(model: nn.Module, heads: Sequence[str]) -> list[str]:
    inside = tuple(f"{head}." for head in heads)
    found = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and path not in heads
        and not path.startswith(inside)
        and _BLOCK_INDEX.search(path)
    ]
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no linear layer inside repeated blocks: name LoRA targets in the "
            "ModelSpec (lora_targets)"
        )
    return found


def trainable_parameters(model: nn.Module) -> dict[str, torch.nn.Parameter]:
    """{name: parameter} of what an optimizer should see."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
