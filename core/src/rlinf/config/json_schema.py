"""The JSON Schema of a configuration together with those of the plugins' subtrees."""

from __future__ import annotations

from typing import Any

from rlinf.config.plugin_schema import BlockName, plugin_schema
from rlinf.config.schema import Config
from rlinf.plugins import PluginError, get_host


def json_schema(
    model_type: str | None = None, env_type: str | None = None
) -> tuple[dict[str, Any], list[str]]:
    """JSON Schema (draft 2020-12) of a composed configuration, and a warning for each plugin left out.

    Args:
        model_type, env_type: whose subtree to include; None: all installed ones, the broken left out.

    Raises:
        PluginError: a plugin that was named does not exist or is broken.
    """
    schema = Config.model_json_schema()
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
    schema["properties"]["defaults"] = {
        "type": "array",
        "items": {"type": "string"},
        "description": "Configurations (names or paths) that this one is put on top of, in order.",
    }
    host, warnings = get_host(), []
    wanted: tuple[tuple[BlockName, str, str | None, tuple[str, ...]], ...] = (
        ("model", "ModelConfig", model_type, host.model_types()),
        ("env", "EnvConfig", env_type, host.env_types()),
    )
    for block, definition, named, installed in wanted:
        for name in (named,) if named else installed:
            try:
                _add(schema, block, definition, name)
            except PluginError as error:
                if named:
                    raise
                warnings.append(f"{block}.{name} is left out: {str(error).splitlines()[0]}")
    return schema, warnings


def _add(schema: dict[str, Any], block: BlockName, definition: str, name: str) -> None:
    """Put a plugin's schema at `block.name`, its definitions under names of their own."""
    subtree = plugin_schema(block, name)
    if subtree is None:
        return
    prefix = f"{block}.{name}."
    own = subtree.model_json_schema(ref_template=f"#/$defs/{prefix}{{model}}")
    schema["$defs"] |= {f"{prefix}{key}": value for key, value in own.pop("$defs", {}).items()}
    schema["$defs"][definition]["properties"][name] = own
