"""`RLINF_EXT_MODULE`: an extension module named by an environment variable, for scripts written for the
field's older way of adding models. A plugin with an entry point needs none of this."""

from __future__ import annotations

import os
from typing import Final

from rlinf.plugins.host import get_host
from rlinf.plugins.loading import load_error, source_file

#: Name of the environment variable.
VARIABLE: Final = "RLINF_EXT_MODULE"

#: The modules loaded so far in this process.
_loaded: dict[str, str] = {}


def loaded_extensions() -> dict[str, str]:
    """{name: file} of the extension modules that this process has loaded."""
    return dict(_loaded)


def load_ext_module(name: str | None = None) -> None:
    """Import the extension module, call its `register()` if it has one, let its hook implementations join.

    `name` defaults to the variable `RLINF_EXT_MODULE`; without either this does nothing, and a module that is
    loaded is not loaded again. Errors: `PluginLoadError` with the module's own traceback; whatever the module
    registered before it failed is taken back.
    """
    from importlib import import_module

    name = name or os.environ.get(VARIABLE, "")
    if not name or name in _loaded:
        return
    host = get_host()
    restore = host.snapshot()
    try:
        module = import_module(name)
        register = getattr(module, "register", None)
        if callable(register):
            register()
        host.add_extension(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        restore()
        raise load_error(
            f"loading the extension module {name!r} ({VARIABLE})", None, error, source_file(name)
        ) from None
    _loaded[name] = getattr(module, "__file__", None) or ""
