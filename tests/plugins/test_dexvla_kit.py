"""The conformance kit on a tiny DexVLA, in each of the ways in which it is trained."""

from __future__ import annotations

from rlinf.testing import EmbodiedPolicyTests, Support

TINY = {
    "state_dim": 7,
    "vlm": {
        "text": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "vocab_size": 354,
            "rope_parameters": {"rope_theta": 1e4, "rope_type": "default", "mrope_section": [2, 3, 3]},
        },
        "vision": {"depth": 1, "embed_dim": 16, "num_heads": 2, "mlp_ratio": 2},
    },
    "system_prompt": None,
    "cameras": [{"key": "main_images", "height": 56, "width": 56}],
    "max_prompt_tokens": 96,
    "max_reasoning_tokens": 4,
    "policy_head": {"depth": 2, "width": 32, "num_heads": 2},
    "value_hidden": [16],
    "num_inference_timesteps": 5,
    "rl": {"finetuned_steps": 2},
}


class TestDexvlaFrozenVlm(EmbodiedPolicyTests):
    """RL of the action expert: the language model's hidden states are recorded."""

    model_config = {
        "model_type": "dexvla",
        "action_dim": 4,
        "num_action_chunks": 3,
        "dexvla": {**TINY, "freeze_backbone": True, "freeze_vision_tower": True},
    }
    image_size = 56
    overfit_lr = 1e-2


class TestDexvlaWhole(EmbodiedPolicyTests):
    """RL of all weights, the text included."""

    model_config = {
        "model_type": "dexvla",
        "action_dim": 4,
        "num_action_chunks": 3,
        "dexvla": {**TINY, "rl": {"finetuned_steps": 2, "train_reasoning": True, "top_k": 40}},
    }
    image_size = 56
    overfit_lr = 1e-2


class TestDexvlaStage1(EmbodiedPolicyTests):
    """ScaleDP alone."""

    model_config = {
        "model_type": "dexvla",
        "action_dim": 4,
        "num_action_chunks": 3,
        "dexvla": {**TINY, "use_vlm": False},
    }
    overfit_lr = 1e-2
    supports = {
        "image": Support.no("stage 1 sees the state alone"),
        "instruction": Support.no("stage 1 sees the state alone"),
        "lora": Support.no("LoRA adapts the language model"),
    }
