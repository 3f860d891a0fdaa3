"""A limit on how long a call may take, for code that cannot be interrupted."""

from __future__ import annotations

import faulthandler
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


@contextmanager
def deadline(seconds: float | None, file: TextIO) -> Iterator[None]:
    """End this process if the block takes longer, with the stacks of all threads in `file`.

    A simulator's native code neither returns nor sees signals when it hangs; the watchdog thread that ends
    the process is native as well. None: no limit.
    """
    if seconds is None:
        yield
        return
    faulthandler.dump_traceback_later(seconds, exit=True, file=file)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
