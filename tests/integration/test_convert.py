"""`rlinf convert`: checkpoints of two real ranks as weights of the model's family; adapters."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from rlinf.cli.main import main
from rlinf.config import Config, load_config
from rlinf.fsdp.checkpoint import CheckpointStore
from rlinf.fsdp.engine import FsdpEngine
from rlinf.models import get_model
from rlinf.plugins import get_host
from rlinf.runners.train import make_plan
from safetensors.torch import load_file

OPENVLA: dict[str, Any] = {
    "model_type": "openvla",
    "action_dim": 3,
    "lora_rank": 2,
    "openvla": {
        "vocab_size": 640,
        "hidden_size": 32,
        "llm": {"intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2},
        "vision_towers": [
            {"depth": 2, "dim": 16, "heads": 2, "mlp_hidden": 32, "registers": 2, "layer_scale": True},
            {"depth": 2, "dim": 16, "heads": 2, "mlp_hidden": 32},
        ],
        "image_size": [28, 28],
        "tokenizer": "words",
        "max_prompt_tokens": 96,
        "value_hidden": [16],
    },
}
TINY_VLA: dict[str, Any] = {
    "model_type": "tiny_vla",
    "action_dim": 3,
    "tiny_vla": {
        "state_dim": 4,
        "dim": 16,
        "depth": 1,
        "num_heads": 2,
        "stem_channels": [4, 8],
        "visual_tokens": 16,
    },
}


def observation() -> dict[str, Any]:
    rng = np.random.default_rng(3)
    return {
        "main_images": rng.integers(0, 256, (2, 64, 64, 3), dtype=np.uint8),
        "states": rng.normal(size=(2, 4)).astype(np.float32),
        "task_descriptions": ["Push the red cube", "touch it"],
    }


def train_and_save(config_json: str, folder: str) -> list[Any]:
    """On a rank: one optimizer step at a rate at which it shows, the checkpoint, and what the policy does."""
    torch.set_num_threads(1)
    config = Config.model_validate(json.loads(config_json))
    torch.manual_seed(0)
    model = get_model(config.model)
    wrap = get_host().model_spec(config.model.model_type).wrap_policy
    optim = config.actor.optim.model_copy(update={"lr": 1e-2, "lr_warmup_steps": 0})
    engine = FsdpEngine(model, config.actor.fsdp_config, optim, wrap)
    _, result = get_model(config.model).predict_action_batch(observation(), mode="eval")
    for _ in range(2):  # an adapter's first half moves after the second has
        out = engine.model(forward_inputs=result["forward_inputs"])
        engine.backward((out["logprobs"].sum() + out["values"].sum()) / 4)
        engine.optimizer_step()
    engine.save(folder)
    state = engine.full_state()
    if not state:
        return []
    trained = get_model(config.model)
    trained.load_state_dict(state)
    return outcome(trained)


def outcome(policy: Any) -> list[Any]:
    actions, result = policy.eval().predict_action_batch(observation(), mode="eval")
    return [x.numpy() for x in (actions, result["prev_logprobs"], result["prev_values"])]


def checkpoint(
    two_ranks: Callable[..., list[Any]], tmp_path: Path, model: dict[str, Any]
) -> tuple[Path, list[Any]]:
    """A checkpoint of two ranks as a run leaves it, and what the policy in it does."""
    file = tmp_path / "run.yaml"
    tree = {"defaults": ["tabletop_ppo"], "model": {"num_action_chunks": 1, **model}}
    tree["env"] = {"steps_per_rollout": 8}
    file.write_text(yaml.safe_dump(tree))
    config = load_config(file)
    metadata = {"plan": make_plan(config).to_json(), "config": config.model_dump(mode="json")}
    with CheckpointStore(tmp_path).writing(1, metadata) as folder:
        expected = two_ranks(train_and_save, config.model_dump_json(), str(folder))[0]
    return tmp_path / "checkpoints" / "step_1", expected


def same(policy: Any, expected: list[Any], atol: float) -> None:
    for ours, theirs in zip(outcome(policy), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=atol)


def test_the_models_own_layout_comes_back(two_ranks, tmp_path, capsys):
    path, expected = checkpoint(two_ranks, tmp_path, TINY_VLA)
    target = tmp_path / "weights"
    assert main(["convert", str(path), str(target), "--max-shard-size", "20KB"]) == 0
    shown = capsys.readouterr().out
    files = sorted(target.glob("model-*.safetensors"))
    assert len(files) > 1 and all(str(file) in shown for file in files)
    same(get_model({**TINY_VLA, "model_path": str(target)}), expected, 1e-6)


@pytest.fixture(scope="module")
def adapted(two_ranks, tmp_path_factory):
    return checkpoint(two_ranks, tmp_path_factory.mktemp("lora"), {**OPENVLA, "is_lora": True})


def from_folder(folder: Path, **changes: Any) -> dict[str, Any]:
    return {**OPENVLA, "model_path": str(folder), **changes}


def test_merged_adapters(adapted, tmp_path):
    """The published module name does the same as the command."""
    path, expected = adapted
    module = "rlinf.utils.ckpt_convertor.fsdp_convertor.convert_pt_to_hf"
    command = [sys.executable, "-m", module, str(path), str(tmp_path / "merged")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names = set(load_file(tmp_path / "merged" / "model.safetensors"))
    assert not [name for name in names if "lora" in name or "base_layer" in name]
    same(get_model(from_folder(tmp_path / "merged")), expected, 1e-5)
    assert (tmp_path / "merged" / "rlinf_plan.json").is_file()


def test_kept_adapters(adapted, tmp_path):
    path, expected = adapted
    target = tmp_path / "kept"
    assert main(["convert", str(path), str(target), "--lora", "keep"]) == 0
    adapters = str(target / "lora_adapter")
    same(get_model(from_folder(target, is_lora=True, lora_path=adapters)), expected, 1e-6)
    plain = outcome(get_model(from_folder(target)))
    assert np.abs(plain[1] - expected[1]).max() > 1e-3  # without them it is another policy
    with pytest.raises(ValueError, match=r"lora_path .* is model.lora_rank the same"):
        get_model(from_folder(target, is_lora=True, lora_rank=3, lora_path=adapters))


def test_peft_reads_kept_adapters(adapted, tmp_path):
    from peft import PeftConfig
    from safetensors import safe_open

    target = tmp_path / "kept"
    assert main(["convert", str(adapted[0]), str(target), "--lora", "keep"]) == 0
    assert PeftConfig.from_pretrained(str(target / "lora_adapter")).r == OPENVLA["lora_rank"]
    with safe_open(target / "lora_adapter" / "adapter_model.safetensors", "pt") as file:
        assert all(n.startswith("base_model.model.") and n.endswith(".weight") for n in file.keys())  # noqa: SIM118


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere", "out"], "there is no folder nowhere"),
        ([".", "out"], "is no complete checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_said(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["convert", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_folder_that_is_taken_is_left_alone(adapted, tmp_path, capsys):
    (tmp_path / "mine").write_text("x")
    assert main(["convert", str(adapted[0]), str(tmp_path)]) == 2
    assert "already exists" in capsys.readouterr().err
    assert [f.name for f in tmp_path.iterdir()] == ["mine"]


def test_sizes_are_checked(capsys):
    with pytest.raises(SystemExit):
        main(["convert", "a", "b", "--max-shard-size", "many"])
    assert "expected a size such as 500MB" in capsys.readouterr().err
