"""The kit of dataset formats: a correct format passes it, each broken one fails the test of its law alone."""

from __future__ import annotations

import inspect
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from rlinf.data.formats import BUILTIN
from rlinf.testing import DatasetTests, LawBroken, RankPool, Support

MUTANTS = Path(__file__).parent / "mutants"
sys.path.insert(0, str(MUTANTS))

from rlinf_mutants.datasets import FORMATS  # noqa: E402 - its folder was just put on the path

TESTS = [name for name, _ in inspect.getmembers(DatasetTests) if name.startswith("test_")]


pytestmark = pytest.mark.usefixtures("mutants_on_path")


def kit(name: str, **attributes: object) -> DatasetTests:
    return type("TestFormat", (DatasetTests,), {"spec": FORMATS[name][0], **attributes})()


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_fails_the_test_of_its_law(name: str, two_ranks: RankPool, tmp_path: Path) -> None:
    failed = {}
    for number, test in enumerate(TESTS):
        folder = tmp_path / str(number)
        folder.mkdir()
        wanted = inspect.signature(getattr(DatasetTests, test)).parameters
        given = {"two_ranks": two_ranks, "tmp_path": folder}
        try:
            getattr(kit(name), test)(**{key: given[key] for key in wanted if key in given})
        except LawBroken as error:
            failed[test] = str(error)
    assert set(failed) == {FORMATS[name][1]} - {""}, "\n".join(failed.values())


def test_every_law_is_broken_by_a_format() -> None:
    assert {breaks for _, breaks, _ in FORMATS.values()} - {""} == set(TESTS) - {
        "test_declared_gaps_are_gaps"
    }


@pytest.mark.skipif(not find_spec("pyarrow") or not find_spec("av"), reason="needs rlinf-core[data]")
class TestLerobot(DatasetTests):
    """The core's own format."""

    spec = BUILTIN[0]
    unread = {"meta/stats.json": "rlinf computes the statistics of what a model takes itself"}


def test_wrong_declarations_fail() -> None:
    for name, found in (("writer", "but DatasetFormatSpec.writer is"), ("reader", "no capability 'reader'")):
        with pytest.raises(LawBroken, match=found):
            kit("Correct", supports={name: Support.no("a guess")}).test_declared_gaps_are_gaps()
