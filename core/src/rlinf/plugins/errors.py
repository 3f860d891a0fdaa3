"""Errors of the plugin host. All are `ValueError`s: something that a user installed or configured is wrong.

The whole text is the first argument and everything else lies in plain attributes, so that an error that
crosses a process boundary (Ray pickles it) arrives complete, with the plugin's own traceback.
"""

from __future__ import annotations

from collections.abc import Iterable


class PluginError(ValueError):
    """Base of all errors about plugins."""


class UnknownPluginError(PluginError):
    """No installed and permitted distribution offers the name that was asked for."""


class PluginConflictError(PluginError):
    """Two sides claim one name, or what Python would import is not what the metadata describes."""


class PluginLoadError(PluginError):
    """A plugin's code failed while it was imported or called; carries its origin and its traceback."""

    def __init__(
        self,
        message: str,
        *,
        distribution: str = "",
        version: str = "",
        file: str = "",
        original_traceback: str = "",
    ) -> None:
        super().__init__(message)
        self.distribution = distribution
        self.version = version
        self.file = file
        self.original_traceback = original_traceback


class ApiVersionError(PluginError):
    """The plugin was written for another version of the plugin API."""


class HookError(PluginError):
    """A hook implementation does not fit the hook specifications, or returned something that it must not."""


class PlanMismatchError(PluginError):
    """This process resolves the run's plugins otherwise than the process that made the plan."""


def closest(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the known name that is most like `name`, or an empty string."""
    from difflib import get_close_matches

    matches = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {matches[0]!r}?" if matches else ""
