"""`rlinf doctor`: the facts of one process, and of every node of a Ray cluster side by side.

A report is JSON-able: {"python", "executable", "host", "versions", "plugins", "conflicts", "editable",
"shadowed", "extension", "machine", "problems"}; the sections are those of `rlinf.plugins.environment` and
`rlinf.cluster.machine`.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from rlinf.cluster.errors import UserError
from rlinf.cluster.machine import examine_machine
from rlinf.cluster.provenance import versions
from rlinf.cluster.ray_cluster import require_listener
from rlinf.plugins.environment import environment
from rlinf.plugins.extension import VARIABLE

Report = dict[str, Any]
#: Seconds for all nodes to answer; a worker process that imports nothing heavy starts in a few.
ANSWER_TIMEOUT_S: Final = 90.0
_ABSENT: Final = "absent"


def examine() -> Report:
    """The report of this process. Imports neither torch nor ray nor any plugin."""
    found, machine = environment(), examine_machine()
    return {
        "host": socket.gethostname(),
        "executable": sys.executable,
        "versions": versions(),
        "plugins": [
            {**asdict(row), "content": found.content.get(row.distribution, "") if row.state == "ok" else ""}
            for row in found.plugins
        ],
        "conflicts": [asdict(conflict) for conflict in found.conflicts],
        "editable": [asdict(item) for item in found.editable],
        "shadowed": [asdict(item) for item in found.shadowed],
        "extension": os.environ.get(VARIABLE, ""),
        "machine": asdict(machine),
        "problems": [*found.problems, *machine.problems],
    }


def examine_cluster(address: str) -> dict[str, Report]:
    """Node ("address (id)") -> its report. A node that does not answer, or on which `rlinf` cannot be
    imported, has a report with nothing but the problem.

    Raises UserError if no Ray cluster answers at `address`.
    """
    require_listener("--address", address)
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except ConnectionError as error:
        raise UserError(f"--address: no Ray cluster answers at {address!r}: {error}") from None
    try:
        task: Any = ray.remote(num_cpus=0, max_retries=0)(examine)
        pending = {}
        for node in ray.nodes():
            if node["Alive"]:
                label = f"{node['NodeManagerAddress']} ({node['NodeID'][:6]})"
                there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                pending[label] = task.options(scheduling_strategy=there).remote()
        ray.wait(list(pending.values()), num_returns=len(pending), timeout=ANSWER_TIMEOUT_S)
        return {label: _answer(pending[label]) for label in sorted(pending)}
    finally:
        ray.shutdown()


def _answer(ref: Any) -> Report:
    import ray

    try:
        return ray.get(ref, timeout=0)
    except ray.exceptions.GetTimeoutError:
        return {"problems": [f"did not answer within {ANSWER_TIMEOUT_S:.0f} s"]}
    except ray.exceptions.RayError as error:  # rlinf is absent or another one there, or the process died
        return {"problems": [f"could not be examined: {_last_line(error)}"]}


def _last_line(error: Exception) -> str:
    """What a remote traceback ends with: the exception itself."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def differences(reports: Mapping[str, Report]) -> list[dict[str, Any]]:
    """What nodes do not have in common: [{"what": ..., "values": {node: value}}]. Nodes without an answer are
    not compared; free memory and file places are no difference."""
    facts = {node: _comparable(report) for node, report in reports.items() if "versions" in report}
    keys = dict.fromkeys(key for found in facts.values() for key in found)
    rows = []
    for key in keys:
        values = {node: found.get(key, _ABSENT) for node, found in facts.items()}
        if len(set(values.values())) > 1:
            rows.append({"what": key, "values": values})
    return rows


def _comparable(report: Report) -> dict[str, str]:
    facts = dict(report["versions"])
    facts["CUDA of torch"] = report["machine"]["torch_cuda"] or "none"
    for row in report["plugins"]:
        key = f"{row['group']} {row['name']}"
        state = "" if row["state"] == "ok" else f", {row['state']}"
        content = f", content {row['content'][:8]}" if row["content"] else ""
        value = f"{row['distribution']} {row['version']}{content}{state}"
        facts[key] = f"{facts[key]} and {value}" if key in facts else value
    facts["GPUs"] = "; ".join(report["machine"]["gpus"]) or "none"
    facts[VARIABLE] = report["extension"] or "not set"
    return facts
