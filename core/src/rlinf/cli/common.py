"""What the commands share: options that name a configuration, notices, and how failures are shown."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rlinf.config import Loaded

#: The configuration that is used when none is named.
DEFAULT_CONFIG: Final = "tabletop_ppo"
#: How shtab completes a file name: its constant FILE, written out because importing shtab costs start time.
COMPLETE_FILE: Final = {"bash": "_shtab_compgen_files", "zsh": "_files"}


def command(subparsers: Any, name: str, summary: str, examples: str) -> argparse.ArgumentParser:
    """A subcommand's parser, with examples below its options."""
    return subparsers.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog="\n  ".join(["examples:", *examples.strip().splitlines()]) + "\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def shipped() -> list[str]:
    """Names of the configurations that come with the package (rlinf.config knows them too; it is slow)."""
    folder = os.path.join(os.path.dirname(os.path.dirname(__file__)), "config", "configs")
    return sorted(name.removesuffix(".yaml") for name in os.listdir(folder) if name.endswith(".yaml"))


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """`--config NAME|FILE` and overrides."""
    option = parser.add_argument(
        "--config",
        metavar="NAME",
        help=f"a .yaml file or one of {', '.join(shipped())} (default: {DEFAULT_CONFIG})",
    )
    option.complete = COMPLETE_FILE  # type: ignore[attr-defined]
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value",
        help="set a key, the value is YAML: actor.optim.lr=1e-4; ~key takes a key away",
    )


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """What `train` and `sft` have in common."""
    add_config_arguments(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="validate, discover, place, print the plan; start nothing"
    )
    parser.add_argument(
        "--ship", action="store_true", help="send this run's plugins to the cluster's nodes that lack them"
    )
    add_drift_argument(parser)


def add_drift_argument(parser: argparse.ArgumentParser) -> None:
    """`--allow-plugin-drift`."""
    parser.add_argument(
        "--allow-plugin-drift",
        action="store_true",
        help="go on although the checkpoint was made with other plugins or versions",
    )


def load(args: argparse.Namespace) -> Loaded:
    """The configuration that the arguments name. Raises ConfigError, PluginError."""
    from rlinf.config import load

    if args.config is None:
        notice(f"configuration: {DEFAULT_CONFIG} (the default; choose another with --config)")
    try:
        return load(args.config or DEFAULT_CONFIG, args.overrides)
    finally:
        show_extension()


def show_extension() -> None:
    """Say so when RLINF_EXT_MODULE acts: the environment never changes what a run does silently."""
    from rlinf.plugins.extension import VARIABLE, loaded_extensions

    for name, file in loaded_extensions().items():
        notice(f"{VARIABLE}: {name} is loaded from {file or 'no file'}")


def notice(text: str) -> None:
    """A line for the person at the terminal; the output proper stays clean."""
    print(f"rlinf: {text}", file=sys.stderr, flush=True)


def report_failure(error: Exception) -> int:
    """Show why a command failed: a message for what the user can change (2), a traceback for the rest (1)."""
    cause = getattr(error, "cause", None)  # Ray wraps a worker's exception and keeps it here
    mine = cause if isinstance(cause, Exception) else error
    if is_user_error(mine):
        print(f"rlinf: {_fit(str(mine))}", file=sys.stderr)
        return 2
    import traceback

    traceback.print_exception(error)
    return 1


def is_user_error(error: Exception) -> bool:
    """Whether a change of the configuration, the plugins or the command line is the remedy."""
    from rlinf.plugins.errors import PluginError

    if isinstance(error, PluginError | UsageError):
        return True
    # A module that is not imported cannot have raised its error, and importing it here would be slow.
    elsewhere = (
        ("rlinf.config.errors", "ConfigError"),
        ("rlinf.cluster.errors", "UserError"),
        ("rlinf.data.errors", "DatasetError"),
    )
    found = [getattr(sys.modules[module], name) for module, name in elsewhere if module in sys.modules]
    return isinstance(error, tuple(found))


class UsageError(ValueError):
    """A command line that argparse accepts and that still cannot be meant."""


def _fit(text: str) -> str:
    """Long lines folded for a terminal; lines of a traceback (indented) and all that goes to a file stay."""
    if not sys.stderr.isatty():
        return text
    import shutil
    import textwrap

    width = shutil.get_terminal_size().columns
    folded: list[str] = []
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        keep = len(line) <= width or indent > 2
        folded += (
            [line]
            if keep
            else textwrap.wrap(
                line,
                width,
                subsequent_indent=" " * (indent + 2),
                break_long_words=False,
                break_on_hyphens=False,
            )
        )
    return "\n".join(folded)
