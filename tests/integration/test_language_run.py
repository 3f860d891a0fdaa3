"""Language models on real Ray: SFT, GRPO and PPO, a reward model that is trained and served, resume."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from rlinf.config import load_config
from rlinf.runners.evaluate import evaluate_checkpoint
from rlinf.runners.sft import run_sft
from rlinf.runners.train import run_training

SMALL = [
    "runner.report=false",
    "runner.loggers=[]",
    "env.num_envs=32",
    "env.eval.num_episodes=8",
    "actor.micro_batch_size=8",
    "actor.global_batch_size=16",
    "sft.batch_size=16",
    "sft.max_steps=4",
]


@pytest.fixture(autouse=True)
def no_ray_left() -> Iterator[None]:
    yield
    assert not ray.is_initialized()


def rows(folder: Path, phase: str) -> list[dict[str, Any]]:
    """Metrics of a run without what the clock decides."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [
        {k: v for k, v in row.items() if not k.startswith("time/") and k != "env/frames_per_s"}
        for row in lines
        if row["phase"] == phase
    ]


def train(folder: Path, *overrides: str) -> None:
    config = load_config("language_grpo", [*SMALL, f"runner.output_dir={folder}", *overrides])
    assert run_training(config) == 0


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of a reward model after a few steps on pairs."""
    folder = tmp_path_factory.mktemp("reward") / "run"
    config = load_config(
        "arithmetic_reward",
        [*SMALL, f"runner.output_dir={folder}", "data.val_fraction=0.01", "sft.val_interval=2"],
    )
    assert run_sft(config) == 0
    validated = [row for row in rows(folder, "sft") if "sft/val_accuracy" in row]
    assert [row["step"] for row in validated] == [2, 4]
    (row,) = rows(folder, "eval")
    assert 0 < row["eval/success_rate"] <= 1
    (checkpoint,) = (folder / "checkpoints").iterdir()
    return checkpoint


def test_a_resumed_run_equals_one_that_was_not_interrupted(tmp_path: Path, reward_model: Path) -> None:
    """With all that has a state: KL to where RL began, entropy mask, a served reward model beside rules."""
    served = f"{{type: reward_model, name: judge, weight: 0.5, options: {{checkpoint: {reward_model}}}}}"
    options = [
        f"env.prompts.rewards=[{{type: exact_match}}, {{type: length, weight: 0.1, "
        f"options: {{free: 1, limit: 5}}}}, {served}]",
        "algorithm.kl_beta=0.1",
        "algorithm.high_entropy_fraction=0.5",
    ]
    train(tmp_path / "whole", "runner.max_steps=2", *options)
    train(tmp_path / "parts", "runner.max_steps=1", *options)
    train(tmp_path / "parts", "runner.max_steps=2", "runner.resume=true", *options)
    whole, parts = rows(tmp_path / "whole", "rl"), rows(tmp_path / "parts", "rl")
    assert whole == parts
    first, second = whole
    assert first["train/kl_ref"] == pytest.approx(0, abs=1e-3) and second["train/kl_ref"] > 0
    for row in whole:
        scores = {name: row[f"rollout/reward/{name}"] for name in ("exact_match", "length", "judge")}
        total = scores["exact_match"] + 0.1 * scores["length"] + 0.5 * scores["judge"]
        assert row["rollout/return"] == pytest.approx(total, abs=1e-6)
        assert 0 <= row["rollout/truncated"] <= 1 and scores["judge"] != 0
    (checkpoint,) = [path for path in (tmp_path / "whole/checkpoints").iterdir() if path.name.endswith("2")]
    result = evaluate_checkpoint(checkpoint)
    assert result["success_rate"] == rows(tmp_path / "whole", "eval")[-1]["eval/success_rate"]


@pytest.mark.parametrize(("adv_type", "kl_type"), [("reinforce++", "k1"), ("grpo", "k2")])
def test_estimators_run(tmp_path: Path, adv_type: str, kl_type: str) -> None:
    options = [f"algorithm.adv_type={adv_type}", f"algorithm.kl_type={kl_type}", "algorithm.kl_beta=0.1"]
    # What an untrained policy can win.
    options += ["env.prompts.rewards=[{type: length, options: {free: 1, limit: 5}}]"]
    # An evaluation whose prompts are hidden, at the end.
    options += ["env.eval.blind=true"]
    train(tmp_path / "run", "runner.max_steps=2", "runner.eval_interval=0", *options)
    assert 0 <= json.loads((tmp_path / "run/summary.json").read_text())["success_blind"] <= 1
    first, second = rows(tmp_path / "run", "rl")
    # The first of an iteration's two optimizer steps has the ratio 1 and no distance from the reference.
    assert first["train/updates"] == 2 and first["train/ratio"] == pytest.approx(1, abs=0.05)
    assert abs(first["train/kl_ref"]) < 0.01
    assert second["train/kl_ref"] != 0 if kl_type == "k1" else second["train/kl_ref"] > 0
    assert first["train/grad_norm"] > 0 and second["train/grad_norm"] > 0


@pytest.mark.soak
def test_ppo_with_a_value_per_token(tmp_path: Path) -> None:
    critic = ["algorithm.adv_type=gae", "algorithm.loss_type=actor_critic", "model.add_value_head=true"]
    train(tmp_path / "run", "runner.max_steps=2", "algorithm.group_size=1", "algorithm.kl_beta=0.1", *critic)
    for row in rows(tmp_path / "run", "rl"):
        assert row["train/value_loss"] > 0 and row["train/updates"] == 2


@pytest.mark.soak
def test_the_shipped_configuration_learns_to_add(tmp_path: Path) -> None:
    config = load_config("language_grpo", [f"runner.output_dir={tmp_path / 'run'}", "runner.report=false"])
    assert run_training(config) == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["success_after_rl"] > summary["success_after_sft"] + 0.15
