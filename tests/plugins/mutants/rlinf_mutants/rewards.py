"""A correct reward, and rewards with one defect each: `RewardTests` catches them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence

from pydantic import BaseModel, ConfigDict
from rlinf.plugins import RewardSpec
from rlinf.rewards import Answer, Reward, RewardError

#: Name -> (spec, the test that fails, what is wrong).
REWARDS: dict[str, tuple[RewardSpec, str, str]] = {}


class AnyOptions(BaseModel):
    """A schema that takes whatever it is given."""

    model_config = ConfigDict(extra="allow")


def _reward(
    breaks: str = "", wrong: str = "", schema: str | None = None
) -> Callable[[Callable[[], Reward]], Callable[[], Reward]]:
    def add(make: Callable[[], Reward]) -> Callable[[], Reward]:
        name = make.__name__
        spec = RewardSpec(reward_type=name, builder=f"{__name__}:{name}_of", config_schema=schema)
        REWARDS[name] = (spec, breaks, wrong)
        globals()[f"{name}_of"] = lambda options: make()
        return make

    return add


def closeness(answer: Answer) -> float:
    """1 / (1 + distance) of the answer's number to the reference; 0 without a number."""
    if answer.reference is None:
        raise RewardError(f"the prompt {answer.prompt!r} has no reference")
    found = re.search(r"-?\d+", answer.text)
    return 0.0 if found is None else 1 / (1 + abs(int(found[0]) - int(answer.reference)))


def all_closeness(answers: Sequence[Answer]) -> list[float]:
    """The correct reward, as a function that a configuration may name."""
    return [closeness(answer) for answer in answers]


@_reward()
def correct() -> Reward:
    return all_closeness


@_reward("test_an_answer_gets_a_score", "no answers get a score of 0")
def something_for_nothing() -> Reward:
    return lambda answers: [closeness(answer) for answer in answers] or [0.0]


@_reward("test_better_answers_score_higher", "the score is the distance")
def distance() -> Reward:
    return lambda answers: [-closeness(answer) for answer in answers]


@_reward("test_answers_are_judged_by_themselves", "scores are centred over the call")
def centred() -> Reward:
    def reward(answers: Sequence[Answer]) -> list[float]:
        scores = [closeness(answer) for answer in answers]
        return [score - sum(scores) / len(scores) for score in scores]

    return reward


@_reward("test_judging_again_gives_the_same", "each call scores a little higher")
def drifting() -> Reward:
    calls: list[int] = []

    def reward(answers: Sequence[Answer]) -> list[float]:
        scores = [closeness(answer) + 0.001 * len(calls) for answer in answers]
        calls.append(len(answers))
        return scores

    return reward


@_reward("test_answers_are_left_alone", "the row's list is sorted in place")
def sorts_tags() -> Reward:
    def reward(answers: Sequence[Answer]) -> list[float]:
        for answer in answers:
            answer.row.get("tags", []).sort(reverse=True)
        return [closeness(answer) for answer in answers]

    return reward


@_reward("test_any_text_is_judged", "a text without a number is an IndexError")
def expects_a_number() -> Reward:
    return lambda answers: [re.findall(r"-?\d+", a.text)[0] and closeness(a) for a in answers]


@_reward("test_any_text_is_judged", "a text without a number gets NaN")
def not_a_number() -> Reward:
    return lambda answers: [closeness(a) if re.search(r"\d", a.text) else float("nan") for a in answers]


@_reward("test_a_missing_reference_is_named", "a missing reference counts as 0")
def zero_reference() -> Reward:
    return lambda answers: [
        closeness(Answer(**{**vars(answer), "reference": answer.reference or "0"})) for answer in answers
    ]


@_reward("test_unknown_options_are_refused", "any option is accepted", f"{__name__}:AnyOptions")
def takes_any_option() -> Reward:
    return correct()


@_reward("test_names_build_the_reward_in_another_process", "the score depends on the process")
def of_the_process() -> Reward:
    is_ours = os.environ.get("RLINF_MUTANT_HOME") == str(os.getpid())
    return lambda answers: [closeness(answer) + (not is_ours) for answer in answers]
