"""`rlinf sft` of pi0 and pi0.5 on a LeRobot dataset alone, from a checkpoint with its tokenizer: no simulator
runs. The dataset is recorded by `rlinf data record`, its statistics come from `rlinf data stats`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from cluster_kit import one_ray
from omegaconf import OmegaConf
from rlinf.cli.main import main
from rlinf.models import get_model
from rlinf.runners.training import Training
from rlinf_openpi import checkpoint
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

ARCHITECTURE = {
    "vision": {"width": 16, "depth": 1, "mlp_dim": 16, "num_heads": 2, "patch_size": 32, "image_size": 64},
    "vlm": {"width": 16, "mlp_dim": 16},
    "expert": {"width": 16, "mlp_dim": 16},
    "depth": 2,
    "num_heads": 2,
    "head_dim": 8,
    "vocab_size": 384,
}
#: A data configuration of the user's own: pi0 on datasets of the tabletop simulator.
OWN = {
    "pi05": False,
    "action_horizon": 4,
    "max_token_len": 16,
    "normalization": "zscore",
    "cameras": {"base_0_rgb": "main_images"},
    "dataset": {
        "cameras": {"base_0_rgb": "observation.images.main"},
        "state": ["observation.state"],
        "actions": ["action"],
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Holds a dataset `data` of three episodes."""
    folder = tmp_path_factory.mktemp("openpi")
    record = ["data", "record", str(folder / "data"), "--config=tabletop_pi05", "--episodes=3", "--png"]
    assert main(record) == 0
    with one_ray(2):
        yield folder


def pretrained(folder: Path, config_name: str) -> tuple[Path, dict[str, Any]]:
    """A checkpoint with random weights in openpi's layout, and the block `model` that reads it."""
    model = {
        "model_type": "openpi",
        "action_dim": 7,
        "num_action_chunks": 4,
        "add_value_head": False,
        "openpi": {"config_name": config_name, "architecture": ARCHITECTURE, "max_action_dim": 8},
    }
    torch.manual_seed(0)
    state = get_model(model).state_dict()
    checkpoint.export(state, OmegaConf.create(model), folder)
    words = {"<unk>": 0, "touch": 1, "the": 2, "red": 3, "cube": 4}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder, {**model, "model_path": str(folder)}


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["sft/loss"] for row in rows if "sft/loss" in row]


@pytest.mark.parametrize("kind", ["pi05_tabletop", "own"])
def test_a_checkpoint_is_tuned_on_a_dataset_alone(
    kind: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """pi0.5 in full, pi0 with LoRA on the action expert."""
    (folder / "own.yaml").write_text(yaml.safe_dump(OWN))
    config_name = kind if kind != "own" else str(folder / "own.yaml")
    work = folder / kind
    work.mkdir()
    source, model = pretrained(work, config_name)
    if kind == "own":
        model |= {"is_lora": True, "lora_rank": 2}
        model["openpi"]["lora_targets"] = "expert"
    path = work / "run.yaml"
    tune = {
        "defaults": ["pi0_libero_sft"],
        "model": model,
        "data": {"train_data_paths": str(folder / "data"), "workers": 0},
        "actor": {"micro_batch_size": 2, "global_batch_size": 4},
        "sft": {"max_steps": 4, "batch_size": 4, "lr_warmup_steps": 0, "lr": 1e-3, "save_interval": 2},
        "runner": {"loggers": []},
    }
    tune["sft"]["export"] = True
    path.write_text(yaml.safe_dump(tune))

    def sft(name: str, *more: str) -> int:
        return main(["sft", "--config", str(path), f"runner.output_dir={work / name}", *more])

    assert sft("lacks") == 1
    assert "brings no normalisation statistics" in capsys.readouterr().err
    stats = ["data", "stats", str(folder / "data"), "--config", str(path), f"--output={source}"]
    assert main([*stats, "model.model_path=null"]) == 0
    assert sft("whole") == 0
    whole = losses(work / "whole")
    assert len(whole) == 4
    assert (work / "whole" / "curve.png").is_file()
    assert json.loads((work / "whole" / "summary.json").read_text())["eval_episodes"] is None
    # What was exported is the tuned policy: it loads like the checkpoint that it came from.
    tuned = get_model({**model, "is_lora": False, "model_path": str(work / "whole" / "export")})
    before = get_model({**model, "is_lora": False}).state_dict()
    changed = {name for name, value in tuned.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    if kind == "own":
        assert not [name for name in changed if "paligemma." in name], changed


def test_an_interrupted_run_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After `test_a_checkpoint_is_tuned_on_a_dataset_alone`, whose run it repeats."""
    work = folder / "pi05_tabletop"
    command = ["sft", "--config", str(work / "run.yaml"), f"runner.output_dir={work / 'resumed'}"]

    def fail(self: Training, step: int, metrics: dict[str, float]) -> None:
        if step == 3:
            raise KeyboardInterrupt
        original(self, step, metrics)

    original = Training._sft_step
    monkeypatch.setattr(Training, "_sft_step", fail)
    assert main(command) == 130
    monkeypatch.undo()
    assert main([*command, "runner.resume=true"]) == 0
    assert losses(work / "resumed") == losses(work / "whole")


def test_what_needs_a_simulator_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["--config", "pi0_libero_sft", f"data.train_data_paths={folder / 'data'}"]
    for command, words in {
        ("train", "runner.max_steps=3"): "asks for reinforcement learning, which needs a simulator",
        ("sft", "sft.expert_episodes=3"): "sft.expert_episodes",
        ("sft", "sft.eval_interval=3"): "sft.eval_interval",
    }.items():
        assert main([command[0], *base, command[1], "--dry-run"]) == 2
        assert words in capsys.readouterr().err
