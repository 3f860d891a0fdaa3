"""The conformance kit of rewards for answers in text, rules and models alike."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from rlinf.plugins import RewardSpec, resolve_attr
from rlinf.rewards.base import Answer, Reward, RewardError, check_scores, validate_options
from rlinf.testing.law import broken, law, require
from rlinf.testing.ranks import RankError
from rlinf.testing.support import Support

#: Texts that policies write sooner or later.
_STRANGE = ("", " \n\t", "\x00\u200b", "نعم 是 🙂", "7" * 400, "a b " * 5000, "(((", "<answer></answer>")


class RewardTests:
    """Subclass this in a test module; each inherited test is a law of `rlinf.rewards.Reward`.

    Set `spec`, the `options` that it needs, and `pairs`.
    """

    #: The reward, as the hook `rlinf_reward_spec` returns it.
    spec: ClassVar[RewardSpec]
    options: ClassVar[Mapping[str, Any]] = {}
    #: (better, worse): two answers each, of which the first must score higher. Two pairs or more.
    pairs: ClassVar[Sequence[tuple[Answer, Answer]]]
    #: By how much scores may differ with the batch around an answer: rounding, for models.
    atol: ClassVar[float] = 0.0
    #: Nothing can be declared missing.
    supports: ClassVar[Mapping[str, Support]] = {}

    def reward(self) -> Reward:
        return build(self.spec, self.options)

    def answers(self) -> list[Answer]:
        """The pairs in one row, copied: better, worse, better, ..."""
        return copy.deepcopy([answer for pair in self.pairs for answer in pair])

    def scores(self, answers: Sequence[Answer], reward: Reward | None = None) -> list[float]:
        """Scores that are as many as answers, and finite; otherwise the running test fails."""
        try:
            return check_scores(self.spec.reward_type, (reward or self.reward())(answers), answers)
        except RewardError as error:
            broken(str(error))

    @law(cause="scores are computed per prompt or group, or a text without an answer gives NaN")
    def test_an_answer_gets_a_score(self) -> None:
        """There are as many scores as answers, each a finite number; none for no answers."""
        require(len(self.pairs) > 1, f"`pairs` holds {len(self.pairs)}; two or more are needed")
        self.scores(self.answers())
        none = list(self.reward()([]))
        require(not none, f"no answers get the scores {none}")

    @law(cause="the sign, or two texts that were mixed up")
    def test_better_answers_score_higher(self) -> None:
        """The first answer of each of `pairs` scores higher than the second."""
        scores = self.scores(self.answers())
        for number, (better, worse) in enumerate(zip(scores[::2], scores[1::2])):
            first, second = (answer.text for answer in self.pairs[number])
            require(better > worse, f"{first!r} gets {better:g}, {second!r} gets {worse:g}")

    @law(cause="scores are normalised over the batch, sorted, or shared by answers to one prompt; or padding")
    def test_answers_are_judged_by_themselves(self) -> None:
        """Neither the other answers of a call nor their order change an answer's score."""
        answers = self.answers()
        scores = self.scores(answers)
        backwards = self.scores(answers[::-1])[::-1]
        alone = [self.scores([answer])[0] for answer in answers]
        for answer, *found in zip(answers, scores, backwards, alone):
            gap = max(found) - min(found)
            require(
                gap <= self.atol,
                f"{answer.text!r} gets {found[0]:g}, {found[1]:g} in reverse order, {found[2]:g} alone",
            )

    @law(cause="running statistics, a cache by position, dropout, or a draw from a global generator")
    def test_judging_again_gives_the_same(self) -> None:
        """One reward gives the same scores for the same answers, whatever it judged in between."""
        reward, answers = self.reward(), self.answers()
        first = self.scores(answers, reward)
        self.scores(answers[:1] * 3, reward)
        again = self.scores(answers, reward)
        require(first == again, f"first {first}, then {again}")

    @law(cause="the row of the prompt is edited or kept: copy it")
    def test_answers_are_left_alone(self) -> None:
        """Judging changes neither the answers nor the rows of their prompts."""
        answers = [replace(answer, row={**answer.row, "tags": ["a", "b"]}) for answer in self.answers()]
        before = copy.deepcopy(answers)
        self.scores(answers)
        for old, new in zip(before, answers):
            require(old == new, f"{old} became {new}")

    @law(cause="int(), float(), [0] or a regular expression on a text that was taken for granted")
    def test_any_text_is_judged(self) -> None:
        """An empty, broken, foreign, very long or truncated answer gets a score too, not an exception."""
        like = self.pairs[0][1]
        for text in _STRANGE:
            answer = replace(like, text=text, tokens=len(text), truncated=True)
            try:
                self.scores([answer])
            except (ValueError, TypeError, IndexError, AttributeError, KeyError, ArithmeticError) as error:
                broken(f"{text[:40]!r}: {type(error).__name__}: {error}")

    @law(cause="None is compared or formatted as if it were the right answer")
    def test_a_missing_reference_is_named(self) -> None:
        """Without a reference the scores are the same, or there is a `RewardError` that holds the prompt."""
        reward, answers = self.reward(), self.answers()
        with_reference = self.scores(answers, reward)
        without = [replace(answer, reference=None) for answer in answers]
        try:
            scores = list(reward(without))
        except RewardError as error:
            require(answers[0].prompt in str(error), f"the message does not say which prompt: {error}")
        except Exception as error:
            broken(f"{type(error).__name__}: {error}")
        else:
            require(scores == with_reference, f"{with_reference} became {scores}")

    @law(cause="the schema has extra='allow': derive it from rlinf.config.schema.Block")
    def test_unknown_options_are_refused(self) -> None:
        """An option that does not exist is a ValueError that names it."""
        try:
            build(self.spec, {**self.options, "no_such_option": 1})
        except ValueError as error:
            require("no_such_option" in str(error), f"the message does not name it: {error}")
        else:
            broken("no_such_option = 1 is accepted")

    @law(cause="module state, hash() of a text, or something that only the process which set it up has")
    def test_names_build_the_reward_in_another_process(self, two_ranks: Callable[..., list[Any]]) -> None:
        """A spawned process that builds the reward from its spec and options gives the same scores."""
        own = self.scores(self.answers())
        try:
            theirs = two_ranks(judge, self.spec, dict(self.options), self.answers())
        except RankError as error:
            broken(str(error))
        for rank, scores in enumerate(theirs):
            gap = max(abs(a - b) for a, b in zip(own, scores, strict=True))
            require(gap <= self.atol, f"here {own}, in process {rank} {scores}")


def build(spec: RewardSpec, options: Mapping[str, Any]) -> Reward:
    """The reward of a spec that need not be registered. Raises ValueError for options that do not fit."""
    schema = None if spec.config_schema is None else resolve_attr(spec.config_schema)
    return resolve_attr(spec.builder)(validate_options(spec.reward_type, schema, options))


def judge(spec: RewardSpec, options: Mapping[str, Any], answers: Sequence[Answer]) -> list[float]:
    """In another process: build and score."""
    return [float(score) for score in build(spec, options)(answers)]
