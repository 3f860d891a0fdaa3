"""LoRA on language models: by full module paths, so that no adapter lands in a tower with equal names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from torch import nn

from rlinf.models.lora import apply_lora

#: Parts of a path by which transformers names encoders and what joins them to the language model.
_TOWERS: Final = frozenset(("visual", "vision_tower", "vision_model", "audio_tower", "multi_modal_projector"))


def apply_lora_configuration(
    model: nn.Module,
    *,
    lora_rank: int,
    lora_alpha: int | None = None,
    lora_dropout: float = 0.0,
    target_modules: Sequence[str] | None = None,
    freeze_vision_tower: bool = True,
) -> list[str]:
    """Put adapters into a model, in place; see `rlinf.models.lora.apply_lora`.

    Args:
        target_modules: regular expressions that match full paths; None: every linear layer in the blocks of
            the language model, and of the towers unless `freeze_vision_tower`.

    Returns:
        the paths of the adapted layers.

    Raises:
        ValueError: a target matches nothing, or a layer of a tower that is frozen.
    """
    if target_modules is None:
        target_modules = [re.escape(path) for path in linear_layers(model, towers=not freeze_vision_tower)]
    paths = apply_lora(
        model, rank=lora_rank, alpha=lora_alpha, dropout=lora_dropout, targets=tuple(target_modules)
    )
    inside = [path for path in paths if in_tower(path)]
    if freeze_vision_tower and inside:
        raise ValueError(
            f"target_modules match {inside[0]}, which is in a frozen tower: narrow them, or set "
            "freeze_vision_tower=False"
        )
    return paths


def linear_layers(model: nn.Module, *, towers: bool) -> list[str]:
    """Paths of the linear layers inside numbered blocks; those of encoders only where asked for."""
    found = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and re.search(r"(^|\.)\d+\.", path)
        and (towers or not in_tower(path))
    ]
    if not found:
        raise ValueError(f"{type(model).__name__} has no linear layer inside numbered blocks")
    return found


def in_tower(path: str) -> bool:
    """Whether a module path leads into a vision or audio encoder."""
    return not _TOWERS.isdisjoint(path.split("."))
