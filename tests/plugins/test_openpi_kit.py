"""The conformance kit on tiny pi0 and pi0.5."""

from __future__ import annotations

from typing import Any

import numpy as np
from rlinf.testing import EmbodiedPolicyTests

TINY: dict[str, Any] = {
    "vision": {"width": 16, "depth": 1, "mlp_dim": 16, "num_heads": 2, "patch_size": 14, "image_size": 28},
    "vlm": {"width": 32, "mlp_dim": 32},
    "expert": {"width": 24, "mlp_dim": 32},
    "depth": 2,
    "num_heads": 4,
    "head_dim": 8,
    "vocab_size": 512,
}
#: The last prefix layer serves its keys and values alone, unless the value head reads its output.
PREFIX_END = {
    r"paligemma_with_expert\.paligemma\.model\.language_model\.(norm\..*|layers\.1\.(post_attention_layernorm"
    r"|mlp|self_attn\.[qo]_proj).*)": "nothing reads the language model's output"
}


def tiny(config_name: str, **options: Any) -> dict[str, Any]:
    """A block `model` for the policy of a data configuration."""
    return {
        "model_type": "openpi",
        "action_dim": 7,
        "num_action_chunks": 3,
        "lora_rank": 2,
        "openpi": {
            "config_name": config_name,
            "architecture": TINY,
            "max_action_dim": 8,
            "action_horizon": 4,
            "num_steps": 3,
            "value_hidden": [16],
            **options,
        },
    }


class Openpi(EmbodiedPolicyTests):
    image_size = 20
    env_types = ("maniskill", "calvin", "polaris", "d4rl")
    untrained = PREFIX_END
    overfit_lr = 1e-2


class TestPi0(Openpi):
    """flow_sde; the value head reads the expert; a wrist camera and a state token."""

    model_config = tiny("pi0_libero")

    def observation(self, batch: int = 4, seed: int = 0) -> dict[str, Any]:
        obs = super().observation(batch, seed)
        rng = np.random.default_rng(seed + 1)
        return {**obs, "wrist_images": rng.integers(0, 256, obs["main_images"].shape, dtype=np.uint8)}


class TestPi05(Openpi):
    """flow_noise: every step explores; the state is in the prompt."""

    model_config = tiny("pi05_tabletop", noise_method="flow_noise")
