"""Random changes to nested JSON, for tests of what reads it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any


def change_json(rng: random.Random, root: Any, values: Sequence[Any]) -> Any:
    """Replace one value somewhere by one of `values`, or drop it."""
    path = rng.choice(_places(root))
    node = root
    for step in path[:-1]:
        node = node[step]
    if isinstance(node, dict) and rng.random() < 0.3:
        del node[path[-1]]
    else:
        node[path[-1]] = rng.choice(values)
    return root


def _places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place but the root."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [place for key, value in items for place in ((*path, key), *_places(value, (*path, key)))]
