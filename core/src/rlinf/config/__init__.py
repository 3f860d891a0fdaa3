"""The configuration of a run: YAML files and `key=value` overrides in, one frozen, validated `Config` out."""

from rlinf.config.checks import check_placement
from rlinf.config.errors import ConfigError, Problem
from rlinf.config.load import Loaded, load, load_config
from rlinf.config.placement import parse_placement
from rlinf.config.plugin_schema import can_film, plugin_schema, plugin_subtree, use_plugins
from rlinf.config.schema import Config

__all__ = [
    "Config",
    "ConfigError",
    "Loaded",
    "Problem",
    "can_film",
    "check_placement",
    "load",
    "load_config",
    "parse_placement",
    "plugin_schema",
    "plugin_subtree",
    "use_plugins",
]
