"""`register_model`, `get_model`, `get_model_config_and_processor`. torch is imported to build."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from rlinf.config import ConfigError
from rlinf.config.errors import Problem
from rlinf.config.flat import lifted_block
from rlinf.config.schema import ModelConfig
from rlinf.config.validate import validate
from rlinf.plugins import ModelSpec, PluginError, get_host

if TYPE_CHECKING:
    import torch
    from omegaconf import DictConfig
    from torch import nn

ModelBuilder = Callable[..., Any]
M = TypeVar("M", bound=BaseModel)


def register_model(
    model_type: str,
    model_builder: str | ModelBuilder,
    category: str = "embodied",
    force: bool = False,
    **fields: Any,
) -> None:
    """Make `model_type` known to this process: `model_builder(cfg, torch_dtype)` builds it.

    Other processes learn of it through the extension module (`RLINF_EXT_MODULE`); a plugin with an entry
    point needs no registration at all.

    Args:
        model_builder: the function or its `"module:attr"`.
        category: "embodied" for policies that act in an environment.
        force: replace what has this name, built-in or plugin; `rlinf plugins list` shows it.
        fields: further fields of `rlinf.plugins.ModelSpec` (config_schema, lora_targets, wrap_policy, ...).

    Raises:
        PluginError: the name is taken by another builder and `force` is False, or a field is wrong.
    """
    get_host().register_model(model_type, model_builder, category=category, force=force, **fields)


def get_model(
    cfg: ModelConfig | DictConfig | Mapping[str, Any], torch_dtype: torch.dtype | None = None
) -> nn.Module:
    """Build the model that `cfg.model_type` names, with LoRA adapters if `cfg.is_lora`.

    Args:
        cfg: the block `model` of a configuration. Keys that are absent have the defaults of
            `rlinf.config.schema.ModelConfig`; the builder gets all of it as a DictConfig.
        torch_dtype: dtype of the weights; None: that of `cfg.precision`.

    Raises:
        ConfigError: a key has a wrong value.
        PluginError: no plugin offers the model type, or the plugin is broken.
        ValueError, TypeError: whatever the builder raises passes through, with a note that names the plugin.
    """
    from torch import nn

    cfg = model_config(cfg)
    spec = get_host().model_spec(cfg.model_type)
    builder = get_host().resolve(spec, "builder")
    if torch_dtype is None:
        torch_dtype = torch_dtype_from_precision(cfg.precision)
    try:
        model = builder(cfg, torch_dtype)
    except Exception as error:
        error.add_note(f"while building {_origin(spec)}") if hasattr(error, "add_note") else None
        raise
    if not isinstance(model, nn.Module):
        raise PluginError(
            f"{_origin(spec)}: the builder must return a torch.nn.Module, it returned {model!r}"
        )
    if cfg.is_lora:
        from rlinf.models.lora import apply_lora

        apply_lora(
            model,
            rank=cfg.lora_rank,
            alpha=cfg.lora_alpha,
            dropout=cfg.lora_dropout,
            targets=getattr(model, "lora_targets", None) or spec.lora_targets,
        )
        if cfg.lora_path is not None:
            from rlinf.models.lora_files import load_adapters

            load_adapters(model, cfg.lora_path, spec.lora_root)
    return model


def get_model_config_and_processor(cfg: DictConfig | Mapping[str, Any]) -> tuple[Any, Any]:
    """The model's configuration object and input processor, for models that name one (`ModelSpec.processor`).

    Args:
        cfg: a whole configuration; `cfg.model.model_type` names the model. The plugin gets all of it.

    Raises:
        PluginError: the model type is unknown or declares no processor.
        ConfigError: `model.model_type` is missing.
    """
    model_type = _to_dictconfig(cfg).get("model", {}).get("model_type")
    if not model_type:
        raise ValueError("get_model_config_and_processor: cfg.model.model_type is missing")
    spec = get_host().model_spec(model_type)
    if spec.processor is None:
        raise PluginError(
            f"{_origin(spec)} declares no processor. Its ModelSpec (or register_model) names one as "
            "processor='module:attr', a function f(cfg) -> (model_config, processor)"
        )
    return get_host().resolve(spec, "processor")(_to_dictconfig(cfg))


def model_config(cfg: ModelConfig | DictConfig | Mapping[str, Any]) -> DictConfig:
    """`cfg` validated, with the defaults filled in. Raises ConfigError."""
    from omegaconf import OmegaConf

    if isinstance(cfg, ModelConfig):
        return OmegaConf.create(cfg.model_dump(mode="json"))  # loading has moved flat keys
    data = OmegaConf.to_container(_to_dictconfig(cfg), resolve=True)
    data = _validated(ModelConfig, data, ("model",)).model_dump(mode="json")
    return OmegaConf.create(lifted_block(data, "the block model"))


def plugin_config(cfg: DictConfig, schema: type[M]) -> M:
    """For builders: the subtree `cfg[cfg.model_type]` as the object of its schema. Raises ConfigError."""
    from omegaconf import OmegaConf

    subtree = OmegaConf.to_container(OmegaConf.create(cfg.get(cfg.model_type) or {}), resolve=True)
    return _validated(schema, subtree, ("model", cfg.model_type))


@contextmanager
def config_errors(cfg: DictConfig) -> Iterator[None]:
    """For builders, around what makes the model that `cfg` asks for: what transformers raises about values,
    files and packages becomes a ConfigError about the block `model`, which is shown without a traceback."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except ConfigError:
        raise
    except (ValueError, ImportError, OSError, StrictDataclassError) as error:
        raise ConfigError([Problem(key=f"model.{cfg.model_type}", message=str(error))]) from error


def torch_dtype_from_precision(precision: str) -> torch.dtype:
    """fp32, bf16 or fp16 as torch's dtype."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def _validated(schema: type[M], data: Any, prefix: tuple[str, ...]) -> M:
    found, problems = validate(schema, data, lambda path: None, prefix)
    if problems or found is None:
        raise ConfigError(problems)
    return found


def _to_dictconfig(cfg: DictConfig | Mapping[str, Any]) -> DictConfig:
    from omegaconf import DictConfig, OmegaConf

    if isinstance(cfg, DictConfig):
        return cfg
    if not isinstance(cfg, Mapping):
        raise TypeError(f"expected a mapping, a DictConfig or a ModelConfig, got {type(cfg).__name__}")
    return OmegaConf.create(dict(cfg))


def _origin(spec: ModelSpec) -> str:
    from rlinf.plugins.discovery import MODELS

    found = get_host().select(MODELS, spec.model_type)
    return f"model_type {spec.model_type!r} of {found.label}"
