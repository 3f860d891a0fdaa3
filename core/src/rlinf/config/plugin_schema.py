"""The subtrees `model.<model_type>` and `env.<env_type>`: they are the plugins', whose schemas check them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Literal

from pydantic import BaseModel

from rlinf.config.errors import ConfigError, Problem
from rlinf.config.nodes import Path, dotted
from rlinf.config.schema import Config, EnvConfig, ModelConfig, PluginsConfig
from rlinf.config.validate import Locate, all_keys, unknown_key, validate
from rlinf.plugins import EnvSpec, ModelSpec, PluginError, PluginPolicy, configure_host, get_host
from rlinf.plugins import load_ext_module as load_extension

BlockName = Literal["model", "env"]
_SCHEMA: dict[str, type[BaseModel]] = {"model": ModelConfig, "env": EnvConfig}


def plugin_spec(block: BlockName, name: str) -> ModelSpec | EnvSpec:
    """The spec that the plugin called `name` declares. Raises PluginError."""
    host = get_host()
    return host.model_spec(name) if block == "model" else host.env_spec(name)


def plugin_schema(block: BlockName, name: str) -> type[BaseModel] | None:
    """The pydantic model of the plugin's subtree, None when it declares none. Raises PluginError."""
    spec = plugin_spec(block, name)
    if spec.config_schema is None:
        return None
    schema = get_host().resolve(spec, "config_schema")
    if not (isinstance(schema, type) and issubclass(schema, BaseModel)):
        raise PluginError(f"config_schema of {name!r}: expected a pydantic model, got {schema!r}")
    return schema


def plugin_subtree(config: Config, block: BlockName) -> BaseModel | dict[str, Any]:
    """The plugin's own part of the configuration as the object of its schema.

    Returns:
        an instance of the plugin's `config_schema`; for a plugin without one the keys themselves: those below
        `model.<model_type>` together with those beside `model_type` that the core does not know.

    Raises:
        ConfigError: the subtree does not fit the schema.
        PluginError: there is no such plugin, or it is broken.
    """
    name = config.model.model_type if block == "model" else config.env.env_type
    schema = plugin_schema(block, name)
    if schema is None:
        extra = dict(getattr(config, block).model_extra or {})
        subtree = extra.pop(name, None) or {}
        return {**extra, **subtree}
    found, problems = validate(schema, config.subtree(block), lambda path: None, (block, name))
    if problems:
        raise ConfigError(problems)
    assert found is not None
    return found


def use_plugins(plugins: PluginsConfig) -> None:
    """Give this process's plugin host the policy of the configuration; load RLINF_EXT_MODULE if it is set.

    Raises PluginError (the extension module's own traceback is in it).
    """
    policy = PluginPolicy(
        allow=None if plugins.allow is None else tuple(plugins.allow),
        deny=tuple(plugins.deny),
        override=plugins.override,
        load=tuple(plugins.load),
    )
    configure_host(policy)
    load_extension()


def check_plugins(data: dict[str, Any], locate: Locate) -> list[Problem]:
    """All that is wrong about the plugins that a composed configuration names, and about their subtrees."""
    plugins, problems = validate(PluginsConfig, data.get("plugins", {}), locate, ("plugins",))
    if plugins is None:
        return []  # its own validation has said so; what would be looked up without it is not what was meant
    try:
        use_plugins(plugins)
    except PluginError as error:
        return [Problem(key="plugins", message=str(error), origin=locate(("plugins",)))]
    for i, name in enumerate(plugins.load):
        try:
            get_host().select_any(name)
        except PluginError as error:
            where = locate(("plugins", "load", i))
            problems.append(Problem(key=f"plugins.load[{i}]", message=str(error), origin=where))
    for block, key in (("model", "model_type"), ("env", "env_type")):
        node = data.get(block)
        if isinstance(node, dict) and isinstance(node.get(key), str):
            problems += _check_block(block, key, node, locate)  # type: ignore[arg-type]
    return problems


def _check_block(block: BlockName, key: str, node: dict[str, Any], locate: Locate) -> list[Problem]:
    name = node[key]
    try:
        schema = plugin_schema(block, name)
    except PluginError as error:
        return [Problem(key=f"{block}.{key}", message=str(error), origin=locate((block, key)))]
    known = set(_SCHEMA[block].model_fields)
    extra = [k for k in node if k not in known]
    problems: list[Problem] = []
    if schema is None:
        subtree = node.get(name)
        if subtree is not None and not isinstance(subtree, dict):
            path: Path = (block, name)
            message = "expected a mapping of keys to values"
            problems.append(Problem(key=dotted(path), message=message, origin=locate(path)))
        return problems
    others = _names(block) - {name}
    siblings = sorted(known | {name})
    for k in extra:
        if k != name and k not in others:
            problems.append(_unknown(block, name, k, siblings, schema, locate))
    _, own = validate(schema, node.get(name) or {}, locate, (block, name))
    return problems + own


def _unknown(
    block: BlockName, name: str, key: str, siblings: list[str], schema: type[BaseModel], locate: Locate
) -> Problem:
    """An unknown key of the block; one that the plugin's own subtree has is said to belong there."""
    if key in schema.model_fields:
        message, hint = "unknown key", f"did you mean {block}.{name}.{key}?"
        return Problem(key=f"{block}.{key}", message=message, origin=locate((block, key)), hint=hint)
    return unknown_key((block, key), siblings, all_keys(Config), locate)


def _names(block: BlockName) -> set[str]:
    """Names that installed distributions or register_model offer for this block; nothing is imported."""
    host = get_host()
    return set(host.model_types() if block == "model" else host.env_types())


#: `ModelSpec.category` -> the environment whose episodes such models play; the others play simulators.
TEXT_ENVS: Final = {"language": "prompts", "reward": "preferences"}


def check_category(config: Config, locate: Locate) -> list[Problem]:
    """An environment and an algorithm that are not for this kind of model."""
    if not config.has_simulator:
        return []
    return [
        Problem(key=key, message=message, origin=locate(tuple(key.split("."))))
        for key, message in _category_findings(config)
    ]


def _category_findings(config: Config) -> Iterator[tuple[str, str]]:
    model, env, a = config.model, config.env, config.algorithm
    category = get_host().model_spec(model.model_type).category
    wanted = TEXT_ENVS.get(category)
    if wanted != env.env_type and (wanted or env.env_type in TEXT_ENVS.values()):
        yield "env.env_type", f"{model.model_type} plays {wanted or 'simulators'}; got {env.env_type}"
        return
    if wanted and env.runtime_env is not None:
        yield "env.runtime_env", "is for simulators: the env processes of texts need the model's code as well"
    if category == "language":
        yield from _language_findings(config)
        return
    if category == "reward" and config.runner.max_steps:
        yield "runner.max_steps", "a reward model learns from pairs (rlinf sft): expected 0"
    if model.num_action_chunks > 1 and a.reward_type == "action_level" and a.loss_type == "actor_critic":
        yield (
            "algorithm.reward_type",
            "the value head gives one value for a whole chunk: expected chunk_level; got action_level",
        )
    for key, value in (("kl_beta", a.kl_beta), ("high_entropy_fraction", a.high_entropy_fraction)):
        if value:
            yield f"algorithm.{key}", f"is for language models; {model.model_type} is none"


def _language_findings(config: Config) -> Iterator[tuple[str, str]]:
    model, env, a = config.model, config.env, config.algorithm
    if env.steps_per_rollout != model.num_action_chunks:
        yield (
            "env.steps_per_rollout",
            "an answer is one episode of model.num_action_chunks tokens: expected "
            f"{model.num_action_chunks}; got {env.steps_per_rollout}",
        )
    if env.auto_reset:
        yield "env.auto_reset", "a rollout is one answer per prompt: expected false; got true"
    if model.action_dim != 1:
        yield "model.action_dim", f"an action is a token: expected 1; got {model.action_dim}"
    if a.reward_type == "chunk_level" and (a.high_entropy_fraction or a.loss_type == "actor_critic"):
        yield "algorithm.reward_type", "values and masks of answers are per token: expected action_level"


def can_film(config: Config) -> bool:
    """Whether there are environments to look at: a simulator, not prompts or pairs."""
    return config.has_simulator and get_host().env_spec(config.env.env_type).factory is not None


def check_expert(config: Config, locate: Locate) -> list[Problem]:
    """Demonstrations are asked for from the expert of an environment that has none."""
    if config.sft is None or config.sft.expert_episodes == 0 or not config.has_simulator:
        return []
    if get_host().env_spec(config.env.env_type).expert is not None:
        return []
    message = f"the environment {config.env.env_type} has no scripted expert: expected 0"
    origin = locate(("sft", "expert_episodes"))
    hint = "give recorded demonstrations as data.train_data_paths"
    return [Problem(key="sft.expert_episodes", message=message, origin=origin, hint=hint)]
