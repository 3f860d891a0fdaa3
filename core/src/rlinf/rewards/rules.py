"""Rewards that are rules: pure functions of an answer and its prompt."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pydantic import Field, field_validator

from rlinf.config.patterns import compiled, with_group
from rlinf.config.schema import Block
from rlinf.plugins import resolve_attr
from rlinf.rewards.base import Answer, Reward, RewardError


class ExactMatchOptions(Block):
    """Equality with the reference."""

    strip: bool = Field(default=True, description="Ignore white space around both.")
    ignore_case: bool = Field(default=False, description="Take upper and lower case as equal.")


class RegexOptions(Block):
    """A regular expression, for formats."""

    pattern: str = Field(description="Python regular expression that the whole answer must match.")
    search: bool = Field(default=False, description="Found anywhere in the answer is enough.")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        compiled(value)
        return value


class NumericOptions(Block):
    """The number that an answer ends on."""

    tolerance: float = Field(default=1e-6, ge=0, description="Largest difference that counts as equal.")
    pattern: str | None = Field(
        default=None,
        description="Regular expression whose first group is the number; null: the last number there is.",
    )

    @field_validator("pattern")
    @classmethod
    def _has_a_group(cls, value: str | None) -> str | None:
        return None if value is None else with_group(value, "the number")


class LengthOptions(Block):
    """A penalty on length, as in DAPO (Yu et al. 2025, arXiv:2503.14476, equation 13)."""

    free: int = Field(ge=0, description="Tokens that cost nothing.")
    limit: int = Field(ge=1, description="Tokens from which on the score is -1; linear between the two.")

    @field_validator("limit")
    @classmethod
    def _above_free(cls, value: int, info: object) -> int:
        free = getattr(info, "data", {}).get("free", 0)
        if value <= free:
            raise ValueError(f"expected more than free ({free}), got {value}")
        return value


class PythonOptions(Block):
    """A function of the user's."""

    function: str = Field(
        description="'module:attr' of f(answers: Sequence[rlinf.rewards.Answer]) -> Sequence[float]."
    )


def exact_match(options: ExactMatchOptions) -> Reward:
    """1 where the answer is the reference, else 0."""

    def normal(text: str) -> str:
        text = text.strip() if options.strip else text
        return text.casefold() if options.ignore_case else text

    def reward(answers: Sequence[Answer]) -> list[float]:
        return [float(normal(a.text) == normal(_reference("exact_match", a))) for a in answers]

    return reward


def regex(options: RegexOptions) -> Reward:
    """1 where the answer matches the pattern, else 0."""
    pattern = re.compile(options.pattern, re.DOTALL)
    matches = pattern.search if options.search else pattern.fullmatch

    def reward(answers: Sequence[Answer]) -> list[float]:
        return [float(matches(answer.text) is not None) for answer in answers]

    return reward


#: A decimal number: sign, digits with or without commas in groups of three, fraction, exponent.
_NUMBER = re.compile(r"[-+]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?")


def number_in(text: str, pattern: str | None = None) -> float | None:
    """The number that the pattern's last match captures, or the last number of the text; None without one."""
    found = re.findall(pattern, text) if pattern else _NUMBER.findall(text)
    if not found:
        return None
    last = found[-1] if isinstance(found[-1], str) else found[-1][0]
    try:
        return float(last.replace(",", ""))
    except ValueError:
        return None


def numeric(options: NumericOptions) -> Reward:
    """1 where the answer's number is the reference's, else 0; an answer without a number gets 0.

    Raises RewardError when a reference holds no number.
    """

    def reward(answers: Sequence[Answer]) -> list[float]:
        scores = []
        for answer in answers:
            reference = _reference("numeric", answer)
            right = number_in(reference)
            if right is None:
                raise RewardError(
                    f"reward 'numeric': the reference {reference!r} of {answer.prompt!r} is no number"
                )
            given = number_in(answer.text, options.pattern)
            scores.append(float(given is not None and abs(given - right) <= options.tolerance))
        return scores

    return reward


def length(options: LengthOptions) -> Reward:
    """0 up to `free` tokens, falling to -1 at `limit`."""
    span = options.limit - options.free

    def reward(answers: Sequence[Answer]) -> list[float]:
        return [-min(max(answer.tokens - options.free, 0) / span, 1.0) for answer in answers]

    return reward


def python(options: PythonOptions) -> Reward:
    """The function that the options name. Errors: `PluginLoadError` if it does not resolve."""
    function = resolve_attr(options.function, of="options.function of reward 'python'")
    if not callable(function):
        raise RewardError(f"options.function: {options.function!r} is not callable, it is {function!r}")
    return function


def _reference(rule: str, answer: Answer) -> str:
    if answer.reference is None:
        raise RewardError(
            f"reward {rule!r} compares with a reference, and the prompt {answer.prompt!r} has none: name its "
            "column with env.prompts.reference_key"
        )
    return answer.reference
