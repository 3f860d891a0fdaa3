"""Observation batches of several environment workers as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def concat_obs(batches: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Join batched observations (arrays batch first; `task_descriptions` list[str]) along the batch."""
    if len(batches) == 1:
        return batches[0]
    return {
        key: [text for batch in batches for text in batch[key]]
        if key == "task_descriptions"
        else np.concatenate([batch[key] for batch in batches])
        for key in batches[0]
    }


def obs_size(obs: dict[str, Any]) -> int:
    """Number of observations in a batch."""
    return len(obs["task_descriptions"])
