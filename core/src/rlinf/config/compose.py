"""From files and overrides to one tree: `defaults` lists, aliases, `key=value`, interpolation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlinf.config import nodes
from rlinf.config.errors import ConfigError, Origin, Problem, closest, cut, describe
from rlinf.config.nodes import Node, dotted, expect_mapping, find, merge, nested, parse_yaml, plain
from rlinf.config.secrets import shown_override
from rlinf.config.shipped import find_shipped, plugin_names, shipped_label, shipped_names

#: Other spellings of the field: (alias, canonical place).
ALIASES: Final[tuple[tuple[nodes.Path, nodes.Path], ...]] = (
    (("actor", "model"), ("model",)),
    (("fsdp_config",), ("actor", "fsdp_config")),
)

_OVERRIDE = re.compile(r"(~?)([^=\s]+)(?:=(.*))?", re.DOTALL)


def find_file(reference: str | Path, folder: Path | None = None, origin: Origin | None = None) -> Path:
    """The file that is meant: a path from `folder` (else the working folder), or a shipped one by name."""
    text = str(reference)
    is_path = isinstance(reference, Path) or text.endswith((".yaml", ".yml")) or "/" in text
    candidates = [(folder or Path()) / (text if text.endswith((".yaml", ".yml")) else f"{text}.yaml")]
    if not is_path:
        candidates = [*(candidates if folder else []), *find_shipped(text)]
    found = [candidate for candidate in candidates if candidate.is_file()]
    if len(found) > 1 and found[0].parent != folder:
        message = f"{text} is shipped by several plugins: {', '.join(map(str, found))}"
        hint = "give the path of the one that is meant"
    elif found:
        return found[0]
    elif is_path:
        message, hint = f"no such file: {candidates[0]}", ""
    else:
        known = [*shipped_names(), *plugin_names()]
        message = f"no configuration is named {text!r}; shipped ones: {', '.join(known) or 'none'}"
        match = closest(text, known)
        hint = f"did you mean {match}?" if match else "give a file of your own as a path that ends in .yaml"
    raise ConfigError([Problem(key="defaults" if origin else "", message=message, hint=hint, origin=origin)])


def read_file(path: Path, chain: tuple[Path, ...] = ()) -> Node:
    """One file on top of the bases in its `defaults` list (in order, each on top of the one before)."""
    origin = Origin(source=_shown(path))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([Problem(key="", message=f"cannot be read: {error}", origin=origin)]) from error
    own = expect_mapping(parse_yaml(text, origin, file=origin.source), "")
    bases = own.value.pop("defaults", Node([], origin))
    if not isinstance(bases.value, list) or not all(isinstance(b.value, str) for b in bases.value):
        message = f"expected a list of base configurations (names or paths); got {describe(plain(bases))}"
        raise ConfigError([Problem(key="defaults", message=message, origin=bases.origin)])
    tree, chain = Node({}, origin), (*chain, path.resolve())
    for base in bases.value:
        base_path = find_file(base.value, path.parent, base.origin)
        if base_path.resolve() in chain:
            circle = " -> ".join(p.name for p in (*chain, base_path))
            problem = Problem(key="defaults", message=f"includes itself: {circle}", origin=base.origin)
            raise ConfigError([problem])
        tree = merge(tree, read_file(base_path, chain))
    return merge(tree, normalise(own))


def _shown(path: Path) -> str:
    """A path as short as it can be written from the working folder."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return shipped_label(path) or str(path)


def normalise(tree: Node) -> Node:
    """One source with aliases moved to their place and placement keys split: so sources merge key by key."""
    tree, repeated = _split_placement(move_keys(tree, ALIASES))
    if repeated:
        raise ConfigError(repeated)
    return tree


def move_keys(tree: Node, aliases: Sequence[tuple[nodes.Path, nodes.Path]]) -> Node:
    """The tree with each alias at its canonical place. Raises ConfigError where both are given and differ."""
    problems: list[Problem] = []
    for alias, canonical in aliases:
        found = find(tree, alias)
        if found is None:
            continue
        tree = _without(tree, alias)
        present = find(tree, canonical)
        if present is not None:
            problems += _conflicts(present, found, canonical, alias)
        tree = merge(tree, nested(canonical, found))
    if problems:
        raise ConfigError(problems)
    return tree


def _split_placement(tree: Node) -> tuple[Node, list[Problem]]:
    """`actor,env: 0` as `actor: 0` and `env: 0`, so that another source can replace one of them."""
    path = ("cluster", "component_placement")
    placement, problems = find(tree, path), []
    if placement is None or not isinstance(placement.value, dict):
        return tree, []
    split: dict[str, Node] = {}
    for names, node in placement.value.items():
        for name in (n.strip() for n in names.split(",")):
            if name in split:
                problems.append(Problem(key=dotted((*path, name)), message="given twice", origin=node.origin))
            split[name] = node
    return merge(_without(tree, path), nested(path, Node(split, placement.origin))), problems


def _conflicts(present: Node, alias: Node, path: nodes.Path, alias_path: nodes.Path) -> list[Problem]:
    """Values that are given under both spellings, and differ."""
    if isinstance(present.value, dict) and isinstance(alias.value, dict):
        shared = [name for name in alias.value if name in present.value]
        return [
            problem
            for name in shared
            for problem in _conflicts(
                present.value[name], alias.value[name], (*path, name), (*alias_path, name)
            )
        ]
    if plain(present) == plain(alias):
        return []
    message = (
        f"given twice and different: {describe(plain(present))} here, {describe(plain(alias))} as "
        f"{dotted(alias_path)} ({alias.origin})"
    )
    return [Problem(key=dotted(path), message=message, hint="keep one of them", origin=present.origin)]


def apply_overrides(tree: Node, overrides: Sequence[str]) -> tuple[Node, list[Problem]]:
    """The tree with `key.path=value` (YAML values) set and `~key.path` taken away; and what is wrong."""
    problems: list[Problem] = []
    for text in overrides:
        try:
            tree = _apply(tree, text)
        except ConfigError as error:
            problems += error.problems
    return tree, problems


def _apply(tree: Node, text: str) -> Node:
    origin = Origin(source=f"override {cut(repr(shown_override(text)))}")
    match = _OVERRIDE.fullmatch(text)
    if match is None or (match[1] == "~") == (match[3] is not None) or not all(match[2].split(".")):
        message = "expected key.path=value, or ~key.path to take a key away"
        raise ConfigError([Problem(key="", message=message, origin=origin)])
    path = _canonical(tuple(match[2].split(".")))
    if match[1]:
        if find(tree, path) is None:
            message = "there is nothing to take away: no file or earlier override sets this key"
            raise ConfigError([Problem(key=dotted(path), message=message, origin=origin)])
        return _without(tree, path)
    for depth in range(1, len(path)):
        above = find(tree, path[:depth])
        if above is not None and isinstance(above.value, list):
            message = f"{dotted(path[:depth])} is a list: set it as a whole, {dotted(path[:depth])}=[...]"
            raise ConfigError([Problem(key=dotted(path), message=message, origin=origin)])
    return merge(tree, normalise(nested(path, parse_yaml(match[3], origin, key=dotted(path)))))


def _canonical(path: nodes.Path) -> nodes.Path:
    for alias, canonical in ALIASES:
        if path[: len(alias)] == alias:
            return canonical + path[len(alias) :]
    return path


def _without(tree: Node, path: nodes.Path) -> Node:
    rest = {name: node for name, node in tree.value.items() if name != path[0]}
    if len(path) > 1:
        rest[str(path[0])] = _without(tree.value[path[0]], path[1:])
    return Node(rest, tree.origin)


def resolve(tree: Node, defaults: dict[str, Any]) -> tuple[Node, list[Problem]]:
    """The tree with `${a.b}` replaced by what it refers to; keys that are not given have their `defaults`.
    What cannot be resolved stays as it is and is a problem.

    Interpolations may use the aliases. Resolvers of OmegaConf such as `${oc.env:NAME}` work too: the
    environment acts where the configuration says so, and nowhere else.
    """
    if not _refers(tree):  # OmegaConf costs more than all the rest of loading
        return tree, []
    problems: list[Problem] = []
    values = _parsable(tree, (), problems)
    container = OmegaConf.merge(OmegaConf.create(defaults), OmegaConf.create(values))
    assert isinstance(container, DictConfig)
    for alias, canonical in ALIASES:
        if isinstance(values.get(alias[0], {}), dict):
            OmegaConf.update(container, dotted(alias), "${" + dotted(canonical) + "}")
    return _resolve(tree, container, (), problems), problems


def _refers(node: Node) -> bool:
    """Whether any value below is an interpolation, or OmegaConf's mark for a value that must be given."""
    if isinstance(node.value, dict | list):
        children = node.value.values() if isinstance(node.value, dict) else node.value
        return any(_refers(child) for child in children)
    return isinstance(node.value, str) and ("${" in node.value or node.value == "???")


def _parsable(node: Node, path: nodes.Path, problems: list[Problem]) -> Any:
    """The plain values; text that is no well-formed interpolation is a problem, and None."""
    if isinstance(node.value, dict):
        return {name: _parsable(child, (*path, name), problems) for name, child in node.value.items()}
    if isinstance(node.value, list):
        return [_parsable(child, (*path, i), problems) for i, child in enumerate(node.value)]
    if isinstance(node.value, str) and "${" in node.value:
        try:
            OmegaConf.create([node.value])
        except OmegaConfBaseException as error:
            problems.append(_unresolvable(node, path, str(error).splitlines()[0]))
            return None
    return node.value


def _unresolvable(node: Node, path: nodes.Path, reason: str) -> Problem:
    return Problem(
        key=dotted(path), message=f"cannot resolve {cut(repr(node.value))}: {cut(reason)}", origin=node.origin
    )


def _resolve(node: Node, container: Any, path: nodes.Path, problems: list[Problem]) -> Node:
    if isinstance(node.value, dict):
        items = {n: _resolve_child(c, container, (*path, n), problems) for n, c in node.value.items()}
        return Node(items, node.origin)
    if isinstance(node.value, list):
        children = [_resolve_child(c, container, (*path, i), problems) for i, c in enumerate(node.value)]
        return Node(children, node.origin)
    return node


def _resolve_child(node: Node, container: Any, path: nodes.Path, problems: list[Problem]) -> Node:
    if isinstance(node.value, dict | list):
        return _resolve(node, container[path[-1]], path, problems)
    if not _refers(node):
        return node
    try:
        value = container[path[-1]]
        if isinstance(value, DictConfig | ListConfig):
            value = OmegaConf.to_container(value, resolve=True)
    except (OmegaConfBaseException, RecursionError) as error:
        reason = "refers to itself" if isinstance(error, RecursionError) else str(error).splitlines()[0]
        problems.append(_unresolvable(node, path, reason))
        return node
    return nodes.tree_of(value, node.origin)
