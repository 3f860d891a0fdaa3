"""Rewards: rules, their options, and the contract."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from rlinf.plugins import PluginError, RewardSpec, get_host
from rlinf.rewards import Answer, RewardConfig, RewardError, build_reward, check_scores


def answer(text: str, reference: str | None = "12", tokens: int = 3) -> Answer:
    return Answer(prompt="5+7=", text=text, reference=reference, tokens=tokens, truncated=False)


def scores(kind: str, texts: list[str], **options: Any) -> list[float]:
    reward = build_reward(RewardConfig(type=kind, options=options))
    return list(reward([answer(text) for text in texts]))


def test_exact_match_ignores_what_it_is_told_to() -> None:
    assert scores("exact_match", ["12", " 12\n", "1 2", "12.0", ""]) == [1, 1, 0, 0, 0]
    assert scores("exact_match", [" 12"], strip=False) == [0]


def test_regex_matches_the_whole_answer_or_a_part() -> None:
    assert scores("regex", ["<a>12</a>", "x<a>1</a>", "12"], pattern=r"<a>.*</a>") == [1, 0, 0]
    assert scores("regex", ["x<a>1</a>"], pattern=r"<a>.*</a>", search=True) == [1]


@pytest.mark.parametrize(
    ("text", "right"),
    [("12", 1), ("so 5+7 is 12.", 1), ("12.0", 1), ("1.2e1", 1), ("13", 0), ("none", 0), ("12 or 13", 0),
     ("-12", 0), ("", 0)],
)  # fmt: skip
def test_numeric_takes_the_last_number(text: str, right: int) -> None:
    assert scores("numeric", [text]) == [right]


def test_numeric_reads_groups_of_thousands_and_patterns() -> None:
    reward = build_reward(RewardConfig(type="numeric", options={"pattern": r"answer: (\S+)"}))
    given = Answer(prompt="", text="answer: 1,200 (or 7)", reference="1200", tokens=1, truncated=False)
    assert list(reward([given])) == [1]


def test_length_falls_linearly_between_its_bounds() -> None:
    reward = build_reward(RewardConfig(type="length", options={"free": 4, "limit": 8}))
    assert list(reward([answer("", tokens=n) for n in (1, 4, 6, 8, 99)])) == [0, 0, -0.5, -1, -1]


def parity(answers: list[Answer]) -> list[float]:
    return [float(len(a.text) % 2) for a in answers]


def test_a_function_of_the_users_is_a_reward() -> None:
    assert scores("python", ["1", "12"], function=f"{__name__}:parity") == [1, 0]
    with pytest.raises(PluginError, match="has no attribute 'nothing'"):
        scores("python", ["1"], function=f"{__name__}:nothing")


def test_a_rule_without_a_reference_says_which_key_names_it() -> None:
    for kind in ("exact_match", "numeric"):
        with pytest.raises(RewardError, match=r"env\.prompts\.reference_key"):
            build_reward(RewardConfig(type=kind))([answer("1", reference=None)])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"type": "regex", "options": {"pattern": "("}}, "no regular expression"),
        ({"type": "regex"}, "pattern"),
        ({"type": "exact_match", "options": {"stripp": True}}, "strip"),
        ({"type": "length", "options": {"free": 4, "limit": 4}}, "more than free"),
        ({"type": "numeric", "options": {"pattern": "a"}}, "no group"),
    ],
)
def test_wrong_options_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RewardConfig.model_validate(config)


def test_an_unknown_reward_names_the_closest() -> None:
    with pytest.raises(ValidationError, match="Did you mean 'exact_match'"):
        RewardConfig(type="exact_mach")


def test_scores_must_be_finite_and_as_many_as_answers() -> None:
    given = [answer("1"), answer("2")]
    assert check_scores("mine", [1, 0.5], given) == [1.0, 0.5]
    with pytest.raises(RewardError, match="1 scores for 2 answers"):
        check_scores("mine", [1.0], given)
    with pytest.raises(RewardError, match=r"nan.*'2'"):
        check_scores("mine", [1.0, float("nan")], given)


def test_rewards_join_a_plan() -> None:
    plan = get_host().plan(rewards=["exact_match"])
    assert plan.names("rlinf.rewards") == ("exact_match",)
    spec = get_host().reward_spec("exact_match")
    assert isinstance(spec, RewardSpec) and callable(get_host().resolve(spec, "builder"))
