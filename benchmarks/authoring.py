"""What a new model costs its author: lines beside the model, and seconds until it has trained a step.

    python benchmarks/authoring.py [--families gaussian,tokens,flow,language]

Lines: those of the smallest plugin (`examples/third_party_plugin`) that are not the network, against those of
the same model by the field's documented way (`benchmarks/registered_model`: `register_model`, an extension
module, keys in YAML). Blank lines, comments and docstrings do not count. Both must build and act first.

Seconds: `rlinf plugins new`, `pip install`, `rlinf train` until the first trained step stands in
`metrics.jsonl`; the environment with rlinf-core is there already.

Blocks of documentation: those that `tests/integration/test_docs.py` runs or writes to files.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLUGIN = ROOT / "examples" / "third_party_plugin"
REGISTERED = ROOT / "benchmarks" / "registered_model"
#: Builds a model and lets it act, in a process that knows what an installation of it would know.
_TRY = """
import numpy as np
from rlinf.models import get_model
from rlinf.plugins import load_ext_module
load_ext_module()
policy = get_model({config})
obs = {{"main_images": np.zeros((1, 64, 64, 3), np.uint8), "states": np.zeros((1, 7), np.float32),
       "task_descriptions": ["push it"]}}
print(tuple(policy.predict_action_batch(obs, mode="eval")[0].shape))
"""


def python_lines(path: Path, only: str | None = None) -> int:
    """Lines of code: no blank ones, comments or docstrings. `only`: of the function of that name."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    skipped: set[int] = set()
    wanted: set[int] = set()
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and ast.get_docstring(node) is not None
        ):
            first = node.body[0]
            skipped |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
        if isinstance(node, ast.FunctionDef) and node.name == only:
            wanted |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return sum(
        bool(line.strip())
        and not line.strip().startswith("#")
        and number not in skipped
        and (only is None or number in wanted)
        for number, line in enumerate(text.splitlines(), 1)
    )


def text_lines(path: Path) -> int:
    lines = path.read_text(encoding="utf-8").splitlines()
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in lines)


def plugin_lines() -> dict[str, int]:
    source = PLUGIN / "src" / "rlinf_plugin_hello"
    return {
        "pyproject.toml": text_lines(PLUGIN / "pyproject.toml"),
        "plugin.py": python_lines(source / "plugin.py"),
        "config.py": python_lines(source / "config.py"),
        "build() in model.py": python_lines(source / "model.py", only="build"),
    }


def registered_lines() -> dict[str, int]:
    return {
        "pyproject.toml": text_lines(REGISTERED / "pyproject.toml"),
        "rlinf_ext.py": python_lines(REGISTERED / "src" / "hello_model" / "rlinf_ext.py"),
        "keys in YAML": text_lines(REGISTERED / "hello.yaml"),
        "export RLINF_EXT_MODULE": 1,
    }


def require_both_work(folder: Path) -> None:
    """Lines of something that does not work would be no figure."""
    import yaml

    install(folder, PLUGIN, REGISTERED)
    keys = yaml.safe_load((REGISTERED / "hello.yaml").read_text())["model"]
    plain = {"model_type": "hello_policy", "action_dim": 7, "num_action_chunks": 4}
    for config, extension in ((plain, ""), (keys, "hello_model.rlinf_ext")):
        variables = {**os.environ, "PYTHONPATH": str(folder)}
        if extension:
            variables["RLINF_EXT_MODULE"] = extension
        code = _TRY.format(config=repr(config))
        done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout.strip() == "(1, 4, 7)", done.stdout + done.stderr


def install(folder: Path, *roots: Path) -> None:
    options = ("-q", "--no-deps", "--no-index", "--no-build-isolation", "--target", str(folder))
    subprocess.run([sys.executable, "-m", "pip", "install", *options, *map(str, roots)], check=True)


def seconds_to_first_step(family: str, folder: Path) -> dict[str, float]:
    """Seconds of each part, from an empty folder to the first trained step."""
    from rlinf.cli.scaffold import QUICK

    name, command = f"timed_{family}", [sys.executable, "-m", "rlinf.cli.main"]
    start = time.perf_counter()
    made = [*command, "plugins", "new", name, "--family", family, "--output", str(folder / name), "--yes"]
    subprocess.run(made, check=True, stdout=subprocess.DEVNULL)
    parts = {"new": time.perf_counter() - start}
    install(folder / "site", folder / name)
    parts["pip install"] = time.perf_counter() - start - parts["new"]
    metrics = folder / "run" / "metrics.jsonl"
    train = [*command, "train", f"model.model_type={name}", f"runner.output_dir={folder / 'run'}", *QUICK]
    variables = {**os.environ, "PYTHONPATH": str(folder / "site")}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(train, env=variables, stdout=log, stderr=log)
        while not _has_trained(metrics):
            if process.poll() is not None and not _has_trained(metrics):
                sys.exit(f"rlinf train ended with {process.returncode}\n{(folder / 'log').read_text()}")
            time.sleep(0.05)
        parts["train"] = time.perf_counter() - start - parts["new"] - parts["pip install"]
        parts["total"] = time.perf_counter() - start
        process.wait()
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    parts["processor time to the run's end, its workers' not counted"] = spent.ru_utime + spent.ru_stime
    return parts


def _has_trained(metrics: Path) -> bool:
    if not metrics.is_file():
        return False
    lines = [line for line in metrics.read_text().splitlines() if line.endswith("}")]
    return any(json.loads(line)["phase"] in ("sft", "rl") for line in lines)


def doc_blocks() -> tuple[int, int]:
    """(blocks, pages) of the test of the documentation; output and installation are not counted."""
    sys.path.insert(0, str(ROOT / "tests" / "integration"))
    from doc_blocks import SHOWN, blocks
    from test_docs import PAGES, with_templates

    found = [block for page in PAGES for block in blocks(with_templates(page.read_text(encoding="utf-8")))]
    return sum(block.language not in SHOWN for block in found), len(PAGES)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--families", default="gaussian,tokens,flow,language", help="comma-separated")
    families = parser.parse_args().families.split(",")
    with tempfile.TemporaryDirectory() as folder:
        require_both_work(Path(folder) / "both")
    here, there = plugin_lines(), registered_lines()
    for title, counts in (("plugin", here), ("register_model and an extension module", there)):
        print(f"{title}: {sum(counts.values())} lines ({', '.join(f'{k} {v}' for k, v in counts.items())})")
    print(f"ratio: {sum(here.values()) / sum(there.values()):.2f}")
    print("blocks of documentation that a test runs: {} on {} pages".format(*doc_blocks()))
    print(f"load: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    for family in families:
        with tempfile.TemporaryDirectory() as folder:
            parts = seconds_to_first_step(family, Path(folder))
        print(f"{family}: " + ", ".join(f"{part} {value:.1f} s" for part, value in parts.items()))


if __name__ == "__main__":
    main()
