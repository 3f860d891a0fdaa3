"""`rlinf eval`: a checkpoint on held-out episodes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rlinf.cli.common import UsageError, add_drift_argument, command, show_extension

EXAMPLES = """
rlinf eval --checkpoint runs/tabletop_ppo/checkpoints/step_40
rlinf eval --checkpoint runs/tabletop_ppo/checkpoints/step_40 --video
"""


def add_parser(subparsers: Any) -> None:
    parser = command(subparsers, "eval", "evaluate a checkpoint on held-out episodes", EXAMPLES)
    checkpoint = parser.add_argument(
        "--checkpoint", type=Path, required=True, metavar="DIR", help="a folder checkpoints/step_N of a run"
    )
    checkpoint.complete = {"bash": "_shtab_compgen_dirs", "zsh": "_files -/"}  # type: ignore[attr-defined]
    parser.add_argument(
        "--episodes", type=int, metavar="N", help="how many (default: as the run was configured)"
    )
    parser.add_argument(
        "--video",
        type=Path,
        nargs="?",
        const=Path("eval.gif"),
        metavar="FILE",
        help="film some episodes (default file: eval.gif)",
    )
    parser.add_argument(
        "--blind", action="store_true", help="hide the instruction, or the prompt's text, from the policy"
    )
    add_drift_argument(parser)


def run(args: argparse.Namespace) -> int:
    if not args.checkpoint.is_dir():
        raise UsageError(f"--checkpoint: there is no folder {args.checkpoint}")
    if args.episodes is not None and args.episodes < 1:
        raise UsageError(f"--episodes: expected a number >= 1; got {args.episodes}")
    from rlinf.runners.evaluate import run_eval

    show_extension()
    return run_eval(
        args.checkpoint,
        episodes=args.episodes,
        video=args.video,
        blind=args.blind,
        allow_plugin_drift=args.allow_plugin_drift,
    )
