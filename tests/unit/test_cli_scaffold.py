"""What the templates of `rlinf plugins new` import from the core exists there: the quick half of the test
that installs and trains them (`tests/integration/test_plugins_new.py`)."""

from __future__ import annotations

import ast
from importlib import import_module

import pytest
from rlinf.cli.scaffold import FAMILIES, NewPlugin, render


@pytest.mark.parametrize("family", FAMILIES)
def test_templates_import_what_exists(family: str) -> None:
    files = render(NewPlugin(name="my_model", family=family))
    found = 0
    for path, text in files.items():
        if not path.endswith(".py"):
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "rlinf":
                module = import_module(str(node.module))
                missing = [name.name for name in node.names if not hasattr(module, name.name)]
                assert not missing, f"{path}: {node.module} has no {', '.join(missing)}"
                found += 1
    assert found >= 5
