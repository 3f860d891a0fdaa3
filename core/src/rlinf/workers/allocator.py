"""How a worker's process holds on to memory."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks of up to 32 MB instead of returning them to the system (mallopt(3)).

    A training step allocates and frees the same activations each time. Returned to the system they come
    back as fresh pages, a fault for each 4 KiB, which takes a sixth of an update of the demo. The peak stays
    what it was. Other C libraries are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # no glibc
        return
    mallopt(_M_MMAP_THRESHOLD, 32 * 1024 * 1024)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
