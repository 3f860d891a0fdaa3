"""Action processors, a right one and two wrong ones."""

from __future__ import annotations

from typing import Any

import numpy as np


def correct(actions: np.ndarray, **context: Any) -> np.ndarray:
    return np.concatenate([actions[..., :-1], np.sign(actions[..., -1:])], axis=-1)


def in_place_processor(actions: np.ndarray, **context: Any) -> np.ndarray:
    actions[..., -1] = np.sign(actions[..., -1])
    return actions


def shape_changing_processor(actions: np.ndarray, **context: Any) -> np.ndarray:
    return actions[..., :-1]
