"""The example plugin as its author would use it: pip install, check, train on Ray workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from plugin_kit import pip

EXAMPLE = Path(__file__).parents[2] / "examples" / "third_party_plugin"
#: The default configuration, small.
SMALL = (
    "runner.max_steps=1",
    "env.num_envs=8",
    "env.steps_per_rollout=8",
    "env.eval.num_episodes=8",
    "actor.micro_batch_size=4",
    "actor.global_batch_size=16",
    "sft.max_steps=3",
    "sft.batch_size=16",
    "sft.expert_episodes=4",
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    pip("install", "-q", "--no-deps", "--no-index", "--no-build-isolation", "--target", folder, EXAMPLE)
    return folder


def rlinf(installed: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rlinf.cli.main", *arguments],
        env={**os.environ, "PYTHONPATH": str(installed), "COLUMNS": "80"},
        cwd=cwd,
        capture_output=True,
        text=True,
    )


def test_check_finds_nothing_wrong(installed: Path, tmp_path: Path) -> None:
    done = rlinf(installed, "plugins", "check", "hello_policy", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rlinf-plugin-hello" in done.stdout


def test_it_trains_on_ray_workers(installed: Path, tmp_path: Path) -> None:
    done = rlinf(
        installed, "train", "model.model_type=hello_policy", "runner.output_dir=run", *SMALL, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    plugins = {entry["name"]: entry["distribution"] for entry in summary["plan"]["entries"]}
    assert plugins["hello_policy"] == "rlinf-plugin-hello"
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("sft/loss" in row for row in rows)
    assert any("train/policy_loss" in row for row in rows)


def test_a_wrong_key_of_the_plugin_is_named(installed: Path, tmp_path: Path) -> None:
    done = rlinf(
        installed, "train", "model.model_type=hello_policy", "model.hello_policy.hiden_size=3", cwd=tmp_path
    )
    assert done.returncode == 2
    assert "model.hello_policy.hiden_size" in done.stderr and "hidden_size" in done.stderr
    assert "Traceback" not in done.stderr
