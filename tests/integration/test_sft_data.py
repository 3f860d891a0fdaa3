"""SFT on LeRobot datasets on real Ray: recorded, checked, trained on by one rank and by two, resumed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
import yaml
from plugin_kit import Source, build, install_to_folder
from rlinf.cli.main import main
from rlinf.config import Config, load_config
from rlinf.data.lerobot.reader import open_dataset
from rlinf.fsdp.state import read_model_state
from rlinf.models import get_model
from rlinf.runners.sft import run_sft
from rlinf.runners.training import Training
from training_toys import DOTS

#: The toy simulator under names of its own: a process keeps the modules that it once imported.
OWN_DOTS = DOTS.replace("dots_plugin:", "sft_dots:").replace('"dots"', '"sft_dots"')
SOURCE = Source(name="sft-dots-plugin", modules={"sft_dots": OWN_DOTS}, envs={"sft_dots": "sft_dots"})

BASE: dict[str, Any] = {
    "runner": {"max_steps": 0, "seed": 5, "report": False, "loggers": []},
    "cluster": {"component_placement": {"actor": 0, "env": 0, "rollout": 0}},
    "env": {
        "env_type": "sft_dots",
        "num_envs": 4,
        "steps_per_rollout": 16,
        "eval": {"num_episodes": 4},
    },
    "model": {
        "model_type": "tiny_vla",
        "action_dim": 2,
        "num_action_chunks": 2,
        "tiny_vla": {"state_dim": 3, "dim": 16, "depth": 1, "num_heads": 2, "stem_channels": [4, 8]},
    },
    "actor": {
        "micro_batch_size": 4,
        "global_batch_size": 32,
        "optim": {"lr_scale": {r"action_head\..*": 0.5}},
    },
    "data": {"val_fraction": 0.25, "workers": 1, "prefetch": 1},
    "sft": {
        "max_steps": 6,
        "batch_size": 8,
        "lr_schedule": "cosine",
        "lr_min_ratio": 0.1,
        "lr_warmup_steps": 2,
        "ema_decay": 0.5,
        "val_interval": 3,
        "save_interval": 3,
        "export": True,
    },
}


@pytest.fixture(scope="module")
def ray_here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("toys")
    toys = str(install_to_folder(folder / "installed", SOURCE.wheel(build(folder, [SOURCE]))))
    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", os.pathsep.join([toys, os.environ.get("PYTHONPATH", "")]))
    patch.setenv("RAY_worker_niceness", "0")
    patch.syspath_prepend(toys)
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()
    patch.undo()


@pytest.fixture(scope="module")
def folder(ray_here: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sft")


def configuration(folder: Path, name: str, **changes: dict[str, Any]) -> Path:
    data = {key: {**BASE.get(key, {}), **changes.get(key, {})} for key in {**BASE, **changes}}
    data["runner"]["output_dir"] = str(folder / name)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Path:
    """Recorded by the command from the toy simulator's expert, 16-pixel images as PNG."""
    config = configuration(folder, "record")
    assert (
        main(
            [
                "data",
                "record",
                str(folder / "dots"),
                f"--config={config}",
                "--episodes=8",
                "--png",
                "sft.expert_episodes=1",
            ]
        )
        == 0
    )
    return folder / "dots"


def run(folder: Path, name: str, dataset: Path, **changes: dict[str, Any]) -> Config:
    changes["data"] = {**BASE["data"], "train_data_paths": str(dataset), **changes.get("data", {})}
    config = load_config(configuration(folder, name, **changes))
    assert run_sft(config) == 0
    return config


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    lines = (folder / name / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in lines]


@pytest.fixture(scope="module")
def whole_run(folder: Path, dataset: Path) -> Path:
    run(folder, "whole", dataset)
    return folder / "whole"


def test_recorded_dataset_is_checked_and_measured(
    folder: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configuration(folder, "check")
    assert main(["data", "check", str(dataset), f"--config={config}"]) == 0
    out = capsys.readouterr().out
    assert f"{dataset}: ok, 8 episodes" in out and "main_images = observation.images.main" in out
    assert main(["data", "stats", str(dataset), f"--config={config}", f"--output={folder / 'stats'}"]) == 0
    stats = json.loads((folder / "stats/norm_stats.json").read_text())["norm_stats"]
    assert len(stats["state"]["q01"]) == 3 and len(stats["actions"]["std"]) == 2
    broken = shutil.copytree(dataset, folder / "broken")
    parquet = broken / "data/chunk-000/file-000.parquet"
    parquet.write_bytes(parquet.read_bytes()[:-20])
    assert main(["data", "check", str(broken)]) == 1
    out = capsys.readouterr().out
    assert f"{broken}: 8 of them damaged" in out and f"episode 3: {parquet}" in out
    assert main(["data", "check", str(broken), f"--config={config}", "model.action_dim=3"]) == 1
    assert main(["data", "check", str(dataset), f"--config={config}", "model.action_dim=3"]) == 2
    assert "the model takes 3 (model.action_dim)" in capsys.readouterr().err


def test_whole_run(whole_run: Path, folder: Path) -> None:
    found = rows(folder, "whole")
    assert [(row["phase"], row["step"]) for row in found] == [
        *(("sft", step) for step in (1, 2, 3, 3, 4, 5, 6, 6)),
        ("eval", 0),
    ]
    steps = [row for row in found if "sft/loss" in row]
    # Warm-up over two steps, then half a cosine from 1e-3 to a tenth of it.
    assert [row["sft/lr"] for row in steps] == pytest.approx(
        [5e-4, 1e-3, 1e-3, 8.682e-4, 5.5e-4, 2.318e-4], rel=1e-3
    )
    assert all("sft/val_loss" in row for row in (found[3], found[7]))
    assert sorted(p.name for p in (whole_run / "checkpoints").iterdir()) == ["step_3", "step_6"]
    assert (whole_run / "export/model.safetensors").is_file()
    summary = json.loads((whole_run / "summary.json").read_text())
    assert summary["success_after_sft"] is not None and summary["success_after_rl"] is None


def test_episodes_of_a_checkpoint_are_recorded(
    whole_run: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its policy acts, a chunk at a time, on what was recorded; the dataset is whole and fits the model."""
    checkpoint, data = whole_run / "checkpoints/step_6", folder / "of_policy"
    command = ["data", "record", str(data), f"--checkpoint={checkpoint}", "--episodes=3", "--png"]
    assert main([*command[:2], str(folder / "too_few"), *command[3:]]) == 2
    error = capsys.readouterr().err
    assert "episodes succeeded; record all with --keep-failures" in error and "Traceback" not in error
    assert main([*command, "--keep-failures"]) == 0
    assert main(["data", "check", str(data), f"--config={configuration(folder, 'check_policy')}"]) == 0
    assert f"{data}: ok, 3 episodes" in capsys.readouterr().out

    recorded = open_dataset(str(data))
    policy = get_model(load_config(whole_run / "config.yaml").model).eval()
    policy.load_state_dict(read_model_state(checkpoint))
    names = {"main_images": "observation.images.main", "states": "observation.state"}
    for episode in range(3):
        frames = recorded.read(episode, [0, 1], [*names.values(), "action"])
        obs = {key: frames[name][:1] for key, name in names.items()}
        obs["task_descriptions"] = recorded.tasks(episode, [0])
        with torch.inference_mode():
            actions, _ = policy.predict_action_batch(obs, mode="eval")
        np.testing.assert_allclose(frames["action"], actions[0].numpy(), atol=1e-6)


def test_resumed_within_an_epoch_equals_uninterrupted(
    whole_run: Path, folder: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails in step 4, after the checkpoint of step 3; EMA, moments and the order of samples go on."""

    def fail(self: Training, step: int, metrics: dict[str, float]) -> None:
        if step == 4:
            raise KeyboardInterrupt
        original(self, step, metrics)

    original = Training._sft_step
    monkeypatch.setattr(Training, "_sft_step", fail)
    with pytest.raises(KeyboardInterrupt):
        run(folder, "again", dataset)
    monkeypatch.undo()
    run(folder, "again", dataset, runner={**BASE["runner"], "resume": True})
    assert rows(folder, "again") == rows(folder, "whole")
    same = [(folder / name / "export/model.safetensors").read_bytes() for name in ("whole", "again")]
    assert same[0] == same[1]


def test_two_ranks_do_the_same_steps(whole_run: Path, folder: Path, dataset: Path) -> None:
    run(folder, "ranks", dataset, cluster={"component_placement": {"actor": "0-1", "env": 0, "rollout": 0}})
    for one, two in zip(rows(folder, "whole"), rows(folder, "ranks"), strict=True):
        assert one.keys() == two.keys()
        for key in {"sft/loss", "sft/grad_norm", "sft/val_loss", "sft/lr"} & one.keys():
            assert one[key] == pytest.approx(two[key], rel=2e-4), key


def test_data_that_does_not_fit_is_refused_before_anything_starts(
    folder: Path, dataset: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for number, (data, words) in enumerate(
        [
            ({"train_data_paths": str(folder / "nothing")}, "there is no such file or folder"),
            ({"cameras": {"main_images": "top"}}, "has no top for camera main_images"),
            ({"action": ["observation.state"]}, "its actions have 3 numbers, the model takes 2"),
        ]
    ):
        given = {**BASE["data"], "train_data_paths": str(dataset), **data}
        config = load_config(configuration(folder, f"refused{number}", data=given))
        assert run_sft(config) == 2
        assert words in capfd.readouterr().err
        assert not config.runner.output_dir.exists()
