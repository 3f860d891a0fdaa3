"""`cluster.component_placement`: which component has processes on which accelerators of which nodes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

#: A run with a simulator places these three.
COMPONENTS: Final = ("actor", "env", "rollout")
#: More processes than this is a slip of the pen.
_MAX_RANK: Final = 65535


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where the processes of one component sit.

    processes: by rank, the places that each process takes: accelerators, or CPU cores, of the node group's
    nodes, counted through in the order of the nodes. node_group: "" means all nodes of the run.
    """

    processes: tuple[tuple[int, ...], ...]
    node_group: str = ""

    def __len__(self) -> int:
        return len(self.processes)

    @property
    def last(self) -> int:
        """The highest place that is asked for."""
        return max(place for places in self.processes for place in places)


def parse_placement(
    mapping: Mapping[str, Any], components: tuple[str, ...] = COMPONENTS
) -> dict[str, Places]:
    """The places of each of `components`.

    Args:
        mapping: component, or several with commas between them, to what `parse_processes` reads, or to
            `{"node_group": label, "placement": that}` (an object with these attributes does as well).

    Raises:
        ValueError: unknown, repeated or missing component; text that cannot be read, is empty or repeats.
    """
    placed: dict[str, Places] = {}
    for names, value in mapping.items():
        group, text = "", value
        if not isinstance(value, str | int):
            entry = value if isinstance(value, Mapping) else value.model_dump()
            group, text = entry["node_group"] or "", entry["placement"]
        places = Places(processes=parse_processes(text), node_group=group)
        for name in (n.strip() for n in str(names).split(",")):
            if name not in COMPONENTS:
                raise ValueError(f"unknown component {name!r}; the components are {', '.join(COMPONENTS)}")
            if name in placed:
                raise ValueError(f"component {name} is placed twice")
            placed[name] = places
    missing = [name for name in components if name not in placed]
    if missing:
        raise ValueError(f"no place for {' and '.join(missing)}: each of {', '.join(components)} needs one")
    return {name: placed[name] for name in components}


def parse_processes(text: str | int) -> tuple[tuple[int, ...], ...]:
    """The places of each process, by rank.

    Without a colon one process on each place: `0-3`. `PLACES:PROCESSES` divides the places evenly among the
    processes or the processes evenly among the places: `0-3:0-1` is two processes of two accelerators each,
    `0-1:0-3` four processes, two on each accelerator. Several of these stand with commas between them.

    Raises ValueError for anything else.
    """
    if ":" not in str(text):
        return tuple((place,) for place in parse_ranks(text))
    processes: list[tuple[int, ...]] = []
    # A comma within ranks is one between two parts as well: a part without a colon continues the one before.
    for part in re.findall(r"[^:]+:[^:,]+(?:,(?=[^:]*:)|$)|.+", str(text)):
        left, colon, right = part.rstrip(",").partition(":")
        places, ranks = parse_ranks(left), parse_ranks(right) if colon else ()
        first = len(processes)
        if ranks != tuple(range(first, first + len(ranks))) or not ranks:
            raise ValueError(
                f"expected PLACES:PROCESSES with the processes numbered on from {first}, such as "
                f"0-3:{first}-{first + 1}; got {part.strip()!r}"
            )
        if len(places) % len(ranks) and len(ranks) % len(places):
            raise ValueError(
                f"{part.strip()!r}: {len(places)} places do not divide evenly among {len(ranks)} processes"
            )
        for i in range(len(ranks)):
            size = max(1, len(places) // len(ranks))
            start = i * len(places) // len(ranks) if len(places) < len(ranks) else i * size
            processes.append(places[start : start + size])
    return tuple(processes)


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
