"""What a run continues from after a failure or at a signal to end."""

from __future__ import annotations

import copy
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rlinf.cluster.errors import explain, wait_for
from rlinf.runners.run_folder import RunState

#: Exit status of a run that was told to end and can be resumed: EX_TEMPFAIL, "try again".
RESUME_ME: Final = 75


class Preempted(Exception):
    """The run was told to end (SIGTERM)."""


@dataclass(frozen=True, kw_only=True)
class ResumePoint:
    """Where a run can go on: the state then, and the trainer's at that moment.

    checkpoint: on disk; None: at the very beginning. snapshot: a reference per trainer rank into Ray's object
    store, newer than the checkpoint; () if there is none.
    """

    state: RunState
    checkpoint: Path | None = None
    snapshot: tuple[Any, ...] = ()

    @staticmethod
    def of(state: RunState, checkpoint: Path | None, snapshot: Sequence[Any] = ()) -> ResumePoint:
        """A point that later changes of `state` do not touch."""
        return ResumePoint(state=copy.deepcopy(state), checkpoint=checkpoint, snapshot=tuple(snapshot))

    def is_there(self) -> bool:
        """Whether the snapshot, if there is one, can still be read: it goes with the node that holds it."""
        import ray

        try:
            ray.get(list(self.snapshot), timeout=60)
        except ray.exceptions.RayError:
            return False
        return True


def secured(refs: Sequence[Any]) -> Sequence[Any]:
    """The references once their values are on this node as well, and so outlive the others.

    Raises what the calls behind them raised (see `rlinf.cluster.errors.explain`).
    """
    wait_for(refs, len(refs))
    raise_failures(refs)
    return refs


def raise_failures(refs: Sequence[Any]) -> None:
    """Raise the error of the first call that failed; values are mapped, not copied."""
    import ray

    try:
        ray.get(list(refs))
    except ray.exceptions.RayError as error:
        raise explain(error) from None


class Preemption:
    """SIGTERM as `Preempted`, at a moment when the run can be left as it is.

    From `hold` to `release` a signal waits: the weights have changed, and the state does not say so yet.
    """

    def __init__(self) -> None:
        self._requested = False
        self._held = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle SIGTERM inside the `with` (in the main thread; elsewhere signals are not ours)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def hold(self) -> None:
        self._held = True

    def request(self) -> None:
        """As if a signal had come that has to wait."""
        self._requested = self._held = True

    def release(self) -> None:
        """Raises Preempted if the signal came meanwhile."""
        self._held = False
        if self._requested:
            raise Preempted

    def _on_signal(self, number: int, frame: Any) -> None:
        self._requested = True
        if not self._held:
            self._held = True  # a second signal must not interrupt what the first one started
            raise Preempted
