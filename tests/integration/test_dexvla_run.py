"""DexVLA's three stages and RL through the whole loop on Ray, on episodes recorded in HDF5."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster_kit import one_ray
from rlinf.cli.main import main

#: What makes a run of seconds of the shipped configurations.
SMALL = (
    "sft.max_steps=4 sft.batch_size=4 sft.lr_warmup_steps=1 data.workers=0 runner.loggers=[] "
    "env.num_envs=4 env.steps_per_rollout=8 env.eval.num_episodes=2 env.tabletop.max_episode_steps=8 "
    "actor.micro_batch_size=4 actor.global_batch_size=8 model.dexvla.max_reasoning_tokens=5 "
    "cluster.component_placement.actor=0 cluster.component_placement.env=0"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("stages")
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    with one_ray(8):
        yield folder
    patch.undo()


@pytest.fixture(scope="module")
def data(folder: Path) -> Path:
    """Recorded and measured by the commands."""
    first = ["data/tabletop", "--config", "dexvla_tabletop_stage1"]
    assert main(["data", "record", *first, "--format", "aloha_hdf5", "--episodes", "4"]) == 0
    assert main(["data", "stats", *first]) == 0
    return folder / "data/tabletop"


def sft(stage: int, *words: str) -> list[dict[str, Any]]:
    assert main(["sft", "--config", f"dexvla_tabletop_stage{stage}", *SMALL.split(), *words]) == 0
    return rows(Path(f"runs/dexvla_tabletop_stage{stage}"))


def rows(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in lines]


@pytest.fixture(scope="module")
def stages(data: Path, folder: Path) -> dict[int, list[dict[str, Any]]]:
    return {
        1: sft(1),
        2: sft(2, "data.val_fraction=0.25", "sft.val_interval=2", "sft.eval_interval=2"),
        3: sft(3, "model.is_lora=true", "model.lora_rank=2", "sft.non_lora_lr=1e-4"),
    }


def test_recorded_episodes_are_whole(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", "data/tabletop", "--config", "dexvla_tabletop_stage2"]) == 0
    out = capsys.readouterr().out
    assert "4 episodes" in out and "main_images = observations/images/main" in out
    assert "substep_reasonings []" in out and "states = observations/qpos" in out


def test_any_run_records_in_the_format(folder: Path) -> None:
    command = ["data", "record", "data/other", "--config", "tabletop_ppo", "--format", "aloha_hdf5"]
    assert main([*command, "--episodes", "1"]) == 0
    assert Path("data/other/episode_0.hdf5").is_file()


def test_every_stage_trains_and_logs_both_losses_apart(stages: dict[int, list[dict[str, Any]]]) -> None:
    for stage, found in stages.items():
        steps = [row for row in found if "sft/loss" in row]
        assert [row["step"] for row in steps] == [1, 2, 3, 4], stage
        assert all(math.isfinite(row["sft/grad_norm"]) and row["sft/loss"] > 0 for row in steps), stage
        assert all(("sft/llm_loss" in row) == (stage > 1) for row in steps), stage
    for row in stages[2]:
        if "sft/loss" in row:
            assert row["sft/loss"] == pytest.approx(row["sft/action_loss"] + row["sft/llm_loss"])
    between = [row for row in stages[2] if "sft/val_llm_loss" in row]
    assert [row["step"] for row in between] == [2, 4] and "sft/success_rate" in between[0]


def test_rl_goes_on_from_stage_3_and_its_film_has_texts(stages: dict[int, list[dict[str, Any]]]) -> None:
    words = [word for word in SMALL.split() if not word.startswith(("sft.", "data."))]
    command = ["train", "--config", "dexvla_tabletop_ppo", *words, "env.eval.blind=false"]
    command += ["algorithm.critic_warmup_steps=0", "runner.report=true"]
    assert main([*command, "runner.max_steps=1"]) == 0
    assert main([*command, "runner.max_steps=2", "runner.resume=true"]) == 0
    found = [row for row in rows(Path("runs/dexvla_tabletop_ppo")) if row["phase"] == "rl"]
    assert [row["step"] for row in found] == [1, 2]
    # The first minibatch of the first update has ratio 1; none diverges.
    assert all(math.isfinite(row["train/loss"]) and 0.5 < row["train/ratio"] < 2 for row in found)
    with np.load("runs/dexvla_tabletop_ppo/films/after.npz") as films:
        texts, frames = films["texts_0"], films["frames_0"]
    assert len(texts) == len(frames) and texts.dtype.kind == "U"
    assert Path("runs/dexvla_tabletop_ppo/before_after.gif").is_file()
    summary = json.loads(Path("runs/dexvla_tabletop_ppo/summary.json").read_text())
    assert 0 <= summary["success_before_rl"] <= 1 and summary["success_after_sft"] is None
