"""The console script `rlinf`. Each command has a module of its own, imported when it is asked for."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final

#: Command -> module with `add_parser(subparsers)` and `run(args) -> int`. The modules import nothing heavy.
COMMANDS: Final = {
    "train": "rlinf.cli.train",
    "sft": "rlinf.cli.sft",
    "data": "rlinf.cli.data",
    "eval": "rlinf.cli.evaluate",
    "convert": "rlinf.cli.convert",
    "plugins": "rlinf.cli.plugins",
    "doctor": "rlinf.cli.doctor",
    "config": "rlinf.cli.config",
    "fsdp-plan": "rlinf.cli.fsdp_plan",
    "completion": "rlinf.cli.completion",
}

DESCRIPTION: Final = """\
Post-training of vision-language-action policies, by supervised fine-tuning and
reinforcement learning. Every model and every simulator is a plugin."""
EXAMPLES: Final = """\
examples:
  rlinf train --config tabletop_ppo
  rlinf train --config my.yaml runner.seed=1 actor.optim.lr=1e-4
  rlinf train model.model_type=openpi --dry-run
  rlinf eval --checkpoint runs/tabletop_ppo/checkpoints/step_40 --episodes 64
  rlinf convert runs/tabletop_ppo/checkpoints/step_40 my_weights
  rlinf plugins list
  rlinf config show --config tabletop_grpo --origin
"""


def build_parser(only: str | None = None) -> argparse.ArgumentParser:
    """The parser of all commands, or, to start quickly, of the one that was typed."""
    parser = argparse.ArgumentParser(
        prog="rlinf",
        usage="rlinf [-h] [--version] COMMAND ...",  # all their names do not fit 80 columns
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    names = "{" + ",".join(COMMANDS) + "}" if only else None
    subparsers = parser.add_subparsers(
        title="commands", dest="command", required=True, metavar=names, prog=parser.prog
    )
    for name in (only,) if only else COMMANDS:
        import_module(COMMANDS[name]).add_parser(subparsers)
    return parser


class _Version(argparse.Action):
    """Reads the version from the metadata when it is asked for, not at each start."""

    def __call__(self, parser, namespace, values, option_string=None):
        from importlib.metadata import version

        print(f"rlinf-core {version('rlinf-core')}")
        parser.exit()


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments; `key=value` overrides may stand before, between and after the options."""
    only = argv[0] if argv and argv[0] in COMMANDS else None
    parser = build_parser(only)
    if argv and only is None and not argv[0].startswith("-"):
        from difflib import get_close_matches

        match = get_close_matches(argv[0], COMMANDS, n=1)
        hint = f"did you mean {match[0]}?" if match else f"commands: {', '.join(COMMANDS)}"
        parser.error(f"unknown command {argv[0]!r}; {hint}")
    args, rest = parser.parse_known_args(argv)
    if rest:
        if not hasattr(args, "overrides") or any(word.startswith("-") for word in rest):
            words = " ".join(word for word in rest if word.startswith("-") or not hasattr(args, "overrides"))
            parser.error(f"unrecognized arguments: {words}; see rlinf {args.command} --help")
        args.overrides = [*args.overrides, *rest]
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit status: 0 done, 1 the run failed, 2 the user must change something."""
    args = parse(sys.argv[1:] if argv is None else argv)
    try:
        return import_module(COMMANDS[args.command]).run(args) or 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (
        BrokenPipeError
    ):  # the reader of our output (head, less) has gone; Python must not flush into it again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        from rlinf.cli.common import report_failure

        return report_failure(error)


if __name__ == "__main__":
    sys.exit(main())
