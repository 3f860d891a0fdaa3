"""Wrap policy (data) -> wrap plan: which modules become FSDP2 units of their own.

One source decides, the first that has rules: the configuration's `fsdp_config.wrap_policy`, the plugin's
`WrapPolicySpec`, the model's `_no_split_modules` / `_no_split_names`. New heads (value heads and the like)
are units whatever the source. LoRA adapters are not: FSDP2 shards parameter by parameter and lets trainable
and frozen ones share a unit, so they travel in the one all-gather of their block instead of hundreds of tiny
ones of their own.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn

from rlinf.config.schema import FsdpConfig
from rlinf.plugins.specs import WrapPolicySpec


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One entry of a wrap policy."""

    #: Where it was written: a configuration key, a plugin's field, a model's attribute.
    source: str
    #: "class", "name", "path" or "predicate".
    kind: str
    value: str

    def __str__(self) -> str:
        return f"{self.source}: {self.value!r}"


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A module that gathers and frees its parameters on its own."""

    name: str
    cls: str
    #: The first rule that matched.
    rule: str
    #: Parameters that this unit shards (those of units inside it excluded), with names from the root.
    parameters: tuple[str, ...]
    #: Their elements and bytes before sharding.
    numel: int
    nbytes: int


@dataclass(frozen=True, kw_only=True)
class Match:
    """What one rule matched."""

    rule: str
    #: Module paths; empty when it is the root alone, which is a unit anyway.
    paths: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class WrapPlan:
    """Units in the order of the model's definition (its forward's, as a rule), and what the root keeps."""

    units: tuple[Unit, ...]
    #: Every rule in force, in the order in which they claim modules.
    matches: tuple[Match, ...]
    #: Parameters of no unit; the root gathers them for the whole forward.
    remainder: tuple[str, ...]
    remainder_bytes: int
    #: sha256 over units, rules, parameters, shapes, dtypes; equal on all ranks or the run is refused.
    digest: str = field(repr=False)

    @property
    def application_order(self) -> tuple[Unit, ...]:
        """Inside-out: `fully_shard` on a module takes what its inner units have left."""
        return tuple(reversed(self.units))


def get_fsdp_wrap_policy(
    fsdp_config: FsdpConfig, model: nn.Module, plugin_policy: WrapPolicySpec | None = None
) -> WrapPlan:
    """Resolve the wrap policy of `model` (on any device, `meta` included) into a `WrapPlan`.

    Raises `ValueError` naming the rule and its source when a rule matches nothing or something that cannot be
    a unit, and naming the parameters when two units would share one, a unit mixes dtypes, or a parameter is a
    scalar.
    """
    modules = {path: module for path, module in model.named_modules() if path}
    matches = [
        Match(rule=str(rule), paths=tuple(_match(rule, model, modules)))
        for rule in _rules(fsdp_config, model, plugin_policy)
    ]
    heads = tuple(new_head_paths(model))
    if heads:
        matches.append(Match(rule="built in: new head", paths=heads))
    return _make_plan(model, modules, tuple(matches), fsdp_config.min_num_params)


def is_new_head(module: nn.Module) -> bool:
    """Whether a module (its class or the instance) says `_is_policy_head = True`, as `ValueHead` does."""
    return getattr(module, "_is_policy_head", False) is True


def new_head_paths(model: nn.Module) -> list[str]:
    """Paths of the heads that were added to a backbone, outermost only."""
    paths: list[str] = []
    for path, module in model.named_modules():
        inside = any(path.startswith(head + ".") for head in paths)
        if path and not inside and is_new_head(module):
            paths.append(path)
    return paths


def _rules(fsdp_config: FsdpConfig, model: nn.Module, plugin_policy: WrapPolicySpec | None) -> list[Rule]:
    """The rules of the first source that has any."""
    custom = fsdp_config.wrap_policy
    return (
        _rules_of(custom, "fsdp_config.wrap_policy")
        or (_rules_of(plugin_policy, "plugin's WrapPolicySpec") if plugin_policy else [])
        or _model_rules(model)
    )


_KINDS = {
    "transformer_layer_cls_to_wrap": "class",
    "module_classes_to_wrap": "class",
    "no_split_names": "name",
    "module_path_patterns": "path",
    "predicates": "predicate",
}


def _rules_of(policy: Any, source: str) -> list[Rule]:
    return [
        Rule(source=f"{source}.{key}", kind=kind, value=value)
        for key, kind in _KINDS.items()
        for value in getattr(policy, key, ())
    ]


def _model_rules(model: nn.Module) -> list[Rule]:
    """What the model says; if it says nothing, its outermost submodules that do (a wrapped backbone)."""
    rules: list[Rule] = []
    declared: list[str] = []
    for path, module in model.named_modules():
        if any(outer == "" or path.startswith(outer + ".") for outer in declared):
            continue
        classes, names = getattr(module, "_no_split_modules", None), getattr(module, "_no_split_names", None)
        if not classes and not names:
            continue
        declared.append(path)
        where = f"{type(module).__name__}{f' ({path})' if path else ''}"
        for key, kind, values in (
            ("_no_split_modules", "class", classes),
            ("_no_split_names", "name", names),
        ):
            values = [values] if isinstance(values, str) else sorted(values or ())
            rules += [Rule(source=f"{where}.{key}", kind=kind, value=value) for value in values]
    return list(dict.fromkeys(rules))


def wrap_name(path: str, module: nn.Module) -> str:
    """A module's `_fsdp_wrap_name`; where it sets none, the name of the attribute that holds it."""
    own = getattr(module, "_fsdp_wrap_name", None)
    return own if isinstance(own, str) else path.rpartition(".")[2]


def _match(rule: Rule, model: nn.Module, modules: dict[str, nn.Module]) -> list[str]:
    """Paths of the modules that a rule makes units (the root may match; it is a unit anyway)."""
    candidates = {"": model, **modules}
    if rule.kind == "predicate":
        from rlinf.plugins import resolve_attr

        predicate = resolve_attr(rule.value)
        hits = [path for path, module in candidates.items() if predicate(path, module)]
    else:
        # For a class or name the whole label must be equal; a path pattern must match from start to end.
        labels = {path: _label(rule.kind, path, module) for path, module in candidates.items()}
        pattern = re.compile(rule.value if rule.kind == "path" else re.escape(rule.value))
        hits = [path for path, label in labels.items() if label and pattern.fullmatch(label)]
        if not hits:
            raise ValueError(
                f"{rule} matches no module of {type(model).__name__}.{_hint(rule, labels.values())}"
            )
    if not hits:
        raise ValueError(f"{rule} matches no module of {type(model).__name__}.")
    containers = [path for path in hits if path and not _has_forward(modules[path])]
    if containers:
        raise ValueError(
            f"{rule} matches {containers[0]}, a {type(modules[containers[0]]).__name__} without a forward "
            "of its own, which FSDP cannot wrap: name the modules inside it"
        )
    filled = [path for path in hits if next(candidates[path].parameters(), None) is not None]
    if not filled:
        raise ValueError(f"{rule} matches only modules without parameters: {', '.join(hits[:3])}")
    return [path for path in filled if path]


def _label(kind: str, path: str, module: nn.Module) -> str:
    return {"class": type(module).__name__, "name": wrap_name(path, module), "path": path}[kind]


def _has_forward(module: nn.Module) -> bool:
    return type(module).forward is not nn.Module.forward


def _hint(rule: Rule, labels: Iterable[str]) -> str:
    known = sorted({label for label in labels if label})
    close = get_close_matches(rule.value, known, n=1, cutoff=0.5)
    if close:
        return f" Did you mean {close[0]!r}?"
    shown = ", ".join(known[:12])
    return f" It has: {shown}{', ...' if len(known) > 12 else ''}."


def _make_plan(
    model: nn.Module, modules: dict[str, nn.Module], matches: tuple[Match, ...], min_num_params: int
) -> WrapPlan:
    matched: dict[str, str] = {}
    for match in matches:
        for path in match.paths:
            matched.setdefault(path, match.rule)
    parameters = dict(model.named_parameters())
    ordered = _large_enough(model, [path for path in modules if path in matched], min_num_params)
    owned = _owners(model, ordered)
    units = tuple(
        Unit(
            name=path,
            cls=type(modules[path]).__name__,
            rule=matched[path],
            parameters=tuple(owned[path]),
            numel=sum(parameters[name].numel() for name in owned[path]),
            nbytes=sum(_nbytes(parameters[name]) for name in owned[path]),
        )
        for path in ordered
        if owned[path]  # a unit whose parameters all belong to units inside it would gather nothing
    )
    for path, names in owned.items():
        _check_dtypes(path or "the root", {name: parameters[name] for name in names})
    described = {
        "units": [[unit.name, unit.cls, unit.rule, list(unit.parameters)] for unit in units],
        "parameters": {
            name: [str(p.dtype), list(p.shape), p.requires_grad] for name, p in parameters.items()
        },
    }
    return WrapPlan(
        units=units,
        matches=matches,
        remainder=tuple(owned[""]),
        remainder_bytes=sum(_nbytes(parameters[name]) for name in owned[""]),
        digest=hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest(),
    )


def _large_enough(model: nn.Module, units: Sequence[str], min_num_params: int) -> list[str]:
    """The units that hold `min_num_params`; smaller ones join the unit around them, inside-out."""
    parameters = dict(model.named_parameters())
    kept = list(units)
    for path in reversed(units) if min_num_params else ():
        if sum(parameters[name].numel() for name in _owners(model, kept)[path]) < min_num_params:
            kept.remove(path)
    return kept


def _owners(model: nn.Module, units: Sequence[str]) -> dict[str, list[str]]:
    """{unit path, "" for the root: names of its parameters}; refuses a parameter of two units."""
    owned: dict[str, list[str]] = {path: [] for path in ["", *units]}
    first: dict[int, tuple[str, str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        parts = name.split(".")[:-1]
        prefixes = (".".join(parts[:depth]) for depth in range(len(parts), 0, -1))
        owner = next((prefix for prefix in prefixes if prefix in owned), "")
        if id(parameter) not in first:
            first[id(parameter)] = (name, owner)
            owned[owner].append(name)
        elif first[id(parameter)][1] != owner:
            other_name, other = first[id(parameter)]
            raise ValueError(
                f"{other_name} and {name} are one tied parameter in two FSDP units ({other or 'the root'} "
                f"and {owner or 'the root'}): wrap neither of these modules alone, or both in one unit"
            )
        if parameter.dim() == 0:
            raise ValueError(f"{name} is a scalar parameter, which cannot be sharded: give it the shape [1]")
    return owned


def _check_dtypes(unit: str, parameters: dict[str, nn.Parameter]) -> None:
    by_dtype: dict[torch.dtype, str] = {}
    for name, parameter in parameters.items():
        if parameter.requires_grad:
            by_dtype.setdefault(parameter.dtype, name)
    if len(by_dtype) > 1:
        listed = " and ".join(f"{dtype} ({name})" for dtype, name in by_dtype.items())
        raise ValueError(
            f"FSDP unit {unit} mixes trainable parameters of {listed}: build the model in one dtype, "
            "or make one of the modules a unit of its own"
        )


def _nbytes(parameter: torch.Tensor) -> int:
    return parameter.numel() * parameter.element_size()
