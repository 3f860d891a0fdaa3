"""`--ship`: the run's plugins travel with it to nodes that do not have them.

Each plugin is built to a wheel once; the wheels are unpacked into one folder, which Ray sends by the hash of
its content (`runtime_env["working_dir"]`) and puts first on the `sys.path` of workers. Requirements do not
travel.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from rlinf.cluster.errors import UserError
from rlinf.plugins import Plan, get_host
from rlinf.plugins.discovery import CORE, GROUPS, REGISTERED, Discovered


def lacking(plan: Plan, facts: Mapping[str, Any]) -> list[str]:
    """Distributions of the plan's plugins that some node lacks or has otherwise. facts: node -> facts of
    `rlinf.cluster.preflight`, or a text where there are none."""
    owners = {f"{entry.group} {entry.name}": entry.distribution for entry in plan.entries}
    differing: dict[str, None] = {}
    for found in facts.values():
        if isinstance(found, str):
            continue
        for what, _, _ in found["rows"]:
            name = owners.get(" ".join(what.split(" ")[:2]), CORE)
            if name not in (CORE, REGISTERED):
                differing[name] = None
    return list(differing)


def pack(distributions: list[str], folder: Path) -> Path:
    """Build the distributions to wheels and unpack these below `folder`; returns the folder to send.

    Raises UserError for a plugin that cannot be built, or whose wheel is not what it should be.
    """
    rows = {row.distribution: row for row in get_host().discover() if row.group in GROUPS}
    unpacked = folder / "plugins"
    for name in distributions:
        unpack(_wheel(rows[name], folder / "wheels"), unpacked)
    return unpacked


def _wheel(row: Discovered, folder: Path) -> Path:
    """The wheel of an installed distribution: built from its sources if it is an editable install, else put
    together again from its installed files."""
    from rlinf.plugins.distributions import installed

    item = next(i for i in installed(sys.path) if i.name == row.distribution and not i.hidden_by)
    folder.mkdir(parents=True, exist_ok=True)
    if not item.editable:
        return _reassembled(Path(item.path), folder)
    before = set(folder.iterdir())
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    done = subprocess.run([*command, "-w", str(folder), item.editable], capture_output=True, text=True)
    made = set(folder.iterdir()) - before
    if done.returncode or len(made) != 1:
        why = done.stderr.strip()[-2000:]
        raise UserError(f"--ship: {item.label} ({item.editable}) does not build:\n{why}")
    return made.pop()


def _reassembled(metadata: Path, folder: Path) -> Path:
    """A wheel of the files that the RECORD of an installed distribution lists."""
    from rlinf.plugins.fingerprint import recorded_files

    files = recorded_files(str(metadata))
    wheel = folder / f"{metadata.name.removesuffix('.dist-info')}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, file in sorted(files.items()):
            archive.write(file, name)
        for path in sorted(metadata.iterdir()):
            if path.is_file():
                archive.write(path, f"{metadata.name}/{path.name}")
    return wheel


def unpack(wheel: Path, folder: Path) -> None:
    """Unpack an archive below `folder`. Raises UserError, before anything is written, if a name in it leads
    elsewhere or is a link."""
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            parts = PurePosixPath(info.filename.replace("\\", "/"))
            is_link = (info.external_attr >> 16) & 0o170000 == 0o120000
            if parts.is_absolute() or ".." in parts.parts or is_link or os.path.splitdrive(info.filename)[0]:
                raise UserError(f"{wheel}: {info.filename!r} leads out of the archive: it is not unpacked")
        archive.extractall(folder)
