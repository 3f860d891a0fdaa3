"""What a plugin declares: frozen, keyword-only, light. Code is named as `"module:attr"` and imported late."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from rlinf.plugins.errors import PluginError

#: Version of this contract. A plugin states the one that it was written for in each of its specs.
API_VERSION: Final = 1

_TARGET = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def _check_target(owner: object, field: str, value: object) -> None:
    if not isinstance(value, str) or not _TARGET.fullmatch(value):
        raise PluginError(
            f"{type(owner).__name__}.{field}: expected 'module:attr' (for example 'my_package.model:build'), "
            f"got {value!r}"
        )


def _check_name(owner: object, field: str, value: object) -> None:
    if not isinstance(value, str) or not value or value != value.strip():
        raise PluginError(f"{type(owner).__name__}.{field}: expected a name, got {value!r}")


def _check_strings(owner: object, field: str) -> None:
    """Normalise a list to a tuple, and refuse a bare string, which would be iterated."""
    value = getattr(owner, field)
    if isinstance(value, str) or not all(isinstance(item, str) and item for item in value):
        raise PluginError(
            f"{type(owner).__name__}.{field}: expected a tuple of non-empty strings, got {value!r}"
        )
    object.__setattr__(owner, field, tuple(value))


@dataclass(frozen=True, kw_only=True)
class WrapPolicySpec:
    """Which modules become FSDP2 units of their own, as data."""

    #: Class names of the repeated blocks of the main transformer.
    transformer_layer_cls_to_wrap: tuple[str, ...] = ()
    #: Class names of further modules: vision towers, projectors, adapters.
    module_classes_to_wrap: tuple[str, ...] = ()
    #: Values of a module's `_fsdp_wrap_name`.
    no_split_names: tuple[str, ...] = ()
    #: Regular expressions that a full module path must match from start to end.
    module_path_patterns: tuple[str, ...] = ()
    #: `"module:attr"` of functions `f(path: str, module: nn.Module) -> bool`.
    predicates: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in self.__dataclass_fields__:
            _check_strings(self, field)
        for pattern in self.module_path_patterns:
            _check_regex(self, "module_path_patterns", pattern)
        for predicate in self.predicates:
            _check_target(self, "predicates", predicate)


def _check_regex(owner: object, field: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise PluginError(
            f"{type(owner).__name__}.{field}: {pattern!r} is no regular expression: {error}"
        ) from None


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """All that the core must know about one model type before it builds one. Errors: `PluginError`."""

    #: Equal to the name of the entry point in the group `rlinf.models`.
    model_type: str
    #: `f(cfg, torch_dtype) -> nn.Module`, as `"module:attr"` (in user code also the function itself).
    builder: str | Callable[..., Any]
    #: Kind of policy: "embodied" (acts in an environment) or another one that a runner names.
    category: str = "embodied"
    #: pydantic model of the configuration's subtree `model.<model_type>`, as `"module:attr"` or the class.
    config_schema: str | type | None = None
    #: Keys of `config_schema` that may also stand directly in the block `model`, as published YAML has them.
    flat_keys: tuple[str, ...] = ()
    #: Default FSDP2 units; rules in the configuration take priority.
    wrap_policy: WrapPolicySpec | None = None
    #: Regular expressions on full module paths of the layers that LoRA adapts; an attribute `lora_targets` of
    #: the built model, where its configuration decides, goes before them.
    lora_targets: tuple[str, ...] = ()
    #: Path, within the policy, of the model that others know. Adapters are written relative to it, so that
    #: peft puts them into that model alone; "": the policy itself.
    lora_root: str = ""
    #: `"module:attr"` of `f(cfg) -> (model_config, processor)`.
    processor: str | None = None
    #: `"module:attr"` of `f(cfg) -> rlinf.data.DataLayout`: how samples of a dataset become the batch of the
    #: model's `sft_forward`. None: the names of an environment's observation (`rlinf.data.layout`).
    data_layout: str | None = None
    #: `"module:attr"` of `f(state, cfg, folder, *, max_shard_bytes)`: write full weights (named as
    #: in the policy's `state_dict`, without adapters) as the family has them. None: safetensors, own names.
    exporter: str | None = None
    #: One line for `rlinf plugins show`.
    description: str = ""
    #: Version of the plugin API that this was written for.
    api_version: int = API_VERSION

    def __post_init__(self) -> None:
        _check_name(self, "model_type", self.model_type)
        _check_name(self, "category", self.category)
        if not callable(self.builder):
            _check_target(self, "builder", self.builder)
        _check_schema(self, self.config_schema)
        for field in ("processor", "data_layout", "exporter"):
            if getattr(self, field) is not None:
                _check_target(self, field, getattr(self, field))
        if self.wrap_policy is not None and not isinstance(self.wrap_policy, WrapPolicySpec):
            raise PluginError(f"ModelSpec.wrap_policy: expected a WrapPolicySpec, got {self.wrap_policy!r}")
        _check_strings(self, "flat_keys")
        _check_strings(self, "lora_targets")
        for pattern in self.lora_targets:
            _check_regex(self, "lora_targets", pattern)


@dataclass(frozen=True, kw_only=True)
class EnvSpec:
    """All that the core must know about one environment type before it makes one. Errors: `PluginError`."""

    #: Equal to the name of the entry point in the group `rlinf.envs`.
    env_type: str
    #: `"module:attr"` of `f(config_subtree) -> gymnasium.Env`; None: it is no simulator, the workers of the
    #: model's category play it themselves (prompts).
    factory: str | None = None
    #: pydantic model of the configuration's subtree of this environment, as `"module:attr"` or the class.
    config_schema: str | type | None = None
    #: `"module:attr"` of `f(env) -> object` whose `act()` returns the scripted expert's next action. Its
    #: attribute `reasoning` (str), where there is one, says what that action is for; it is recorded as well.
    expert: str | None = None
    #: One line that installs what the environment needs beside its distribution (a simulator, a GL library).
    install_hint: str = ""
    #: One line for `rlinf plugins show`.
    description: str = ""
    #: Version of the plugin API that this was written for.
    api_version: int = API_VERSION

    def __post_init__(self) -> None:
        _check_name(self, "env_type", self.env_type)
        if self.factory is not None:
            _check_target(self, "factory", self.factory)
        _check_schema(self, self.config_schema)
        if self.expert is not None:
            _check_target(self, "expert", self.expert)


@dataclass(frozen=True, kw_only=True)
class RewardSpec:
    """All that the core must know about a reward for answers in text. Errors: `PluginError`."""

    #: Equal to the name of the entry point in the group `rlinf.rewards`.
    reward_type: str
    #: `"module:attr"` of `f(options) -> rlinf.rewards.Reward`; `options` is an object of `config_schema`.
    builder: str
    #: pydantic model of the reward's options, as `"module:attr"` or the class; None: it has none.
    config_schema: str | type | None = None
    #: One line for `rlinf plugins show`.
    description: str = ""
    #: Version of the plugin API that this was written for.
    api_version: int = API_VERSION

    def __post_init__(self) -> None:
        _check_name(self, "reward_type", self.reward_type)
        _check_target(self, "builder", self.builder)
        _check_schema(self, self.config_schema)


@dataclass(frozen=True, kw_only=True)
class ActionProcessorSpec:
    """A step between a policy's actions [B, chunk, dim] and an environment."""

    env_type: str
    #: A model type, or "*" for every model.
    model_type: str
    #: `"module:attr"` of `f(actions, **context) -> ndarray`; it must not change its input.
    function: str
    #: False if the result may have another shape than [B, chunk, dim].
    keeps_shape: bool = True

    def __post_init__(self) -> None:
        _check_name(self, "env_type", self.env_type)
        _check_name(self, "model_type", self.model_type)
        _check_target(self, "function", self.function)


@dataclass(frozen=True, kw_only=True)
class DatasetFormatSpec:
    """A layout of recorded episodes on disk. Errors: `PluginError`."""

    #: What `data.format` says.
    name: str
    #: `"module:attr"` of `f(source: str) -> rlinf.data.EpisodeDataset`; `source`: a folder, file or hub id.
    reader: str
    #: `"module:attr"` of `f(folder, features, *, fps) -> rlinf.data.EpisodeWriter`; None: read only.
    writer: str | None = None
    #: `"module:attr"` of `f(path: pathlib.Path) -> bool`, cheap: whether an existing path has this layout.
    #: None: only by name.
    matches: str | None = None
    #: One line for people.
    description: str = ""

    def __post_init__(self) -> None:
        _check_name(self, "name", self.name)
        _check_target(self, "reader", self.reader)
        for field in ("writer", "matches"):
            if getattr(self, field) is not None:
                _check_target(self, field, getattr(self, field))


def _check_schema(owner: object, schema: object) -> None:
    if schema is not None and not isinstance(schema, type):
        _check_target(owner, "config_schema", schema)
