"""Checkpoints of a run: a folder appears only when it is complete, and says how to tell whether it still is.

    <run_dir>/checkpoints/step_<N>/metadata.json     format, step, size and sha256 of every file, the caller's
    entries <run_dir>/checkpoints/step_<N>/...               what the writer put there (`FsdpEngine.save`)

One process (the driver) owns the store; the ranks write into the folder that it hands out.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

METADATA_FILE = "metadata.json"
FORMAT = 1
_PREFIX = "step_"
_UNFINISHED = ".unfinished_"

_log = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint is missing, incomplete, damaged, or of another format."""


class CheckpointStore:
    """The checkpoints of one run folder; keeps the newest `keep`."""

    def __init__(self, run_dir: str | Path, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep: expected at least 1 checkpoint, got {keep}")
        self.directory = Path(run_dir) / "checkpoints"
        self.keep = keep

    @contextmanager
    def writing(self, step: int, metadata: Mapping[str, Any]) -> Iterator[Path]:
        """An empty folder to write into; on a clean exit it becomes `step_<step>`, on an error it vanishes.

        `metadata` (JSON-able: plan, configuration, versions) goes to `metadata.json`. An existing checkpoint
        of the same step is replaced. A crash at any moment leaves either the old state or the new one.
        """
        reserved = {"format", "step", "files"} & set(metadata)
        if reserved:
            raise ValueError(f"checkpoint metadata: the keys {sorted(reserved)} are the store's own")
        self.directory.mkdir(parents=True, exist_ok=True)
        for leftover in self.directory.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(leftover)
        folder = self.directory / f"{_UNFINISHED}{_PREFIX}{step}"
        folder.mkdir()
        try:
            yield folder
            _seal(folder, {"format": FORMAT, "step": step, **metadata})
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._publish(folder, self.directory / f"{_PREFIX}{step}")
        for old in self.complete()[self.keep :]:
            shutil.rmtree(old)

    def _publish(self, folder: Path, target: Path) -> None:
        replaced = self.directory / f"{_UNFINISHED}replaced_{target.name}"
        if target.exists():
            target.rename(replaced)
        folder.rename(target)
        _fsync(self.directory)
        if replaced.exists():
            shutil.rmtree(replaced)

    def complete(self) -> list[Path]:
        """All complete checkpoints, newest step first (complete: the metadata was written; not: verified)."""
        steps = {}
        for path in self.directory.glob(f"{_PREFIX}*"):
            number = path.name.removeprefix(_PREFIX)
            if number.isdigit() and (path / METADATA_FILE).is_file():
                steps[int(number)] = path
        return [steps[step] for step in sorted(steps, reverse=True)]

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step is, or would be."""
        return self.directory / f"{_PREFIX}{step}"

    def latest(self) -> Path | None:
        """The newest complete checkpoint, unverified, or None."""
        return next(iter(self.complete()), None)

    def latest_good(self) -> Path | None:
        """The newest checkpoint whose files all verify; each damaged one that is passed over is logged as a
        warning.

        None if there is no checkpoint at all; raises `CheckpointError` if there are some and all are damaged.
        """
        damage = []
        for path in self.complete():
            try:
                verify(path)
            except CheckpointError as error:
                damage.append(str(error))
                _log.warning("checkpoint passed over: %s", error)
                continue
            if damage:
                _log.warning("falling back to the older checkpoint %s", path)
            return path
        if damage:
            raise CheckpointError(f"every checkpoint in {self.directory} is damaged: " + "; ".join(damage))
        return None


def read_metadata(checkpoint: str | Path) -> dict[str, Any]:
    """Content of `metadata.json`. Raises `CheckpointError` if it is missing, broken or of another format."""
    path = Path(checkpoint) / METADATA_FILE
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: {checkpoint} is no complete checkpoint") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({error})") from None
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise CheckpointError(f"{path}: expected checkpoint format {FORMAT}, found {_cut(found)}")
    _require_files(path, content.get("files"))
    return content


def _require_files(path: Path, files: Any) -> None:
    """The list of files must be one, and stay within the checkpoint: it comes from who knows where."""
    if not isinstance(files, dict):
        raise CheckpointError(f"{path}: `files` must map names to sizes and checksums")
    for name, entry in files.items():
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or "\0" in name or not parts.parts:
            raise CheckpointError(f"{path}: {_cut(name)} is no name within the checkpoint")
        entry = entry if isinstance(entry, dict) else {}
        if not isinstance(entry.get("bytes"), int) or not isinstance(entry.get("sha256"), str):
            raise CheckpointError(f"{path}: {_cut(name)} has no size and sha256")


def _cut(value: Any) -> str:
    """A value that may be anything, short enough for a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


def verify(checkpoint: str | Path) -> dict[str, Any]:
    """Compare sizes and sha256 of all files with `metadata.json`, which is returned.

    Raises `CheckpointError` naming the first file that is missing, truncated, changed or not part of the
    checkpoint.
    """
    root = Path(checkpoint)
    metadata = read_metadata(root)
    recorded: dict[str, dict[str, Any]] = metadata["files"]
    present = {path.relative_to(root).as_posix() for path in _files(root)}
    links = sorted(name for name in present if (root / name).is_symlink())
    if links:
        raise CheckpointError(f"{root / links[0]} is a link: the files of a checkpoint lie within it")
    for name, entry in recorded.items():
        if name not in present:
            raise CheckpointError(f"{root / name} is missing")
        size = (root / name).stat().st_size
        if size != entry["bytes"]:
            raise CheckpointError(
                f"{root / name} has {size} bytes, expected {entry['bytes']}: it is truncated or grown"
            )
    strangers = sorted(present - set(recorded))
    if strangers:
        raise CheckpointError(f"{root / strangers[0]} is not part of the checkpoint: remove it")
    digests = _digests(root, list(recorded))
    for name, entry in recorded.items():
        if digests[name] != entry["sha256"]:
            raise CheckpointError(f"{root / name} is corrupt: its sha256 is not the one in {METADATA_FILE}")
    return metadata


def _seal(folder: Path, metadata: dict[str, Any]) -> None:
    """Add `metadata.json` with checksums, and bring everything to the disk."""
    names = [path.relative_to(folder).as_posix() for path in _files(folder)]
    digests = _digests(folder, names)
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": digests[name]} for name in names}
    (folder / METADATA_FILE).write_text(json.dumps({**metadata, "files": files}, indent=2) + "\n")
    for path in [*folder.rglob("*"), folder]:
        _fsync(path)


def _files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file() and path != root / METADATA_FILE)


def _digests(root: Path, names: list[str]) -> dict[str, str]:
    """sha256 of the files; in threads, since hashing large blocks releases the GIL."""

    def digest(name: str) -> str:
        sha = hashlib.sha256()
        with (root / name).open("rb") as stream:
            while block := stream.read(1 << 20):
                sha.update(block)
        return sha.hexdigest()

    with ThreadPoolExecutor(max_workers=4) as pool:
        return dict(zip(names, pool.map(digest, names), strict=True))


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
