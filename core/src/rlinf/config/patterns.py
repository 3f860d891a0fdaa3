"""Regular expressions in configurations."""

from __future__ import annotations

import re


def compiled(pattern: str) -> re.Pattern[str]:
    """Raises ValueError for what is no regular expression."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from None


def with_group(pattern: str, of: str) -> str:
    """The pattern itself, if it has a group that `of` can be taken from. Raises ValueError."""
    if not compiled(pattern).groups:
        raise ValueError(f"{pattern!r} has no group (...) to take {of} from")
    return pattern
