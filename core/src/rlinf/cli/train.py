"""`rlinf train`: reinforcement learning, after a warm start when the configuration has an `sft` block."""

from __future__ import annotations

import argparse
from typing import Any

from rlinf.cli.common import add_run_arguments, command, load

EXAMPLES = """
rlinf train --config tabletop_ppo
rlinf train --config my.yaml runner.seed=1 runner.output_dir=runs/seed1
rlinf train --config my.yaml runner.resume=true
rlinf train --config tabletop_ppo algorithm.gamma=0.99 sft=null
rlinf train model.model_type=my_model --dry-run
"""


def add_parser(subparsers: Any) -> None:
    parser = command(subparsers, "train", "train a policy by reinforcement learning", EXAMPLES)
    add_run_arguments(parser)


def run(args: argparse.Namespace) -> int:
    config = load(args).config
    from rlinf.runners.train import run_training

    return run_training(
        config, dry_run=args.dry_run, allow_plugin_drift=args.allow_plugin_drift, ship=args.ship
    )
