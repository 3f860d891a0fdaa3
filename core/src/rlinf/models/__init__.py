"""Models: registration, building, the policy interface, and the built-in policies.

Importing this package costs nothing: torch and what a model needs are imported when one is built.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlinf.models.factory import get_model, get_model_config_and_processor, register_model

__all__ = ["get_model", "get_model_config_and_processor", "register_model"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rlinf.models import factory

    return getattr(factory, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
