"""`rlinf data convert SOURCE FOLDER`: recorded episodes in another format."""

from __future__ import annotations

import argparse
from typing import Any

from rlinf.cli.common import UsageError


def add_command(commands: Any) -> None:
    """Add `convert` to the subcommands of `data`."""
    parser = commands.add_parser(
        "convert",
        help="a dataset in another format, such as RLDS as LeRobot",
        description="Write all episodes of a dataset of any installed format as a new dataset.",
    )
    parser.add_argument("source", metavar="SOURCE", help="dataset to read")
    parser.add_argument("target", metavar="FOLDER", help="new folder")
    parser.add_argument("--format", help="format of the source (default: as it looks)")
    parser.add_argument("--to", default="lerobot", help="format of the new dataset (default: %(default)s)")
    parser.add_argument("--fps", type=float, help="frames per second, where the source does not know (RLDS)")
    parser.add_argument(
        "--rename", action="append", default=[], metavar="OLD=NEW", help="another name for a feature"
    )
    parser.add_argument("--png", action="store_true", help="lossless images in the tables instead of videos")


def run(args: argparse.Namespace) -> int:
    from rlinf.runners.data_convert import convert_episodes

    if args.fps is not None and not args.fps > 0:
        raise UsageError(f"--fps: expected a number > 0, got {args.fps}")
    pairs = [pair.partition("=") for pair in args.rename]
    wrong = [old for old, sign, new in pairs if not (old and sign and new)]
    if wrong:
        raise UsageError(f"--rename: expected OLD=NEW, got {wrong[0]!r}")
    return convert_episodes(
        args.source,
        args.target,
        source_format=args.format,
        target_format=args.to,
        fps=args.fps,
        rename={old: new for old, _, new in pairs},
        png=args.png,
    )
