"""Combinations that cannot work, refused before anything starts. Pure functions of a `Config`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rlinf.config.errors import Problem
from rlinf.config.nodes import Path, dotted
from rlinf.config.patterns import compiled
from rlinf.config.placement import Places, parse_placement, parse_ranks
from rlinf.config.schema import Config
from rlinf.config.validate import Locate, field_at

#: Training episodes have seeds from here on (`rlinf.data.seeds`), held-out ones below.
TRAINING_SEEDS: Final = 1 << 31
#: What a check yields: the key that is to blame first, and what is wrong in one or two sentences.
Finding = tuple[str, str]


def cross_check(config: Config, locate: Locate) -> list[Problem]:
    """All that a configuration of valid blocks combines in a way that cannot work."""
    findings: list[Finding] = []
    try:
        placement = parse_placement(config.cluster.component_placement, config.components)
    except ValueError as error:
        findings.append(("cluster.component_placement", str(error)))
    else:
        findings += _batches(config, len(placement["actor"]))
        if config.has_simulator:
            findings += _sizes(config, {name: len(places) for name, places in placement.items()})
        findings += _groups(config, placement)
    rl = (_episodes, _algorithm) if config.has_simulator else (_simulator,)
    for check in (_cluster, *rl, _sft, _inert):
        findings += check(config)
    return [Problem(key=key, message=text, origin=locate(_path(key))) for key, text in findings]


def check_placement(config: Config, available: int) -> list[Problem]:
    """A placement that asks for more accelerators (or CPU cores) than the cluster's `available` ones."""
    placement = parse_placement(config.cluster.component_placement, config.components)
    return [
        Problem(
            key=f"cluster.component_placement.{name}",
            message=f"rank {places.last} asks for {places.last + 1} places; this cluster has {available}"
            + (f" (0-{available - 1})" if available > 1 else ""),
        )
        for name, places in placement.items()
        if places.last >= available
    ]


def _path(key: str) -> Path:
    return tuple(key.split("."))


def _divides(key: str, value: int, by: int, meaning: str) -> Iterator[Finding]:
    """One finding when `value` is not a multiple of `by`, with the nearest values that are."""
    if value % by:
        below, above = value - value % by, value - value % by + by
        nearest = f"{below} or {above}" if below else f"{above}"
        yield key, f"expected a multiple of {by} ({meaning}); got {value}; the nearest: {nearest}"


def _batches(config: Config, ranks: int) -> Iterator[Finding]:
    """The trainers' batch on this number of ranks."""
    yield from _divides(
        "actor.global_batch_size",
        config.actor.global_batch_size,
        ranks * config.actor.micro_batch_size,
        f"{ranks} actor processes x actor.micro_batch_size",
    )


def _sizes(config: Config, processes: dict[str, int]) -> Iterator[Finding]:
    """Sizes of the simulation that must divide one another, given the number of processes of each
    component."""
    env, actor, stages = config.env, config.actor, config.rollout.pipeline_stages
    chunk, group = config.model.num_action_chunks, config.algorithm.group_size
    yield from _divides("env.steps_per_rollout", env.steps_per_rollout, chunk, "model.num_action_chunks")
    parts = processes["env"] * stages
    if env.num_envs % (parts * group):
        meaning = f"{processes['env']} env processes x {stages} pipeline_stages"
        if group > 1:
            meaning += f" x group_size {group}: a group shares one process and stage"
        yield from _divides("env.num_envs", env.num_envs, parts * group, meaning)
    if env.steps_per_rollout % chunk == 0:
        samples = env.num_envs * env.steps_per_rollout // chunk
        if samples % actor.global_batch_size:
            yield (
                "actor.global_batch_size",
                f"expected a divisor of the {samples} samples of one rollout (num_envs x steps_per_rollout / "
                f"num_action_chunks); got {actor.global_batch_size}",
            )
    if processes["rollout"] > parts:
        yield (
            "cluster.component_placement.rollout",
            f"{processes['rollout']} rollout processes share {parts} groups of environments "
            f"({processes['env']} env processes x {stages} pipeline_stages): some would have nothing to do",
        )


def _cluster(config: Config) -> Iterator[Finding]:
    if config.cluster.num_nodes > 1 and config.cluster.address is None:
        yield (
            "cluster.num_nodes",
            f"{config.cluster.num_nodes} nodes need cluster.address: without it a Ray of one node is started",
        )


def _groups(config: Config, placement: dict[str, Places]) -> Iterator[Finding]:
    """Node groups that say nothing, or are used and not declared; trainer ranks of several accelerators."""
    cluster = config.cluster
    labels = [group.label for group in cluster.node_groups]
    for number, group in enumerate(cluster.node_groups):
        key = f"cluster.node_groups.{number}"
        if labels.count(group.label) > 1:
            yield key, f"the label {group.label!r} is given twice"
        if group.node_ranks is None and not group.ray_labels:
            yield key, f"the group {group.label!r} needs node_ranks or ray_labels: which nodes are in it?"
        elif group.node_ranks is not None:
            try:
                last = max(parse_ranks(group.node_ranks))
            except ValueError as error:
                yield f"{key}.node_ranks", str(error)
                continue
            if last >= cluster.num_nodes:
                yield f"{key}.node_ranks", f"node {last} is none of the {cluster.num_nodes} of num_nodes"
    for name, places in placement.items():
        if places.node_group and places.node_group not in labels:
            known = ", ".join(labels) or "none"
            yield (
                "cluster.component_placement",
                f"{name}: there is no node group {places.node_group!r}; known: {known}",
            )
        if name == "actor" and any(len(process) > 1 for process in places.processes):
            yield (
                "cluster.component_placement",
                "actor: a trainer rank works on one accelerator; expected one process per place, such as 0-3",
            )


def _simulator(config: Config) -> Iterator[Finding]:
    """Without a simulator: what needs one."""
    sft = config.sft
    if config.runner.max_steps:
        yield (
            "env",
            f"is missing: runner.max_steps {config.runner.max_steps} asks for reinforcement learning, which "
            "needs a simulator; with runner.max_steps 0 `rlinf sft` trains on datasets alone",
        )
    elif sft is None:
        yield "sft", "is missing: without a simulator there is only supervised fine-tuning"
    elif sft.expert_episodes:
        yield "sft.expert_episodes", f"needs the block env; expected 0; got {sft.expert_episodes}"
    elif sft.eval_interval:
        yield "sft.eval_interval", f"needs the block env; expected 0; got {sft.eval_interval}"


def _episodes(config: Config) -> Iterator[Finding]:
    if config.runner.max_steps == 0 and config.sft is None:
        yield "runner.max_steps", "0 without an sft block leaves nothing to train"
    held_out = config.env.eval
    if held_out.seed + held_out.num_episodes > TRAINING_SEEDS:
        yield (
            "env.eval.seed",
            f"held-out episodes {held_out.seed}..{held_out.seed + held_out.num_episodes - 1} reach into the "
            f"seeds of training, which begin at {TRAINING_SEEDS}",
        )


def _algorithm(config: Config) -> Iterator[Finding]:
    a, model = config.algorithm, config.model
    if a.adv_type == "grpo":
        if a.group_size == 1:
            yield "algorithm.group_size", "adv_type grpo compares the members of a group: expected > 1; got 1"
        if config.env.auto_reset:
            yield "env.auto_reset", "adv_type grpo scores one episode per slot: expected false; got true"
    if a.adv_type != "gae" and a.loss_type == "actor_critic":
        yield (
            "algorithm.loss_type",
            f"adv_type {a.adv_type} makes no value targets: expected actor; got actor_critic",
        )
    if a.adv_type == "gae" and a.loss_type == "actor":
        yield "algorithm.loss_type", "adv_type gae needs a trained critic: expected actor_critic; got actor"
    if a.loss_type == "actor_critic" and not model.add_value_head:
        yield "model.add_value_head", "loss_type actor_critic trains a value head: expected true; got false"
    if a.filter_rewards is not None:
        if a.group_size == 1:
            yield "algorithm.filter_rewards", "filters whole groups, and group_size is 1: there are no groups"
        if a.filter_rewards.lower > a.filter_rewards.upper:
            yield "algorithm.filter_rewards.lower", "expected lower <= upper; nothing would be kept"
    if model.num_action_chunks > 1 and a.reward_type == "action_level" and a.logprob_type == "chunk_level":
        yield (
            "algorithm.reward_type",
            "logprob_type chunk_level has one ratio per chunk: expected chunk_level; got action_level",
        )


def _sft(config: Config) -> Iterator[Finding]:
    sft = config.sft
    data = config.data
    if sft is not None and not data.train_data_paths and sft.expert_episodes == 0:
        yield "sft", "has no data: give data.train_data_paths or sft.expert_episodes"
    if sft is not None and sft.val_interval and not data.val_fraction:
        yield "sft.val_interval", "needs held-out episodes: expected data.val_fraction > 0; got 0"
    for pattern, factor in config.actor.optim.lr_scale.items():
        try:
            compiled(pattern)
        except ValueError as error:
            yield "actor.optim.lr_scale", str(error)
        if factor <= 0:
            yield "actor.optim.lr_scale", f"expected factors > 0; got {factor} for {pattern!r}"
    if data.weights is not None:
        if len(data.weights) != len(data.train_data_paths):
            yield (
                "data.weights",
                f"expected a weight for each of the {len(data.train_data_paths)} data.train_data_paths; got "
                f"{len(data.weights)}",
            )
        if min(data.weights, default=1) < 0 or sum(data.weights) <= 0:
            yield "data.weights", f"expected weights >= 0 of which one is positive; got {data.weights}"


def _inert(config: Config) -> Iterator[Finding]:
    """Keys that are set to something and cannot act because of another key."""
    a, sft = config.algorithm, config.sft
    groups: list[tuple[bool, str, tuple[str, ...]]] = [
        (
            a.loss_type == "actor",
            "algorithm.loss_type is actor",
            (
                "algorithm.value_clip",
                "algorithm.huber_delta",
                "algorithm.value_coef",
                "algorithm.critic_warmup_steps",
            ),
        ),
        (a.adv_type != "gae", f"algorithm.adv_type is {a.adv_type}", ("algorithm.gae_lambda",)),
        (a.adv_type != "grpo", f"algorithm.adv_type is {a.adv_type}", ("algorithm.group_scores",)),
        (a.adv_type == "grpo" and a.gamma != 1, "algorithm.adv_type is grpo", ("algorithm.gamma",)),
        (
            not config.model.is_lora,
            "model.is_lora is false",
            (
                "model.lora_rank",
                "model.lora_alpha",
                "model.lora_dropout",
                "model.lora_path",
                "actor.optim.non_lora_lr",
            ),
        ),
        (
            not config.model.is_lora and sft is not None,
            "model.is_lora is false",
            ("sft.non_lora_lr",),
        ),
        (
            not config.model.add_value_head,
            "there is no value head (model.add_value_head is false)",
            ("actor.optim.value_lr",),
        ),
        (
            config.rollout.max_staleness == 0,
            "rollout.max_staleness is 0",
            ("algorithm.behavior_weight_cap", "rollout.interruptible"),
        ),
        (
            sft is not None and sft.expert_episodes == 0,
            "sft.expert_episodes is 0",
            ("sft.expert_noise",),
        ),
        (
            sft is not None and sft.lr_schedule == "constant",
            "sft.lr_schedule is constant",
            ("sft.lr_min_ratio",),
        ),
        (
            sft is not None and sft.val_interval == 0,
            "sft.val_interval is 0",
            ("sft.val_samples", "data.val_fraction"),
        ),
    ]
    for applies, why, keys in groups:
        for key in keys if applies else ():
            value, default = _value(config, key), _default(key)
            if value != default:
                yield key, f"cannot act: {why}. Take it away (~{key}) or leave it at its default {default}"


def _value(config: Config, key: str) -> object:
    value: object = config
    for step in key.split("."):
        value = getattr(value, step)
    return value


def _default(key: str) -> object:
    field = field_at(Config, _path(key))
    assert field is not None, dotted(_path(key))
    return field.get_default(call_default_factory=True)
