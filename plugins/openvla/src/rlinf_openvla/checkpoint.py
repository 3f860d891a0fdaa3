"""Reading the published layouts: one folder, and the separate files of OFT's heads."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from rlinf.models.weights import PRETRAINED_MARKS, read_weights
from torch import Tensor

from rlinf_openvla.config import VlaConfig
from rlinf_openvla.hf_config import OpenVLAConfig
from rlinf_openvla.network import VlaNetwork
from rlinf_openvla.vision import TowerConfig, is_unused

#: `action_head--150000_checkpoint.pt`: the part of the model, and the training step.
_PART_FILE = re.compile(r"(action_head|proprio_projector)--(\w+?)_checkpoint\.pt")
_CONFIG: Final = "config.json"


@dataclass(frozen=True)
class LoadReport:
    """Tensors of the checkpoint that were taken, those that the model never reads, and heads that are new."""

    loaded: tuple[str, ...]
    unused: tuple[str, ...]
    new: tuple[str, ...]


def read_config(config: VlaConfig, model_path: str | None) -> OpenVLAConfig:
    """The checkpoint's configuration, or one of the configured sizes.

    Raises ValueError naming the key that contradicts the checkpoint, or the file that is missing.
    """
    if model_path is None:
        hf = _configured(config)
    else:
        file = Path(model_path) / _CONFIG
        if not file.is_file():
            raise ValueError(
                f"model_path {model_path}: expected a folder with {_CONFIG}; {file} does not exist"
            )
        content = json.loads(file.read_text(encoding="utf-8"))
        if content.get("model_type") != OpenVLAConfig.model_type:
            raise ValueError(f"{file}: model_type is {content.get('model_type')!r}, expected 'openvla'")
        content.pop("auto_map", None)  # where the original's own code lies
        hf = OpenVLAConfig(**{key: x for key, x in content.items() if key != "model_type"})
        _require_equal(config, hf, file)
    hf.text_config._attn_implementation = config.attn_implementation  # type: ignore[union-attr]
    return hf


def _configured(config: VlaConfig) -> OpenVLAConfig:
    sizes = dict(config.llm)
    for name in ("vocab_size", "hidden_size"):
        value = getattr(config, name)
        if value is not None:
            sizes[name] = value
    towers = config.vision_towers
    return OpenVLAConfig(
        text_config=sizes,
        vision_towers=None if towers is None else [tower.model_dump() for tower in towers],
        image_sizes=config.image_size,
        pad_token_id=sizes.get("pad_token_id", 0),
    )


def _require_equal(config: VlaConfig, hf: OpenVLAConfig, file: Path) -> None:
    llm: Any = hf.text_config
    found = {
        "vocab_size": (llm.vocab_size, hf.vocab_end),
        "hidden_size": (llm.hidden_size,),
        "image_size": (list(hf.image_sizes or ()),),
    }
    for name, allowed in found.items():
        value = getattr(config, name)
        if value is not None and value not in allowed:
            raise ValueError(f"{name}: the configuration says {value}, {file} says {allowed[0]}")
    for key, value in config.llm.items():
        if getattr(llm, key, value) != value:
            raise ValueError(f"llm.{key}: the configuration says {value}, {file} says {getattr(llm, key)}")
    if config.vision_towers is not None:
        towers = tuple(TowerConfig(**tower.model_dump()) for tower in config.vision_towers)
        if towers != hf.towers:
            raise ValueError(f"vision_towers: the configuration says {towers}, {file} says {hf.towers}")


def load_checkpoint(policy: VlaNetwork, hf: OpenVLAConfig, model_path: str, dtype: torch.dtype) -> LoadReport:
    """Copy a checkpoint's tensors into the policy, in `dtype`. Heads that it lacks as a whole stay new.

    Raises ValueError naming the tensors that are missing, unknown, or of another shape.
    """
    own = policy.state_dict()
    folder = Path(model_path)
    heads = tuple(f"{n}." for n, m in policy.named_modules() if getattr(m, "_is_policy_head", False))
    state, unused = {}, []
    depths = [tower.depth for tower in hf.towers]
    # Not what `own` is made of: a policy without new heads is on the meta device until its weights come.
    on_meta = torch.get_default_device().type == "meta"
    for name, tensor in _tensors(folder, on_meta=on_meta):
        if is_unused(name, depths) or (name not in own and name.startswith(("value_head.", *_PARTS))):
            unused.append(name)
        else:
            state[name] = tensor
    present = tuple(head for head in heads if any(name.startswith(head) for name in state))
    absent = tuple(set(heads) - set(present))
    missing = [n for n in own if n not in state and n != NEW_IN_RL and not n.startswith(absent)]
    shapes = [
        f"{n} is {tuple(x.shape)} there and {tuple(own[n].shape)} here"
        for n, x in state.items()
        if n in own and x.shape != own[n].shape
    ]
    unknown = [n for n in state if n not in own]
    for what, names in (("lacks", missing), ("has unknown", unknown), ("has other shapes:", shapes)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(f"model_path {model_path}: it {what} {', '.join(names[:3])}{more}")
    policy.load_state_dict({n: x.to(dtype) for n, x in state.items()}, strict=False, assign=True)
    for name, parameter in policy.named_parameters():
        if name in state:
            setattr(parameter, PRETRAINED_MARKS[0], True)
    return LoadReport(tuple(state), tuple(unused), tuple(n for n in own if n not in state))


#: Heads that a policy may be built without although the checkpoint has them.
_PARTS: Final = ("action_head.", "proprio_projector.")
#: New in RL, beside a head of the checkpoint's.
NEW_IN_RL: Final = "action_head.log_std"


def _tensors(folder: Path, *, on_meta: bool) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a folder, those of OFT's separate files under the names that the model has for them."""
    yield from read_weights(folder, on_meta=on_meta)
    for file in part_files(folder):
        part = file.name.partition("--")[0]
        for name, tensor in read_part(file, on_meta=on_meta).items():
            yield f"{part}.{name.removeprefix('module.')}", tensor


def part_files(folder: Path) -> list[Path]:
    """OFT's `action_head--*` and `proprio_projector--*` of a folder. Raises ValueError for several of one."""
    files = sorted(f for f in folder.glob("*.pt") if _PART_FILE.fullmatch(f.name))
    for part in ("action_head", "proprio_projector"):
        names = [f.name for f in files if f.name.startswith(part)]
        if len(names) > 1:
            raise ValueError(f"{folder}: holds {' and '.join(names)}; keep the one that is meant")
    return files


def read_part(file: Path, *, on_meta: bool = False) -> Mapping[str, Tensor]:
    """Tensors of one of OFT's files, a pickle of which tensors and plain containers alone are read."""
    try:
        return torch.load(file, map_location="meta" if on_meta else "cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{file}: cannot be read as a file of tensors: {error}") from error
