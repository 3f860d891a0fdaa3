"""`load_config`: a name or file and overrides in, a validated frozen `Config` out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rlinf.config.checks import cross_check
from rlinf.config.compose import apply_overrides, find_file, read_file, resolve
from rlinf.config.errors import ConfigError
from rlinf.config.flat import lift_flat_keys
from rlinf.config.nodes import Node, locate, locate_value, plain
from rlinf.config.plugin_schema import check_category, check_expert, check_plugins
from rlinf.config.schema import Config
from rlinf.config.validate import defaults_of, validate


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A configuration, and the tree of what was written with the origin of each value."""

    config: Config
    tree: Node


def load(path_or_name: str | Path, overrides: Sequence[str] = ()) -> Loaded:
    """As `load_config`, and where every value came from."""
    tree, problems = apply_overrides(read_file(find_file(path_or_name)), overrides)
    tree, unresolved = resolve(tree, defaults_of(Config, plain(tree)))
    tree = lift_flat_keys(tree)
    problems += unresolved
    data, where = plain(tree), partial(locate, tree)
    config, invalid = validate(Config, data, where)
    unresolved_keys = {p.key for p in unresolved}
    problems += [p for p in (*invalid, *check_plugins(data, where)) if p.key not in unresolved_keys]
    if config is not None and not problems:
        value_at = partial(locate_value, tree)
        problems += [
            *cross_check(config, value_at),
            *check_category(config, value_at),
            *check_expert(config, value_at),
        ]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    assert config is not None
    return Loaded(config=config, tree=tree)


def load_config(path_or_name: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The validated configuration of a run.

    Args:
        path_or_name: a YAML file, or the name of a shipped configuration.
        overrides: `key.path=value` (YAML typed; a mapping is merged into the one that is there) or
            `~key.path` (takes a key away), applied in order.

    Raises:
        ConfigError: all that is wrong, each with its key and the file and line or the override.
    """
    return load(path_or_name, overrides).config
