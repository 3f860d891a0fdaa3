"""Each broken policy fails the test of the law that it breaks, and those that follow from it, no other."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Install
from rlinf.testing import EmbodiedPolicyTests, LawBroken, RankPool

MUTANTS = Path(__file__).parent / "mutants"
sys.path.insert(0, str(MUTANTS))

from rlinf_mutants.registry import Mutant, load  # noqa: E402 - its folder was just put on the path
from rlinf_mutants.table import PAGE, page  # noqa: E402

TESTS = {name: test for name, test in inspect.getmembers(EmbodiedPolicyTests) if name.startswith("test_")}


def kit_of(mutant: Mutant) -> EmbodiedPolicyTests:
    """The subclass that an author of this policy would write."""
    attributes = {
        "model_config": {"model_type": mutant.model_type, "action_dim": 3, "num_action_chunks": 2},
        "state_dim": 3,
        "image_size": 16,
        "overfit_lr": 0.03,
        "overfit_steps": 12,
        **mutant.kit,
    }
    return type("TestMutant", (EmbodiedPolicyTests,), attributes)()


def failures(kit: EmbodiedPolicyTests, fixtures: dict[str, Any]) -> dict[str, Exception]:
    """Runs the tests of the kit one by one; {name: error} of those that fail."""
    failed: dict[str, Exception] = {}
    for name, test in TESTS.items():
        wanted = [argument for argument in inspect.signature(test).parameters if argument != "self"]
        try:
            getattr(kit, name)(**{argument: fixtures[argument] for argument in wanted})
        except pytest.skip.Exception:
            continue
        except Exception as error:  # a policy may fail with whatever it likes
            failed[name] = error
    return failed


@pytest.fixture(scope="module", autouse=True)
def installed(install_editable: Install) -> Iterator[None]:
    install_editable("rlinf-mutants", dict.fromkeys(load(), "rlinf_mutants.plugin"), MUTANTS)
    yield
    sys.path.remove(str(MUTANTS))


@pytest.mark.parametrize("mutant", load().values(), ids=lambda mutant: mutant.name)
def test_mutant_fails_the_test_of_its_law(mutant: Mutant, two_ranks: RankPool, tmp_path: Path) -> None:
    failed = failures(kit_of(mutant), {"two_ranks": two_ranks, "tmp_path": tmp_path})
    expected = {mutant.breaks, *mutant.also} - {""}
    shown = "\n".join(f"{name}: {error}" for name, error in failed.items())
    assert set(failed) == expected, shown
    broken = {name: error for name, error in failed.items() if isinstance(error, LawBroken)}
    for name, error in broken.items():
        assert str(error).startswith(name) and "\n  found: " in str(error), str(error)
        assert "\n  law: " in str(error) and "\n  usual cause: " in str(error)


def test_parameters_that_no_loss_trains_can_be_declared() -> None:
    kit = kit_of(load()["mutant_detached_state"])
    kit.untrained = {r"state\..*": "the state's encoder is kept for its checkpoint"}
    kit.test_gradient_reaches_every_trainable_parameter()


def test_every_law_is_broken_by_a_mutant() -> None:
    assert {mutant.breaks for mutant in load().values()} - {""} == set(TESTS)


def test_the_documentation_has_this_table() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), f"run python {MUTANTS}/rlinf_mutants/table.py"
