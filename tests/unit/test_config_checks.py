"""Combinations of values, placement, and the shape of the schema itself."""

from __future__ import annotations

import pytest
from rlinf.config import Config, check_placement, checks, parse_placement
from rlinf.config.checks import cross_check
from rlinf.config.validate import all_keys
from rlinf.data import seeds

BASE = {
    "runner": {"max_steps": 2},
    "env": {"env_type": "tabletop", "num_envs": 8, "steps_per_rollout": 8},
    "model": {"model_type": "demo", "num_action_chunks": 2},
    "actor": {"micro_batch_size": 4, "global_batch_size": 8},
}
GRPO = [
    "algorithm.adv_type=grpo",
    "algorithm.loss_type=actor",
    "algorithm.group_size=4",
    "env.auto_reset=False",
]


def make(*changes: str) -> Config:
    """BASE with `key=python literal or text` changes, not cross-checked."""
    data = {block: dict(values) for block, values in BASE.items()}
    for change in changes:
        key, _, text = change.partition("=")
        *blocks, last = key.split(".")
        node = data
        for block in blocks:
            node = node.setdefault(block, {})
        try:
            node[last] = eval(text, {})
        except (NameError, SyntaxError):
            node[last] = text
    return Config.model_validate(data)


def blamed(*changes: str) -> dict[str, str]:
    return {p.key: p.message for p in cross_check(make(*changes), lambda path: None)}


@pytest.mark.parametrize(
    "changes",
    [
        [],
        GRPO,
        [*GRPO, "algorithm.filter_rewards={'lower': 0.1, 'upper': 0.9}", "algorithm.gamma=1.0"],
        ["algorithm.adv_type=reinforce++", "algorithm.loss_type=actor", "algorithm.gamma=0.5"],
        ["algorithm.logprob_type=token_level"],
        ["algorithm.reward_type=action_level", "model.num_action_chunks=1"],
        ["sft={'max_steps': 3, 'expert_episodes': 4, 'expert_noise': 0.1}"],
        ["sft={'max_steps': 3}", "data.train_data_paths=a", "runner.max_steps=0"],
        ["model.is_lora=True", "model.lora_rank=4", "model.lora_alpha=8"],
        ["cluster.component_placement={'actor,env,rollout': '0-1'}"],
    ],
)
def test_combinations_that_work(changes):
    assert blamed(*changes) == {}


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        (["env.steps_per_rollout=7"], "env.steps_per_rollout", "multiple of 2 .*nearest: 6 or 8"),
        (["env.num_envs=7"], "env.num_envs", "multiple of 2 .*1 env processes x 2 pipeline_stages"),
        (["env.num_envs=4", *GRPO], "env.num_envs", "group_size 4.*nearest: 8"),
        (["actor.micro_batch_size=3"], "actor.global_batch_size", "multiple of 3 "),
        (
            ["cluster.component_placement={'actor': '0-2', 'env,rollout': 0}"],
            "actor.global_batch_size",
            "multiple of 12 .3 actor processes",
        ),
        (["actor.global_batch_size=12"], "actor.global_batch_size", "divisor of the 32 samples"),
        (["actor.global_batch_size=64"], "actor.global_batch_size", "divisor of the 32 samples"),
        (["algorithm.adv_type=grpo"], "algorithm.group_size", "expected > 1; got 1"),
        ([*GRPO, "env.auto_reset=True"], "env.auto_reset", "expected false"),
        ([*GRPO, "algorithm.loss_type=actor_critic"], "algorithm.loss_type", "expected actor;"),
        (["algorithm.loss_type=actor"], "algorithm.loss_type", "expected actor_critic;"),
        (["model.add_value_head=False"], "model.add_value_head", "expected true"),
        (
            ["algorithm.filter_rewards={'lower': 0, 'upper': 1}"],
            "algorithm.filter_rewards",
            "group_size is 1",
        ),
        (
            [*GRPO, "algorithm.filter_rewards={'lower': 0.9, 'upper': 0.1}"],
            "algorithm.filter_rewards.lower",
            "lower <= upper",
        ),
        (["algorithm.reward_type=action_level"], "algorithm.reward_type", "expected chunk_level"),
        ([*GRPO, "algorithm.reward_type=action_level"], "algorithm.reward_type", "one ratio per chunk"),
        (["sft={'max_steps': 3}"], "sft", "no data"),
        (["data.train_data_paths=a", "data.weights=[1, 2]"], "data.weights", "each of the 1"),
        (["data.train_data_paths=['a', 'b']", "data.weights=[0, 0]"], "data.weights", "positive"),
        (["runner.max_steps=0"], "runner.max_steps", "nothing to train"),
        (["cluster.num_nodes=2"], "cluster.num_nodes", "cluster.address"),
        (["cluster.component_placement={'actor': 0}"], "cluster.component_placement", "env and rollout"),
        (["env.eval.seed=2**31 - 100"], "env.eval.seed", "reach into the seeds of training"),
        (
            ["cluster.component_placement={'actor,env': 0, 'rollout': '0-2'}"],
            "cluster.component_placement.rollout",
            "3 rollout processes share 2 groups",
        ),
    ],
)
def test_combinations_that_cannot_work(changes, key, words):
    import re

    found = blamed(*changes)
    assert key in found
    assert re.search(words, found[key]), found[key]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ([*GRPO, "algorithm.value_clip=0.1"], "algorithm.value_clip"),
        ([*GRPO, "algorithm.huber_delta=1.0"], "algorithm.huber_delta"),
        ([*GRPO, "algorithm.value_coef=1.0"], "algorithm.value_coef"),
        ([*GRPO, "algorithm.gae_lambda=0.5"], "algorithm.gae_lambda"),
        ([*GRPO, "algorithm.gamma=0.5"], "algorithm.gamma"),
        ([*GRPO, "model.add_value_head=False", "actor.optim.value_lr=0.1"], "actor.optim.value_lr"),
        (["model.lora_rank=4"], "model.lora_rank"),
        (["model.lora_alpha=4"], "model.lora_alpha"),
        (["model.lora_dropout=0.1"], "model.lora_dropout"),
        (["sft={'max_steps': 3, 'expert_noise': 0.1}", "data.train_data_paths=a"], "sft.expert_noise"),
    ],
)
def test_keys_that_cannot_act_are_refused(changes, key):
    found = blamed(*changes)
    assert list(found) == [key]
    assert "cannot act" in found[key] and f"~{key}" in found[key]


@pytest.mark.parametrize(
    ("mapping", "placed"),
    [
        ({"actor,env,rollout": "0-3"}, ((0, 1, 2, 3),) * 3),
        ({"actor": "0-1", "env": 2, "rollout": "3"}, ((0, 1), (2,), (3,))),
        ({"rollout , env": "5, 7-8", "actor": "0"}, ((0,), (5, 7, 8), (5, 7, 8))),
    ],
)
def test_placements(mapping, placed):
    found = [tuple(place for (place,) in p.processes) for p in parse_placement(mapping).values()]
    assert tuple(found) == placed
    assert tuple(parse_placement(mapping)) == ("actor", "env", "rollout")


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"actor,env": 0}, "no place for rollout"),
        ({"actor,env,rollout,critic": 0}, "unknown component 'critic'"),
        ({"actor,env,rollout": 0, "env": 1}, "placed twice"),
        ({"actor,env,rollout": "3-1"}, "empty"),
        ({"actor,env,rollout": "0,0-1"}, "given twice"),
        ({"actor,env,rollout": "0-1-2"}, "expected ranks"),
        ({"actor,env,rollout": "-1"}, "expected ranks"),
        ({"actor,env,rollout": ""}, "expected ranks"),
        ({"actor,env,rollout": "all"}, "expected ranks"),
        ({"actor,env,rollout": True}, "expected ranks"),
        ({"actor,env,rollout": "0-999999999"}, "too large"),
    ],
)
def test_placements_that_are_none(mapping, words):
    with pytest.raises(ValueError, match=words):
        parse_placement(mapping)


def test_a_placement_that_asks_for_more_than_there_is():
    config = make("cluster.component_placement={'actor': '0-3', 'env': '1', 'rollout': '0,2'}")
    assert [p.key for p in check_placement(config, available=3)] == ["cluster.component_placement.actor"]
    assert (
        "rank 3 asks for 4 places; this cluster has 3 (0-2)"
        in check_placement(config, available=3)[0].message
    )
    assert check_placement(config, available=4) == []


def test_held_out_seeds_end_where_those_of_training_begin():
    assert checks.TRAINING_SEEDS == seeds.TRAINING_BIT


def test_every_key_is_described():
    bare = [key for key, field in all_keys(Config).items() if "." in key and not field.description]
    assert bare == []
