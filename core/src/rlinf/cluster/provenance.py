"""What produced a run: versions and machine, as JSON."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

_DISTRIBUTIONS: Final = ("rlinf-core", "torch", "ray", "transformers", "numpy", "mujoco", "gymnasium")


def versions() -> dict[str, str]:
    """Python and the distributions that decide over results; those not installed are left out."""
    found = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Operating system, processor architecture and number of cores."""
    return {"system": platform.system(), "arch": platform.machine(), "cores": os.cpu_count()}
