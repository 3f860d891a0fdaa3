"""Mutated keys, values and files: a configuration or a ConfigError that says where, never a crash."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from fuzzing import fuzz
from rlinf.config import Config, ConfigError, load_config, parse_placement
from rlinf.config.validate import all_keys

NASTY = (
    "", "null", "true", "-1", "0", "1e400", "-.inf", ".nan", "1.5", "1_000", "0x1F", "9" * 30, "9" * 5000,
    "'5'", "[]", "[[]]", "{}", "{a: 1}", "[1, {b: null}]", "text", "ünï", "'\\ud800'", '"\\ud800"',
    "${runner.seed}", "${a", "${}", "${.}", "${..}", "${${runner.seed}}", "${oc.env:RLINF_NOT_SET}",
    "${oc.decode:'{'}", "$", "\\${a}", "???", "&a [*a]", "*a", "!!binary x", "!x y", "!!set {a}",
    "2020-01-01", "1:30", "{", "]", ":", "%", "@", "`", "a: b", "- a", "\t", "\n", "\x00", "a\nb: c", "#",
    "'", '"', "<<: {a: 1}", "0-3", "0-", "-", "3-1",
)  # fmt: skip


def build(cfg, torch_dtype):
    raise AssertionError("nothing is built")


@pytest.fixture(autouse=True)
def model(own_host):
    own_host.register_model("free", build)


def attempt(path: Path | str, overrides: list[str]) -> bool:
    """Whether it loads; a refusal is checked for what it must say."""
    try:
        config = load_config(path, overrides)
    except ConfigError as error:
        assert error.problems
        for problem in error.problems:
            text = str(problem)
            assert problem.message and len(text) < 2000, text
            assert problem.key or problem.origin, text
            assert not any(word in text for word in ("pydantic", "https://", "Traceback", "input_type=")), (
                text
            )
        return False
    parse_placement(config.cluster.component_placement)
    assert Config.model_validate(config.model_dump(mode="json")) == config
    return True


def mutate(rng: random.Random, text: str) -> str:
    """One slip of the hand: a character dropped, doubled, swapped or replaced."""
    i = rng.randrange(max(1, len(text)))
    return rng.choice(
        (
            text[:i] + text[i + 1 :],
            text[:i] + text[i : i + 1] * 2 + text[i + 1 :],
            text[:i] + text[i + 1 : i + 2] + text[i : i + 1] + text[i + 2 :],
            text[:i] + rng.choice("aZ0_.-:{}[]$&*!#'\"\t\n ") + text[i + 1 :],
        )
    )


def test_overrides():
    keys = [
        *all_keys(Config),
        "model.free",
        "model.tiny_vla.x",
        "env.tabletop",
        "actor.model.precision",
        "fsdp_config",
    ]
    outcomes = []

    def check(rng):
        key = rng.choice(keys)
        if rng.random() < 0.3:
            key = mutate(rng, key)
        text = f"{key}={rng.choice(NASTY)}"
        outcomes.append(attempt("tabletop_ppo", ["model.model_type=free", text]))

    fuzz(check, 300)
    assert any(outcomes) and not all(outcomes)


@pytest.mark.parametrize("value", NASTY)
def test_each_nasty_value_in_a_number_a_text_a_mapping_and_an_open_block(value):
    for key in ("actor.optim.lr", "runner.output_dir", "env", "model.free", "cluster.component_placement"):
        attempt("tabletop_ppo", ["model.model_type=free", f"{key}={value}"])


def test_files(tmp_path):
    folder = Path(__file__).parents[2] / "core/src/rlinf/config/configs"
    good = (folder / "metaworld_ppo.yaml").read_text().replace("model_type: tiny_vla", "model_type: free")
    path, outcomes = tmp_path / "run.yaml", []

    def check(rng):
        text = good
        for _ in range(rng.randint(1, 3)):
            text = mutate(rng, text)
        path.write_text(text)
        outcomes.append(attempt(path, []))

    fuzz(check, 180)
    assert any(outcomes) and not all(outcomes)
