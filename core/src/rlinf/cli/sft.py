"""`rlinf sft`: supervised fine-tuning alone."""

from __future__ import annotations

import argparse
from typing import Any

from rlinf.cli.common import UsageError, add_run_arguments, command, load

EXAMPLES = """
rlinf sft --config tabletop_ppo sft.max_steps=500
rlinf sft --config my.yaml data.train_data_paths=data/demos
"""


def add_parser(subparsers: Any) -> None:
    parser = command(subparsers, "sft", "train a policy by supervised fine-tuning", EXAMPLES)
    add_run_arguments(parser)


def run(args: argparse.Namespace) -> int:
    config = load(args).config
    if config.sft is None:
        raise UsageError("rlinf sft needs the block sft: give at least sft.max_steps and a source of data")
    from rlinf.runners.sft import run_sft

    return run_sft(config, dry_run=args.dry_run, allow_plugin_drift=args.allow_plugin_drift, ship=args.ship)
