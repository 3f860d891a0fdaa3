"""Checkpoint layouts: openpi's, transformers' (`PI0ForConditionalGeneration`) and LeRobot's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from torch import Tensor

#: PaliGemma's output layer is its embedding; openpi's files hold it under this name alone.
TIED: Final = "paligemma_with_expert.paligemma.lm_head.weight"
EMBEDDING: Final = "paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"
#: In openpi's files, and used by nothing: the action expert has no vocabulary.
DEAD: Final = "paligemma_with_expert.gemma_expert.lm_head.weight"


def from_openpi(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """openpi's names -> the network's."""
    own = dict(state)
    own.pop(DEAD, None)
    tied = own.pop(TIED, None)
    if tied is not None:
        own.setdefault(EMBEDDING, tied)
    return own
