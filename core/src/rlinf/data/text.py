"""Rows of text: from JSONL files or functions, as the samples of SFT, of preference pairs, of prompts."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from rlinf.data.errors import DatasetError
from rlinf.data.media import Row, locate, media_of
from rlinf.data.samples import Skipped
from rlinf.plugins import PluginError, resolve_attr

_FUNCTION: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def read_rows(source: str, required: Sequence[str] = ()) -> list[Row]:
    """The rows of a source.

    Args:
        source: a file with one JSON object a line, or 'module:attr' of a function that returns such objects
            (and nothing else at every call).
        required: keys that every row has.

    Raises:
        DatasetError: no such file or function, a line that is no object, a row that lacks a key or names a
        picture or sound that is not there, no row.
    """
    is_function = _FUNCTION.fullmatch(source) is not None and not Path(source).exists()
    rows = _call(source) if is_function else _read(Path(source))
    if not rows:
        raise DatasetError(f"{source}: has no rows")
    for number, row in enumerate(rows, start=1):
        missing = [key for key in required if key not in row]
        if missing:
            raise DatasetError(
                f"{source}: row {number} lacks {', '.join(missing)}; it has {', '.join(map(str, row))}"
            )
    return rows


def _call(source: str) -> list[Row]:
    try:
        rows = list(resolve_attr(source, of="a source of rows")())
    except PluginError as error:
        raise DatasetError(str(error)) from None
    for row in rows:
        if not isinstance(row, dict):
            raise DatasetError(f"{source}: returned {row!r}; expected dictionaries")
    return rows


def _read(path: Path) -> list[Row]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read: {error}") from None
    rows: list[Row] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DatasetError(f"{path}:{number}: no JSON: {error}") from None
        if not isinstance(row, dict):
            raise DatasetError(f"{path}:{number}: expected a JSON object, got {line[:80]}")
        locate(row, path.parent, f"{path}:{number}")
        rows.append(row)
    return rows


class TextDataset:
    """The rows of one source."""

    def __init__(self, source: str, required: Sequence[str]) -> None:
        """Raises DatasetError."""
        self.source = source
        self.rows = read_rows(source, required)
        #: int64 [rows]: every row is an episode of one sample.
        self.lengths = np.ones(len(self.rows), np.int64)

    def fingerprint(self) -> str:
        """Hash of the content."""
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(json.dumps(row, sort_keys=True, default=np.ndarray.tolist).encode())
        return digest.hexdigest()


class TextSamples:
    """Rows as samples, numbered dataset by dataset; the model's `sft_forward` reads the rows themselves."""

    def __init__(self, datasets: Sequence[TextDataset], chosen: Sequence[np.ndarray]) -> None:
        """chosen: for each dataset the numbers of its rows that take part."""
        self.datasets = list(datasets)
        self._rows = [d.rows[i] for d, part in zip(datasets, chosen, strict=True) for i in part.tolist()]
        self.sizes = [len(part) for part in chosen]
        if not self._rows:
            raise DatasetError(f"{', '.join(d.source for d in datasets)}: there is no row to learn from")

    def __len__(self) -> int:
        return len(self._rows)

    def load(self, numbers: np.ndarray, skipped: Skipped | None = None) -> list[Row]:
        """The rows in this order; none is ever skipped."""
        return [self._rows[number] for number in numbers.tolist()]

    def collate(self, samples: Sequence[Row]) -> dict[str, Any]:
        """`rows`; their pictures or sounds (`media_of`); `action_is_pad` bool [B, 1] False: a row is one
        step."""
        import torch

        padded = torch.zeros(len(samples), 1, dtype=torch.bool)
        return {"rows": list(samples), "action_is_pad": padded, **media_of(samples)}
