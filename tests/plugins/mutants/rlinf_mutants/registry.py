"""The mutants by name, what each breaks, and their builder."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rlinf_mutants.correct import Correct


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A policy with one defect."""

    policy: type[Correct]
    #: The test that names the broken law; "" for the correct policy.
    breaks: str
    #: Tests of laws that break with it.
    also: frozenset[str]
    #: Why they do.
    because: str
    #: Attributes of the kit's subclass.
    kit: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return re.sub(r"(?<!^)(?=[A-Z])", "_", self.policy.__name__).lower()

    @property
    def model_type(self) -> str:
        return f"mutant_{self.name}"


MUTANTS: dict[str, Mutant] = {}


def mutant(
    breaks: str, also: tuple[str, ...] = (), because: str = "", **kit: Any
) -> Callable[[type[Correct]], type[Correct]]:
    """Register a class; its docstring says what is wrong."""

    def register(policy: type[Correct]) -> type[Correct]:
        assert bool(also) == bool(because), f"{policy.__name__}: laws that break as well need a reason"
        found = Mutant(policy=policy, breaks=breaks, also=frozenset(also), because=because, kit=kit)
        MUTANTS[found.model_type] = found
        return policy

    return register


def load() -> dict[str, Mutant]:
    """All mutants, by model type."""
    from rlinf_mutants import acting, building, results, training  # noqa: F401 - they register

    return MUTANTS


def build(cfg: Any, torch_dtype: Any) -> Correct:
    """The builder of all mutants."""
    return load()[cfg.model_type].policy(cfg).to(torch_dtype)
