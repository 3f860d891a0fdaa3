"""Import of a plugin's module, checks on what it declares, and resolution of `"module:attr"` names."""

from __future__ import annotations

import inspect
import os
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any, Final

from rlinf.plugins.discovery import ENVS, MODELS, REWARDS, Discovered
from rlinf.plugins.errors import (
    ApiVersionError,
    HookError,
    PluginConflictError,
    PluginError,
    PluginLoadError,
    closest,
)
from rlinf.plugins.specs import API_VERSION, EnvSpec, ModelSpec, RewardSpec

#: The 1:1 hook of each group, the type of its result, and the field that must equal the entry point's name.
SPEC_OF_GROUP: Final = {
    MODELS: ("rlinf_model_spec", ModelSpec, "model_type"),
    ENVS: ("rlinf_env_spec", EnvSpec, "env_type"),
    REWARDS: ("rlinf_reward_spec", RewardSpec, "reward_type"),
}


def plugin_traceback(error: BaseException) -> str:
    """The formatted traceback of `error` without the frames of the import system and of this package."""
    own = os.path.dirname(__file__)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<frozen importlib")
        and os.path.dirname(frame.filename) != own
        and os.path.basename(os.path.dirname(frame.filename)) not in ("pluggy", "importlib")
    ]
    head = ["Traceback (most recent call last):\n", *traceback.format_list(frames)] if frames else []
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    before = f"{plugin_traceback(cause)}\n\nwhich led to\n\n" if cause is not None else ""
    return before + "".join([*head, *traceback.format_exception_only(error)]).rstrip()


def load_error(what: str, found: Discovered | None, error: BaseException, file: str = "") -> PluginLoadError:
    """A `PluginLoadError` that says what failed, whose it is, and shows the plugin's own traceback."""
    shown = plugin_traceback(error)
    lines = [f"{what} failed: {type(error).__name__}: {error}"]
    if found is not None:
        file = file or source_file(found.target.partition(":")[0]) or found.path
        lines.append(f"  distribution: {found.distribution} {found.version}".rstrip())
    if file:
        lines.append(f"  file: {file}")
    lines.append("  original traceback:")
    lines += [f"    {line}" for line in shown.splitlines()]
    return PluginLoadError(
        "\n".join(lines),
        distribution=found.distribution if found else "",
        version=found.version if found else "",
        file=file,
        original_traceback=shown,
    )


def source_file(module: str) -> str:
    """The file that `import module` would run, found without running anything; "" if there is none."""
    path, spec = None, None
    for end in [i for i, c in enumerate(module) if c == "."] + [len(module)]:
        spec = next(
            (s for finder in sys.meta_path if (s := finder.find_spec(module[:end], path)) is not None), None
        )
        if spec is None:
            return ""
        path = list(spec.submodule_search_locations or [])
    return (spec.origin if spec is not None and spec.has_location else "") or ""


def import_plugin(found: Discovered) -> ModuleType:
    """Import the module behind an entry point. Errors: `PluginLoadError` with the plugin's traceback;
    SystemExit raised at import counts as a failure of the plugin."""
    what = f"importing the plugin {found.name!r} ({found.group}, module {found.target})"
    try:
        module = import_module(found.target)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise load_error(what, found, error) from None
    _check_place(found, module)
    return module


def _check_place(found: Discovered, module: ModuleType) -> None:
    """Refuse a module that Python took from another place than the distribution that is described."""
    file = getattr(module, "__file__", None)
    if file is None or is_editable(found.path):
        return
    place = os.path.dirname(found.path)
    inside = _within(file, place) or _within(os.path.realpath(file), os.path.realpath(place))
    if not inside:
        raise PluginConflictError(
            f"{found.name!r} ({found.group}) is offered by {found.label}, but `import {found.target}` takes\n"
            f"  {file}\nwhich is not part of that distribution: another copy comes first on sys.path. Remove "
            f"one of them, or install the copy that you work on with `pip install -e`."
        )


def _within(file: str, folder: str) -> bool:
    return os.path.abspath(file).startswith(os.path.join(os.path.abspath(folder), ""))


def is_editable(metadata: str) -> bool:
    """Whether a metadata folder belongs to an editable install (PEP 610) or lies beside its own sources."""
    try:
        with open(os.path.join(metadata, "direct_url.json"), encoding="utf-8") as stream:
            content = stream.read()
    except OSError:
        return False
    return '"editable": true' in content


def check_hooks(module: ModuleType, owner: str) -> None:
    """Compare a module's hook implementations with the specifications before pluggy sees them.

    Errors: `HookError` for a hook or an argument that does not exist, and for a function that has a hook's
    name but not the marker. `owner` says whose module it is.
    """
    from rlinf.plugins import hookspecs

    known = {
        name: tuple(inspect.signature(function).parameters)
        for name, function in vars(hookspecs).items()
        if getattr(function, "rlinf_spec", None) is not None
    }
    for name, function in list(vars(module).items()):
        options = getattr(function, "rlinf_impl", None)
        if not isinstance(options, dict):
            if name in known and getattr(function, "__module__", None) == module.__name__:
                raise HookError(
                    f"{owner}: {module.__name__}.{name} lacks the decorator @rlinf.plugins.hookimpl"
                )
            continue
        hook = options.get("specname") or name
        where = f"{owner}: {module.__name__}.{name}"
        if hook not in known:
            raise HookError(
                f"{where}: there is no hook {hook!r}.{closest(hook, known)} Hooks: {', '.join(sorted(known))}"
            )
        for argument in inspect.signature(function).parameters:
            if argument not in known[hook]:
                raise HookError(
                    f"{where}: the hook {hook!r} has no argument {argument!r}."
                    f"{closest(argument, known[hook])} Its arguments: {', '.join(known[hook]) or 'none'}"
                )


def check_spec(found: Discovered, spec: Any) -> None:
    """Late check of what a plugin's 1:1 hook returned: version first, then type, then name."""
    hook, kind, field = SPEC_OF_GROUP[found.group]
    if spec is None:
        raise HookError(f"{found.label}: {found.target}.{hook} returned None for {found.name!r}")
    version = getattr(spec, "api_version", None)
    if isinstance(version, int) and version != API_VERSION:
        advice = (
            "upgrade rlinf-core" if version > API_VERSION else f"upgrade {found.distribution}, it is too old"
        )
        raise ApiVersionError(
            f"{found.name!r} from {found.label} was written for version {version} of the plugin API, "
            f"this rlinf-core has version {API_VERSION}: {advice}"
        )
    if not isinstance(spec, kind):
        raise HookError(
            f"{found.label}: {found.target}.{hook} must return a {kind.__name__}, got {type(spec).__name__}"
        )
    if getattr(spec, field) != found.name:
        raise HookError(
            f"{found.label}: the entry point is named {found.name!r}, but {found.target}.{hook} returned a "
            f"{kind.__name__} with {field}={getattr(spec, field)!r}"
        )


def resolve_attr(target: str | Callable[..., Any] | type, *, of: str = "") -> Any:
    """What `"module:attr"` names; anything that is no string is returned as it is.

    `of` says whose target it is ("ModelSpec.builder of 'openpi' from rlinf-plugin-openpi 1.0"), for the
    message. Errors: `PluginLoadError` if the module does not exist, fails to import, or has no such
    attribute.
    """
    if not isinstance(target, str):
        return target
    prefix = f"{of}: " if of else ""
    name, colon, path = target.partition(":")
    if not (name and colon and path):
        raise PluginError(f"{prefix}expected 'module:attr', got {target!r}")
    try:
        value: Any = import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            message = f"{prefix}{target!r} does not resolve: there is no module {error.name!r}"
            raise PluginLoadError(message, original_traceback=plugin_traceback(error)) from None
        raise load_error(
            f"{prefix}importing {name!r} for {target!r}", None, error, source_file(name)
        ) from None
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise load_error(
            f"{prefix}importing {name!r} for {target!r}", None, error, source_file(name)
        ) from None
    for step in path.split("."):
        try:
            value = getattr(value, step)
        except AttributeError:
            hint = closest(step, (n for n in dir(value) if not n.startswith("__")))
            owner = f"module {name!r} ({value.__file__})" if getattr(value, "__file__", "") else repr(value)
            raise PluginLoadError(
                f"{prefix}{target!r} does not resolve: {owner} has no attribute {step!r}.{hint}"
            ) from None
    return value


def check_builder(model_type: str, builder: Any) -> None:
    """A builder is called as `builder(cfg, torch_dtype)`; refuse one that cannot be, at registration."""
    try:
        inspect.signature(builder).bind(None, None)
    except TypeError as error:
        raise PluginError(
            f"register_model({model_type!r}): the builder is called as builder(cfg, torch_dtype), but "
            f"{builder!r} does not accept that: {error}"
        ) from None
    except ValueError:  # a C function without a signature: only the call can tell
        return


def target_of(builder: Any) -> str:
    """`module:qualname` of a callable; of a string the string itself."""
    if isinstance(builder, str):
        return builder
    name = getattr(builder, "__qualname__", type(builder).__qualname__)
    return f"{getattr(builder, '__module__', type(builder).__module__)}:{name}"


def file_of(builder: Any) -> str:
    """The source file of a callable or of a `"module:attr"` string, without importing; "" if unknown."""
    if isinstance(builder, str):
        return source_file(builder.partition(":")[0])
    code = getattr(inspect.unwrap(builder), "__code__", None)
    if code is not None:
        return os.path.abspath(code.co_filename)
    module = sys.modules.get(getattr(builder, "__module__", ""))
    return getattr(module, "__file__", "") or ""


def same_builder(one: Any, other: Any) -> bool:
    """Whether two builders are one: the same object or target, or the same lines of a file run again."""
    if one is other or (isinstance(one, str) and one == other):
        return True
    if target_of(one) != target_of(other):
        return False
    if isinstance(one, str) or isinstance(other, str):
        return True
    code, code_again = (getattr(builder, "__code__", None) for builder in (one, other))
    if code is None or code_again is None or one.__closure__ or other.__closure__:
        return False  # a closure's values may differ
    return code == code_again and code.co_filename == code_again.co_filename
