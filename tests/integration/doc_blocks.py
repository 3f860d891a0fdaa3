"""The code blocks of a page of documentation as one shell script that runs them in order."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

#: Languages of blocks that are no code: output, and commands that a test must not run (they install).
SHOWN = ("text", "console")
_FENCE = re.compile(r"^```(\w*)(?: title=\"([^\"]+)\")?\s*$")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block."""

    language: str
    #: The file that it is written to; "" if it runs.
    title: str
    line: int
    text: str


def blocks(page: str) -> Iterator[Block]:
    """The fenced blocks of a page in order. An indented or unknown block is an error: it would not be run."""
    opened: tuple[str, str, int] | None = None
    lines: list[str] = []
    for number, line in enumerate(page.splitlines(), 1):
        if opened is None and line.startswith("```"):
            found = _FENCE.match(line)
            assert found and found[1] in ("python", "bash", "yaml", "toml", *SHOWN), f"line {number}: {line}"
            opened, lines = (found[1], found[2] or "", number), []
        elif opened is not None and line == "```":
            yield Block(language=opened[0], title=opened[1], line=opened[2], text="\n".join(lines) + "\n")
            opened = None
        elif opened is not None:
            lines.append(line)
        else:
            assert not line.startswith("    "), f"line {number}: write a fenced block, which is tested"
    assert opened is None, f"line {opened[2]}: the block has no end"


def script(page: Path, of_template: Callable[[str], str]) -> str:
    """Blocks with a title become files, those of bash run, those of Python run with the variables of the
    Python blocks since the last of another kind. `of_template` puts templates in their places."""
    parts, python = ["set -euo pipefail\n"], ""
    for block in blocks(of_template(page.read_text(encoding="utf-8"))):
        if block.language in SHOWN:
            continue
        where = f"{page.name}:{block.line}"
        if block.title:
            write = f'mkdir -p "$(dirname {block.title})"; cat > {block.title}'
            parts += [_run_python(python), _heredoc(write, block.text)]
            python = ""
        elif block.language == "python":
            python += f"# {where}\n{block.text}"
        elif block.language == "bash":
            parts += [_run_python(python), f"echo '== {where}' >&2\n{block.text}"]
            python = ""
        else:
            raise AssertionError(f"{where}: a block of {block.language} needs a title, the file to write")
    return "".join([*parts, _run_python(python)])


def _run_python(text: str) -> str:
    return _heredoc("python -", text) if text else ""


def _heredoc(command: str, text: str) -> str:
    return f"{command} <<'END_OF_BLOCK'\n{text}END_OF_BLOCK\n"
