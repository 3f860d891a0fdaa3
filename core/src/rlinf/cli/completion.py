"""`rlinf completion`: the script that completes rlinf's commands and options in a shell."""

from __future__ import annotations

import argparse
from typing import Any

from rlinf.cli.common import command

EXAMPLES = """
rlinf completion bash > ~/.local/share/bash-completion/completions/rlinf
rlinf completion zsh > ~/.zfunc/_rlinf
"""


def add_parser(subparsers: Any) -> None:
    parser = command(subparsers, "completion", "print a script for completion in the shell", EXAMPLES)
    parser.add_argument("shell", choices=("bash", "zsh"))


def run(args: argparse.Namespace) -> int:
    import shtab

    from rlinf.cli.main import build_parser

    print(shtab.complete(build_parser(), args.shell))
    return 0
