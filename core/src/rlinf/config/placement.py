"""`cluster.component_placement`: which component has a process on which accelerators."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

#: Every run places these three.
COMPONENTS: Final = ("actor", "env", "rollout")
#: More processes than this is a slip of the pen.
_MAX_RANK: Final = 65535


def parse_placement(mapping: Mapping[str, str | int]) -> dict[str, tuple[int, ...]]:
    """Ranks of accelerators (CPU cores where there are none) of each component, one process on each.

    Args:
        mapping: component, or several with commas between them, to a rank `2`, a range `0-3`, or a list
            `0,2,4-5` of these: `{"actor": "0-1", "env,rollout": 2}`.

    Raises:
        ValueError: unknown, repeated or missing component; a range that cannot be read, is empty or repeats.
    """
    placed: dict[str, tuple[int, ...]] = {}
    for names, text in mapping.items():
        ranks = parse_ranks(text)
        for name in (n.strip() for n in str(names).split(",")):
            if name not in COMPONENTS:
                raise ValueError(f"unknown component {name!r}; the components are {', '.join(COMPONENTS)}")
            if name in placed:
                raise ValueError(f"component {name} is placed twice")
            placed[name] = ranks
    missing = [name for name in COMPONENTS if name not in placed]
    if missing:
        raise ValueError(f"no place for {' and '.join(missing)}: each of {', '.join(COMPONENTS)} needs one")
    return {name: placed[name] for name in COMPONENTS}


def parse_ranks(text: str | int) -> tuple[int, ...]:
    """`"0,2,4-5"` as (0, 2, 4, 5). Raises ValueError for anything that is no such list."""
    ranks: list[int] = []
    for part in str(text).split(","):
        match = re.fullmatch(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", part, re.ASCII)
        if match is None or isinstance(text, bool):
            raise ValueError(f"expected ranks such as 0, 0-3 or 0,2,4-5; got {text!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f"the range {part.strip()} is empty: it ends before it begins")
        if last > _MAX_RANK:
            raise ValueError(f"rank {last} is too large; got {text!r}")
        ranks += range(first, last + 1)
    if len(set(ranks)) < len(ranks):
        raise ValueError(f"a rank is given twice in {text!r}")
    return tuple(ranks)
