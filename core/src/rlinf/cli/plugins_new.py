"""`rlinf plugins new NAME`: write a complete plugin. Asks for what the flags leave open."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from rlinf.cli.common import COMPLETE_FILE, UsageError

EXAMPLES = """examples:
  rlinf plugins new my_model
  rlinf plugins new my_model --family flow --output ~/src/my_model --yes"""
#: Names of the families; `rlinf.cli.scaffold`, which has all about them, imports more than a parser should.
FAMILIES = ("tokens", "flow", "gaussian", "language")


def add_parser(commands: Any) -> None:
    """Add the command `new` to the subcommands of `plugins`."""
    parser = commands.add_parser(
        "new",
        help="write a complete plugin for a model of your own",
        description="Write a complete plugin for a model of your own: package, tests, README, CI, licence.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help="the model_type: lower-case words joined by underscores")
    parser.add_argument("--family", choices=FAMILIES, help="kind of model; asked for if it is left out")
    output = parser.add_argument(
        "--output", metavar="DIR", help="folder to write, new or empty (default: ./rlinf-plugin-NAME)"
    )
    output.complete = COMPLETE_FILE
    parser.add_argument("--yes", action="store_true", help="ask nothing; --family is then needed")


def run(args: argparse.Namespace) -> int:
    """Returns the exit status. Raises UsageError."""
    from rlinf.cli import scaffold

    if args.family is None:
        args.family = _ask_family(args.yes)
    plugin = scaffold.NewPlugin(name=args.name, family=args.family)
    _require_free(plugin.name, plugin.distribution)
    folder = Path(args.output or plugin.distribution).expanduser()
    files = scaffold.write(plugin, folder)
    where = scaffold.shown(folder)
    print(f"{where}: {len(files)} files of a plugin for model_type {plugin.name}. Next:\n")
    print(f"  cd {where}")
    print('  pip install -e ".[test]"')
    print(f"  rlinf plugins check {plugin.name}")
    print("  pytest")
    print(f"  rlinf train model.model_type={plugin.name}")
    return 0


def _ask_family(silent: bool) -> str:
    from rlinf.cli.scaffold import FAMILIES

    if silent or not sys.stdin.isatty():
        raise UsageError(f"--family: expected one of {', '.join(FAMILIES)}")
    print("What kind of model is it?")
    for number, (name, family) in enumerate(FAMILIES.items(), 1):
        print(f"  {number}  {name:<10}{family.summary}")
    while True:
        answer = input(f"number or name [1-{len(FAMILIES)}]: ").strip()
        if answer in FAMILIES:
            return answer
        if answer.isdigit() and 1 <= int(answer) <= len(FAMILIES):
            return list(FAMILIES)[int(answer) - 1]


def _require_free(name: str, distribution: str) -> None:
    """A name that is taken would be a conflict as soon as the plugin is installed."""
    from rlinf.plugins import get_host

    for row in get_host().discover():
        if row.group == "rlinf.models" and row.name == name and row.distribution != distribution:
            raise UsageError(
                f"model_type {name!r} is taken by {row.distribution} {row.version}: choose another name"
            )
