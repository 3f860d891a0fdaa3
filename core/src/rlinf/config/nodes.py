"""YAML trees in which every value knows the line it was written on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from rlinf.config.errors import DEFAULT, ConfigError, Origin, Problem, cut, describe

_COLLECTIONS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
#: A key path; list positions are integers.
Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Node:
    """A value (scalar, or list or dict of nodes) and where it was written."""

    value: Any
    origin: Origin


class _Loader(yaml.SafeLoader):
    """SafeLoader in which 3e-4 is a number (as in YAML 1.2) and a date stays text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, rx) for tag, rx in resolvers if not tag.endswith((":float", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9_]+)(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+"
        r"|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


def parse_yaml(text: str, origin: Origin, *, file: str | None = None, key: str = "") -> Node:
    """The tree of one YAML document; ConfigError with file and line when it is not one.

    Args:
        origin: where the whole text was written.
        file: given, each node's origin is its line in this file; else every origin is `origin`.
        key: the dotted key that the text is the value of.
    """
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            return Node(None, origin) if root is None else _convert(loader, root, origin, file, (), key)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = Origin(source=file, line=mark.line + 1) if mark and file else origin
        what = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be parsed"
        raise ConfigError([Problem(key=key, message=f"not valid YAML: {what}", origin=where)]) from error
    except RecursionError:
        message = "not valid: nested too deeply"
        raise ConfigError([Problem(key=key, message=message, origin=origin)]) from None


def _convert(
    loader: _Loader,
    node: yaml.Node,
    parent: Origin,
    file: str | None,
    above: tuple[yaml.Node, ...],
    key: str = "",
) -> Node:
    origin = Origin(source=file, line=node.start_mark.line + 1) if file else parent
    if any(node is a for a in above):
        raise ConfigError([Problem(key=key, message="an anchor that contains itself", origin=origin)])
    if not isinstance(node, yaml.ScalarNode) and node.tag not in _COLLECTIONS:
        message = f"the tag {node.tag.replace('tag:yaml.org,2002:', '!!')} has no meaning here"
        raise ConfigError([Problem(key=key, message=message, origin=origin)])
    if isinstance(node, yaml.SequenceNode):
        items = enumerate(node.value)
        return Node(
            [_convert(loader, v, origin, file, (*above, node), f"{key}[{i}]") for i, v in items], origin
        )
    if not isinstance(node, yaml.MappingNode):
        return Node(_scalar(loader, node, origin, key), origin)
    _refuse_duplicates(node, origin, file, key)
    loader.flatten_mapping(node)
    values: dict[str, Node] = {}
    for name_node, value_node in node.value:
        name = _key_text(name_node, origin, key)
        path = f"{key}.{name}" if key else name
        value = _convert(loader, value_node, origin, file, (*above, node), path)
        line = Origin(source=file, line=name_node.start_mark.line + 1) if file else parent
        values[name] = Node(value.value, line)
    return Node(values, origin)


def _scalar(loader: _Loader, node: yaml.Node, origin: Origin, key: str) -> Any:
    try:
        value = loader.construct_object(node)
    except ValueError as error:  # int() and float() of what the resolver took for a number
        raise ConfigError(
            [Problem(key=key, message=f"not a number: {error}"[:200], origin=origin)]
        ) from error
    if value is not None and not isinstance(value, str | int | float | bool):
        message = f"expected text, a number, true, false or null; got a {type(value).__name__}"
        raise ConfigError([Problem(key=key, message=message, origin=origin)])
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            message = f"not valid text: {cut(ascii(value))}"
            raise ConfigError([Problem(key=key, message=message, origin=origin)]) from None
    return value


def _key_text(node: yaml.Node, origin: Origin, key: str) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise ConfigError([Problem(key=key, message="a key must be plain text", origin=origin)])
    return str(node.value)


def _refuse_duplicates(node: yaml.MappingNode, origin: Origin, file: str | None, key: str) -> None:
    seen: dict[str, int] = {}
    for name_node, _ in node.value:
        name, line = _key_text(name_node, origin, key), name_node.start_mark.line + 1
        if name in seen and name != "<<":
            path = f"{key}.{name}" if key else name
            where = Origin(source=file, line=line) if file else origin
            message = "given twice" + (f", first in line {seen[name]}" if file else "")
            raise ConfigError([Problem(key=path, message=message, origin=where)])
        seen[name] = line


def merge(base: Node, over: Node) -> Node:
    """`over` on top of `base`: mappings are merged key by key, everything else (lists too) is replaced.

    A merged mapping was written where the last file has it: an override sets keys, not blocks.
    """
    if not (isinstance(base.value, dict) and isinstance(over.value, dict)):
        return over
    merged = dict(base.value)
    for name, node in over.value.items():
        merged[name] = merge(merged[name], node) if name in merged else node
    return Node(merged, base.origin if over.origin.line is None else over.origin)


def nested(path: Sequence[str | int], leaf: Node) -> Node:
    """The mapping of mappings that holds `leaf` at `path`."""
    for name in reversed(path):
        leaf = Node({name: leaf}, leaf.origin)
    return leaf


def tree_of(value: Any, origin: Origin = DEFAULT) -> Node:
    """Plain values as a tree in which all have one origin; the inverse of `plain`."""
    if isinstance(value, dict):
        return Node({str(k): tree_of(v, origin) for k, v in value.items()}, origin)
    if isinstance(value, list):
        return Node([tree_of(v, origin) for v in value], origin)
    return Node(value, origin)


def plain(node: Node) -> Any:
    """The values without their origins."""
    if isinstance(node.value, dict):
        return {name: plain(child) for name, child in node.value.items()}
    if isinstance(node.value, list):
        return [plain(child) for child in node.value]
    return node.value


def locate(node: Node, path: Path) -> Origin:
    """Where the value at `path`, or else the deepest existing thing above it, was written."""
    while (found := find(node, path)) is None:
        path = path[:-1]
    return found.origin


def find(node: Node, path: Path) -> Node | None:
    """The node at exactly `path`."""
    for step in path:
        if not (step in node.value if isinstance(node.value, dict) else _has_item(node.value, step)):
            return None
        node = node.value[step]
    return node


def locate_value(node: Node, path: Path) -> Origin:
    """Where the value at `path` was written; for one that is the schema's default, where its block is."""
    exact = find(node, path)
    if exact is not None:
        return exact.origin
    block = locate(node, path)
    return Origin(source=f"default; its block: {block.source}", line=block.line)


def _has_item(value: Any, step: str | int) -> bool:
    return isinstance(value, list) and isinstance(step, int) and step < len(value)


def dotted(path: Path) -> str:
    """`("a", "b", 0)` as `a.b[0]`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text


def expect_mapping(node: Node, what: str) -> Node:
    """`node` when it is a mapping or empty; else a ConfigError."""
    if node.value is None:
        return Node({}, node.origin)
    if not isinstance(node.value, dict):
        message = f"expected a mapping of keys to values; got {describe(plain(node))}"
        raise ConfigError([Problem(key=what, message=message, origin=node.origin)])
    return node
