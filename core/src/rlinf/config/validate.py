"""pydantic models against trees, with every finding in the words of YAML."""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from rlinf.config.errors import Origin, Problem, closest, describe
from rlinf.config.nodes import Path, dotted
from rlinf.config.secrets import HIDDEN, names_secret

M = TypeVar("M", bound=BaseModel)
Locate = Callable[[Path], Origin | None]

#: pydantic's error type -> what was expected.
_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "path_type": "a path",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "dict_type": "a mapping of keys to values",
    "model_type": "a mapping of keys to values",
    "model_attributes_type": "a mapping of keys to values",
    "none_required": "null",
}


def validate(schema: type[M], data: Any, locate: Locate, prefix: Path = ()) -> tuple[M | None, list[Problem]]:
    """`data` as a `schema` object, or None and all the problems.

    Types are taken strictly as YAML has them: a quoted "5" is text and no number, `true` is no number.

    Args:
        locate: where the value at a full path was written.
        prefix: path of `data` within the configuration.
    """
    try:
        return schema.model_validate_json(json.dumps(data), strict=True), unknown_keys(
            schema, data, locate, prefix
        )
    except ValidationError as error:
        details = error.errors(include_url=False)
    problems: dict[str, Problem] = {p.key: p for p in unknown_keys(schema, data, locate, prefix)}
    for key, group in _by_key(details, data, prefix).items():
        problems.setdefault(key, _problem(schema, key, group, data, locate, prefix))
    return None, list(problems.values())


def _by_key(
    details: list[ErrorDetails], data: Any, prefix: Path
) -> dict[str, list[tuple[Path, ErrorDetails]]]:
    """Errors of one key together: pydantic reports one for each member of a union."""
    groups: dict[str, list[tuple[Path, ErrorDetails]]] = {}
    for detail in details:
        path = _data_path(detail, data)
        groups.setdefault(dotted(prefix + path), []).append((path, detail))
    return groups


def _data_path(detail: ErrorDetails, data: Any) -> Path:
    """The error's location without the names of union members, which are no keys."""
    path: list[str | int] = []
    missing = detail["type"] == "missing"
    for i, step in enumerate(detail["loc"]):
        inside = isinstance(data, dict) and step in data
        if inside or (isinstance(data, list) and isinstance(step, int) and step < len(data)):
            data = data[step]
            path.append(step)
        elif missing and i == len(detail["loc"]) - 1:
            path.append(step)
    return tuple(path)


def _problem(
    schema: type[BaseModel],
    key: str,
    group: list[tuple[Path, ErrorDetails]],
    data: Any,
    locate: Locate,
    prefix: Path,
) -> Problem:
    path, first = group[0]
    origin, field = locate(prefix + path), field_at(schema, path)
    about = f": {field.description}" if field is not None and field.description else ""
    if first["type"] == "missing":
        return Problem(key=key, message=f"is missing{about}", origin=origin)
    if first["type"] in ("value_error", "assertion_error"):
        reason = str(first["ctx"]["error"]) if "ctx" in first and "error" in first["ctx"] else first["msg"]
        return Problem(key=key, message=reason, origin=origin)
    got = data
    for step in path:
        got = got[step]
    expected = dict.fromkeys(_expected(detail) for _, detail in group)
    hint = None
    if first["type"] == "literal_error" and isinstance(got, str):
        match = closest(got, _choices(field))
        hint = f"did you mean {match}?" if match else None
    elif "a whole number" in expected and isinstance(got, float) and got.is_integer():
        hint = f"write {int(got)}"
    elif isinstance(got, str) and "number" in " ".join(expected) and _is_number(got):
        hint = "write it without quotes"
    elif isinstance(got, bool | int | float) and "text" in expected:
        hint = "write it in quotes"
    shown = HIDDEN if any(map(names_secret, prefix + path)) else describe(got)
    return Problem(
        key=key, message=f"expected {' or '.join(expected)}; got {shown}", origin=origin, hint=hint
    )


def _expected(detail: ErrorDetails) -> str:
    kind, ctx = detail["type"], detail.get("ctx") or {}
    if kind in _EXPECTED:
        return _EXPECTED[kind]
    if kind in ("literal_error", "enum"):
        return f"one of {ctx['expected']}".replace("'", "").replace(" or ", ", ")
    for name, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<=")):
        if name in ctx and kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
            return f"a number {sign} {ctx[name]}"
    if kind in ("too_short", "too_long"):
        bound = f"at least {ctx['min_length']}" if kind == "too_short" else f"at most {ctx['max_length']}"
        return f"a list of {bound} items"
    text = detail["msg"]
    return text[0].lower() + text[1:].removeprefix("nput should be ")


def _choices(field: FieldInfo | None) -> list[str]:
    if field is None:
        return []
    found: list[str] = []
    pending = [field.annotation]
    while pending:
        args = get_args(pending.pop())
        found += [a for a in args if isinstance(a, str)]
        pending += [a for a in args if not isinstance(a, str)]
    return found


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def block_type(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model that a field's annotation means, `X | None` included."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType):
        found = [b for b in map(block_type, get_args(annotation)) if b is not None]
        return found[0] if len(found) == 1 else None
    return None


def field_at(schema: type[BaseModel], path: Path) -> FieldInfo | None:
    """The declaration of the key at `path`, when the schema has one."""
    block: type[BaseModel] | None = schema
    field: FieldInfo | None = None
    for step in path:
        if isinstance(step, int):
            continue
        field = block.model_fields.get(step) if block is not None else None
        if field is None:
            return None
        block = block_type(field.annotation)
    return field


def all_keys(schema: type[BaseModel], prefix: Path = ()) -> dict[str, FieldInfo]:
    """Every dotted key of a schema with its declaration."""
    found: dict[str, FieldInfo] = {}
    for name, field in schema.model_fields.items():
        found[dotted((*prefix, name))] = field
        block = block_type(field.annotation)
        if block is not None:
            found |= all_keys(block, (*prefix, name))
    return found


def unknown_keys(
    schema: type[BaseModel],
    data: Any,
    locate: Locate,
    prefix: Path = (),
    known: dict[str, FieldInfo] | None = None,
) -> list[Problem]:
    """Keys that no field declares, in this block and those below; blocks that allow extra keys have none."""
    if not isinstance(data, dict):
        return []
    problems: list[Problem] = []
    known = all_keys(schema, prefix) if known is None else known
    names = {alias: n for n, f in schema.model_fields.items() for alias in (n, f.alias) if alias}
    for key, value in data.items():
        name = names.get(key)
        if name is not None:
            block = block_type(schema.model_fields[name].annotation)
            if block is not None:
                problems += unknown_keys(block, value, locate, (*prefix, key), known)
        elif schema.model_config.get("extra") != "allow":
            problems.append(unknown_key((*prefix, key), list(schema.model_fields), known, locate))
    return problems


def unknown_key(path: Path, siblings: list[str], known: Iterable[str], locate: Locate) -> Problem:
    """The problem "unknown key", with the closest key of the same block or the same key in another block."""
    name, parent = str(path[-1]), path[:-1]
    match = closest(name, siblings if parent else [*siblings, "defaults"])
    if match is not None:
        hint = f"did you mean {dotted((*parent, match))}?"
    else:
        elsewhere = [key for key in known if key.rpartition(".")[2] == name]
        nearest = max(elsewhere, key=lambda key: key.startswith(f"{path[0]}."), default="")
        hint = f"did you mean {nearest}?" if nearest else f"known here: {', '.join(sorted(siblings))}"
    return Problem(key=dotted(path), message="unknown key", origin=locate(path), hint=hint)


def defaults_of(schema: type[BaseModel], given: Any) -> dict[str, Any]:
    """The schema's defaults for all the keys that `given` leaves out, as plain YAML values."""
    found: dict[str, Any] = {}
    given = given if isinstance(given, dict) else {}
    for name, field in schema.model_fields.items():
        block = block_type(field.annotation)
        if name in given and (block is None or not isinstance(given[name], dict)):
            continue
        if block is not None and (name in given or field.is_required()):
            found[name] = defaults_of(block, given.get(name))
        elif not field.is_required():
            default = field.get_default(call_default_factory=True)
            found[name] = TypeAdapter(Any).dump_python(default, mode="json")
    return found
