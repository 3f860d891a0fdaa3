"""Models: registration, building, the policy interface, and the built-in policies.

Importing this package costs nothing: torch and what a model needs are imported when a name is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rlinf.models.factory import get_model, get_model_config_and_processor, register_model
    from rlinf.models.language.actor import ActorAL, ActorLanguage, ActorVL
    from rlinf.models.language.lora import apply_lora_configuration
    from rlinf.models.language.modality import ActorModality
    from rlinf.models.language.packing import reset_position_ids
    from rlinf.models.logprobs import log_probs_from_logits
    from rlinf.models.reward.generative import GenerativeRewardModelVL
    from rlinf.models.reward.scalar import ScalarRewardModelAL, ScalarRewardModelVL

_HOMES: Final = {
    "get_model": "factory",
    "get_model_config_and_processor": "factory",
    "register_model": "factory",
    "ActorAL": "language.actor",
    "ActorLanguage": "language.actor",
    "ActorVL": "language.actor",
    "ActorModality": "language.modality",
    "apply_lora_configuration": "language.lora",
    "reset_position_ids": "language.packing",
    "log_probs_from_logits": "logprobs",
    "GenerativeRewardModelVL": "reward.generative",
    "ScalarRewardModelAL": "reward.scalar",
    "ScalarRewardModelVL": "reward.scalar",
}

__all__ = [
    "ActorAL",
    "ActorLanguage",
    "ActorModality",
    "ActorVL",
    "GenerativeRewardModelVL",
    "ScalarRewardModelAL",
    "ScalarRewardModelVL",
    "apply_lora_configuration",
    "get_model",
    "get_model_config_and_processor",
    "log_probs_from_logits",
    "register_model",
    "reset_position_ids",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
