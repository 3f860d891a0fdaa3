"""Checkpoint layouts: openpi's, transformers' (`PI0ForConditionalGeneration`, pi0 only) and LeRobot's.

The network's own names are openpi's. A layout is recognised by its names, and every one of them is accounted
for: what is missing, unexpected or of another shape is an error that names it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from rlinf.models.factory import plugin_config
from torch import Tensor, nn

from rlinf_openpi.assets import copy_assets
from rlinf_openpi.config import OpenpiConfig
from rlinf_openpi.data_config import load_data_config

_VLM: Final = "paligemma_with_expert.paligemma.model."
#: PaliGemma's output layer is its embedding; openpi's and LeRobot's files hold it under this name alone.
TIED: Final = "paligemma_with_expert.paligemma.lm_head.weight"
EMBEDDING: Final = f"{_VLM}language_model.embed_tokens.weight"
#: In all three layouts, and used by nothing: the action expert has no vocabulary.
DEAD: Final = "paligemma_with_expert.gemma_expert.lm_head.weight"
LAYOUTS: Final = ("openpi", "transformers", "lerobot")

#: Another layout's name -> openpi's; each expression is tried in turn on what the one before made of it.
_TO_OPENPI: Final = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # transformers, in memory
        (r"^model\.vlm\.", _VLM),
        (r"^model\.dit\.", "paligemma_with_expert.gemma_expert.model."),
        (r"^embed_action_time\.", ""),
        # LeRobot
        (r"^model\.(?=paligemma_with_expert\.|state_proj\.|action_|time_mlp_)", ""),
        # transformers 5 (its own files, and LeRobot on top of it)
        (r"(?<=paligemma\.model\.language_model\.)model\.", ""),
        (r"(?<=paligemma\.model\.vision_tower\.)(?!vision_model\.)", "vision_model."),
    )
)
#: Tensors that nothing computes with: heads without a use, and constants that RLinf stores as buffers.
_UNUSED: Final = re.compile(
    r"paligemma_with_expert\.gemma_expert\.(lm_head|model\.embed_tokens)\.weight|noise_head\.logvar_(min|max)"
)


def to_openpi_name(name: str) -> str:
    """A tensor's name in openpi's layout."""
    for pattern, replacement in _TO_OPENPI:
        name = pattern.sub(replacement, name)
    return name


def from_openpi(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a checkpoint of any layout under the network's names."""
    own = {to_openpi_name(name): tensor for name, tensor in state.items()}
    tied = own.pop(TIED, None)
    if tied is not None:
        own.setdefault(EMBEDDING, tied)
    return {name: tensor for name, tensor in own.items() if not _UNUSED.fullmatch(name)}


def to_layout(state: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """The network's tensors under the names of `layout`, and with the unused one that its readers expect.

    Raises ValueError for an unknown layout, or pi0.5 in transformers', which has no such model.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"export_layout: expected one of {', '.join(LAYOUTS)}; got {layout!r}")
    out = dict(state)
    embedding = out.pop(EMBEDDING)
    width = out["action_in_proj.weight"].shape[0]
    out[DEAD] = embedding.new_zeros(embedding.shape[0], width)
    if layout == "transformers":
        if "time_mlp_in.weight" in out:
            raise ValueError("export_layout: transformers has pi0 only; write pi0.5 as openpi or lerobot")
        out[EMBEDDING] = embedding
        return {_to_transformers(name): tensor for name, tensor in out.items()}
    out[TIED] = embedding
    return out if layout == "openpi" else {f"model.{name}": tensor for name, tensor in out.items()}


def _to_transformers(name: str) -> str:
    name = name.replace(f"{_VLM}language_model.", f"{_VLM}language_model.model.")
    return name.replace(f"{_VLM}vision_tower.vision_model.", f"{_VLM}vision_tower.")


def load_checkpoint(policy: nn.Module, model_path: str | None) -> None:
    """Copy the weights of a checkpoint of any layout into the policy; None leaves it as it is.

    Raises ValueError: names the file and the tensors that are missing, unexpected, or of another shape.
    """
    from rlinf.models.weights import load_pretrained

    load_pretrained(policy, model_path, rename=from_openpi)


def export(
    state: Mapping[str, Tensor], cfg: Any, folder: str | Path, *, max_shard_bytes: int = 5 * 10**9
) -> None:
    """Write a policy's weights into `folder` in the layout `model.openpi.export_layout`, with the tokenizer
    and the normalisation statistics that it used.

    The value and the noise head, which openpi does not know, keep their names in openpi's layout (RLinf reads
    them there) and are left out of the others.
    """
    from rlinf.fsdp.export import export_safetensors

    config = plugin_config(cfg, OpenpiConfig)
    layout = config.export_layout
    heads = {n: t for n, t in state.items() if n.startswith(("value_head.", "noise_head."))}
    network = {n: t for n, t in state.items() if n not in heads}
    out = to_layout(network, layout)
    export_safetensors(folder, {**out, **heads} if layout == "openpi" else out, max_shard_bytes)
    copy_assets(config, load_data_config(config.config_name), cfg.get("model_path"), Path(folder))
