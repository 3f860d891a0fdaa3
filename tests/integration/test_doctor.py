"""`rlinf doctor` in environments into which pip really installed what is wrong with them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from plugin_kit import Environment, Source, build, install_to_folder
from rlinf.cluster.doctor_text import cluster_text

PLUGIN = """
from rlinf.plugins import ModelSpec, hookimpl

@hookimpl
def rlinf_model_spec(model_type):
    return ModelSpec(model_type=model_type, builder="nowhere:build")
"""


def plugin(name: str, *requires: str, version: str = "1.0", code: str = PLUGIN) -> Source:
    module = f"doctor_{name}"
    return Source(
        name=f"rlinf-plugin-{name}",
        version=version,
        modules={module: code},
        models={f"{name}_model": module},
        requires=requires,
    )


FINE = plugin(
    "fine",
    "rlinf-core",
    "numpy>=1.26",
    "absent-one; extra == 'more'",
    "absent-two; python_version < '3'",
)
OLD = plugin("old", "numpy<1.20", "absent-three>=2")
NEW = plugin("new", "numpy>=1.21")
BROKEN = plugin("broken", code="import not_there_at_all\n")
NEWER = plugin("fine", version="1.1")
HELPER, HELPER_2 = (
    Source(name="doctor-helper", version=version, modules={"doctor_helper": ""}) for version in ("1.0", "2.0")
)
OTHER_RLINF = Source(name="rlinf", version="0.2", modules={"rlinf": "raise ImportError('not ours')\n"})
SOURCES = (FINE, OLD, NEW, BROKEN, NEWER, HELPER, HELPER_2, OTHER_RLINF)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("doctor"), SOURCES)


@dataclass(frozen=True)
class Visit:
    """What the doctor says as text and as JSON."""

    status: int
    text: str
    report: dict[str, Any]

    @property
    def flat(self) -> str:
        """The text without its line breaks."""
        return " ".join(self.text.split())


def visit(environment: Environment, **variables: str) -> Visit:
    shown = environment.rlinf("doctor", **variables)
    data = environment.rlinf("doctor", "--json", **variables)
    assert shown.returncode == data.returncode < 2, shown.stderr
    assert shown.stderr == ""
    return Visit(shown.returncode, shown.stdout, json.loads(data.stdout))


def test_a_healthy_environment(wheels: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path / "env", FINE.wheel(wheels))
    found = visit(environment)
    assert found.status == 0 and found.report["problems"] == []
    lines = found.text.splitlines()
    assert lines[0] == "rlinf doctor: nothing is wrong"
    assert len(lines) < 40, "one page"
    assert all(len(line) <= 80 or str(tmp_path) in line for line in lines)
    rows = [line.split() for line in lines]
    assert ["model", "rlinf-plugin-fine", "1.0", "ok", "fine_model"] in rows
    assert ["python", found.report["versions"]["python"], str(environment.python)] in rows
    versions = found.report["versions"]
    assert {"python", "rlinf-core", "torch", "ray"} <= set(versions)


def test_nothing_heavy_and_no_plugin_is_imported(wheels: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path / "env", FINE.wheel(wheels))
    code = "import sys; from rlinf.cli.main import main; main(['doctor']); print('loaded', *sys.modules)"
    loaded = environment.run("-c", code).stdout.splitlines()[-1].split()
    assert loaded[0] == "loaded" and "rlinf.cluster.doctor" in loaded
    assert not {"torch", "ray", "transformers", "numpy", "doctor_fine"} & set(loaded)


def test_requirement_conflicts_pair_by_pair(wheels: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path / "env", OLD.wheel(wheels), NEW.wheel(wheels))
    found = visit(environment)
    numpy = found.report["versions"]["numpy"]
    assert found.status == 1
    assert "rlinf doctor: 2 problems" in found.text
    assert "rlinf-plugin-old 1.0 requires absent-three>=2; it is not installed" in found.flat
    assert f"rlinf-plugin-old 1.0 requires numpy<1.20; installed is numpy {numpy}, as " in found.flat
    assert "rlinf-plugin-new 1.0 (numpy>=1.21)" in found.flat and "rlinf-core" in found.flat
    pairs = {(row["distribution"], row["requirement"]) for row in found.report["conflicts"]}
    assert pairs == {("rlinf-plugin-old 1.0", "numpy<1.20"), ("rlinf-plugin-old 1.0", "absent-three>=2")}


def test_a_second_distribution_that_provides_rlinf(wheels: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path / "env")
    later = install_to_folder(tmp_path / "later", OTHER_RLINF.wheel(wheels))
    (environment.packages / "zzz_later.pth").write_text(f"{later}\n")
    found = visit(environment)
    assert found.status == 1
    [problem] = found.report["problems"]
    assert problem.startswith(
        f"rlinf 0.2 ({later}/rlinf-0.2.dist-info) also provides the import name 'rlinf'"
    )


def test_a_copy_of_rlinf_without_a_distribution(tmp_path: Path) -> None:
    environment = Environment(tmp_path / "env")
    clone = tmp_path / "clone"
    (clone / "rlinf").mkdir(parents=True)
    (clone / "rlinf" / "__init__.py").touch()
    (environment.packages / "zzz_later.pth").write_text(f"{clone}\n")
    found = visit(environment)
    assert found.status == 1
    [problem] = found.report["problems"]
    assert f"{clone}/rlinf is on sys.path, belongs to no installed distribution" in problem


def test_duplicate_metadata(wheels: Path, tmp_path: Path) -> None:
    """Two versions in one folder, as `pip install --target` leaves them: of a plugin, and of a library."""
    environment = Environment(tmp_path / "env")
    folder = tmp_path / "target"
    for source in (FINE, HELPER, NEWER, HELPER_2):
        install_to_folder(folder, source.wheel(wheels))
    (environment.packages / "zzz_later.pth").write_text(f"{folder}\n")
    found = visit(environment)
    assert found.status == 1
    library, plugins = sorted(found.report["problems"])
    assert library.startswith("doctor-helper has metadata twice in one folder")
    assert plugins.startswith("rlinf-plugin-fine is installed more than once")
    assert {row["name"] for row in found.report["shadowed"]} == {"doctor-helper", "rlinf-plugin-fine"}
    assert "SHADOWED" in found.text


def test_layers_of_folders_are_shown_and_no_problem(wheels: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path / "env", HELPER_2.wheel(wheels))
    below = install_to_folder(tmp_path / "below", HELPER.wheel(wheels))
    (environment.packages / "zzz_later.pth").write_text(f"{below}\n")
    found = visit(environment)
    assert found.status == 0, found.text
    [row] = found.report["shadowed"]
    assert (row["version"], row["path"]) == ("1.0", f"{below}/doctor_helper-1.0.dist-info")
    assert row["hidden_by"] == f"{environment.packages}/doctor_helper-2.0.dist-info"


def test_editable_and_broken_plugins(wheels: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path / "env", BROKEN.wheel(wheels))
    root = NEW.write(tmp_path)
    environment.install_editable(root)
    found = visit(environment)
    assert found.status == 1
    editable = {row["name"]: row["editable"] for row in found.report["editable"]}
    assert editable["rlinf-plugin-new"] == str(root)
    assert f"rlinf-plugin-new 1.0  {root}" in found.text
    [problem] = found.report["problems"]
    assert "plugin 'broken_model' of rlinf-plugin-broken 1.0" in problem
    assert "imports 'not_there_at_all', which is not installed" in problem


@pytest.mark.parametrize(
    ("script", "gpus", "problem"),
    [
        (
            "echo 'NVIDIA H100 80GB HBM3, 81559 MiB, 550.54'",
            ["NVIDIA H100 80GB HBM3, 81559 MiB, driver 550.54"],
            "torch is a build without CUDA",
        ),
        ("echo 'Failed to initialize NVML'; exit 9", [], "nvidia-smi failed: Failed to initialize NVML"),
    ],
)
def test_gpus(tmp_path: Path, script: str, gpus: list[str], problem: str) -> None:
    environment = Environment(tmp_path / "env")
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    found = visit(environment, PATH=f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    assert found.report["machine"]["gpus"] == gpus
    if gpus and found.report["machine"]["torch_cuda"]:
        assert found.status == 0, "this torch has CUDA"
    else:
        assert found.status == 1 and problem in found.flat


# -- a Ray cluster -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Three nodes on this machine: two with different versions of a plugin, one with another `rlinf`."""
    from ray.cluster_utils import Cluster

    folder = tmp_path_factory.mktemp("nodes")
    paths = [install_to_folder(folder / s.name / s.version, s.wheel(wheels)) for s in (FINE, NEWER)]
    paths.append(install_to_folder(folder / "other", OTHER_RLINF.wheel(wheels)))
    nodes = Cluster()
    try:
        for number, path in enumerate(paths):
            first = {"include_dashboard": False} if number == 0 else {}
            nodes.add_node(num_cpus=1, env_vars={"PYTHONPATH": str(path)}, **first)
        yield nodes.address
    finally:
        nodes.shutdown()


def test_an_address_where_nothing_listens() -> None:
    command = [sys.executable, "-m", "rlinf.cli.main", "doctor", "--address", "127.0.0.1:1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "--address: no Ray cluster answers at '127.0.0.1:1'" in done.stderr


@pytest.mark.timeout(600)
def test_every_node_of_a_cluster(cluster: str) -> None:
    command = [sys.executable, "-m", "rlinf.cli.main", "doctor", "--address", cluster, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert len(found["nodes"]) == 3
    [difference] = found["differences"]
    assert difference["what"] == "rlinf.models fine_model"
    values = sorted(value.partition(", content ")[0] for value in difference["values"].values())
    assert values == ["rlinf-plugin-fine 1.0", "rlinf-plugin-fine 1.1"]
    [failed] = [report for report in found["nodes"].values() if "versions" not in report]
    assert failed["problems"][0].startswith("could not be examined: ImportError: not ours")
    healthy = [report for report in found["nodes"].values() if "versions" in report]
    assert all(report["problems"] == [] for report in healthy)
    shown = cluster_text(cluster, found["nodes"], found["differences"])
    assert shown.startswith(f"rlinf doctor: 3 nodes at {cluster}, 1 difference and 1 problem\n\nDIFFERENCES")
    assert shown.index("DIFFERENCES") < shown.index("PROBLEMS ON") < shown.index("FACTS OF")
