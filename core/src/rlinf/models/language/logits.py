"""Logits of hidden states, with what some families do to them."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

#: Configuration keys by which some families change the output embedding's product.
_LOGIT_CHANGES: Final = ("final_logit_softcapping", "logits_scaling", "logit_scale")


def changes_logits(model: Any) -> bool:
    """Whether the logits are more than the output embedding's product."""
    config = model.config.get_text_config()
    return any(getattr(config, name, None) for name in _LOGIT_CHANGES)


def output_logits(model: Any, hidden: Tensor) -> Tensor:
    """Logits [..., V] of last hidden states [..., H]."""
    logits, config = model.get_output_embeddings()(hidden), model.config.get_text_config()
    if divisor := getattr(config, "logits_scaling", None):
        logits = logits / divisor
    if factor := getattr(config, "logit_scale", None):
        logits = logits * factor
    if cap := getattr(config, "final_logit_softcapping", None):
        logits = torch.tanh(logits / cap) * cap
    return logits
