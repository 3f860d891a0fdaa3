"""Every installed distribution, from its metadata: duplicates, editable installs, who provides a package."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from rlinf.plugins.discovery import canonical, egg_version, folders, listdir


@dataclass(frozen=True, kw_only=True)
class Installed:
    """One distribution as one metadata folder describes it."""

    #: Canonical name (PEP 503).
    name: str
    version: str
    #: The metadata folder.
    path: str
    #: The source folder of an editable install, else "".
    editable: str = ""
    #: The metadata of the same name that comes first on the path and hides this one, else "".
    hidden_by: str = ""

    @property
    def label(self) -> str:
        """Name and version."""
        return f"{self.name} {self.version}"

    @property
    def same_folder(self) -> bool:
        """Whether both metadata of a duplicate describe the files of one folder: one of them is wrong."""
        return bool(self.hidden_by) and os.path.dirname(self.hidden_by) == os.path.dirname(self.path)


def installed(path: Iterable[str]) -> tuple[Installed, ...]:
    """All distributions on a `sys.path`, in its order; imports nothing. What an editable build leaves beside
    the sources (`*.egg-info` of the same version) is no distribution of its own."""
    first: dict[str, Installed] = {}
    found: list[Installed] = []
    for folder in folders(path):
        here = [_read(folder, file) for file in listdir(folder) if _is_metadata(file)]
        # Two sets of metadata in one folder: the newest describes the files, as the plugin host has it.
        here.sort(key=lambda item: (item.name, -os.stat(item.path).st_mtime_ns, item.path))
        for item in here:
            winner = first.setdefault(item.name, item)
            if winner is item:
                found.append(item)
            elif not (item.path.endswith(".egg-info") and item.version == winner.version):
                found.append(_hidden(item, winner))
    return tuple(found)


def _is_metadata(file: str) -> bool:
    return file.endswith((".dist-info", ".egg-info")) and not file.startswith("~")


def _read(folder: str, file: str) -> Installed:
    path = os.path.join(folder, file)
    name, _, version = file.rpartition(".")[0].partition("-")
    if file.endswith(".egg-info"):
        version = egg_version(path) or version.partition("-py")[0]
    return Installed(name=canonical(name), version=version, path=path, editable=_source_folder(path))


def _hidden(item: Installed, winner: Installed) -> Installed:
    return Installed(
        name=item.name,
        version=item.version,
        path=item.path,
        editable=item.editable,
        hidden_by=winner.path,
    )


def _source_folder(metadata: str) -> str:
    """The folder that `direct_url.json` (PEP 610) names for an editable install."""
    text = _text(metadata, "direct_url.json")
    if '"editable"' not in text:
        return ""
    content: dict[str, Any] = json.loads(text)
    if not content.get("dir_info", {}).get("editable"):
        return ""
    return unquote(urlsplit(content.get("url", "")).path)


def requires(item: Installed) -> list[str]:
    """The lines `Requires-Dist` of a distribution."""
    from importlib.metadata import Distribution

    return list(Distribution.at(item.path).requires or ())


def provides(item: Installed, package: str) -> bool:
    """Whether a distribution brings the top-level package, by its list of files or an editable path."""
    if package in _text(item.path, "top_level.txt").split():
        return True
    record = _text(item.path, "RECORD")
    if re.search(rf"^{re.escape(package)}(/|\.py,)", record, re.MULTILINE):
        return True
    folder = os.path.dirname(item.path)
    links = re.findall(r"^([^,\n/]+\.pth),", record, re.MULTILINE)
    places = [line.strip() for link in links for line in _text(folder, link).splitlines()]
    return any(_has_package(place, package) for place in places if os.path.isabs(place))


def copies(path: Iterable[str], package: str) -> list[str]:
    """Folders on a `sys.path` that hold the package, in its order; Python imports the first."""
    return [folder for folder in folders(path) if _has_package(folder, package)]


def owner(folder: str, package: str, candidates: Sequence[Installed]) -> Installed | None:
    """The distribution among `candidates` whose copy of the package lies in `folder`."""
    for item in candidates:
        inside = not item.editable and os.path.dirname(item.path) == folder
        if inside or (item.editable and f"{folder}/".startswith(f"{os.path.abspath(item.editable)}/")):
            return item
    return None


def _has_package(folder: str, package: str) -> bool:
    place = os.path.join(folder, package)
    return os.path.isfile(os.path.join(place, "__init__.py")) or os.path.isfile(f"{place}.py")


def _text(folder: str, file: str) -> str:
    try:
        with open(os.path.join(folder, file), encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:  # optional files; an egg-info may be a file itself
        return ""
