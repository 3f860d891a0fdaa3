"""Training on real Ray: the whole loop, ranks and stages that agree, SIGKILL and resume, failures."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import yaml
from rlinf.config import Config, load_config
from rlinf.models import get_model
from rlinf.plugins import PluginHost
from rlinf.runners.evaluate import evaluate_checkpoint
from rlinf.runners.sft import run_sft
from rlinf.runners.train import run_training
from training_toys import install_toys

#: The smallest run with everything in it: expert, SFT, PPO, evaluations, checkpoints.
BASE: dict[str, Any] = {
    "runner": {"max_steps": 3, "seed": 5, "save_interval": 1, "report": False, "loggers": []},
    "cluster": {"component_placement": {"actor": "0-1", "env": "0-1", "rollout": 0}},
    "env": {
        "env_type": "dots",
        "num_envs": 8,
        "steps_per_rollout": 16,
        "eval": {"num_episodes": 12, "blind": True},
    },
    "model": {
        "model_type": "tiny_vla",
        "action_dim": 2,
        "num_action_chunks": 2,
        "tiny_vla": {"state_dim": 3, "dim": 16, "depth": 1, "num_heads": 2, "stem_channels": [4, 8]},
    },
    "rollout": {"pipeline_stages": 2},
    "algorithm": {"update_epoch": 2},
    "actor": {"micro_batch_size": 8, "global_batch_size": 32},
    "sft": {"max_steps": 12, "batch_size": 8, "expert_episodes": 6, "expert_noise": 0.2},
}

EXTENSION = """
from rlinf.models import register_model


def build(cfg, torch_dtype=None):
    from omegaconf import OmegaConf
    from rlinf.models.embodiment.tiny_vla.build import build as build_tiny
    as_tiny = {"model_type": "tiny_vla", "tiny_vla": cfg.my_policy}
    return build_tiny(OmegaConf.merge(cfg, as_tiny), torch_dtype)


def register():
    register_model("my_policy", build, category="embodied")
"""


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merged(out[key], value) if both and key != "component_placement" else value
    return out


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return install_toys(tmp_path_factory.mktemp("toys"))


@pytest.fixture(scope="module")
def ray_here(toys: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One Ray for the module; its workers see the toys and the extension module through PYTHONPATH."""
    extension = tmp_path_factory.mktemp("extension")
    (extension / "my_extension.py").write_text(EXTENSION)
    paths = [str(toys[0]), str(extension)]
    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]))
    patch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    patch.setenv("RAY_worker_niceness", "0")
    for path in paths:
        patch.syspath_prepend(path)
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()
    patch.undo()


def configuration(folder: Path, **changes: Any) -> Config:
    data = merged(BASE, changes)
    data = merged(data, {"runner": {"output_dir": str(folder / "run")}})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(data))
    return load_config(folder / "config.yaml")


def rows(run: Path) -> list[dict[str, Any]]:
    """The metrics that must be equal in equal runs: all but the times."""
    timed = ("time/", "env/frames_per_s")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith(timed)} for line in lines]


@pytest.fixture(scope="module")
def whole_run(ray_here: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run that others are compared with."""
    folder = tmp_path_factory.mktemp("whole")
    config = configuration(folder, runner={"report": True, "loggers": ["tensorboard"]})
    assert run_training(config) == 0
    return folder / "run"


def test_whole_run_measures_and_leaves_what_it_promises(whole_run: Path) -> None:
    found = rows(whole_run)
    assert [(row["phase"], row["step"]) for row in found] == [
        *(("sft", step) for step in range(1, 13)),
        ("eval", 0),
        *(("rl", step) for step in (1, 2, 3)),
        ("eval", 3),
    ]
    sft = [row["sft/loss"] for row in found if row["phase"] == "sft"]
    assert sft[-1] < sft[0]
    rl = [row for row in found if row["phase"] == "rl"]
    assert all(row["train/updates"] == 4 and row["train/grad_norm"] > 0 for row in rl)
    # Before the first step old and new policy are one: ratios are 1 up to the steps within the iteration.
    assert rl[0]["train/ratio"] == pytest.approx(1, abs=0.2)
    assert 0 < rl[-1]["env/frames"] <= 3 * 8 * 16 and rl[-1]["env/errors"] == 0
    summary = json.loads((whole_run / "summary.json").read_text())
    assert all(0 <= summary[key] <= 1 for key in ("success_after_sft", "success_after_rl", "success_blind"))
    assert summary["eval_episodes"] == 12 and set(summary["success_by_instruction"]) == {"go up", "go down"}
    assert {entry["name"] for entry in summary["plan"]["entries"]} >= {"dots", "tiny_vla", "core"}
    assert load_config(whole_run / "config.yaml").runner.seed == 5
    assert [p.name for p in sorted((whole_run / "checkpoints").iterdir())] == ["step_2", "step_3"]
    for name in ("curve.png", "before_after.gif", "plan.json"):
        assert (whole_run / name).stat().st_size > 500, name
    assert list((whole_run / "tensorboard").glob("events.*"))


def test_run_folder_in_use_is_refused(whole_run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_training(load_config(whole_run / "config.yaml")) == 2
    assert "is not empty" in capfd.readouterr().err


def test_checkpoint_evaluates_as_at_its_end(whole_run: Path) -> None:
    result = evaluate_checkpoint(whole_run / "checkpoints" / "step_3")
    summary = json.loads((whole_run / "summary.json").read_text())
    assert result["success_rate"] == summary["success_after_rl"] and result["episodes"] == 12


def test_sft_alone_on_a_recorded_dataset(whole_run: Path, tmp_path: Path) -> None:
    """The data that the whole run recorded, by its path: the same losses, no RL."""
    sft = {"expert_episodes": 0, "expert_noise": 0.0}
    data = {"train_data_paths": str(whole_run / "demonstrations")}
    config = configuration(tmp_path, sft=sft, data=data)
    assert run_sft(config) == 0
    assert rows(config.runner.output_dir) == rows(whole_run)[:13]
    summary = json.loads((config.runner.output_dir / "summary.json").read_text())
    assert summary["success_after_rl"] is None and summary["success_after_sft"] is not None


@pytest.mark.timeout(500)
def test_killed_and_resumed_equals_uninterrupted(whole_run: Path, tmp_path: Path) -> None:
    """SIGKILL at a random moment after the first checkpoint. Another process and Ray, the same numbers."""
    config = configuration(tmp_path)
    run = config.runner.output_dir
    code = (
        "import sys; from rlinf.config import load_config; from rlinf.runners.train import run_training\n"
        "if __name__ == '__main__': sys.exit(run_training(load_config(sys.argv[1])))"
    )
    driver = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "config.yaml")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 200
        while not (run / "checkpoints" / "step_0").exists():
            assert driver.poll() is None, driver.communicate()[1]
            assert time.monotonic() < deadline, "no checkpoint after 200 s"
            time.sleep(0.05)
        time.sleep(random.uniform(0, 1.5))
        children = psutil.Process(driver.pid).children(recursive=True)
        assert any("raylet" in child.name() for child in children)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.communicate()

    assert run_training(load_config(tmp_path / "config.yaml", ["runner.resume=true"])) == 0
    assert rows(run) == rows(whole_run)
    before, after = (json.loads((path / "summary.json").read_text()) for path in (whole_run, run))
    same = ("success_after_sft", "success_after_rl", "success_blind", "env_frames")
    assert [after[key] for key in same] == [before[key] for key in same]
    # Ray's agents look only now and then whether their raylet is still there.
    _, alive = psutil.wait_procs(children, timeout=90)
    assert not alive, f"processes outlive their driver: {alive}"


def test_ranks_stages_and_processes_do_not_change_the_numbers(whole_run: Path, tmp_path: Path) -> None:
    """One trainer instead of two, one stage instead of two, two rollout workers instead of one: sums are
    taken in another order. Tolerance 1e-4 (absolute and relative, float32) in SFT and in the first iteration;
    later ones start from weights that differ by that much."""
    changes = {
        "runner": {"max_steps": 1},
        "cluster": {"component_placement": {"actor": 0, "env,rollout": "0-1"}},
        "rollout": {"pipeline_stages": 1},
    }
    config = configuration(tmp_path, **changes, actor={"micro_batch_size": 32})
    assert run_training(config) == 0
    mine, theirs = (
        {(row.pop("phase"), row["step"]): row for row in rows(run)}
        for run in (config.runner.output_dir, whole_run)
    )
    for key in [("sft", 1), ("sft", 12), ("eval", 0), ("rl", 1)]:
        assert mine[key] == pytest.approx(theirs[key], abs=1e-4, rel=1e-4), key


def test_schedules_of_the_warm_start_and_of_the_critic(ray_here: None, tmp_path: Path) -> None:
    """SFT's learning rate falls to 0; RL's first iteration trains the value head and leaves the policy."""
    config = configuration(
        tmp_path,
        runner={"max_steps": 2, "save_interval": 0},
        cluster={"component_placement": {"actor,env,rollout": 0}},
        env={"eval": {"num_episodes": 4, "blind": False}},
        algorithm={"critic_warmup_steps": 1},
        actor={"micro_batch_size": 32, "optim": {"lr": 1e-3, "value_lr": 1e-2}},
        sft={"max_steps": 4, "lr": 2e-3, "lr_schedule": "linear"},
    )
    assert run_training(config) == 0
    found = rows(config.runner.output_dir)
    rates = [row["sft/lr"] for row in found if row["phase"] == "sft"]
    assert rates == pytest.approx([2e-3, 1.5e-3, 1e-3, 5e-4])
    warm, free = (row for row in found if row["phase"] == "rl")
    assert warm["train/lr"] == 0 and free["train/lr"] == 1e-3
    assert abs(warm["train/approx_kl_k3"]) < 1e-7 and free["train/approx_kl_k3"] > 1e-4
    assert warm["train/value_loss"] > 0 and warm["train/updates"] == 4


def test_rollouts_ahead_of_the_trainer(ray_here: None, tmp_path: Path) -> None:
    """Asynchronous mode: data is at most `max_staleness` updates old and is weighted by what that changed; of
    the weights only the trainable ones travel after the first sync."""
    config = configuration(
        tmp_path,
        runner={"max_steps": 4, "save_interval": 0},
        cluster={"component_placement": {"actor": "0-1", "env,rollout": 0}},
        env={"eval": {"num_episodes": 4, "blind": False}},
        model={"is_lora": True, "lora_rank": 2},
        rollout={"max_staleness": 2},
        actor={"optim": {"lr": 1e-3}},
        sft=None,
    )
    assert run_training(config) == 0
    found = [row for row in rows(config.runner.output_dir) if row["phase"] == "rl"]
    assert [row["rollout/staleness"] for row in found] == [0, 1, 2, 2]
    assert "train/behavior_weight" not in found[0]
    for row in found[1:]:
        # The mean of the ratio of two policies under the one that acted is 1.
        assert row["train/behavior_weight"] != 1 and abs(row["train/behavior_weight"] - 1) < 0.5
        assert row["train/ratio"] == pytest.approx(1, abs=0.2), "the clip is around the proximal policy"
    whole = sum(p.numel() * 4 for p in get_model(config.model).parameters())
    assert all(0 < row["sync/megabytes"] * 1e6 < 0.7 * whole for row in found[1:])


def test_rollouts_that_take_weights_on_the_way(ray_here: None, tmp_path: Path) -> None:
    """With `rollout.interruptible` weights arrive in the middle of a rollout."""
    config = configuration(
        tmp_path,
        runner={"max_steps": 3, "save_interval": 0},
        cluster={"component_placement": {"actor": "0-1", "env,rollout": 0}},
        env={"dots": {"sleep": 0.04}, "eval": {"num_episodes": 4, "blind": False}},
        rollout={"max_staleness": 1, "interruptible": True},
        sft=None,
    )
    assert run_training(config) == 0
    found = [row for row in rows(config.runner.output_dir) if row["phase"] == "rl"]
    assert [row["rollout/staleness"] for row in found] == [0, 1, 1]
    assert any(row["sync/early"] == 1 for row in found)


def test_grpo_with_reward_filter(ray_here: None, tmp_path: Path) -> None:
    config = configuration(
        tmp_path,
        runner={"max_steps": 2, "save_interval": 0},
        cluster={"component_placement": {"actor,env,rollout": 0}},
        env={"auto_reset": False, "eval": {"num_episodes": 4, "blind": False}},
        model={"add_value_head": False},
        algorithm={
            "adv_type": "grpo",
            "loss_type": "actor",
            "group_size": 4,
            "filter_rewards": {"lower": 0.1, "upper": 0.9},
        },
        sft=None,
    )
    assert run_training(config) == 0
    found = [row for row in rows(config.runner.output_dir) if row["phase"] == "rl"]
    for row in found:
        assert row["rollout/episodes"] == 8
        assert 0 <= row["train/groups_kept"] <= 1
        # No group to learn from, no update; otherwise every update has an effect.
        assert (row["train/updates"] > 0) == (row["train/groups_kept"] > 0)
        assert "train/value_loss" not in row
    assert any(row["train/groups_kept"] < 1 for row in found)


def test_extension_model_and_failing_simulators(
    ray_here: None, tmp_path: Path, own_host: PluginHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run goes on: a model from RLINF_EXT_MODULE on the workers, episodes that throw."""
    from rlinf.plugins import load_ext_module

    monkeypatch.setenv("RLINF_EXT_MODULE", "my_extension")
    load_ext_module()
    config = configuration(
        tmp_path,
        runner={"max_steps": 2, "save_interval": 0},
        cluster={"component_placement": {"actor,env,rollout": 0}},
        env={"dots": {"failing": 3}, "eval": {"num_episodes": 4, "blind": False}},
        model={"model_type": "my_policy", "tiny_vla": None, "my_policy": BASE["model"]["tiny_vla"]},
        algorithm={"adv_type": "reinforce++", "loss_type": "actor"},
        sft=None,
    )
    assert run_training(config) == 0
    last = [row for row in rows(config.runner.output_dir) if row["phase"] == "rl"][-1]
    assert last["env/errors"] > 0 and last["train/updates"] > 0
    summary = json.loads((config.runner.output_dir / "summary.json").read_text())
    assert summary["env_errors"] >= last["env/errors"]
    assert any(e["group"] == "RLINF_EXT_MODULE" for e in summary["plan"]["entries"])


def test_simulator_that_always_fails_stops_the_run_with_its_traceback(
    ray_here: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = configuration(
        tmp_path,
        cluster={"component_placement": {"actor,env,rollout": 0}},
        env={"dots": {"failing": 1}, "max_errors": 3},
        sft=None,
    )
    assert run_training(config) == 1
    err = capfd.readouterr().err
    assert "RuntimeError: dots diverged in step 1" in err and "env.max_errors=3" in err
    assert err.count("error: ") == 1


def test_plugin_missing_on_the_workers_is_refused_before_training(
    ray_here: None,
    toys: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(str(toys[1]))
    config = configuration(
        tmp_path,
        cluster={"component_placement": {"actor,env,rollout": 0}},
        env={"env_type": "far_dots"},
    )
    assert run_training(config) == 2
    err = capfd.readouterr().err
    assert "far_dots" in err and "driver-only-plugin 1.0" in err and "Traceback" not in err
    assert not (config.runner.output_dir / "metrics.jsonl").read_text()


def test_dry_run_starts_nothing(toys: tuple[Path, Path], tmp_path: Path) -> None:
    data = merged(BASE, {"runner": {"output_dir": str(tmp_path / "run")}})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(data))
    code = (
        "import sys; from rlinf.config import load_config; from rlinf.runners.train import run_training\n"
        "status = run_training(load_config(sys.argv[1]), dry_run=True)\n"
        "print([name for name in ('ray', 'torch') if name in sys.modules]); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "config.yaml")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(toys[0])},
    )
    assert done.returncode == 0, done.stderr
    # A plugin that is broken and not used (here and in every run of this module) costs one line.
    assert [line.count("broken_policy") for line in done.stderr.splitlines()] == [1], done.stderr
    assert "dots-plugin 1.0" in done.stdout and "actor[1]" in done.stdout
    assert done.stdout.endswith("[]\n")
    assert not (tmp_path / "run").exists()
