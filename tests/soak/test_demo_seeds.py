"""What `make demo` promises, on three seeds: about five minutes each on two quiet cores."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
from rlinf.config import load_config
from rlinf.runners.train import run_training

SEEDS = (0, 1, 2)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_sft_leaves_room_and_rl_fills_it(tmp_path: Path) -> None:
    summaries = []
    for seed in SEEDS:
        folder = tmp_path / f"seed{seed}"
        config = load_config("tabletop_ppo", [f"runner.seed={seed}", f"runner.output_dir={folder}"])
        assert run_training(config, dry_run=False) == 0
        summaries.append(json.loads((folder / "summary.json").read_text()))
        print({key: value for key, value in summaries[-1].items() if key.startswith(("success", "wall"))})
    assert max(summary["success_after_sft"] for summary in summaries) < 0.60
    assert statistics.mean(summary["success_after_rl"] for summary in summaries) >= 0.95
    assert max(summary["success_blind"] for summary in summaries) < 0.45
