"""The pages that are made from the code: configuration, command line, hooks, errors."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any, Final

from errors import errors_page


def configuration_page() -> str:
    """Every key of the schema, block by block, then the subtrees of the core's plugins."""
    from rlinf.config.plugin_schema import plugin_schema
    from rlinf.config.schema import Config
    from rlinf.plugins import get_host

    lines = [
        "# Configuration",
        "",
        "Every key, from the schema: type, default, meaning. A default of *required* means that the file",
        "must set it. `rlinf config schema` prints the same as JSON Schema, for editors; `rlinf config show`",
        "prints a configuration with all defaults, `--origin` with the place where each value was written.",
        "",
    ]
    for block, field in Config.model_fields.items():
        lines += [f"## {block}", ""]
        schema = _block(field.annotation)
        lines += [_sentence(field.description or inspect.getdoc(schema) or ""), ""]
        lines += _table(_keys(schema, f"{block}."))
    host = get_host()
    for kind, names in (("model", host.model_types()), ("env", host.env_types())):
        for name in sorted(names):
            row = host.select(f"rlinf.{kind}s", name)
            schema = plugin_schema(kind, name) if row.distribution == "rlinf-core" else None  # type: ignore[arg-type]
            if schema is not None:
                spec: Any = host.model_spec(name) if kind == "model" else host.env_spec(name)
                lines += [f"## {kind}.{name}", "", spec.description, ""]
                lines += _table(_keys(schema, f"{kind}.{name}."))
    return "\n".join(lines) + "\n"


def _table(rows: Iterator[tuple[str, str, str, str]]) -> list[str]:
    head = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    return [*head, *(f"| {' | '.join(map(_cell, row))} |" for row in rows), ""]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _keys(schema: Any, prefix: str) -> Iterator[tuple[str, str, str, str]]:
    for name, field in schema.model_fields.items():
        inner = _block(field.annotation)
        if (
            inner is not None
            and not field.is_required()
            and field.get_default(call_default_factory=True) is not None
        ):
            yield from _keys(inner, f"{prefix}{name}.")
            continue
        default = "*required*"
        if not field.is_required():
            default = f"`{_yaml(field.get_default(call_default_factory=True))}`"
        yield f"`{prefix}{name}`", _type(field.annotation), default, field.description or ""
        if inner is not None:
            yield from _keys(inner, f"{prefix}{name}.")


def _block(annotation: Any) -> Any:
    """The pydantic model in `Model` or `Model | None`."""
    from pydantic import BaseModel

    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _type(annotation: Any) -> str:
    from typing import Literal, get_args, get_origin

    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) is list:
        return f"list of {_type(get_args(annotation)[0])}"
    if get_origin(annotation) is not None and type(None) in get_args(annotation):
        return " or ".join(_type(part) for part in get_args(annotation))
    if annotation is type(None):
        return "null"
    if _block(annotation) is not None:
        return "block"
    text = getattr(annotation, "__name__", str(annotation)) if not get_args(annotation) else str(annotation)
    names = {"str": "text", "int": "integer", "float": "number", "bool": "true or false", "Path": "path"}
    text = re.sub(r"(?:\w+\.)+(\w+)", r"\1", text)
    return (
        re.sub(r"\w+", lambda word: names.get(word[0], word[0]), text).replace("[", " of ").replace("]", "")
    )


def _yaml(value: Any) -> str:
    import yaml
    from pydantic import BaseModel

    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    if isinstance(value, tuple):
        value = list(value)
    if not isinstance(value, str | int | float | bool | list | dict | None):
        value = str(value)
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"))
    return text.removesuffix("...\n").strip()


def _sentence(text: str) -> str:
    return " ".join(text.split())


def cli_page() -> str:
    """The help of every command and subcommand."""
    import os

    from rlinf.cli.main import build_parser

    os.environ["COLUMNS"] = "80"
    lines = [
        "# Command line",
        "",
        "What `rlinf COMMAND --help` prints. Every command ends with status 0 when it is done, 1 when a run",
        "or a check failed, 2 when something that you typed, configured or installed must change.",
        "",
    ]
    for name, parser in _commands(build_parser()):
        lines += [f"{'##' if name.count(' ') == 1 else '###'} {name}", ""]
        lines += ["```text", parser.format_help().rstrip(), "```", ""]
    return "\n".join(lines)


def _commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                yield f"{parser.prog} {name}", sub
                yield from _commands(sub)


def hooks_page() -> str:
    """The hook specifications, and the specs that hooks return, field by field."""
    from rlinf.plugins import hookspecs, specs

    lines = [
        "# Hooks and specs",
        "",
        "The functions that a plugin's module may implement, each with the decorator",
        "`rlinf.plugins.hookimpl`. An implementation may leave out arguments that it does not need. The",
        "module stands behind an entry point of the group `rlinf.models` or `rlinf.envs` and imports nothing",
        "heavy:",
        'code is named as `"module:attr"` and imported when it is used.',
        "",
        f"The version of this contract (`api_version`) is {specs.API_VERSION}.",
        "",
        "## Hooks",
        "",
    ]
    for name, function in vars(hookspecs).items():
        if name.startswith("rlinf_") and inspect.isfunction(function):
            options = getattr(function, "rlinf_spec", {})
            calls = "the first that answers" if options.get("firstresult") else "all plugins of the run"
            signature = str(inspect.signature(function)).replace("'", "")
            lines += [f"### {name}", "", "```text", _fold(f"{name}{signature}"), "```", ""]
            lines += [inspect.getdoc(function) or "", "", f"Called on: {calls}.", ""]
    for name, cls in vars(specs).items():
        if inspect.isclass(cls) and hasattr(cls, "__dataclass_fields__") and cls.__module__ == specs.__name__:
            lines += [f"## {name}", "", inspect.getdoc(cls) or "", ""]
            lines += ["| field | type | default | meaning |", "| --- | --- | --- | --- |"]
            lines += [f"| {' | '.join(row)} |" for row in _fields(cls)]
            lines.append("")
    return "\n".join(lines)


def _fold(signature: str) -> str:
    if len(signature) <= 80:
        return signature
    name, _, rest = signature.partition("(")
    arguments, _, result = rest.rpartition(")")
    inner = "".join(f"    {argument},\n" for argument in re.split(r", (?=\w+:)", arguments) if argument)
    return f"{name}(\n{inner}){result}" if inner else signature


def _fields(cls: Any) -> Iterator[tuple[str, str, str, str]]:
    """Names, types and defaults of a dataclass, with the `#:` comments above the fields in its source."""
    import dataclasses

    comments, pending = {}, []
    for line in inspect.getsource(cls).splitlines():
        text = line.strip()
        if text.startswith("#:"):
            pending.append(text[2:].strip())
        elif pending:
            comments[text.partition(":")[0]] = " ".join(pending)
            pending = []
    for field in dataclasses.fields(cls):
        missing = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        default = "*required*" if missing else f"`{field.default!r}`"
        yield f"`{field.name}`", f"`{_cell(str(field.type))}`", default, _cell(comments.get(field.name, ""))


def template_file(family: str, path: str) -> str:
    """A file of a new plugin as a code block with its path above it."""
    from rlinf.cli.scaffold import NewPlugin, render

    files = render(NewPlugin(name="my_model", family=family))
    found = [name for name in files if name.rpartition("/")[2] == path]
    if len(found) != 1:
        raise ValueError(f"template {family} {path}: expected one file, got {found} of {sorted(files)}")
    language = {"py": "python", "toml": "toml", "yml": "yaml"}.get(path.rpartition(".")[2], "text")
    return f'```{language} title="{found[0]}"\n{files[found[0]].rstrip()}\n```'


#: Path in the site -> what makes the page.
PAGES: Final[dict[str, Callable[[], str]]] = {
    "reference/configuration.md": configuration_page,
    "reference/cli.md": cli_page,
    "reference/hooks.md": hooks_page,
    "reference/errors.md": errors_page,
}
