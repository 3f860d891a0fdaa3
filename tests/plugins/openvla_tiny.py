"""The smallest OpenVLA that has all parts: what the tests of the plugin build from scratch."""

from __future__ import annotations

from typing import Any

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
    "tokenizer": "words",
    "max_prompt_tokens": 96,
    "value_hidden": [16],
}
