"""Content hashes of plugins: of the files that Python would run, not of what an installer once recorded.

A hash covers relative paths and bytes of the installed files without `*.dist-info`, scripts and byte code,
so an editable install and a wheel of the same single package have the same hash.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from functools import cache

from rlinf.plugins.discovery import CORE, Discovered, scan


def hash_files(files: Mapping[str, str]) -> str:
    """SHA-256 over the sorted (name, bytes) pairs of {name: path}; a file that is gone counts as gone."""
    digest = hashlib.sha256()
    for name in sorted(files):
        try:
            with open(files[name], "rb") as stream:
                content = stream.read()
        except OSError:
            content = b"(missing)"
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def content_hash(found: Discovered) -> str:
    """Hash of the files of the distribution behind an entry point."""
    return core_hash() if found.distribution == CORE else hash_files(files_of(found))


def files_of(found: Discovered) -> dict[str, str]:
    """{relative path: path} of a distribution's files: those of its RECORD, or, for an editable install and
    for metadata without RECORD, the sources of the entry point's top-level package."""
    from rlinf.plugins.loading import is_editable

    files = {} if is_editable(found.path) else recorded_files(found.path)
    return files or _package(found.target.partition(".")[0])


def recorded_files(metadata: str) -> dict[str, str]:
    """{relative path: path} of the code and data files in a RECORD (PEP 376)."""
    import csv

    root = os.path.dirname(metadata)
    own = os.path.basename(metadata) + "/"
    try:
        with open(os.path.join(metadata, "RECORD"), encoding="utf-8", newline="") as stream:
            names = [row[0] for row in csv.reader(stream) if row]
    except OSError:
        return {}
    return {
        name: os.path.join(root, name)
        for name in names
        if not name.startswith((own, "..", "/")) and "__pycache__/" not in name and not name.endswith(".pyc")
    }


def _package(top: str) -> dict[str, str]:
    from rlinf.plugins.loading import source_file

    origin = source_file(top)
    if not origin:
        return {}
    if os.path.basename(origin) != "__init__.py":
        return {os.path.basename(origin): origin}
    return _tree(os.path.dirname(origin))


def _tree(folder: str) -> dict[str, str]:
    """{relative path: path} of all files below a package's folder, byte code excepted."""
    parent = os.path.dirname(folder)
    files = {}
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != "__pycache__" and not name.endswith(".egg-info")]
        for name in names:
            if not name.endswith((".pyc", ".pyo")):
                path = os.path.join(place, name)
                files[os.path.relpath(path, parent).replace(os.sep, "/")] = path
    return files


@cache
def core_hash() -> str:
    """Hash of the sources of `rlinf` itself; read once per process."""
    return hash_files(_tree(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))


def core_version() -> str:
    """Version of the installed `rlinf-core`, or "" if it runs without being installed."""
    import sys

    return next((row.version for row in scan(sys.path).entries if row.distribution == CORE), "")
