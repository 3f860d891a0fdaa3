"""`--golden-dir`: another folder of cases is found, and what no test reads is listed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "tests" / "golden" / "algorithms"


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--golden-dir", str(folder)]
    return subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the algorithms case under another name, with one more tensor; and a case without tests."""
    case = tmp_path / "algorithms_other"
    shutil.copytree(SHIPPED, case)
    config = json.loads((case / "config.json").read_text())
    (case / "config.json").write_text(json.dumps(config | {"case": "algorithms_other"}))
    outputs = load_file(case / "outputs.safetensors")
    save_file(outputs | {"unknown.thing": torch.zeros(1)}, case / "outputs.safetensors")
    (tmp_path / "unheard_of").mkdir()
    (tmp_path / "unheard_of" / "config.json").write_text('{"case": "unheard_of"}')
    save_file({"x": torch.zeros(1)}, tmp_path / "unheard_of" / "inputs.safetensors")
    return tmp_path


def test_other_cases_run_and_unread_tensors_are_listed(folder: Path):
    result = run(folder, "tests/golden/test_algorithms.py")
    assert result.returncode == 0, result.stdout + result.stderr
    total = sum(len(load_file(SHIPPED / f"{kind}.safetensors")) for kind in ("inputs", "outputs")) + 1
    assert f"algorithms_other: {total - 1} of {total} tensors read" in result.stdout
    assert result.stdout.count("not read:") == 1
    assert "not read: outputs: unknown.thing" in result.stdout
    assert "unheard_of: no test in this run asks for this case (1 tensors)" in result.stdout


def test_the_folder_decides_not_the_shipped_case(folder: Path):
    outputs = load_file(folder / "algorithms_other" / "outputs.safetensors")
    outputs["kl.k3"] += 1e-3
    save_file(outputs, folder / "algorithms_other" / "outputs.safetensors")
    result = run(folder / "algorithms_other", "tests/golden", "-k", "test_kl or test_gae")
    assert result.returncode == 1
    assert "test_kl[algorithms_other-k3]" in result.stdout and "1 failed" in result.stdout


def test_a_folder_without_cases_is_an_error(tmp_path: Path):
    result = run(tmp_path, "tests/golden")
    assert result.returncode != 0
    assert f"--golden-dir {tmp_path}: no <case>/config.json in this folder" in result.stdout + result.stderr
