"""What is wrong with a configuration, as data: every problem names its key, its place and a way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

#: Longer values are cut in messages.
_MAX_VALUE: Final = 60


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a value was written: a file and line, the text of an override, or the schema's default."""

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


#: Origin of values that nobody wrote.
DEFAULT: Final = Origin(source="default")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong."""

    key: str
    message: str
    origin: Origin | None = None
    hint: str | None = None

    def __str__(self) -> str:
        place = "" if self.origin in (None, DEFAULT) else f" ({self.origin})"
        head = f"{self.key or 'configuration'}{place}"
        lines = [head, *self.message.splitlines(), *(self.hint or "").splitlines()]
        return "\n".join([lines[0], *(f"  {line}" for line in lines[1:])])


class ConfigError(ValueError):
    """Everything that is wrong with a configuration; `problems` is the list, the text names each."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        assert problems
        self.problems = tuple(problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n".join([f"{count} in the configuration:", *(str(p) for p in self.problems)]))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[tuple[Problem, ...]]]:
        # An exception is pickled by its text; a worker's must arrive on the driver with its problems.
        return type(self), (self.problems,)


def describe(value: Any) -> str:
    """A value and its kind in the words of YAML, short enough for a message."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return cut(f"a mapping with {', '.join(map(str, value))}" if value else "an empty mapping")
    if isinstance(value, list | tuple):
        return cut(f"the list {list(value)}")
    if isinstance(value, str):
        return f"the text {cut(repr(value))}"
    return cut(str(value))


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most like `name`, if one is like it at all."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def cut(text: str) -> str:
    """The text, shortened to what fits into a message."""
    return text if len(text) <= _MAX_VALUE else text[: _MAX_VALUE - 1] + "…"
