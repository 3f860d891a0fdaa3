"""`rlinf convert`: a training checkpoint as weights that other tools read."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any, Final

from rlinf.cli.common import UsageError, add_drift_argument, command, show_extension

EXAMPLES = """
rlinf convert runs/my_run/checkpoints/step_40 my_model
rlinf convert runs/my_run/checkpoints/step_40 my_model --lora keep
rlinf convert runs/my_run/checkpoints/step_40 my_model --max-shard-size 2GB
"""
_UNITS: Final = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def add_parser(subparsers: Any) -> None:
    parser = command(subparsers, "convert", "write a checkpoint's weights in their family's layout", EXAMPLES)
    add_arguments(parser)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of the command; the published module name takes the same."""
    checkpoint = parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="a folder checkpoints/step_N of a run"
    )
    checkpoint.complete = {"bash": "_shtab_compgen_dirs", "zsh": "_files -/"}  # type: ignore[attr-defined]
    parser.add_argument("target", type=Path, metavar="FOLDER", help="new folder for the weights")
    parser.add_argument(
        "--lora",
        choices=("merge", "keep"),
        default="merge",
        help="fold adapters into the weights, or write them beside the untouched ones (default: merge)",
    )
    parser.add_argument(
        "--max-shard-size",
        type=_bytes,
        default=5 * 10**9,
        metavar="SIZE",
        help="largest file, such as 500MB or 5GB (default: 5GB)",
    )
    add_drift_argument(parser)


def run(args: argparse.Namespace) -> int:
    if not args.checkpoint.is_dir():
        raise UsageError(f"there is no folder {args.checkpoint}")
    show_extension()
    from rlinf.runners.convert import convert_checkpoint

    files = convert_checkpoint(
        args.checkpoint,
        args.target,
        lora=args.lora,
        max_shard_bytes=args.max_shard_size,
        allow_plugin_drift=args.allow_plugin_drift,
    )
    for path in files:
        print(f"{path.stat().st_size:>14,}  {path}")
    return 0


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+)\s*([KMG]?B?)", text.strip().upper())
    unit = match[2] if match else None
    if match is None or (unit not in _UNITS) or int(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"expected a size such as 500MB or 5GB; got {text!r}")
    return int(match[1]) * _UNITS[match[2]]
