"""Composition, overrides, aliases, interpolation, and what the errors say."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field
from rlinf.config import Config, ConfigError, load, load_config, parse_placement, plugin_subtree
from rlinf.config.compose import shipped_names
from rlinf.config.show import render
from rlinf.plugins import get_host

MINIMAL = """\
runner:
  max_steps: 2
env:
  env_type: tabletop
  num_envs: 8
  steps_per_rollout: 8
model:
  model_type: demo
actor:
  micro_batch_size: 4
  global_batch_size: 8
"""


class Inner(BaseModel):
    width: int = 8


class DemoConfig(BaseModel):
    """A plugin's schema that does not say what to do with unknown keys (pydantic would drop them)."""

    depth: int = Field(default=2, ge=1, description="Layers.")
    inner: Inner = Inner()
    shape: tuple[int, int] = (1, 1)


class OpenConfig(BaseModel):
    model_config = ConfigDict(extra="allow")


def build(cfg, torch_dtype):
    raise AssertionError("a configuration is validated without building anything")


@pytest.fixture(autouse=True)
def plugins(own_host):
    own_host.register_model("demo", build, config_schema=DemoConfig)
    own_host.register_model("open", build, config_schema=OpenConfig)
    own_host.register_model("free", build)


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def _write(text: str, name: str = "run.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return _write


def problems(path, *overrides):
    """{key: problem} of a configuration that must not load."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return {problem.key: problem for problem in caught.value.problems}


def test_minimal_file_has_the_defaults(write):
    config = load_config(write(MINIMAL))
    assert config.runner.max_steps == 2
    assert config.algorithm.adv_type == "gae"
    assert Config.model_validate(config.model_dump(mode="json")) == config


def test_config_is_immutable(write):
    config = load_config(write(MINIMAL))
    with pytest.raises(ValueError, match="frozen"):
        config.runner.seed = 3


# -- composition ------------------------------------------------------------------------------------
def test_bases_are_merged_in_order_and_the_file_wins(write):
    write(
        "runner: {seed: 1, eval_interval: 1, save_interval: 1}\n"
        + MINIMAL.partition("\n")[2].partition("\n")[2],
        "bases/first.yaml",
    )
    write("runner: {max_steps: 7, eval_interval: 2, save_interval: 2, loggers: []}\n", "bases/second.yaml")
    main = write("defaults: [bases/first, bases/second.yaml]\nrunner: {save_interval: 3}\n")
    runner = load_config(main).runner
    assert (runner.seed, runner.eval_interval, runner.save_interval, runner.loggers) == (1, 2, 3, [])


def test_lists_are_replaced_and_null_removes_a_block(write):
    write(MINIMAL + "sft: {max_steps: 3, expert_episodes: 2}\nplugins: {deny: [a, b]}\n", "base.yaml")
    config = load_config(write("defaults: [base]\nsft: null\nplugins: {deny: [c]}\n"))
    assert config.sft is None
    assert config.plugins.deny == ["c"]


def test_a_file_may_build_on_a_shipped_configuration(write):
    main = write("defaults: [tabletop_ppo]\nmodel: {model_type: demo}\nrunner: {seed: 4}\n")
    assert load_config(main).runner.seed == 4


def test_a_cycle_of_bases_is_named(write):
    write("defaults: [b]\n", "a.yaml")
    write("# one line before\ndefaults: [a]\n", "b.yaml")
    found = problems(Path("a.yaml"))["defaults"]
    assert "a.yaml -> b.yaml -> a.yaml" in found.message
    assert str(found.origin) == "b.yaml:2"


def test_a_base_that_does_not_exist(write):
    found = problems(write("defaults:\n  - tabletop_pop\n"))["defaults"]
    assert found.hint == "did you mean tabletop_ppo?"
    assert str(found.origin) == "run.yaml:2"
    assert "no such file" in problems(write("defaults: [x/y.yaml]"))["defaults"].message
    assert "list" in problems(write("defaults: {a: b}"))["defaults"].message


def test_a_name_that_does_not_exist():
    found = problems("tabletop_pppo")[""]
    assert "tabletop_grpo" in found.message and found.hint == "did you mean tabletop_ppo?"


@pytest.mark.parametrize("name", shipped_names())
def test_shipped_configurations_are_valid(name):
    """With the plugin of these tests in the model's place, where it plays simulators."""
    # The checkpoint of a reward model, which another run makes.
    override = ["env.prompts.rewards=[{type: exact_match}]"] if name == "language_grpo_reward_model" else []
    if load_config(name, override).env.env_type not in ("prompts", "preferences"):
        override = ["model.model_type=free"]
    assert load_config(name, override).sft is not None


# -- overrides --------------------------------------------------------------------------------------
def test_overrides_are_yaml_and_the_last_wins(write):
    config = load_config(
        write(MINIMAL),
        [
            "actor.optim.lr=1e-4",
            "actor.optim.lr=2e-4",
            "plugins.deny=[a, b]",
            "actor.optim.betas=[0.8, 0.9]",
            "runner.report=false",
            "algorithm.value_clip=null",
            "runner.output_dir=runs/a=b",
        ],
    )
    assert config.actor.optim.lr == 2e-4
    assert config.actor.optim.betas == (0.8, 0.9)
    assert config.plugins.deny == ["a", "b"]
    assert config.runner.report is False
    assert config.algorithm.value_clip is None
    assert config.runner.output_dir == Path("runs/a=b")


def test_tilde_takes_a_key_away(write):
    path = write(MINIMAL + "algorithm: {gamma: 0.5}\n")
    assert load_config(path, ["~algorithm.gamma"]).algorithm.gamma == 0.99
    assert "nothing to take away" in problems(path, "~algorithm.gae_lambda")["algorithm.gae_lambda"].message


@pytest.mark.parametrize("text", ["foo", "=3", "a..b=1", "~a=1", "", " ", "a b=1"])
def test_malformed_overrides(write, text):
    found = problems(write(MINIMAL), text)[""]
    assert "expected key.path=value" in found.message
    assert repr(text) in str(found.origin)


def test_an_override_cannot_reach_into_a_list(write):
    found = problems(write(MINIMAL + "plugins: {deny: [a]}\n"), "plugins.deny.0=b")["plugins.deny.0"]
    assert "plugins.deny=[...]" in found.message


# -- aliases and interpolation ----------------------------------------------------------------------
def test_aliases_of_the_field(write):
    text = MINIMAL.replace("model:\n  model_type: demo\n", "").replace(
        "actor:\n", "actor:\n  model: {model_type: demo}\n"
    )
    text += "fsdp_config:\n  wrap_policy:\n    no_split_names: [value_head]\n"
    config = load_config(write(text), ["actor.model.is_lora=true", "actor.model.lora_rank=8"])
    assert (config.model.model_type, config.model.lora_rank) == ("demo", 8)
    assert config.actor.fsdp_config.wrap_policy.no_split_names == ["value_head"]


def test_alias_and_canonical_key_may_agree_but_not_differ(write):
    same = MINIMAL + "  model: {model_type: demo}\n"
    assert load_config(write(same)).model.model_type == "demo"
    found = problems(write(MINIMAL + "  model: {model_type: free}\n"))["model.model_type"]
    assert "demo" in found.message and "actor.model.model_type (run.yaml:12)" in found.message
    assert str(found.origin) == "run.yaml:8"


def test_an_alias_in_a_file_goes_over_the_base(write):
    write(MINIMAL, "base.yaml")
    assert (
        load_config(write("defaults: [base]\nactor: {model: {model_type: free}}\n")).model.model_type
        == "free"
    )


def test_interpolation_sees_defaults_aliases_and_overrides(write):
    path = write(MINIMAL + "algorithm: {update_epoch: '${actor.model.num_action_chunks}'}\nsft: null\n")
    config = load_config(
        path,
        [
            "model.num_action_chunks=4",
            "env.eval.seed=${env.eval.num_episodes}",
            "runner.output_dir=r/${runner.seed}",
        ],
    )
    assert config.algorithm.update_epoch == 4
    assert config.env.eval.seed == 128
    assert config.runner.output_dir == Path("r/0")


@pytest.mark.parametrize("text", ["${nope}", "${a", "${runner.output_dir}", "???", "${oc.env:RLINF_NOT_SET}"])
def test_interpolations_that_cannot_be_resolved(write, text):
    found = problems(write(MINIMAL), f"runner.output_dir={text}")
    assert list(found) == ["runner.output_dir"]
    assert "cannot resolve" in found["runner.output_dir"].message


# -- errors -----------------------------------------------------------------------------------------
def test_every_problem_is_reported_with_key_line_expected_and_closest_match(write):
    path = write(
        MINIMAL
        + "algorithm:\n  adv_type: gea\n  gama: 0.9\n  update_epoch: '2'\n  gamma: 1.5\nloggers: [wandb]\n"
    )
    found = problems(path, "env.num_envs=true", "runner.eval_interval=1e2", "runner.output_dir=3")
    said = {key: (str(p.origin), p.message, p.hint) for key, p in found.items()}
    assert said == {
        "algorithm.adv_type": (
            "run.yaml:13",
            "expected one of gae, grpo, reinforce++; got the text 'gea'",
            "did you mean gae?",
        ),
        "algorithm.gama": ("run.yaml:14", "unknown key", "did you mean algorithm.gamma?"),
        "algorithm.update_epoch": (
            "run.yaml:15",
            "expected a whole number; got the text '2'",
            "write it without quotes",
        ),
        "algorithm.gamma": ("run.yaml:16", "expected a number <= 1.0; got 1.5", None),
        "loggers": ("run.yaml:17", "unknown key", "did you mean runner.loggers?"),
        "env.num_envs": ("override 'env.num_envs=true'", "expected a whole number; got true", None),
        "runner.eval_interval": (
            "override 'runner.eval_interval=1e2'",
            "expected a whole number; got 100.0",
            "write 100",
        ),
        "runner.output_dir": ("override 'runner.output_dir=3'", "expected text; got 3", "write it in quotes"),
    }


def test_a_key_in_the_wrong_block_is_said_to_belong_to_the_nearest_one(write):
    found = problems(write(MINIMAL), "actor.lr=1", "sft={max_steps: 1, betas: [1, 1]}", "default=[x]")
    assert found["actor.lr"].hint == "did you mean actor.optim.lr?"
    assert found["sft.betas"].hint == "did you mean actor.optim.betas?"
    assert found["default"].hint == "did you mean defaults?"


def test_the_error_travels_between_processes(write):
    with pytest.raises(ConfigError) as caught:
        load_config(write(MINIMAL), ["a=1", "b=2"])
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value) and again.problems == caught.value.problems


def test_anchors_and_merge_keys(write):
    text = MINIMAL.replace("runner:\n", "runner: &r\n  save_interval: 5\n") + "  optim: &o {lr: 1e-4}\n"
    config = load_config(write(text + "sft:\n  <<: *o\n  max_steps: 3\n  expert_episodes: 1\n"))
    assert config.sft.lr == config.actor.optim.lr == 1e-4


def test_missing_keys_and_blocks(write):
    found = problems(write(MINIMAL.replace("  num_envs: 8\n", "").replace("runner:\n  max_steps: 2\n", "")))
    assert "is missing: Parallel training environments" in found["env.num_envs"].message
    assert str(found["env.num_envs"].origin) == "run.yaml:1"
    assert found["runner"].message.startswith("is missing")


def test_the_text_of_the_error_lists_all(write):
    with pytest.raises(ConfigError) as caught:
        load_config(write(MINIMAL), ["a=1", "b=2"])
    assert str(caught.value).splitlines()[0] == "2 problems in the configuration:"
    assert "a (override 'a=1')\n  unknown key" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb: [1,\n", 3, "not valid YAML"),
        ("a:\n  b: 1\n  b: 2\n", 3, "given twice, first in line 2"),
        ("- 1\n- 2\n", 1, "expected a mapping"),
        ("a: &x [*x]\n", 1, "contains itself"),
        ("a: !!python/object:os.system {}\n", 1, "tag !!python/object:os.system"),
        ("a: !!python/name:os.system\n", 1, "not valid YAML"),
        ("a: !!binary aGk=\n", 1, "got a bytes"),
        ("? [a]\n: 1\n", 1, "plain text"),
        ("a: 1\n\tb: 2\n", 2, "not valid YAML"),
    ],
)
def test_files_that_are_no_configuration(write, text, line, words):
    with pytest.raises(ConfigError) as caught:
        load_config(write(text))
    first = caught.value.problems[0]
    assert words in first.message
    assert first.origin.line == line


def test_a_file_that_cannot_be_read(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"a: \xff\xfe\n")
    assert "cannot be read" in problems(tmp_path / "latin.yaml")[""].message
    assert "no such file" in problems(tmp_path / "missing.yaml")[""].message


# -- plugins ----------------------------------------------------------------------------------------
def test_the_plugin_validates_its_subtree(write):
    config = load_config(write(MINIMAL), ["model.demo.inner.width=9", "model.demo.shape=[2, 3]"])
    subtree = plugin_subtree(config, "model")
    assert isinstance(subtree, DemoConfig)
    assert (subtree.depth, subtree.inner.width, subtree.shape) == (2, 9, (2, 3))
    assert plugin_subtree(Config.model_validate(config.model_dump(mode="json")), "model") == subtree


def test_flat_keys_of_published_configurations(write):
    """A plugin may name keys of its subtree that also stand beside model_type."""
    get_host().register_model("flat", build, config_schema=DemoConfig, flat_keys=("depth",))
    text = MINIMAL.replace("demo\n", "flat\n  depth: 3\n")
    assert plugin_subtree(load_config(write(text)), "model").depth == 3
    assert plugin_subtree(load_config(write(text), ["model.depth=4"]), "model").depth == 4
    assert problems(write(text), "model.bogus=1")["model.bogus"].message == "unknown key"
    found = problems(write(text), "model.flat.depth=5")["model.flat.depth"]
    assert "given twice and different: 5 here, 3 as model.depth (run.yaml:9)" in found.message
    wrong = problems(write(text.replace("depth: 3", "depth: 0")))["model.flat.depth"]
    assert (wrong.message, str(wrong.origin)) == ("expected a number >= 1; got 0", "run.yaml:9")


def test_unknown_and_wrong_keys_in_the_subtree(write):
    path = write(
        MINIMAL.replace("demo\n", "demo\n  demo:\n    dept: 3\n    inner: {with: 1}\n    depth: 0\n")
    )
    found = problems(path, "model.depth=4", "model.bogus=1", "env.tabletop.taskss=[push]")
    assert found["model.demo.dept"].hint == "did you mean model.demo.depth?"
    assert str(found["model.demo.dept"].origin) == "run.yaml:10"
    assert found["model.demo.inner.with"].hint == "did you mean model.demo.inner.width?"
    assert found["model.demo.depth"].message == "expected a number >= 1; got 0"
    assert found["model.depth"].hint == "did you mean model.demo.depth?"
    assert found["model.bogus"].message == "unknown key"
    assert found["env.tabletop.taskss"].hint == "did you mean env.tabletop.tasks?"


def test_the_subtree_of_another_installed_plugin_is_allowed_and_unread(write):
    assert load_config(write(MINIMAL), ["model.tiny_vla.anything=1"]).subtree("model") == {}


def test_keys_of_a_model_without_schema_stand_beside_model_type(write):
    config = load_config(
        write(MINIMAL), ["model.model_type=free", "model.hidden_size=4096", "model.free.unnorm_key=k"]
    )
    assert plugin_subtree(config, "model") == {"hidden_size": 4096, "unnorm_key": "k"}


def test_the_documented_example_of_adding_a_model(write):
    """The configuration file of section 3 of "Adding New Models with FSDP+HuggingFace", as written there."""
    text = MINIMAL.replace("model:\n  model_type: demo\n", "")
    text += """\
model:
  model_type: "free"
  action_token_len: 7
  action_chunks_len: 1
  unnorm_key: your_action_key
  precision: "bf16"
  vocab_size: 32000
  hidden_size: 4096
  image_size: [224, 224]
  is_lora: False
  low_cpu_mem_usage: True
  trust_remote_code: True
fsdp_config:
  wrap_policy:
    transformer_layer_cls_to_wrap:
      - "MyDecoderLayer"
    module_classes_to_wrap:
      - "MyVisionTower"
      - "MyProjector"
    no_split_names:
      - "value_head"
"""
    config = load_config(write(text))
    assert config.model.precision == "bf16"
    keys = plugin_subtree(config, "model")
    assert (keys["image_size"], keys["trust_remote_code"]) == ([224, 224], True)
    assert config.actor.fsdp_config.wrap_policy.module_classes_to_wrap == ["MyVisionTower", "MyProjector"]


def test_a_schema_may_allow_extra_keys(write):
    config = load_config(write(MINIMAL), ["model.model_type=open", "model.open.anything=1"])
    assert plugin_subtree(config, "model").anything == 1


def test_unknown_plugins_are_problems_among_others(write):
    found = problems(
        write(MINIMAL), "model.model_type=demmo", "env.env_type=tabletopp", "runner.max_steps=-1"
    )
    assert "Did you mean 'demo'?" in found["model.model_type"].message
    assert "Did you mean 'tabletop'?" in found["env.env_type"].message
    assert set(found) == {"model.model_type", "env.env_type", "runner.max_steps"}


def test_the_policy_of_the_configuration_reaches_the_host(write):
    found = problems(write(MINIMAL), "plugins.deny=[rlinf-core]")
    assert "denied" in found["env.env_type"].message
    assert "no_such" in problems(write(MINIMAL), "plugins.load=[no_such]")["plugins.load[0]"].message


# -- show -------------------------------------------------------------------------------------------
def test_what_is_shown_loads_again_as_the_same(write):
    loaded = load(
        write(MINIMAL), ["model.demo.depth=3", "cluster.component_placement={'actor,env': 0, rollout: 1}"]
    )
    again = load(write(render(loaded), "again.yaml"))
    assert again.config.model_dump(exclude={"model", "env"}) == loaded.config.model_dump(
        exclude={"model", "env"}
    )
    assert plugin_subtree(again.config, "model") == plugin_subtree(loaded.config, "model")
    assert render(again) == render(loaded)
    assert yaml.safe_load(render(loaded))["model"]["demo"] == {
        "depth": 3,
        "inner": {"width": 8},
        "shape": [1, 1],
    }


def test_origins_are_comments(write):
    write(MINIMAL, "base.yaml")
    text = render(
        load(write("defaults: [base]\nrunner:\n  seed: 3\n"), ["actor.optim.lr=1e-4"]), origins=True
    )
    origin = {line.split(":")[0].strip(): line.partition("# ")[2] for line in text.splitlines()}
    assert origin["max_steps"] == "base.yaml:2"
    assert origin["lr"] == "override 'actor.optim.lr=1e-4'"
    assert origin["gamma"] == "default"
    assert "  seed: 3" in text and "# run.yaml:3" in text


# -- placement --------------------------------------------------------------------------------------
def test_placement_of_a_later_file_replaces_single_components(write):
    write(MINIMAL + "cluster: {component_placement: {'actor,env,rollout': 0}}\n", "base.yaml")
    path = write("defaults: [base]\ncluster:\n  component_placement:\n    env: 1-2\n")
    config = load_config(path, ["cluster.component_placement.actor=0-1"])
    placed = parse_placement(config.cluster.component_placement)
    assert {name: places.processes for name, places in placed.items()} == {
        "actor": ((0,), (1,)),
        "env": ((1,), (2,)),
        "rollout": ((0,),),
    }


def test_a_placement_that_is_given_replaces_the_default(write):
    found = problems(write(MINIMAL + "cluster: {component_placement: {actor: 0}}\n"))
    assert "no place for env and rollout" in found["cluster.component_placement"].message


def test_a_component_placed_twice_in_one_file(write):
    text = MINIMAL + "cluster:\n  component_placement:\n    actor,env,rollout: 0\n    env: 1\n"
    found = problems(write(text))["cluster.component_placement.env"]
    assert found.message == "given twice" and str(found.origin) == "run.yaml:15"
