"""`rlinf data check | stats | record | convert`: datasets of recorded episodes."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from rlinf.cli import data_convert
from rlinf.cli.common import COMPLETE_FILE, UsageError, command, load, notice, shipped

if TYPE_CHECKING:
    from rlinf.config import Config

EXAMPLES = """
rlinf data check data/cubes lerobot/pusht
rlinf data check data/cubes --config tabletop_ppo
rlinf data stats data/cubes --config my.yaml --output assets/cubes
rlinf data record data/cubes --config tabletop_ppo --episodes 100
rlinf data record data/more --checkpoint runs/demo/checkpoints/step_90
rlinf data convert rlds/bridge_dataset/1.0.0 data/bridge --fps 5
rlinf data convert rlds/libero/1.0.0 data/libero --rename image=main
"""


def add_parser(subparsers: Any) -> None:
    parser = command(subparsers, "data", "check, measure, record and convert datasets", EXAMPLES)
    commands = parser.add_subparsers(dest="data_command", metavar="COMMAND", required=True)
    check = commands.add_parser(
        "check",
        help="read every episode; with --config also match them with the model",
        description="Read every episode of datasets and compare with their metadata. Exit status 1 when "
        "one is damaged. With --config the datasets are matched with its model as well.",
    )
    stats = commands.add_parser(
        "stats",
        help="normalisation statistics in openpi's norm_stats.json layout",
        description="Mean, standard deviation, range, and quantiles of 1 % and 99 % of states and actions as "
        "the model of --config takes them, in one pass, into norm_stats.json.",
    )
    record = commands.add_parser(
        "record",
        help="a dataset from a simulator: scripted expert or checkpoint",
        description="Record successful episodes of the environment's scripted expert, or of a checkpoint's "
        "policy, as a new dataset.",
    )
    for one in (check, stats):
        one.add_argument(
            "words",
            nargs="*",
            metavar="PATH | key=value",
            help="datasets (default: data.train_data_paths of --config) and keys of the configuration",
        )
    record.add_argument("words", nargs="+", metavar="FOLDER | key=value", help="new folder, and keys")
    for one in (check, stats, record):
        option = one.add_argument(
            "--config", metavar="NAME", help=f"a .yaml or one of {', '.join(shipped())}"
        )
        option.complete = COMPLETE_FILE  # type: ignore[attr-defined]
        one.add_argument("--format", help="format of the dataset (default: as it looks; record: lerobot)")
    stats.add_argument(
        "--output", metavar="PATH", help="file or folder (default: the first dataset's folder)"
    )
    record.add_argument("--episodes", type=int, default=100, help="how many to keep (default: %(default)s)")
    record.add_argument("--checkpoint", metavar="FOLDER", help="whose policy acts; with its configuration")
    record.add_argument("--png", action="store_true", help="lossless images in the tables instead of videos")
    record.add_argument("--keep-failures", action="store_true", help="keep episodes that fail as well")
    # Words between the options end up here; `run` sorts all of them.
    data_convert.add_command(commands)
    parser.set_defaults(run=run, overrides=[], words=[])


def run(args: argparse.Namespace) -> int:
    if args.data_command == "convert":
        if args.overrides:
            raise UsageError(f"rlinf data convert takes two paths; also got {' '.join(args.overrides)}")
        return data_convert.run(args)
    words = [*args.words, *args.overrides]
    paths = [w for w in words if not ("=" in w or w.startswith("~")) or os.path.exists(w)]
    args.overrides = [word for word in words if word not in paths]
    return {"check": _check, "stats": _stats, "record": _record}[args.data_command](args, paths)


def _check(args: argparse.Namespace, paths: list[str]) -> int:
    from rlinf.runners.data import check_datasets

    config = _config(args, paths)
    return check_datasets(paths or (config.data.train_data_paths if config else []), args.format, config)


def _stats(args: argparse.Namespace, paths: list[str]) -> int:
    from rlinf.runners.data import write_stats

    config = _config(args, paths)
    if config is None:
        raise UsageError("rlinf data stats needs --config: the model says what its states and actions are")
    return write_stats(config, args.output)


def _record(args: argparse.Namespace, paths: list[str]) -> int:
    from rlinf.runners.record import record_dataset

    if len(paths) != 1:
        raise UsageError(f"rlinf data record needs one new folder, got {' '.join(paths) or 'none'}")
    if args.episodes < 1:
        raise UsageError(f"--episodes: expected at least 1, got {args.episodes}")
    if args.checkpoint and (args.config or args.overrides):
        raise UsageError("--checkpoint brings its own configuration: leave --config and keys away")
    config = None if args.checkpoint else load(args).config
    return record_dataset(
        paths[0],
        config,
        checkpoint=args.checkpoint,
        episodes=args.episodes,
        format_name=args.format or "lerobot",
        png=args.png,
        keep_failures=args.keep_failures,
    )


def _config(args: argparse.Namespace, paths: list[str]) -> Config | None:
    """The configuration with these datasets; None when no model is named."""
    if args.config is None:
        if args.overrides:
            raise UsageError(f"{args.overrides[0]}: keys need a configuration, name it with --config")
        if not paths:
            raise UsageError("name a dataset, or a configuration that does")
        return None
    if paths:
        args.overrides = [f"data.train_data_paths={paths}", *args.overrides]
    if args.format:
        args.overrides = [f"data.format={args.format}", *args.overrides]
    config = load(args).config
    if not config.data.train_data_paths:
        raise UsageError("name a dataset: a path here, or data.train_data_paths in the configuration")
    notice(f"model: {config.model.model_type}")
    return config
