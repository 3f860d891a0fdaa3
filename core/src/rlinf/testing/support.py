"""Declarations of what a plugin does not offer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: Capabilities that a policy may declare not to have, and what each means.
CAPABILITIES: Final = {
    "rl": "default_forward: log-probabilities of recorded actions",
    "sft": "sft_forward: an imitation loss",
    "values": "state values, recorded and recomputed",
    "entropy": "default_forward returns the entropy of what predict_action_batch samples from",
    "image": "the image changes the action",
    "state": "the state changes the action",
    "instruction": "the instruction changes the action",
    "bf16": "weights in bfloat16",
    "lora": "low-rank adapters",
    "fsdp": "one optimizer step on two ranks equals that of one",
}


@dataclass(frozen=True)
class Support:
    """The statement that a capability is missing; what is not declared is expected to work.

    Use `supports = {"lora": Support.no("one layer, nothing to adapt")}`.
    """

    reason: str

    @staticmethod
    def no(reason: str) -> Support:
        """The capability is missing, and this is why. Raises ValueError for an empty reason."""
        if not reason.strip():
            raise ValueError("Support.no: say why, the reason is what the skipped tests show")
        return Support(reason)
