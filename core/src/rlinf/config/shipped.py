"""Configurations that come with packages: this one's, and the folder `configs/` of every installed plugin."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Final

from rlinf.plugins import get_host

#: Those of this package; `--config NAME` finds NAME.yaml here.
SHIPPED: Final = Path(__file__).parent / "configs"


def plugin_folders() -> dict[str, Path]:
    """{package: its folder `configs`}, of the packages behind the entry points; imports none of them."""
    folders: dict[str, Path] = {}
    for found in get_host().discover():
        package = found.target.partition(".")[0].partition(":")[0]
        if found.state in ("ok", "overridden") and package != "rlinf" and package not in folders:
            spec = importlib.util.find_spec(package)
            for place in (spec.submodule_search_locations or ()) if spec is not None else ():
                if (Path(place) / "configs").is_dir():
                    folders[package] = Path(place) / "configs"
    return folders


def shipped_names() -> list[str]:
    """Names of this package's configurations."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def plugin_names() -> list[str]:
    """Names of the plugins' configurations."""
    return sorted({path.stem for folder in plugin_folders().values() for path in folder.glob("*.yaml")})


def find_shipped(name: str) -> list[Path]:
    """The shipped files of this name: this package's, else those of plugins (more than one is a conflict)."""
    own = SHIPPED / f"{name}.yaml"
    if own.is_file():
        return [own]
    return [path for f in plugin_folders().values() if (path := f / f"{name}.yaml").is_file()]


def shipped_label(path: Path) -> str | None:
    """How messages name a shipped file; None for any other."""
    if SHIPPED in path.parents:
        return f"shipped {path.relative_to(SHIPPED)}"
    if path.parent.name == "configs" and (path.parent.parent / "__init__.py").is_file():
        return f"{path.name} of {path.parent.parent.name}"
    return None
