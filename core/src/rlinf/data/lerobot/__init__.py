"""The LeRobot dataset layouts v2.0, v2.1 and v3.0: parquet for numbers, MP4 or PNG for images, `meta/`.

Needs the extra `rlinf-core[data]` (pyarrow, PyAV), which is imported when a dataset is opened.
"""

from __future__ import annotations

import json
from pathlib import Path

INFO = "meta/info.json"


def is_lerobot(path: Path) -> bool:
    """Whether a folder has LeRobot's `meta/info.json`."""
    try:
        return "codebase_version" in json.loads((path / INFO).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
