"""The kits of rewards and of reward models: correct ones pass, each broken one fails the test of its law
alone."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from rlinf.models import ScalarRewardModelAL, ScalarRewardModelVL
from rlinf.models.reward.scalar import ScalarRewardModel
from rlinf.plugins import get_host
from rlinf.rewards import Answer
from rlinf.testing import LawBroken, RankPool, RewardModelTests, RewardTests, Support
from torch import Tensor, nn

MUTANTS = Path(__file__).parent / "mutants"
sys.path[:0] = [str(MUTANTS), str(Path(__file__).parents[1] / "unit")]

from rlinf_mutants.reward_models import MODELS, Scorer  # noqa: E402 - their folders were just put on the path
from rlinf_mutants.rewards import REWARDS  # noqa: E402
from test_language_actor import AUDIO, IMAGE, llama, qwen2_audio, qwen2_vl  # noqa: E402

pytestmark = pytest.mark.usefixtures("mutants_on_path")


def answer(text: str, reference: str | None = "12", **changes: Any) -> Answer:
    known = {"prompt": "5 + 7 =", "tokens": len(text), "truncated": False, "row": {"id": 3}}
    return Answer(**{**known, "text": text, "reference": reference, **changes})


NUMBERS = ((answer("12"), answer("14")), (answer("it is 11"), answer("7")))


def laws_of(kit: type) -> list[str]:
    return [name for name, _ in inspect.getmembers(kit) if name.startswith("test_")]


def failures(kit: Any, **given: Any) -> dict[str, str]:
    """What each law that is broken says."""
    failed = {}
    for test in laws_of(type(kit)):
        method = getattr(kit, test)
        try:
            method(**{key: given[key] for key in inspect.signature(method).parameters if key in given})
        except LawBroken as error:
            failed[test] = str(error)
    return failed


@pytest.mark.parametrize("name", REWARDS)
def test_a_reward_fails_the_test_of_its_law(name: str, two_ranks: RankPool) -> None:
    spec, breaks, _ = REWARDS[name]
    kit = type("TestReward", (RewardTests,), {"spec": spec, "pairs": NUMBERS})()
    failed = failures(kit, two_ranks=two_ranks)
    assert set(failed) == {breaks} - {""}, "\n".join(failed.values())


class ScorerTests(RewardModelTests):
    """The kit on the models of `rlinf_mutants.reward_models`."""

    kind: ClassVar[type[Scorer]]

    def build(self, **options: Any) -> nn.Module:
        return self.kind(**options)

    def rows(self) -> tuple[Tensor, Tensor]:
        ids = torch.tensor([[5, 6, 7, 8, 9], [11, 4, 2, 0, 0], [20, 21, 22, 23, 0]])
        return ids, (ids > 0).long()

    def inputs(self, sequences: Tensor, rows: slice) -> dict[str, Tensor]:
        return {"sound": torch.linspace(-1, 1, 12).reshape(3, 4)[rows]}


@pytest.mark.parametrize("name", MODELS)
def test_a_reward_model_fails_the_test_of_its_law(name: str, tmp_path: Path) -> None:
    kind, breaks, _ = MODELS[name]
    failed = failures(type("TestScorer", (ScorerTests,), {"kind": kind})(), tmp_path=tmp_path)
    assert set(failed) == {breaks} - {""}, "\n".join(failed.values())


def test_every_law_is_broken_by_one() -> None:
    assert {breaks for _, breaks, _ in REWARDS.values()} - {""} == set(laws_of(RewardTests))
    assert {breaks for _, breaks, _ in MODELS.values()} - {""} == set(laws_of(RewardModelTests)) - {
        "test_declared_gaps_are_gaps"
    }


def test_wrong_declarations_fail() -> None:
    for name, found in (("lora", "but it works"), ("speed", "no capability 'speed'")):
        kit = type("TestScorer", (ScorerTests,), {"kind": Scorer, "supports": {name: Support.no("a guess")}})
        with pytest.raises(LawBroken, match=found):
            kit().test_declared_gaps_are_gaps()


# The core's own ------------------------------------------------------------------------------------------


class TestExactMatch(RewardTests):
    spec = get_host().reward_spec("exact_match")
    pairs = ((answer("12 "), answer("13")), (answer("12"), answer("the answer is 12")))


class TestNumeric(RewardTests):
    spec = get_host().reward_spec("numeric")
    pairs = ((answer("so 1,200", "1200"), answer("1,2", "1200")), (answer("12.0"), answer("twelve")))


class TestRegex(RewardTests):
    spec = get_host().reward_spec("regex")
    options = {"pattern": r"<answer>.*</answer>"}
    pairs = (
        (answer("<answer>1</answer>"), answer("1")),
        (answer("<answer>\n</answer>"), answer("<answer>")),
    )


class TestLength(RewardTests):
    spec = get_host().reward_spec("length")
    options = {"free": 4, "limit": 8}
    pairs = ((answer("12"), answer("1234567")), (answer("1" * 6), answer("1" * 7)))


class TestPython(RewardTests):
    spec = get_host().reward_spec("python")
    options = {"function": "rlinf_mutants.rewards:all_closeness"}
    pairs = NUMBERS


def test_every_reward_of_the_core_runs_the_kit() -> None:
    from rlinf.rewards.builtin_plugin import _SPECS

    tried = {kit.spec.reward_type for kit in RewardTests.__subclasses__() if kit in globals().values()}
    # Its scores are those of a checkpoint on a Ray cluster: the models run RewardModelTests below, serving
    # runs in tests/integration/test_language_run.py and test_media_run.py.
    assert tried == set(_SPECS) - {"reward_model"}


class TestScalar(RewardModelTests):
    heads = ("help", "harm")

    def build(self, **options: Any) -> nn.Module:
        return ScalarRewardModel(llama(), heads=self.heads, pooling="attention", **options)

    def rows(self) -> tuple[Tensor, Tensor]:
        ids = torch.tensor([[5, 6, 7, 8, 9], [11, 4, 3, 0, 0], [20, 21, 22, 23, 0]])
        return ids, (ids > 0).long()


class TestScalarVL(RewardModelTests):
    """An image of 2 x 2 merged patches before the text of each of two rows."""

    def build(self, **options: Any) -> nn.Module:
        return ScalarRewardModelVL(qwen2_vl(), **options)

    def rows(self) -> tuple[Tensor, Tensor]:
        ids = torch.tensor([[92, *[IMAGE] * 4, 93, 5, 6, 7, 8], [92, *[IMAGE] * 4, 93, 11, 4, 0, 0]])
        return ids, (ids > 0).long()

    def inputs(self, sequences: Tensor, rows: slice) -> dict[str, Tensor]:
        pixels = torch.randn(2, 16, 3 * 2 * 4 * 4, generator=torch.Generator().manual_seed(0))
        return {
            "pixel_values": pixels[rows].flatten(0, 1),
            "image_grid_thw": torch.tensor([[1, 4, 4], [1, 4, 4]])[rows],
            "mm_token_type_ids": (sequences == IMAGE).long(),
        }

    def text_positions(self) -> Tensor:
        return torch.tensor([6, 6])


class TestScalarAL(RewardModelTests):
    """A sound of four pieces before the text of each of two rows."""

    def build(self, **options: Any) -> nn.Module:
        return ScalarRewardModelAL(qwen2_audio(), **options)

    def rows(self) -> tuple[Tensor, Tensor]:
        ids = torch.tensor([[*[AUDIO] * 4, 5, 6, 7, 8], [*[AUDIO] * 4, 11, 4, 0, 0]])
        return ids, (ids > 0).long()

    def inputs(self, sequences: Tensor, rows: slice) -> dict[str, Tensor]:
        sounds = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0))
        return {"input_features": sounds[rows], "feature_attention_mask": torch.ones(2, 16).long()[rows]}

    def text_positions(self) -> Tensor:
        return torch.tensor([4, 4])
