"""Keys of a model's subtree that published configurations write directly into the block `model`."""

from __future__ import annotations

from typing import Any

from rlinf.config.compose import move_keys
from rlinf.config.errors import Origin
from rlinf.config.nodes import Node, find, nested, plain, tree_of
from rlinf.config.plugin_schema import use_plugins
from rlinf.config.schema import ModelConfig, PluginsConfig
from rlinf.config.validate import validate
from rlinf.plugins import PluginError, get_host


def lift_flat_keys(tree: Node) -> Node:
    """A whole configuration with the flat keys (`ModelSpec.flat_keys`) of its model in the model's subtree.

    What is wrong about the plugins stays for the checks to say. Raises ConfigError for a key that is given in
    both places, and differs.
    """
    block = find(tree, ("model",))
    if block is None or not isinstance(block.value, dict):
        return tree
    extra = set(block.value) - set(ModelConfig.model_fields)
    name = plain(block).get("model_type")
    if not isinstance(name, str) or not extra - {name}:
        return tree
    plugins, _ = validate(PluginsConfig, plain(find(tree, ("plugins",)) or tree_of({})), lambda path: None)
    try:
        use_plugins(plugins or PluginsConfig())
        keys = get_host().model_spec(name).flat_keys
    except PluginError:
        return tree
    return move_keys(tree, [(("model", key), ("model", name, key)) for key in keys])


def lifted_block(model: dict[str, Any], source: str) -> dict[str, Any]:
    """The block `model` alone, likewise, under this process's plugin policy; `source` is for messages."""
    name = model.get("model_type")
    keys = get_host().model_spec(name).flat_keys if isinstance(name, str) else ()
    if not any(key in model for key in keys):
        return model
    tree = nested(("model",), tree_of(model, Origin(source=source)))
    return plain(move_keys(tree, [(("model", key), ("model", str(name), key)) for key in keys]))["model"]
