"""The plugin host: models and environments come from installed distributions.

Discovery reads the metadata of installed distributions only; a plugin's module is imported when its name is
looked up; heavy code is named as ``"module:attr"`` and resolved when something is built. This package imports
neither torch, ray nor transformers, and each name below is loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlinf.plugins.discovery import Discovered, PluginPolicy
    from rlinf.plugins.errors import (
        ApiVersionError,
        HookError,
        PlanMismatchError,
        PluginConflictError,
        PluginError,
        PluginLoadError,
        UnknownPluginError,
    )
    from rlinf.plugins.extension import load_ext_module
    from rlinf.plugins.hookspecs import hookimpl, hookspec
    from rlinf.plugins.host import PluginHost, configure_host, get_host
    from rlinf.plugins.loading import resolve_attr
    from rlinf.plugins.plan import Plan, PlanEntry, verify_plan
    from rlinf.plugins.specs import (
        API_VERSION,
        ActionProcessorSpec,
        DatasetFormatSpec,
        EnvSpec,
        ModelSpec,
        RewardSpec,
        WrapPolicySpec,
    )

_HOME = {
    "Discovered": "discovery",
    "PluginPolicy": "discovery",
    "ApiVersionError": "errors",
    "HookError": "errors",
    "PlanMismatchError": "errors",
    "PluginConflictError": "errors",
    "PluginError": "errors",
    "PluginLoadError": "errors",
    "UnknownPluginError": "errors",
    "load_ext_module": "extension",
    "hookimpl": "hookspecs",
    "hookspec": "hookspecs",
    "PluginHost": "host",
    "configure_host": "host",
    "get_host": "host",
    "resolve_attr": "loading",
    "Plan": "plan",
    "PlanEntry": "plan",
    "verify_plan": "plan",
    "API_VERSION": "specs",
    "ActionProcessorSpec": "specs",
    "DatasetFormatSpec": "specs",
    "EnvSpec": "specs",
    "ModelSpec": "specs",
    "RewardSpec": "specs",
    "WrapPolicySpec": "specs",
}

__all__ = [
    "API_VERSION",
    "ActionProcessorSpec",
    "ApiVersionError",
    "DatasetFormatSpec",
    "Discovered",
    "EnvSpec",
    "HookError",
    "ModelSpec",
    "Plan",
    "PlanEntry",
    "PlanMismatchError",
    "PluginConflictError",
    "PluginError",
    "PluginHost",
    "PluginLoadError",
    "PluginPolicy",
    "RewardSpec",
    "UnknownPluginError",
    "WrapPolicySpec",
    "configure_host",
    "get_host",
    "hookimpl",
    "hookspec",
    "load_ext_module",
    "resolve_attr",
    "verify_plan",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
