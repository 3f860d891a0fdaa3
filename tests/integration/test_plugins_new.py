"""`rlinf plugins new`: what it writes installs, passes its own tests and the check, and trains, untouched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from plugin_kit import pip
from rlinf.cli.main import main
from rlinf.cli.plugins_new import FAMILIES as OFFERED
from rlinf.cli.scaffold import FAMILIES

NAMES = {family: f"new_{family}" for family in FAMILIES}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a plugin of every family, as `rlinf plugins new` writes them."""
    folder = tmp_path_factory.mktemp("new")
    for family, name in NAMES.items():
        output = str(folder / name)
        assert main(["plugins", "new", name, "--family", family, "--output", output, "--yes"]) == 0
    return folder


@pytest.fixture(scope="module")
def installed(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of them installed by pip into one folder for PYTHONPATH."""
    folder = tmp_path_factory.mktemp("site")
    roots = [sources / name for name in NAMES.values()]
    pip("install", "-q", "--no-deps", "--no-index", "--no-build-isolation", "--target", folder, *roots)
    return folder


def run(installed: Path, cwd: Path, *command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    done = subprocess.run(
        [sys.executable, *command], env=environment, cwd=cwd, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_commands_families_are_the_templates() -> None:
    assert tuple(FAMILIES) == OFFERED


def test_every_family_has_all_that_a_plugin_needs(sources: Path) -> None:
    for name in NAMES.values():
        found = {p.relative_to(sources / name).as_posix() for p in (sources / name).rglob("*") if p.is_file()}
        package = f"src/rlinf_plugin_{name}"
        assert found >= {
            "pyproject.toml", "README.md", "LICENSE", ".gitignore", ".github/workflows/test.yml",
            f"{package}/__init__.py", f"{package}/plugin.py", f"{package}/config.py", f"{package}/model.py",
            f"{package}/actions.py", f"tests/test_{name}.py",
        }  # fmt: skip
        for path in found:
            assert "{{" not in (sources / name / path).read_text().replace("${{ matrix.python }}", "")


def test_the_linter_finds_nothing(sources: Path) -> None:
    for name in NAMES.values():
        rules = ["--isolated", "--line-length", "110", "--select", "E,F,I,UP,B,W,SIM,RUF"]
        done = subprocess.run([sys.executable, "-m", "ruff", "check", *rules, "."], cwd=sources / name)
        assert done.returncode == 0


def test_the_check_finds_nothing(installed: Path, tmp_path: Path) -> None:
    out = run(installed, tmp_path, "-m", "rlinf.cli.main", "plugins", "check", "--json")
    reports = {name: report for report in json.loads(out)["reports"] for name in report["names"]}
    for name in NAMES.values():
        assert reports[name]["distribution"] == f"rlinf-plugin-{name.replace('_', '-')}"
        assert not any(reports[name][kind] for kind in ("errors", "warnings", "heavy"))


@pytest.mark.timeout(1800)
def test_they_pass_their_own_tests(installed: Path, sources: Path, tmp_path: Path) -> None:
    """All in one process: the ranks of the kit start once."""
    tests = [str(sources / name / "tests") for name in NAMES.values()]
    options = ("-q", "-p", "no:cacheprovider", "--rlinf-all-plugins", f"--rootdir={tmp_path}")
    out = run(installed, tmp_path, "-m", "pytest", *options, *tests)
    passed = int(out.strip().splitlines()[-1].split(" passed")[0].split()[-1])
    assert passed >= 40 * len(NAMES), out


@pytest.mark.timeout(1800)
def test_they_train_one_step_on_ray(installed: Path, tmp_path: Path) -> None:
    run(installed, tmp_path, str(Path(__file__).with_name("new_plugins.py")), str(tmp_path), *NAMES.values())
    for name in NAMES.values():
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        step = next(row for row in rows if row["phase"] == "rl")
        assert step["train/grad_norm"] > 0 and step["train/updates"] > 0
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        plugins = {entry["name"]: entry["distribution"] for entry in summary["plan"]["entries"]}
        assert plugins[name] == f"rlinf-plugin-{name.replace('_', '-')}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("My-Model", "--family", "flow"), "'My-Model' cannot be a model_type"),
        (("class", "--family", "flow"), "'class' cannot be a model_type"),
        (("tiny_vla", "--family", "flow"), "model_type 'tiny_vla' is taken by rlinf-core"),
        (("mine", "--yes"), "--family: expected one of tokens"),
        (("mine", "--family", "flow", "--output", "."), "exists and is not an empty folder"),
    ],
)
def test_what_cannot_be_is_refused(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    assert main(["plugins", "new", *arguments]) == 2
    captured = capsys.readouterr().err
    assert message in captured and "Traceback" not in captured
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_it_asks_for_the_family(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = iter(["9", "gaussian"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda prompt: next(answers))
    assert main(["plugins", "new", "mine"]) == 0
    assert "rlinf-plugin-mine: 12 files" in capsys.readouterr().out
    model = (tmp_path / "rlinf-plugin-mine" / "src" / "rlinf_plugin_mine" / "model.py").read_text()
    assert "class Mine(GaussianPolicy)" in model
