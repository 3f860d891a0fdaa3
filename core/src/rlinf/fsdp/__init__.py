"""FSDP2: wrap policies, the trainer's engine, packed weights, checkpoints, export.

Importing this package is light; each name below imports what it needs when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlinf.fsdp.checkpoint import CheckpointError, CheckpointStore
    from rlinf.fsdp.engine import FsdpEngine
    from rlinf.fsdp.export import export_safetensors, load_safetensors
    from rlinf.fsdp.wrap import Unit, WrapPlan, get_fsdp_wrap_policy

_HOME = {
    "CheckpointError": "checkpoint",
    "CheckpointStore": "checkpoint",
    "FsdpEngine": "engine",
    "Unit": "wrap",
    "WrapPlan": "wrap",
    "export_safetensors": "export",
    "get_fsdp_wrap_policy": "wrap",
    "load_safetensors": "export",
}

__all__ = [
    "CheckpointError",
    "CheckpointStore",
    "FsdpEngine",
    "Unit",
    "WrapPlan",
    "export_safetensors",
    "get_fsdp_wrap_policy",
    "load_safetensors",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
