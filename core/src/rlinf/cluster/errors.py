"""How errors of the run's processes reach the user: one message, with a traceback where it helps."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

#: Ray colours the first line of a remote traceback.
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")


#: Seconds of one wait for Ray: what a signal handler raises comes out when a wait ends, not before.
_WAIT_S: Final = 0.5
#: As the C library, Rust and Python say it.
_DISK_FULL: Final = re.compile(r"No space left on device|os error 28|Errno 28")


class UserError(ValueError):
    """Something that the user wrote or installed is not right; the text says all (no traceback needed)."""


class RunError(RuntimeError):
    """A process of the run failed; the text carries its own traceback."""


class LostWorker(RunError):
    """A process or a node of the run is gone, or memory or disk of one ran out: starting again may help."""


def is_disk_full(error: Exception) -> bool:
    """Whether an error, of this process or told by a worker's text, says that a disk is full."""
    return getattr(error, "errno", None) == errno.ENOSPC or bool(_DISK_FULL.search(str(error)))


@contextmanager
def signals_through() -> Iterator[None]:
    """Let what a signal handler raised out of a wait for Ray, which wraps it into a SystemError."""
    try:
        yield
    except SystemError as error:
        if error.__cause__ is None:
            raise
        raise error.__cause__ from None


def wait_for(refs: Sequence[Any], count: int, fetch_local: bool = True) -> tuple[list[Any], list[Any]]:
    """`ray.wait` until `count` references have values, in which signals arrive.

    fetch_local: values are to be on this node as well.
    """
    import ray

    while True:
        ready, pending = ray.wait(list(refs), num_returns=count, timeout=_WAIT_S, fetch_local=fetch_local)
        if len(ready) == count:
            return ready, pending


def fetch(refs: Sequence[Any]) -> list[Any]:
    """The values of Ray references, in order; the first failure of any of them is raised at once.

    `ray.get` on the list would wait for the first reference while the third has long failed, which with
    processes that wait for one another is a hang.

    Raises:
        UserError, RunError: see `explain`.
    """
    import ray

    pending = list(refs)
    try:
        while pending:
            ready, pending = wait_for(pending, 1)
            ray.get(ready)
        return ray.get(list(refs))
    except ray.exceptions.RayError as error:
        raise explain(error) from None


def explain(error: Exception) -> Exception:
    """The error that a worker raised: `UserError` if it is the user's, `LostWorker` if a process is gone,
    else `RunError` with its traceback."""
    import ray

    from rlinf.config import ConfigError
    from rlinf.fsdp.errors import LostRank
    from rlinf.plugins import PluginError

    origin, trace = error, str(error)
    while isinstance(origin, ray.exceptions.RayTaskError) and isinstance(origin.cause, Exception):
        trace, origin = str(origin), origin.cause
    if isinstance(origin, UserError | PluginError | ConfigError):
        return UserError(str(origin))
    if isinstance(origin, RunError):
        return origin
    if isinstance(origin, LostRank):
        return LostWorker(str(origin))
    text = _COLOUR.sub("", str(origin)).strip()
    if isinstance(origin, ray.exceptions.RayActorError):
        if "creation task" in text:
            return RunError(f"a worker could not be made: {text}")
        return LostWorker(f"a worker process died: {text}")
    for kind, advice in _resources():
        if isinstance(origin, kind):
            return LostWorker(f"{advice}\n{text}")
    return RunError(
        f"{type(origin).__name__}: {origin}\n\nTraceback of the worker:\n{_COLOUR.sub('', trace).strip()}"
    )


def _resources() -> list[tuple[type[Exception] | tuple[type[Exception], ...], str]]:
    """Ray's errors about what ran out or got lost, and what a person can do."""
    from ray import exceptions as e

    return [
        (
            (e.ObjectStoreFullError, e.OutOfDiskError),
            "Ray's object store is full, and so is the disk that it spills to: give it more (ray start "
            "--object-store-memory, or free disk under its temporary folder), or make rollouts smaller "
            "(env.num_envs, env.steps_per_rollout)",
        ),
        (e.OutOfMemoryError, "a node ran out of memory and Ray ended a process of the run"),
        ((e.ObjectLostError, e.NodeDiedError, e.WorkerCrashedError), "a process or a node is gone"),
    ]
