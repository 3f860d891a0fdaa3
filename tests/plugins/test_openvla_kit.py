"""The conformance kit on tiny models from scratch: OpenVLA, and OFT with each of its heads."""

from __future__ import annotations

from typing import Any

import numpy as np
from rlinf.testing import EmbodiedPolicyTests, Support

TINY: dict[str, Any] = {
    "vocab_size": 640,
    "hidden_size": 32,
    "llm": {
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    },
    "vision_towers": [
        {"depth": 2, "dim": 16, "heads": 2, "mlp_hidden": 32, "registers": 2, "layer_scale": True},
        {"depth": 2, "dim": 16, "heads": 2, "mlp_hidden": 32},
    ],
    "image_size": [28, 28],
    "tokenizer": "bytes",
    "max_prompt_tokens": 96,
    "value_hidden": [16],
}


class TestOpenvla(EmbodiedPolicyTests):
    model_config = {"model_type": "openvla", "action_dim": 3, "num_action_chunks": 2, "openvla": TINY}
    image_size = 28
    overfit_lr = 1e-2
    sampling_filters = {"openvla": {"temperature": 1.6, "top_k": 7}}
    env_types = ("libero", "calvin", "isaaclab")
    supports = {"state": Support.no("OpenVLA reads images and the instruction")}


class TestOftTokens(EmbodiedPolicyTests):
    model_config = {
        "model_type": "openvla_oft",
        "action_dim": 3,
        "num_action_chunks": 2,
        "openvla_oft": {**TINY, "head": "tokens", "proprio_dim": 7},
    }
    image_size = 28
    overfit_lr = 1e-2
    sampling_filters = {"openvla_oft": {"temperature": 1.6, "top_k": 7}}


class TestOftContinuous(EmbodiedPolicyTests):
    model_config = {
        "model_type": "openvla_oft",
        "action_dim": 3,
        "num_action_chunks": 2,
        "openvla_oft": {**TINY, "proprio_dim": 7, "cameras": ["main_images", "wrist_images"]},
    }
    image_size = 28
    overfit_lr = 1e-2

    def observation(self, batch: int = 4, seed: int = 0) -> dict[str, Any]:
        obs = super().observation(batch, seed)
        rng = np.random.default_rng(seed + 100)
        return {**obs, "wrist_images": rng.integers(0, 256, obs["main_images"].shape, dtype=np.uint8)}
