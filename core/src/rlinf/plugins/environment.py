"""What `rlinf doctor` says about this Python environment; reads metadata, imports no plugin."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from rlinf.plugins.discovery import CORE, REGISTERED, Discovered
from rlinf.plugins.distributions import Installed, copies, installed, owner, provides, requires
from rlinf.plugins.fingerprint import content_hash
from rlinf.plugins.host import get_host
from rlinf.plugins.probe import probe
from rlinf.plugins.requirements import Conflict, find_conflicts

#: The import name that is ours.
PACKAGE: Final = "rlinf"


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Facts, and what of them is wrong."""

    plugins: tuple[Discovered, ...]
    #: Distribution -> content hash of its files, of those that offer plugins.
    content: dict[str, str]
    conflicts: tuple[Conflict, ...]
    editable: tuple[Installed, ...]
    #: Metadata that other metadata of the same name hides.
    shadowed: tuple[Installed, ...]
    #: One sentence each; empty if nothing is wrong.
    problems: tuple[str, ...]


def environment() -> Environment:
    """The environment of this process."""
    host = get_host()
    plugins = host.discover()
    found = installed(sys.path)
    visible = {item.name: item for item in found if not item.hidden_by}
    declaring = {row.distribution for row in plugins if row.distribution in visible} | ({CORE} & set(visible))
    conflicts = find_conflicts(
        declaring,
        {name: item.version for name, item in visible.items()},
        lambda name: requires(visible[name]) if name in visible else (),
    )
    shadowed = tuple(item for item in found if item.hidden_by)
    problems = [
        *host.problems(),
        *_broken(plugins),
        *map(str, conflicts),
        *_providers(list(visible.values())),
        *_duplicates(shadowed, declaring),
    ]
    return Environment(
        plugins=plugins,
        content={row.distribution: content_hash(row) for row in plugins if row.state == "ok"},
        conflicts=tuple(conflicts),
        editable=tuple(item for item in found if item.editable and not item.hidden_by),
        shadowed=shadowed,
        problems=tuple(problems),
    )


def _broken(plugins: Sequence[Discovered]) -> Iterator[str]:
    """Plugins that visibly cannot be imported."""
    seen = set()
    for row in plugins:
        if row.state == "ok" and row.distribution != REGISTERED and row.target not in seen:
            seen.add(row.target)
            trouble = probe(row.target)
            if trouble:
                yield f"plugin {row.name!r} of {row.label}: {trouble}"


def _providers(visible: Sequence[Installed]) -> Iterator[str]:
    """Who else brings the import name `rlinf`: another distribution, or a folder on the path."""
    providing = [item for item in visible if item.name == CORE or provides(item, PACKAGE)]
    others = [item for item in providing if item.name != CORE]
    for item in others:
        yield (
            f"{item.label} ({item.path}) also provides the import name {PACKAGE!r}, which is {CORE}'s: "
            f"`pip uninstall {item.name}`, then reinstall {CORE}, whose files it may have replaced"
        )
    places = copies(sys.path, PACKAGE)
    for place in places:
        whose = owner(place, PACKAGE, providing)
        if whose is None and len(places) > 1:
            first = "comes first and is imported" if place == places[0] else f"is hidden by {places[0]}"
            yield (
                f"{os.path.join(place, PACKAGE)} is on sys.path, belongs to no installed distribution, and "
                f"{first}: take {place} out of PYTHONPATH"
            )


def _duplicates(shadowed: Sequence[Installed], plugins: set[str]) -> Iterator[str]:
    """Two sets of metadata for the files of one folder. Layers of folders (a virtual environment over the
    system's packages) are usual and no problem; those of plugins the host reports itself."""
    for item in shadowed:
        if item.same_folder and item.name not in plugins:
            yield (
                f"{item.name} has metadata twice in one folder: {item.path} and {item.hidden_by}; only one "
                f"describes the files: `pip uninstall {item.name}` until it is gone, then install it again"
            )
