"""Is a plugin visibly broken? Looked at without importing it, for plugins that a run does not use."""

from __future__ import annotations

import ast

from rlinf.plugins.loading import source_file


def probe(module: str) -> str:
    """What is wrong with a plugin's module as far as its source tells, in one line; "" if nothing is.

    Sees a module that is not there, a syntax error, an unconditional `raise`, and imports of modules that
    are not installed, at the top level. Runs no code of the plugin.
    """
    file = source_file(module)
    if not file:
        return f"there is no module {module!r} (stale metadata?)"
    if not file.endswith(".py"):
        return ""
    try:
        with open(file, "rb") as stream:
            tree = ast.parse(stream.read(), filename=file)
    except (OSError, SyntaxError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    for statement in tree.body:
        if isinstance(statement, ast.Raise):
            return f"raises at import ({file}, line {statement.lineno})"
        for name in _imported(statement):
            if not _is_there(name):
                return f"imports {name!r}, which is not installed ({file}, line {statement.lineno})"
    return ""


def _imported(statement: ast.stmt) -> list[str]:
    """Top-level packages that a statement needs; imports inside `try` or `if` may be optional."""
    if isinstance(statement, ast.Import):
        return [alias.name.partition(".")[0] for alias in statement.names]
    if isinstance(statement, ast.ImportFrom) and statement.level == 0 and statement.module:
        return [statement.module.partition(".")[0]]
    return []


def _is_there(top: str) -> bool:
    import sys

    if top in sys.modules or top in sys.builtin_module_names:
        return True
    return any(finder.find_spec(top, None) is not None for finder in sys.meta_path)
