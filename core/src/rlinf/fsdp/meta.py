"""A model of any size without weights and without a GPU: built on torch's `meta` device."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from rlinf.config import ConfigError
from rlinf.config.schema import ModelConfig
from rlinf.models import get_model
from rlinf.plugins import PluginError, get_host
from rlinf.plugins.discovery import MODELS
from rlinf.plugins.loading import load_error


def build_on_meta(config: ModelConfig) -> tuple[nn.Module, tuple[str, ...]]:
    """The model that `config` describes, on the meta device, and remarks on how it came about.

    Weights are not needed. `model_path` is passed on where it exists on this machine, since a builder may
    read the architecture from there; where it does not exist, or the builder cannot read it on the meta
    device, the model is built without it and a remark says so.

    Raises:
        PluginError: the builder cannot work on the meta device (names the plugin, the reason and the line),
            or the plugin is unknown or broken.
        ConfigError: the configuration does not fit the model.
    """
    remarks = []
    path = config.model_path
    if path is None:
        model = _build(config)
    else:
        without = config.model_copy(update={"model_path": None})
        if not Path(path).exists():
            remarks.append(f"model.model_path {path} is not on this machine: planned without it")
            model = _build(without)
        else:
            try:
                model = _build(config)
            except PluginError as error:
                reason = str(error).splitlines()[0]
                remarks.append(f"planned without model.model_path {path}: {reason}")
                model = _build(without)
    real = [name for name, parameter in model.named_parameters() if not parameter.is_meta]
    if real:
        listed = ", ".join(real[:3]) + (f" and {len(real) - 3} more" if len(real) > 3 else "")
        remarks.append(f"the builder ignores the meta device and allocated memory for {listed}")
    return model, tuple(remarks)


def _build(config: ModelConfig) -> nn.Module:
    try:
        with torch.device("meta"):
            return get_model(config)
    except (PluginError, ConfigError):
        raise
    except Exception as error:  # whatever a plugin's code raises is the answer, with the plugin's name on it
        found = get_host().select(MODELS, config.model_type)
        what = f"building model_type {config.model_type!r} on the meta device"
        raise load_error(what, found, error) from None
