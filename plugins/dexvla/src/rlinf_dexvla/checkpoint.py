"""Weights: the original's names and files, Qwen's, one's own; every tensor that does not load is named."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from rlinf.models.weights import PRETRAINED_MARKS, read_weights
from torch import Tensor

if TYPE_CHECKING:
    from torch import nn

    from rlinf_dexvla.policy import DexvlaPolicy

log = logging.getLogger(__name__)

_HEAD: Final = "policy_head."
#: Prefix in files -> prefix here; the first that fits.
_PREFIXES: Final = (
    ("vlm.", "vlm."),
    ("visual.", "vlm.model.visual."),
    ("model.visual.", "vlm.model.visual."),
    ("model.language_model.", "vlm.model.language_model."),
    ("model.", "vlm.model.language_model."),
    ("lm_head.", "vlm.lm_head."),
)
#: Parts that a vision-language model does not bring: they may be missing, each as a whole.
_NEW_PARTS: Final = (
    _HEAD,
    "input_action_proj.",
    "reasoning_action_proj.",
    "reasoning_film.",
    "value_head.",
)
#: Statistics, which come from `stats` unless the file has them and `stats` is null.
_STATISTICS: Final = "normalizer."
#: Tensors that old files hold and no module has.
_OBSOLETE: Final = re.compile(r".*rotary_emb\.inv_freq")
_LM_HEAD: Final = "vlm.lm_head.weight"


@dataclass(frozen=True)
class LoadReport:
    """Names of the tensors that a file set, of those that it lacked, and of those that fit nowhere."""

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} tensors loaded"]
        for what, names in (
            ("not in the file", self.missing),
            ("in the file, used nowhere", self.unexpected),
        ):
            if names:
                lines.append(f"{len(names)} {what}: {', '.join(names)}")
        return "; ".join(lines)


def policy_name(name: str) -> str:
    """A tensor's name in the policy, from its name in a checkpoint of DexVLA, of Qwen-VL (old or new layout)
    or of the policy itself."""
    for prefix, here in _PREFIXES:
        if name.startswith(prefix):
            return here + name.removeprefix(prefix)
    return name


def original_name(name: str) -> str:
    """The inverse: a tensor's name in the original's checkpoints."""
    for there, here in (_PREFIXES[1], _PREFIXES[4], _PREFIXES[5]):
        if name.startswith(here):
            return there + name.removeprefix(here)
    return name


def original_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a policy's state that the original's checkpoints hold, under their names there."""
    own = ("value_head.", _STATISTICS, *([_LM_HEAD] if _is_tied(state) else []))
    return {original_name(name): x for name, x in state.items() if not name.startswith(own)}


def load_backbone(policy: DexvlaPolicy, model_path: str) -> LoadReport:
    """Load `model_path`: DexVLA's folder, Qwen-VL's, or a file with the policy's own names.

    New parts (ScaleDP, projectors, FiLM, value head) may be missing, each as a whole, and keep their fresh
    weights, with a warning that lists them. Raises ValueError that lists every other tensor that does not
    fit.
    """
    on_meta = policy.policy_head.pos_embed.is_meta
    state = {policy_name(name): x for name, x in read_weights(Path(model_path), on_meta=on_meta)}
    unwanted: tuple[str, ...] = () if policy.vlm is not None else ("vlm.", "input_action_proj.", "reasoning_")
    unwanted += (_STATISTICS,) if policy.config.stats is not None else ()
    state = {name: x for name, x in state.items() if not name.startswith(unwanted)}
    report = load_state(policy, state, source=f"model_path {model_path}")
    if report.missing:
        log.warning("model_path %s: %s", model_path, report)
    return report


def load_state(policy: DexvlaPolicy, state: Mapping[str, Tensor], *, source: str) -> LoadReport:
    """Copy tensors with the policy's names into it; see `load_backbone`."""
    own = policy.state_dict()
    tied = policy.vlm is not None and policy.vlm.config.tie_word_embeddings
    unexpected = [name for name in state if name not in own and not _OBSOLETE.fullmatch(name)]
    needed = [n for n in own if not n.startswith(_STATISTICS) and not (tied and n == _LM_HEAD)]
    missing = [name for name in needed if name not in state]
    partial = [name for name in missing if not _may_be_missing(name, state)]
    shapes = _other_shapes(own, state)
    problems = [
        f"{what}: {', '.join(names)}"
        for what, names in (("lacks", partial), ("has unknown", unexpected), ("has other shapes", shapes))
        if names
    ]
    if problems:
        raise ValueError(f"{source}: does not fit the model: it {'; it '.join(problems)}")
    _copy(policy, {name: x for name, x in state.items() if name in own})
    return LoadReport(tuple(n for n in state if n in own), tuple(missing), ())


def load_dit(policy: DexvlaPolicy, path: str) -> LoadReport:
    """Load ScaleDP of stage 1 into the policy's head, as the original does: without `cond_obs_emb`, which
    belongs to another condition.

    path: the original's file (a pickle, of which only tensors are read), a safetensors file or folder. The
    warning lists what did not load. Raises ValueError when nothing fits, or shapes differ.
    """
    own = policy.policy_head.state_dict()
    found = dict(_dit_tensors(Path(path), on_meta=policy.policy_head.pos_embed.is_meta))
    state = {name: x for name, x in found.items() if name in own and not name.startswith("cond_obs_emb.")}
    shapes = _other_shapes(own, state)
    if shapes or not state:
        why = f"has other shapes: {', '.join(shapes)}" if shapes else f"holds no ScaleDP: {_some(found)}"
        raise ValueError(f"model.dexvla.load_pretrain_dit {path}: {why}")
    _copy(policy.policy_head, state)
    report = LoadReport(
        tuple(state),
        tuple(name for name in own if name not in state),
        tuple(name for name in found if name not in state),
    )
    log.warning("load_pretrain_dit %s: %s", path, report)
    return report


def _dit_tensors(path: Path, *, on_meta: bool) -> Iterable[tuple[str, Tensor]]:
    """Tensors by their name in ScaleDP; those of other networks keep a name that fits nothing there."""
    if path.is_dir() or path.suffix == ".safetensors":
        for name, tensor in read_weights(path, on_meta=on_meta):
            yield name.removeprefix(_HEAD), tensor
        return
    if not path.is_file():
        raise ValueError(f"model.dexvla.load_pretrain_dit: no such file: {path}")
    try:  # weights_only: the unpickler admits tensors and plain containers, nothing that runs
        content: Any = torch.load(path, map_location="meta" if on_meta else "cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"model.dexvla.load_pretrain_dit {path}: cannot be read: {error}") from error
    try:
        nets = content["nets"]["nets"]
    except (KeyError, TypeError):
        found = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"model.dexvla.load_pretrain_dit {path}: expected ['nets']['nets'], got {found}"
        ) from None
    for name, tensor in nets.items():
        inner = name.removeprefix("policy.")
        yield (inner.removeprefix("noise_pred_net.") if inner.startswith("noise_pred_net.") else name), tensor


def _may_be_missing(name: str, state: Mapping[str, Tensor]) -> bool:
    part = next((part for part in _NEW_PARTS if name.startswith(part)), None)
    return part is not None and not any(other.startswith(part) for other in state)


def _other_shapes(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    return [
        f"{name} is {tuple(x.shape)} there and {tuple(own[name].shape)} here"
        for name, x in state.items()
        if name in own and x.shape != own[name].shape
    ]


def _copy(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    module.load_state_dict(state, strict=False)
    for name, parameter in module.named_parameters():
        if name in state:
            setattr(parameter, PRETRAINED_MARKS[0], True)


def _is_tied(state: Mapping[str, Tensor]) -> bool:
    embedding = state.get("vlm.model.language_model.embed_tokens.weight")
    head = state.get(_LM_HEAD)
    return embedding is not None and head is not None and torch.equal(embedding, head)


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return f"{', '.join(listed[:5])}{' ...' if len(listed) > 5 else ''}" or "nothing"
