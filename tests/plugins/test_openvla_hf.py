"""Checkpoints of the original's layout: written, read back here, and by transformers alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from openvla_tiny import TINY
from rlinf.models import get_model, get_model_config_and_processor
from rlinf_openvla.export import export
from safetensors.torch import load_file, save_file

STATISTICS = {"toy": {"action": {"q01": [-2, -1, 0], "q99": [2, 3, 1], "mask": [True, True, False]}}}


def block(model_type: str = "openvla", **subtree: Any) -> dict[str, Any]:
    return {"model_type": model_type, "action_dim": 3, model_type: {**TINY, **subtree}}


def from_checkpoint(folder: Path, model_type: str = "openvla", **subtree: Any) -> dict[str, Any]:
    own = {"max_prompt_tokens": 96, "value_hidden": [16], **subtree}
    return {"model_type": model_type, "action_dim": 3, "model_path": str(folder), model_type: own}


def observation() -> dict[str, Any]:
    rng = np.random.default_rng(3)
    return {
        "main_images": rng.integers(0, 256, (2, 40, 40, 3), dtype=np.uint8),
        "states": rng.normal(size=(2, 4)).astype(np.float32),
        "task_descriptions": ["Push the red cube", "touch it"],
    }


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A folder like a fine-tuned checkpoint of the original's, with tensors that nothing reads."""
    cfg = OmegaConf.create({**block(), "model_path": None})
    folder = tmp_path / "original"
    folder.mkdir()
    export(get_model(block()).state_dict(), cfg, folder, max_shard_bytes=10**9)
    weights = load_file(folder / "model.safetensors")
    unused = {
        "vision_backbone.featurizer.blocks.1.norm1.weight": torch.ones(16),
        "vision_backbone.fused_featurizer.attn_pool.latent": torch.ones(1, 1, 16),
        "vision_backbone.fused_featurizer.norm.bias": torch.ones(16),
    }
    save_file({**weights, **unused}, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "dataset_statistics.json").write_text(json.dumps(STATISTICS))
    return folder


def act(policy: Any) -> tuple[torch.Tensor, torch.Tensor]:
    actions, result = policy.eval().predict_action_batch(observation(), mode="eval")
    return actions, result["prev_values"]


def test_export_comes_back_equal_with_what_nothing_reads(checkpoint: Path, tmp_path: Path):
    cfg = from_checkpoint(checkpoint)
    policy = get_model(cfg)
    target = tmp_path / "again"
    target.mkdir()
    from rlinf.models.factory import model_config

    export(policy.state_dict(), model_config(cfg), target, max_shard_bytes=40_000)
    shards = sorted(target.glob("model-*.safetensors"))
    assert len(shards) > 2
    stored = {name: x for shard in shards for name, x in load_file(shard).items()}
    original = load_file(checkpoint / "model.safetensors")
    assert stored.keys() == original.keys()
    assert all(torch.equal(stored[name], original[name]) for name in original)
    assert json.loads((target / "dataset_statistics.json").read_text()) == STATISTICS
    again = get_model(from_checkpoint(target))
    for ours, theirs in zip(act(again), act(policy), strict=True):
        assert torch.equal(ours, theirs)


def test_a_policy_without_heads_of_its_own_gets_the_checkpoints_weights(checkpoint: Path):
    policy = get_model({**from_checkpoint(checkpoint), "add_value_head": False})
    stored = load_file(checkpoint / "model.safetensors")
    state = policy.state_dict()
    assert len(state) > 40 and all(torch.equal(x, stored[name]) for name, x in state.items())


@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
def test_actions_have_the_units_of_the_dataset(checkpoint: Path, low_cpu_mem_usage: bool):
    policy = get_model(from_checkpoint(checkpoint, unnorm_key="toy", low_cpu_mem_usage=low_cpu_mem_usage))
    actions, result = policy.eval().predict_action_batch(observation(), mode="eval")
    normalized = policy.tokens.decode(result["forward_inputs"]["action_tokens"])
    torch.testing.assert_close(actions[:, 0, 0], 2 * normalized[:, 0])
    torch.testing.assert_close(actions[:, 0, 1], 2 * normalized[:, 1] + 1)
    torch.testing.assert_close(actions[:, 0, 2], normalized[:, 2])


def test_oft_heads_lie_in_their_own_files(checkpoint: Path, tmp_path: Path):
    settings = {"proprio_dim": 4, "cameras": ["main_images"], "statistics": str(tmp_path / "stats.json")}
    both = {"action": STATISTICS["toy"]["action"], "proprio": {"q01": [-1] * 4, "q99": [1] * 4}}
    (tmp_path / "stats.json").write_text(json.dumps({"toy": both}))
    cfg = from_checkpoint(checkpoint, "openvla_oft", **settings)
    policy = get_model(cfg)  # new heads on a base checkpoint
    target = tmp_path / "oft"
    target.mkdir()
    from rlinf.models.factory import model_config

    export(policy.state_dict(), model_config(cfg), target, max_shard_bytes=10**9)
    head = torch.load(target / "action_head--latest_checkpoint.pt", weights_only=True)
    assert all(name.startswith("module.model.") for name in head)
    assert (target / "proprio_projector--latest_checkpoint.pt").is_file()
    again = get_model(from_checkpoint(target, "openvla_oft", proprio_dim=4))
    for ours, theirs in zip(act(again), act(policy), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


SCRIPT = """
import sys, json, numpy as np, torch
import rlinf_openvla.hf
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
folder = sys.argv[1]
assert AutoConfig.from_pretrained(folder).model_type == "openvla"
processor = AutoProcessor.from_pretrained(folder)
model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
images = [*np.load(sys.argv[2])]
batch = processor(["Push the red cube", "touch it"], images)
print(json.dumps(model.predict_action(**batch, unnorm_key="toy").tolist()))
"""


def test_transformers_alone_reads_the_folder(checkpoint: Path, tmp_path: Path):
    """In a process that has imported the plugin and nothing of a run: the same actions as the policy's."""
    content = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**content, "norm_stats": STATISTICS}))
    np.save(tmp_path / "images.npy", observation()["main_images"])
    command = [sys.executable, "-c", SCRIPT, str(checkpoint), str(tmp_path / "images.npy")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    actions, _ = act(get_model(from_checkpoint(checkpoint, unnorm_key="toy")))
    found = torch.tensor(json.loads(done.stdout.splitlines()[-1]))
    torch.testing.assert_close(found, actions[:, 0], atol=1e-6, rtol=1e-6)


def test_config_and_processor_of_a_run(checkpoint: Path):
    hf, processor = get_model_config_and_processor({"model": from_checkpoint(checkpoint)})
    assert hf.text_config.hidden_size == 32
    batch = processor("touch it", observation()["main_images"][0])
    assert batch["pixel_values"].shape == (1, 6, 28, 28)
    named = {"model": from_checkpoint(checkpoint), "tokenizer": {"tokenizer_model": str(checkpoint)}}
    assert get_model_config_and_processor(named)[1].tokenizer.vocab_size == processor.tokenizer.vocab_size


@pytest.mark.parametrize(
    ("subtree", "said"),
    [
        ({"unnorm_key": "bridge"}, "unnorm_key: 'bridge' is no dataset .* it has toy"),
        ({"hidden_size": 64}, "hidden_size: the configuration says 64, .*config.json says 32"),
        ({"vocab_size": 32000}, "vocab_size: the configuration says 32000"),
        ({"action_token_len": 4}, "action_token_len is 4, but model.action_dim is 3"),
        ({"action_chunks_len": 2}, "action_chunks_len is 2, but model.num_action_chunks is 1"),
        ({"tokenizer": "nowhere"}, "tokenizer: nowhere has no tokenizer.json"),
    ],
)
def test_what_contradicts_the_checkpoint_is_named(checkpoint: Path, subtree: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        get_model(from_checkpoint(checkpoint, **subtree))


def test_a_foreign_checkpoint_is_refused(checkpoint: Path):
    weights = load_file(checkpoint / "model.safetensors")
    weights.pop("projector.fc1.bias")
    save_file(weights, checkpoint / "model.safetensors")
    with pytest.raises(ValueError, match=r"it lacks projector\.fc1\.bias"):
        get_model(from_checkpoint(checkpoint))


def test_two_heads_of_one_kind_are_refused(checkpoint: Path):
    for step in (1, 2):
        torch.save({}, checkpoint / f"action_head--{step}_checkpoint.pt")
    with pytest.raises(ValueError, match=r"action_head--1_checkpoint.pt and action_head--2_checkpoint.pt"):
        get_model(from_checkpoint(checkpoint))
