"""The conformance kit on tiny models from scratch: OpenVLA, and OFT with each of its heads."""

from __future__ import annotations

from typing import Any

import numpy as np
from openvla_tiny import TINY
from rlinf.testing import EmbodiedPolicyTests, Support


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
        "openvla_oft": {**TINY, "head": "tokens", "proprio_dim": 7, "center_crop": True, "augment": {}},
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
