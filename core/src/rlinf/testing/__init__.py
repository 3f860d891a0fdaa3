"""The conformance kit: what a plugin's author subclasses in tests of their own.

    from rlinf.testing import EmbodiedPolicyTests

    class TestMyModel(EmbodiedPolicyTests):
        model_config = {"model_type": "my_model", "action_dim": 7, "num_action_chunks": 4, "my_model": {...}}

Installed with rlinf-core is also a pytest plugin (`rlinf.testing.pytest_plugin`) with fixtures and options.
Importing this package is light; each name below imports what it needs when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlinf.testing.dataset import DatasetTests
    from rlinf.testing.environment import EnvironmentTests
    from rlinf.testing.law import LawBroken
    from rlinf.testing.policy import EmbodiedPolicyTests
    from rlinf.testing.ranks import RankError, RankPool
    from rlinf.testing.reward import RewardTests
    from rlinf.testing.reward_model import RewardModelTests
    from rlinf.testing.support import Support

_HOME = {
    "DatasetTests": "dataset",
    "EmbodiedPolicyTests": "policy",
    "EnvironmentTests": "environment",
    "LawBroken": "law",
    "RankError": "ranks",
    "RankPool": "ranks",
    "RewardModelTests": "reward_model",
    "RewardTests": "reward",
    "Support": "support",
}

__all__ = [
    "DatasetTests",
    "EmbodiedPolicyTests",
    "EnvironmentTests",
    "LawBroken",
    "RankError",
    "RankPool",
    "RewardModelTests",
    "RewardTests",
    "Support",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
