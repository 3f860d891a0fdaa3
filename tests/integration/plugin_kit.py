"""Really installed plugins for tests: sources are written, built to wheels by pip, and installed into
environments that see the packages of the environment under test."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_QUIET = ("-q", "--no-deps", "--no-index", "--disable-pip-version-check")

_PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "{name}"
version = "{version}"
dependencies = {requires}

[tool.setuptools]
py-modules = {modules}
"""

#: Runs `code` and prints one line of JSON: what it put into `value`, or the plugin error that it ended with.
_HARNESS = """\
import json, sys
import rlinf.plugins as rp
value, failure = None, None
try:
{code}
except rp.PluginError as raised:
    failure = raised
print(json.dumps({{
    "value": value,
    "error": type(failure).__name__ if failure else None,
    "text": str(failure),
    "loaded": sorted(name for name in sys.modules if "." not in name),
}}))
"""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A distribution of single modules. `models` and `envs` are its entry points (name to module)."""

    name: str
    version: str = "1.0"
    #: {module name: source}
    modules: Mapping[str, str]
    models: Mapping[str, str] = field(default_factory=dict)
    envs: Mapping[str, str] = field(default_factory=dict)
    #: Lines of `dependencies`; nothing here installs them.
    requires: tuple[str, ...] = ()

    def write(self, folder: Path) -> Path:
        """Write the source tree below `folder`; returns its root."""
        root = folder / f"{self.name}-{self.version}"
        root.mkdir(parents=True)
        text = _PYPROJECT.format(
            name=self.name,
            version=self.version,
            requires=json.dumps(list(self.requires)),
            modules=json.dumps(list(self.modules)),
        )
        for group, entries in (("rlinf.models", self.models), ("rlinf.envs", self.envs)):
            if entries:
                lines = "".join(
                    f"{json.dumps(name)} = {json.dumps(target)}\n" for name, target in entries.items()
                )
                text += f'\n[project.entry-points."{group}"]\n{lines}'
        (root / "pyproject.toml").write_text(text)
        for module, code in self.modules.items():
            (root / f"{module}.py").write_text(code)
        return root

    def wheel(self, wheels: Path) -> Path:
        """The wheel that `build` made of this."""
        return wheels / f"{self.name.replace('-', '_')}-{self.version}-py3-none-any.whl"


def pip(*arguments: str | Path) -> None:
    """Run pip of the environment under test, offline."""
    command = [sys.executable, "-m", "pip", *(str(argument) for argument in arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def build(folder: Path, sources: Iterable[Source]) -> Path:
    """Build all sources by as few runs of pip as it allows; returns the folder of wheels."""
    wheels = folder / "wheels"
    runs: list[dict[str, Path]] = []  # pip refuses two versions of one distribution in one run
    for source in sources:
        free = next((run for run in runs if source.name not in run), None)
        if free is None:
            runs.append(free := {})
        free[source.name] = source.write(folder / "sources")
    for run in runs:
        pip("wheel", *_QUIET, "--no-build-isolation", "-w", wheels, *run.values())
    return wheels


def install_to_folder(folder: Path, *wheels: Path | str) -> Path:
    """`pip install --target`: a folder for PYTHONPATH."""
    pip("install", *_QUIET, "--target", folder, *wheels)
    return folder


@dataclass(frozen=True)
class Outcome:
    """How code in another process ended."""

    value: Any
    #: Name of the plugin error's class and its text.
    error: str | None
    text: str
    #: Top-level modules that were loaded at the end.
    loaded: frozenset[str]
    #: What was written to standard error, by line.
    warnings: tuple[str, ...]


class Environment:
    """A virtual environment that also sees, after its own, the packages of the environment under test."""

    def __init__(self, folder: Path, *wheels: Path) -> None:
        self.folder = folder
        self.python = folder / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        self.packages = folder / "lib" / version / "site-packages"
        lines = [f"import site; site.addsitedir({path!r})\n" for path in site.getsitepackages()]
        (self.packages / "zz_environment_under_test.pth").write_text("".join(lines))
        if wheels:
            self.install(*wheels)

    def install(self, *wheels: Path) -> None:
        """Install wheels with pip."""
        pip("--python", self.python, "install", *_QUIET, *wheels)

    def install_editable(self, root: Path) -> None:
        """Install a source tree with `pip install -e`."""
        pip("--python", self.python, "install", *_QUIET, "--no-build-isolation", "-e", root)

    def uninstall(self, name: str) -> None:
        """Uninstall a distribution with pip."""
        pip("--python", self.python, "uninstall", "-q", "-y", name)

    def run(
        self, *arguments: str, path: Iterable[Path] = (), **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run this environment's Python; `path` is PYTHONPATH."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RLINF_")}
        environment.pop("PYTHONPATH", None)
        if path:
            environment["PYTHONPATH"] = os.pathsep.join(str(entry) for entry in path)
        environment.update(variables)
        command = [str(self.python), *arguments]
        return subprocess.run(command, env=environment, cwd=self.folder, capture_output=True, text=True)

    def rlinf(
        self, *arguments: str, path: Iterable[Path] = (), **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run the command `rlinf`."""
        return self.run("-m", "rlinf.cli.main", *arguments, path=path, **variables)

    def outcome(self, code: str, path: Iterable[Path] = (), **variables: str) -> Outcome:
        """Run code that uses `rp` (`rlinf.plugins`) and leaves its result in `value`."""
        indented = "\n".join(f"    {line}" for line in code.strip().splitlines())
        done = self.run("-c", _HARNESS.format(code=indented), path=path, **variables)
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
        found = json.loads(done.stdout.splitlines()[-1])
        return Outcome(
            found["value"],
            found["error"],
            found["text"],
            frozenset(found["loaded"]),
            tuple(done.stderr.splitlines()),
        )
