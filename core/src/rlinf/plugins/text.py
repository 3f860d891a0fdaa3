"""Text for a terminal."""

from __future__ import annotations

from typing import Final

#: Columns of what commands print.
WIDTH: Final = 80


def wrapped(text: str, indent: str, first: str = "") -> str:
    """Lines of at most `WIDTH` columns where there are spaces to break at: the first after `first`, the
    others after `indent`."""
    import textwrap  # here: `rlinf plugins list` seldom folds, and its start is measured

    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
