"""docs/conformance.md, from the tests' docstrings and the mutants'. Run this file to write it."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

PAGE = Path(__file__).parents[4] / "docs" / "conformance.md"
_HEAD = """\
# Conformance

A plugin's author subclasses `rlinf.testing.EmbodiedPolicyTests` (for a simulator `EnvironmentTests`, for a
dataset format `DatasetTests`, for a reward `RewardTests`, for a scalar reward model `RewardModelTests`):

```python title="tests/test_my_model.py"
from rlinf.testing import EmbodiedPolicyTests, Support


class TestMyModel(EmbodiedPolicyTests):
    model_config = {
        "model_type": "mlp_policy",
        "action_dim": 7,
        "num_action_chunks": 4,
        "mlp_policy": {"state_dim": 7, "hidden": [16]},
    }
    image_size = 16
    supports = {
        "image": Support.no("it looks at the state alone"),
        "instruction": Support.no("it looks at the state alone"),
    }
```

```bash
pytest -q tests
```

Each inherited test is a law. What the policy does not offer is declared in `supports`: the tests that need
it are skipped with the reason, and a declaration fails where the capability turns out to work. Further
attributes (`state_dim`, `image_size`, `env_types`, `sampling_filters`, `untrained`, ...) are described in
`rlinf.testing.subject`. `pip install "rlinf-core[testing]"` brings pytest, and with it the fixtures
`two_ranks`, `tiny_ray`, `offline` and `fake_tokenizer`. While a plugin's tests run, plugins of other
distributions are not discovered, unless pytest gets `--rlinf-all-plugins`.

This file is written by `tests/plugins/mutants/rlinf_mutants/table.py`.
"""
_MUTANTS = """\
{count} policies with one defect each (`tests/plugins/mutants`). Each fails the test that names the law it
breaks and, where laws imply each other, those listed beside it, and passes all others.
"""


def page() -> str:
    """The whole text."""
    from rlinf.testing import (
        DatasetTests,
        EmbodiedPolicyTests,
        EnvironmentTests,
        RewardModelTests,
        RewardTests,
    )

    from rlinf_mutants.datasets import FORMATS
    from rlinf_mutants.registry import load
    from rlinf_mutants.reward_models import MODELS
    from rlinf_mutants.rewards import REWARDS

    kits = {
        "policies": EmbodiedPolicyTests,
        "environments": EnvironmentTests,
        "dataset formats": DatasetTests,
        "rewards": RewardTests,
        "scalar reward models": RewardModelTests,
    }
    laws, mutants = [], []
    for what, kit in kits.items():
        rows = inspect.getmembers(kit, inspect.isfunction)
        table = [(f"`{name}`", _text(test)) for name, test in rows if name.startswith("test_")]
        laws += [f"## Laws of {what}\n", _table(("test", "law"), table), ""]
    for mutant in load().values():
        if mutant.breaks:
            also = ", ".join(f"`{name}`" for name in sorted(mutant.also))
            implied = f"{also}: {mutant.because}" if also else ""
            mutants.append((f"`{mutant.name}`", _text(mutant.policy), f"`{mutant.breaks}`", implied))
    others = []
    for what, broken in {
        "dataset formats": FORMATS,
        "rewards": REWARDS,
        "scalar reward models": MODELS,
    }.items():
        rows = [(f"`{name}`", wrong, f"`{test}`") for name, (_, test, wrong) in broken.items() if test]
        others += [f"\n{len(rows)} {what} with one defect each, caught by that test alone:\n"]
        others += [_table(("", "defect", "caught by"), rows)]
    return "\n".join(
        [
            _HEAD,
            *laws,
            "## Mutants\n",
            _MUTANTS.format(count=len(mutants)),
            _table(("mutant", "defect", "caught by", "fails as well, because"), mutants),
            *others,
            "",
        ]
    )


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(documented: object) -> str:
    return " ".join(inspect.getdoc(documented).split())  # type: ignore[union-attr]


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    PAGE.write_text(page(), encoding="utf-8")
