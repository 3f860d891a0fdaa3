"""LoRA adapters on disk, in peft's layout: `adapter_config.json` and `adapter_model.safetensors`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from rlinf.models.lora import is_lora_parameter

_WEIGHTS: Final = "adapter_model.safetensors"
_PREFIX: Final = "base_model.model."
#: peft's name of the adapter that `apply_lora` makes; files leave it out.
_ADAPTER: Final = ".default"


def split_adapters(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights of a model with adapters -> the model's own under its own names, and the adapters."""
    own = {n.replace(".base_layer.", "."): x for n, x in state.items() if not is_lora_parameter(n)}
    return own, {n: x for n, x in state.items() if is_lora_parameter(n)}


def save_adapters(
    folder: Path,
    adapters: Mapping[str, Tensor],
    *,
    rank: int,
    alpha: int | None,
    dropout: float,
    root: str = "",
) -> None:
    """Write adapters (named as in `state_dict`) as a folder that peft reads. root: `ModelSpec.lora_root`."""
    from peft import LoraConfig
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    adapters = {name.removeprefix(f"{root}."): tensor for name, tensor in adapters.items()}
    paths = sorted({name.partition(".lora_")[0] for name in adapters})
    LoraConfig(
        r=rank, lora_alpha=rank if alpha is None else alpha, lora_dropout=dropout, target_modules=paths
    ).save_pretrained(str(folder))
    tensors = {_PREFIX + n.replace(_ADAPTER, ""): x.detach().cpu().contiguous() for n, x in adapters.items()}
    save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})


def load_adapters(model: nn.Module, folder: str, root: str = "") -> None:
    """Copy the adapters of a folder into those of the model (root: `ModelSpec.lora_root`). Raises ValueError
    where they differ."""
    from safetensors.torch import load_file

    file = Path(folder) / _WEIGHTS
    if not file.is_file():
        raise ValueError(f"lora_path {folder}: {file} does not exist")
    own = {n: p for n, p in model.named_parameters() if is_lora_parameter(n)}
    found = load_file(file)
    given = {
        name: found.pop(_PREFIX + name.removeprefix(f"{root}.").replace(_ADAPTER, ""), None) for name in own
    }
    missing = [name for name, x in given.items() if x is None]
    for what, names in (("lacks", missing), ("has, for layers that are not adapted,", list(found))):
        if names:
            raise ValueError(f"lora_path {folder}: it {what} {len(names)} tensors: {', '.join(names[:3])}")
    with torch.no_grad():
        for name, parameter in own.items():
            tensor = given[name]
            assert tensor is not None
            if tensor.shape != parameter.shape:
                raise ValueError(
                    f"lora_path {folder}: {name} is {tuple(tensor.shape)} there and "
                    f"{tuple(parameter.shape)} here; is model.lora_rank the same?"
                )
            parameter.copy_(tensor)
