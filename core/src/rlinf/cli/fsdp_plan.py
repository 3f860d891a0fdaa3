"""`rlinf fsdp-plan`: which FSDP2 units a configuration makes, and how many bytes each rank will take."""

from __future__ import annotations

import argparse
from typing import Any

from rlinf.cli.common import UsageError, add_config_arguments, command, load

EXAMPLES = """
rlinf fsdp-plan --config tabletop_ppo
rlinf fsdp-plan --config my.yaml model.is_lora=true --world-size 2,8,64
rlinf fsdp-plan --config my.yaml --json
"""


def add_parser(subparsers: Any) -> None:
    parser = command(subparsers, "fsdp-plan", "show FSDP units and bytes per rank, without weights", EXAMPLES)
    add_config_arguments(parser)
    parser.add_argument(
        "--world-size",
        type=_world_sizes,
        metavar="N,N",
        help="numbers of ranks to estimate for (default: the configuration's actor processes)",
    )
    parser.add_argument("--json", action="store_true", help="machine-readable output, every unit by name")


def run(args: argparse.Namespace) -> int:
    config = load(args).config
    from rlinf.config import parse_placement
    from rlinf.fsdp.report import plan_report

    actors = len(parse_placement(config.cluster.component_placement, config.components)["actor"])
    try:
        report = plan_report(config, args.world_size or (actors,))
    except ValueError as error:  # a rule or dtype that does not fit: the text says all
        raise UsageError(str(error)) from error
    if args.json:
        import json

        print(json.dumps(report.as_json(), indent=1))
    else:
        from rlinf.fsdp.report_text import plan_text

        print(plan_text(report))
    return 0


def _world_sizes(text: str) -> tuple[int, ...]:
    words = text.split(",")
    if not all(word.strip().isdecimal() and int(word) > 0 for word in words):
        raise argparse.ArgumentTypeError(f"expected numbers of ranks such as 2,8; got {text!r}")
    return tuple(sorted({int(word) for word in words}))
