"""`rlinf doctor`: is this environment, or every node of a Ray cluster, fit for a run?"""

from __future__ import annotations

import argparse
from typing import Any

from rlinf.cli.common import command

EXAMPLES = """
rlinf doctor
rlinf doctor --json
rlinf doctor --address 10.0.0.1:6379
"""


def add_parser(subparsers: Any) -> None:
    parser = command(subparsers, "doctor", "check the environment; exit status 1 if it is wrong", EXAMPLES)
    parser.add_argument("--address", metavar="ADDR", help="examine every node of this Ray cluster")
    parser.add_argument("--json", action="store_true", help="machine-readable output")


def run(args: argparse.Namespace) -> int:
    """Returns 0 if nothing is wrong, 1 if something is."""
    from rlinf.cluster import doctor, doctor_text

    if args.address is None:
        report = doctor.examine()
        _print(report if args.json else doctor_text.report_text(report))
        return int(bool(report["problems"]))
    reports = doctor.examine_cluster(args.address)
    differing = doctor.differences(reports)
    if args.json:
        _print({"differences": differing, "nodes": reports})
    else:
        _print(doctor_text.cluster_text(args.address, reports, differing))
    return int(bool(differing) or any(report["problems"] for report in reports.values()))


def _print(output: Any) -> None:
    import json

    print(output if isinstance(output, str) else json.dumps(output, indent=1))
