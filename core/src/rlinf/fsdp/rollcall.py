"""Who is missing when a collective does not come to its end."""

from __future__ import annotations

import functools
import os
import re
import socket
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

import torch.distributed as dist

from rlinf.fsdp.errors import LostRank

F = TypeVar("F", bound=Callable[..., Any])
#: What torch says when another rank of a collective is not there.
_LOST: Final = re.compile(
    r"timed? ?out|connection (closed|reset)|gloo|nccl|broken pipe|recvVector", re.IGNORECASE
)
#: Seconds that ranks get to report that they wait as well, after the first noticed.
GRACE_S: Final = 3.0


class RollCall:
    """Each rank notes in the group's store what it begins; who finds itself alone reads the others' notes."""

    def __init__(self, store: dist.Store, rank: int, world_size: int) -> None:
        self._store, self._rank, self._world = store, rank, world_size
        self._calls = 0

    def begin(self, what: str) -> str:
        """Note that this rank begins `what`; returns the note."""
        self._calls += 1
        note = f"{what} (call {self._calls})"
        place = f"host {socket.gethostname()}, pid {os.getpid()}"
        self._store.set(f"roll/at/{self._rank}", f"{note} on {place}")
        return note

    def report(self, note: str, error: Exception) -> LostRank:
        """The error that says who is missing from `note`, in which this rank was left waiting."""
        others = [rank for rank in range(self._world) if rank != self._rank]
        try:
            self._store.set(f"roll/waits/{self._rank}/{note}", "")
            deadline = time.monotonic() + GRACE_S
            missing = others
            while missing and time.monotonic() < deadline:
                missing = [r for r in missing if not self._store.check([f"roll/waits/{r}/{note}"])]
                time.sleep(0.1)
            last = {r: self._last(r) for r in missing}
        except RuntimeError:
            return LostRank(
                f"rank {self._rank} was left alone in {note}: rank 0, which holds the store, is gone"
            )
        if not missing:
            return LostRank(
                f"all ranks waited in {note} in vain ({error}): is the network between them down?"
            )
        said = "; ".join(f"rank {r} is missing, last seen in {text}" for r, text in last.items())
        return LostRank(f"rank {self._rank} was left alone in {note}: {said}")

    def _last(self, rank: int) -> str:
        key = f"roll/at/{rank}"
        return self._store.get(key).decode() if self._store.check([key]) else "nothing yet"


def collective(method: F) -> F:
    """For methods that all ranks call together; the object has `roll_call`. Turns torch's complaints about
    connections and time-outs into `LostRank`."""

    @functools.wraps(method)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        note = self.roll_call.begin(method.__name__)
        try:
            return method(self, *args, **kwargs)
        except RuntimeError as error:
            if self.args.world_size > 1 and not isinstance(error, LostRank) and _LOST.search(str(error)):
                raise self.roll_call.report(note, error) from error
            raise

    return wrapped  # type: ignore[return-value]
