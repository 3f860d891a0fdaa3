"""A configuration as YAML that can be loaded again, with the origin of each value when asked for."""

from __future__ import annotations

from typing import Any

import yaml
from pydantic import BaseModel

from rlinf.config.errors import DEFAULT, Origin
from rlinf.config.load import Loaded
from rlinf.config.nodes import Node, Path, find
from rlinf.config.plugin_schema import plugin_subtree
from rlinf.config.secrets import redacted

#: Column of the comments, when the value is not longer.
_COMMENT_COLUMN = 44


def resolved(loaded: Loaded) -> dict[str, Any]:
    """Every key with its value as plain YAML types, the defaults of the plugins' subtrees included; secrets
    are hidden."""
    data = loaded.config.model_dump(mode="json")
    blocks = {"model": loaded.config.model.model_type}
    if loaded.config.has_simulator:
        blocks["env"] = loaded.config.env.env_type
    else:
        del data["env"]
    for block, name in blocks.items():
        subtree = plugin_subtree(loaded.config, block)  # type: ignore[arg-type]
        if isinstance(subtree, BaseModel):
            data[block][name] = subtree.model_dump(mode="json", by_alias=True)
    return redacted(data)


def render(loaded: Loaded, *, origins: bool = False) -> str:
    """The resolved configuration as YAML; with `origins` each line ends in a comment that says who set it."""
    lines: list[str] = []
    for text, origin in _lines(resolved(loaded), loaded.tree, ()):
        lines.append(f"{text:<{_COMMENT_COLUMN}}  # {origin}" if origins and origin is not None else text)
    return "\n".join(lines) + "\n"


def _lines(value: dict[str, Any], tree: Node, path: Path) -> list[tuple[str, Origin | None]]:
    lines: list[tuple[str, Origin | None]] = []
    for key, item in value.items():
        head = "  " * len(path) + _scalar(key) + ":"
        if isinstance(item, dict) and item:
            lines.append((head, None))
            lines += _lines(item, tree, (*path, key))
        else:
            written = find(tree, (*path, key))
            lines.append((f"{head} {_scalar(item)}", DEFAULT if written is None else written.origin))
    return lines


def _scalar(value: Any) -> str:
    """A scalar, list or empty mapping on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True)
    return text.removesuffix("...\n").strip()
