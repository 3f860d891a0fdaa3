"""The contract of a reward, and how the configuration names one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, Field, model_validator

from rlinf.config import ConfigError
from rlinf.config.schema import Block
from rlinf.config.validate import validate
from rlinf.plugins import RewardSpec, get_host


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a policy wrote for one prompt, and what is known about the prompt."""

    prompt: str
    text: str
    #: The right answer, where the prompts have one.
    reference: str | None
    #: Tokens of the answer, its end included.
    tokens: int
    #: Whether it was cut at the largest length.
    truncated: bool
    #: All columns of the prompt's row.
    row: Mapping[str, Any] = field(default_factory=dict)


#: Scores answers: one finite number each, in their order. Whole batches, so that a model can be one.
Reward = Callable[[Sequence[Answer]], Sequence[float]]


class RewardError(ValueError):
    """A reward cannot judge these answers: what it needs is not there, or what it gave is no score."""


class RewardConfig(Block):
    """One reward among those of a run; they are added up with their weights."""

    type: str = Field(description="Name of an entry point in the group rlinf.rewards.")
    weight: float = Field(default=1.0, description="Factor of its scores in the sum.")
    name: str | None = Field(default=None, description="Name in the metrics; null: the type.")
    options: dict[str, Any] = Field(default={}, description="What the reward itself takes.")

    @model_validator(mode="after")
    def _options_fit(self) -> RewardConfig:
        reward_options(self)
        return self

    @property
    def label(self) -> str:
        """The name in the metrics."""
        return self.name or self.type


def reward_options(config: RewardConfig) -> BaseModel | None:
    """The options as the object of the reward's schema; None for a reward without one.

    Raises:
        PluginError: there is no such reward, or it is broken.
        ValueError: the options do not fit its schema.
    """
    spec: RewardSpec = get_host().reward_spec(config.type)
    schema = None if spec.config_schema is None else get_host().resolve(spec, "config_schema")
    return validate_options(config.type, schema, config.options)


def validate_options(
    reward_type: str, schema: type[BaseModel] | None, options: Mapping[str, Any]
) -> BaseModel | None:
    """The options as an object of the schema; None where there is no schema.

    Raises ValueError that names what does not fit.
    """
    if schema is None:
        if options:
            raise ValueError(f"options: the reward {reward_type!r} takes none, got {sorted(options)}")
        return None
    found, problems = validate(schema, options, lambda path: None, ("options",))
    if problems or found is None:
        raise ValueError(f"reward {reward_type!r}: {ConfigError(problems)}")
    return found


def build_reward(config: RewardConfig) -> Reward:
    """The reward that a configuration names. Errors: `reward_options`, and what its builder raises."""
    spec: RewardSpec = get_host().reward_spec(config.type)
    return get_host().resolve(spec, "builder")(reward_options(config))


def check_scores(label: str, scores: Sequence[float], answers: Sequence[Answer]) -> list[float]:
    """The scores as floats. Raises RewardError if there are not as many as answers or one is no finite
    number."""
    if len(scores) != len(answers):
        raise RewardError(f"reward {label!r}: gave {len(scores)} scores for {len(answers)} answers")
    out = []
    for score, answer in zip(scores, answers):
        try:
            number = float(score)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise RewardError(f"reward {label!r}: gave {score!r} for the answer {answer.text[:200]!r}")
        out.append(number)
    return out
