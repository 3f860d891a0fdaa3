"""Time of `rlinf plugins list` with many installed distributions, as a ratio to other ways of looking.

Generates distributions (metadata folders as pip leaves them, some of them plugins with a module) in a
temporary folder that every measured command finds first on its path. The commands take turns; medians are
reported.

    python benchmarks/discovery.py [--distributions 500] [--plugins 20] [--repeats 15]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

BARE = "from importlib.metadata import entry_points; entry_points(group='rlinf.models')"
LIST = "import sys; sys.argv[1:] = ['plugins', 'list']; from rlinf.cli.main import main; main()"
# pluggy refuses one module behind several entry points, as the core's are: all but one are blocked.
EAGER = (
    "import pluggy; from rlinf.plugins import hookspecs; manager = pluggy.PluginManager('rlinf');"
    "manager.add_hookspecs(hookspecs); [manager.set_blocked(name) for name in ('mlp_policy', 'tiny_vla')];"
    "manager.load_setuptools_entrypoints('rlinf.models')"
)
COMMANDS = {
    "bare entry_points(group=...)": BARE,
    "rlinf plugins list": LIST,
    "pluggy load_setuptools_entrypoints": EAGER,
    "import torch": "import torch",
}
FORBIDDEN = ("torch", "ray", "transformers", "pluggy", "pydantic", "importlib.metadata")

METADATA = "Metadata-Version: 2.4\nName: {name}\nVersion: {version}\nSummary: generated\n" + (
    "Requires-Dist: something>=1\nClassifier: Programming Language :: Python :: 3\n" * 20
)
PLUGIN = """
from rlinf.plugins import ModelSpec, hookimpl

@hookimpl
def rlinf_model_spec(model_type):
    return ModelSpec(model_type=model_type, builder="{module}_model:build")
"""


def generate(folder: Path, distributions: int, plugins: int) -> None:
    """Write `distributions` metadata folders, the first `plugins` of them with a module and an entry point;
    every fifth of the rest has console scripts, as is usual."""
    for index in range(distributions):
        module = f"generated_{index:04d}"
        info = folder / f"{module}-1.{index}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(METADATA.format(name=module, version=f"1.{index}"))
        (info / "INSTALLER").write_text("pip\n")
        (info / "RECORD").write_text(f"{module}.py,,\n{info.name}/METADATA,,\n")
        if index < plugins:
            (info / "entry_points.txt").write_text(f"[rlinf.models]\ngenerated_model_{index} = {module}\n")
            (folder / f"{module}.py").write_text(PLUGIN.format(module=module))
        elif index % 5 == 0:
            (info / "entry_points.txt").write_text(f"[console_scripts]\ntool_{index} = {module}:main\n")


def seconds(code: str, environment: dict[str, str]) -> float:
    """Wall time of one new process that runs `code`."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def forbidden_imports(environment: dict[str, str]) -> list[str]:
    """Which modules `rlinf plugins list` loads that it must not: heavy ones, and the generated plugins."""
    code = LIST + "; print('\\n' + __import__('json').dumps(sorted(sys.modules)))"
    out = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    ).stdout
    modules = json.loads(out.splitlines()[-1])
    return [name for name in modules if name in FORBIDDEN or name.startswith("generated_")]


def measure(
    distributions: int, plugins: int, repeats: int, commands: Mapping[str, str] = COMMANDS
) -> dict[str, float]:
    """Median seconds per command."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder), distributions, plugins)
        environment = {**os.environ, "PYTHONPATH": folder}
        found = forbidden_imports(environment)
        if found:
            raise SystemExit(f"rlinf plugins list imports {', '.join(found)}")
        times: dict[str, list[float]] = {name: [] for name in commands}
        for turn in range(repeats + 1):  # the first turn warms the file system's cache and is dropped
            for name, code in commands.items():
                if name == "import torch" and turn > 3:
                    continue
                elapsed = seconds(code, environment)
                if turn:
                    times[name].append(elapsed)
        return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--distributions", type=int, default=500)
    parser.add_argument("--plugins", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", action="store_true", help="print the seconds as JSON")
    args = parser.parse_args()
    medians = measure(args.distributions, args.plugins, args.repeats)
    if args.json:
        print(json.dumps(medians))
        return
    bare = medians["bare entry_points(group=...)"]
    print(f"{args.distributions} distributions more than installed, {args.plugins} of them plugins")
    for name, value in medians.items():
        print(f"  {name:<36} {value * 1e3:8.1f} ms   {value / bare:6.2f} x bare")


if __name__ == "__main__":
    main()
