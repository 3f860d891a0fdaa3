"""What shipped configurations promise, on three seeds: five to ten minutes a seed on two quiet cores."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rlinf.cli.main import main
from rlinf.config import load_config
from rlinf.runners.train import run_training

SEEDS = (0, 1, 2)

pytestmark = [pytest.mark.soak, pytest.mark.timeout(7200)]


def trained(name: str, folder: Path, seeds: Sequence[int] = SEEDS) -> list[dict[str, Any]]:
    """The summary of each seed."""
    summaries = []
    for seed in seeds:
        run = folder / f"seed{seed}"
        assert run_training(load_config(name, [f"runner.seed={seed}", f"runner.output_dir={run}"])) == 0
        summaries.append(json.loads((run / "summary.json").read_text()))
        print({key: value for key, value in summaries[-1].items() if key.startswith(("success", "wall"))})
    return summaries


def test_the_demo(tmp_path: Path) -> None:
    summaries = trained("tabletop_ppo", tmp_path)
    assert max(summary["success_after_sft"] for summary in summaries) < 0.60
    assert statistics.mean(summary["success_after_rl"] for summary in summaries) >= 0.95
    assert max(summary["success_blind"] for summary in summaries) < 0.45


def test_metaworld(tmp_path: Path) -> None:
    summaries = trained("metaworld_ppo", tmp_path)
    assert statistics.mean(summary["success_after_sft"] for summary in summaries) < 0.60
    assert statistics.mean(summary["success_after_rl"] for summary in summaries) >= 0.85


def test_pi05_on_the_tabletop(tmp_path: Path) -> None:
    for summary in trained("tabletop_pi05", tmp_path, seeds=SEEDS[:1]):
        assert summary["success_after_rl"] > summary["success_after_sft"] + 0.1


def test_openvla_oft_reads_the_instruction(tmp_path: Path) -> None:
    """SFT, then PPO and GRPO from its export."""
    (sft,) = trained("openvla_oft_tabletop_sft", tmp_path / "sft", seeds=SEEDS[:1])
    assert sft["success_after_sft"] > 0.8
    (checkpoint,), export = (tmp_path / "sft/seed0/checkpoints").iterdir(), tmp_path / "export"
    assert main(["convert", str(checkpoint), str(export)]) == 0
    for name in ("openvla_oft_tabletop", "openvla_oft_tabletop_grpo"):
        config = load_config(name, [f"model.model_path={export}", f"runner.output_dir={tmp_path / name}"])
        assert run_training(config) == 0
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        assert summary["success_after_rl"] > summary["success_before_rl"] + 0.05
        assert summary["success_blind"] < summary["success_after_rl"] - 0.3


def test_dexvla_from_stage_1_to_rl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded episodes, three stages, PPO: each goes on from the one before."""
    monkeypatch.chdir(tmp_path)
    first = ["data/tabletop", "--config", "dexvla_tabletop_stage1"]
    assert main(["data", "record", *first, "--episodes", "2000", "--format", "aloha_hdf5"]) == 0
    assert main(["data", "stats", *first]) == 0
    for stage in (1, 2, 3):
        assert main(["sft", "--config", f"dexvla_tabletop_stage{stage}"]) == 0
    assert main(["train", "--config", "dexvla_tabletop_ppo"]) == 0
    runs = ("stage1", "stage3", "ppo")
    one, three, rl = (
        json.loads(Path(f"runs/dexvla_tabletop_{run}/summary.json").read_text()) for run in runs
    )
    assert three["success_after_sft"] > one["success_after_sft"] + 0.3
    assert rl["success_after_rl"] > rl["success_before_rl"] + 0.1
