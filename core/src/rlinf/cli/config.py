"""`rlinf config`: show, check and describe configurations."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from rlinf.cli.common import DEFAULT_CONFIG, add_config_arguments, command, load, notice, show_extension

EXAMPLES = """
rlinf config show --config tabletop_ppo --origin
rlinf config validate --config my.yaml actor.optim.lr=1e-4
rlinf config schema --model tiny_vla > schema.json
"""


def add_parser(subparsers: Any) -> None:
    parser = command(subparsers, "config", "show, validate or describe configurations", EXAMPLES)
    actions = parser.add_subparsers(title="actions", dest="action", required=True)
    show = command(
        actions, "show", "print the resolved configuration", "rlinf config show --origin runner.seed=3"
    )
    add_config_arguments(show)
    show.add_argument("--origin", action="store_true", help="say where each value comes from")
    validate = command(
        actions, "validate", "say OK or list all that is wrong", "rlinf config validate --config my.yaml"
    )
    add_config_arguments(validate)
    schema = command(
        actions,
        "schema",
        "print the JSON Schema, for editors",
        "rlinf config schema --model tiny_vla --env tabletop",
    )
    schema.add_argument("--model", metavar="TYPE", help="this model's subtree only (default: all installed)")
    schema.add_argument(
        "--env", metavar="TYPE", help="this simulator's subtree only (default: all installed)"
    )


def run(args: argparse.Namespace) -> int:
    return {"show": _show, "validate": _validate, "schema": _schema}[args.action](args)


def _show(args: argparse.Namespace) -> int:
    from rlinf.config.show import render

    sys.stdout.write(render(load(args), origins=args.origin))
    return 0


def _validate(args: argparse.Namespace) -> int:
    load(args)
    count = len(args.overrides)
    with_overrides = f" with {count} override{'s' if count > 1 else ''}" if count else ""
    print(f"OK: {args.config or DEFAULT_CONFIG}{with_overrides}")
    return 0


def _schema(args: argparse.Namespace) -> int:
    from rlinf.config.json_schema import json_schema
    from rlinf.plugins import load_ext_module

    load_ext_module()
    show_extension()
    schema, warnings = json_schema(model_type=args.model, env_type=args.env)
    for warning in warnings:
        notice(warning)
    print(json.dumps(schema, indent=2))
    return 0
