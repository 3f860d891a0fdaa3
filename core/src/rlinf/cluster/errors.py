"""How errors of the run's processes reach the user: one message, with a traceback where it helps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

#: Ray colours the first line of a remote traceback.
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")


class UserError(ValueError):
    """Something that the user wrote or installed is not right; the text says all (no traceback needed)."""


class RunError(RuntimeError):
    """A process of the run failed; the text carries its own traceback."""


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
            ready, pending = ray.wait(pending, num_returns=1)
            if isinstance(pending, list) and len(ready) == 1:
                ray.get(ready[0])
        return ray.get(list(refs))
    except ray.exceptions.RayError as error:
        raise explain(error) from None


def explain(error: Exception) -> Exception:
    """The error that a worker raised: `UserError` if it is the user's, else `RunError` with its traceback."""
    import ray

    from rlinf.config import ConfigError
    from rlinf.plugins import PluginError

    origin, trace = error, str(error)
    while isinstance(origin, ray.exceptions.RayTaskError) and isinstance(origin.cause, Exception):
        trace, origin = str(origin), origin.cause
    if isinstance(origin, UserError | PluginError | ConfigError):
        return UserError(str(origin))
    if isinstance(origin, ray.exceptions.RayActorError):
        return RunError(f"a worker process died: {origin}")
    return RunError(
        f"{type(origin).__name__}: {origin}\n\nTraceback of the worker:\n{_COLOUR.sub('', trace).strip()}"
    )
