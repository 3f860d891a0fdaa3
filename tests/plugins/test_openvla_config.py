"""Keys of the field's guide: each acts, or is refused with the reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rlinf.config import ConfigError, load_config, plugin_subtree
from rlinf.models import get_model
from rlinf.models.factory import model_config
from rlinf_openvla.data_layout import data_layout

GUIDE = ["model.model_path=somewhere"]
TINY: dict[str, Any] = {
    "model_type": "openvla",
    "action_dim": 3,
    "action_token_len": 3,
    "action_chunks_len": 1,
    "precision": "bf16",
    "vocab_size": 640,
    "hidden_size": 32,
    "image_size": [28, 28],
    "attn_implementation": "eager",
    "low_cpu_mem_usage": True,
    "trust_remote_code": False,
    "openvla": {
        "llm": {"intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2},
        "vision_towers": [
            {"depth": 2, "dim": 16, "heads": 2, "mlp_hidden": 32, "registers": 2},
            {"depth": 2, "dim": 16, "heads": 2, "mlp_hidden": 32},
        ],
        "tokenizer": "words",
    },
}


def test_the_guides_template_is_shipped():
    config = load_config("openvla_guide", GUIDE)
    subtree = plugin_subtree(config, "model")
    assert (subtree.action_token_len, subtree.action_chunks_len, subtree.vocab_size) == (7, 1, 32000)
    assert config.model.precision == "bf16" and config.model.is_lora


def test_flat_keys_reach_the_model():
    policy = get_model(TINY)
    assert policy.width == 32 and policy.hf_config.image_size == 28
    assert policy.language_model.lm_head.weight.shape[0] == 640
    assert policy.language_model.config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("override", "key", "said"),
    [
        ("model.trust_remote_code=true", "trust_remote_code", "code inside a checkpoint is never run"),
        ("model.attn_implementation=flash_attention_2", "attn_implementation", "use sdpa"),
        ("model.micro_batch_size=1", "micro_batch_size", "the trainer has it, actor.micro_batch_size"),
        ("model.val_micro_batch_size=8", "val_micro_batch_size", "rollout.pipeline_stages"),
        ("model.image_size=[224, 256]", "image_size", "the same number twice"),
        ("model.openvla.cameras=[main_images, wrist_images]", "cameras", "OpenVLA sees one view"),
        ("model.openvla.cameras=[front]", "", "expected main_images"),
    ],
)
def test_what_cannot_act_is_refused_with_the_reason(override: str, key: str, said: str):
    with pytest.raises(ConfigError) as error:
        load_config("openvla_guide", [*GUIDE, override])
    [problem] = error.value.problems
    assert problem.key == ".".join(filter(None, ("model", "openvla", key))) and said in problem.message


def test_datasets_give_the_views_and_the_state_that_the_model_reads():
    layout = data_layout(model_config(TINY))
    assert list(layout.cameras) == ["main_images"] and layout.state == ()
    tree = {**TINY, "model_type": "openvla_oft", "num_action_chunks": 4, "action_chunks_len": 4}
    tree["openvla_oft"] = {
        **TINY["openvla"],
        "cameras": ["main_images", "extra_view_images.1"],
        "proprio_dim": 7,
    }
    tree.pop("openvla")
    layout = data_layout(model_config(tree))
    assert layout.action_horizon == 4 and layout.state
    assert layout.cameras["extra_view_images.1"] == ("extra_view_images.1",)
    images = torch.randint(0, 256, (2, 28, 28, 3), dtype=torch.uint8)
    batch = {
        "main_images": images,
        "extra_view_images.1": images.flip(1),
        "states": torch.zeros(2, 7),
        "task_descriptions": ["push", "touch it"],
        "actions": torch.zeros(2, 4, 3),
        "action_is_pad": torch.zeros(2, 4, dtype=torch.bool),
    }
    policy = get_model(tree)
    assert policy(forward_type="sft", batch=batch)["loss"].isfinite()
    assert policy.inputs(batch)["images"].shape == (2, 2, 3, 28, 28)


@pytest.mark.parametrize("model_type", ["openvla", "openvla_oft"])
def test_sft_alone_changes_images_at_random(model_type: str):
    own = {**TINY["openvla"], "center_crop": True}
    tree = {key: value for key, value in TINY.items() if key != "openvla"} | {"model_type": model_type}
    torch.manual_seed(0)
    plain = get_model({**tree, model_type: own})
    changing = get_model({**tree, model_type: {**own, "augment": {"hue": 0.1}}})
    changing.load_state_dict(plain.state_dict())
    batch = {
        "main_images": torch.randint(0, 256, (3, 40, 40, 3), dtype=torch.uint8),
        "task_descriptions": ["push"] * 3,
        "actions": torch.zeros(3, 1, 3),
        "action_is_pad": torch.zeros(3, 1, dtype=torch.bool),
    }

    def loss(policy: torch.nn.Module, seed: int) -> float:
        torch.manual_seed(seed)
        return policy(forward_type="sft", batch=batch)["loss"].item()

    for policy in (plain, changing):
        policy.train()
    assert loss(changing, 0) == loss(changing, 0) != loss(changing, 1)
    assert loss(plain, 0) == loss(plain, 1) != loss(changing, 0)
    # What acts, what RL learns from and what validates sees the middle of the image as it is.
    assert torch.equal(changing.inputs(batch)["images"], plain.inputs(batch)["images"])
    assert loss(changing.eval(), 0) == loss(plain.eval(), 1)
