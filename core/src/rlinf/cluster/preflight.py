"""Before any worker starts: one look at every node of the run, compared with the driver.

A node's facts are JSON-able: {"host", "versions", "rows", "machine", "disk_free", "folder", "clock"};
`rows` are the differences between the run's plan and what the node resolves.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rlinf.cluster.errors import UserError, explain
from rlinf.cluster.machine import examine_machine
from rlinf.cluster.nodes import Node
from rlinf.cluster.provenance import versions
from rlinf.plugins import Plan
from rlinf.plugins.fingerprint import hash_files

Facts = dict[str, Any]
#: Seconds for all nodes to answer.
ANSWER_TIMEOUT_S: Final = 90.0
#: A run does not begin with less shared memory, or less disk at the run folder, free than this.
LEAST_SHM: Final = 64 * 2**20
LEAST_DISK: Final = 256 * 2**20
#: Clocks that are further apart make nonsense of logs and of certificates.
MOST_SKEW_S: Final = 5.0
#: Who needs the run folder: ranks write their shards of a checkpoint there.
_WRITERS: Final = "actor"
#: Files by which a node tells whether it sees the driver's folder: of a run, of a checkpoint.
_MARKS: Final = ("config.yaml", "metadata.json")


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What one node has otherwise than the driver; `fatal` if the run cannot begin like this."""

    node: str
    what: str
    driver: str
    here: str


def look(plan: str, folder: str) -> Facts:
    """The facts of this process, for the plan and the run folder. Runs on every node."""
    from rlinf.plugins.plan import resolve_here

    machine = examine_machine()
    _, rows = resolve_here(Plan.from_json(plan))
    return {
        "host": socket.gethostname(),
        "versions": versions(),
        "rows": rows,
        "gpus": list(machine.gpus),
        "torch_cuda": machine.torch_cuda,
        "shm_free": machine.shm_free,
        "disk_free": disk_free(folder),
        "folder": {mark: _digest(Path(folder) / mark) for mark in _MARKS},
        "clock": time.time(),
    }


def _digest(path: Path) -> str:
    return hash_files({path.name: str(path)})


def disk_free(folder: str) -> int:
    """Free bytes where a folder is, or would be."""
    import shutil

    path = Path(folder).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def require_disk(folder: Path) -> None:
    """Refuse a run folder on a disk that is as good as full. Raises UserError."""
    free = disk_free(str(folder))
    if free < LEAST_DISK:
        raise UserError(
            f"runner.output_dir: {_mb(free)} are free on the disk of {folder}; a run needs {_mb(LEAST_DISK)} "
            "and room for its checkpoints: free some, or give another runner.output_dir"
        )


def preflight(
    plan: Plan, folder: Path, nodes: Mapping[str, Sequence[Node]], say: Callable[[str], None]
) -> None:
    """Look at every node that has processes of the run and compare it with this process.

    nodes: component -> its nodes.

    Raises:
        UserError: a table of what differs, before anything was started.
    """
    begin = time.monotonic()
    here = look(plan.to_json(), str(folder.absolute()))
    every = {node.id: node for members in nodes.values() for node in members}
    facts, skews = ask(plan, folder, list(every.values()))
    writers = {node.id for node in nodes[_WRITERS]}
    found: list[Difference] = []
    for id_, node in every.items():
        label = f"node {node.rank} ({node.address})"
        found += compare(label, here, facts[id_], skews.get(id_, 0.0), node.gpus, id_ in writers)
    if found:
        raise UserError(refusal(found, len(every), here))
    say(f"preflight: {len(every)} nodes agree ({time.monotonic() - begin:.1f} s)")


def ask(plan: Plan, folder: Path, nodes: Sequence[Node]) -> tuple[dict[str, Facts | str], dict[str, float]]:
    """(facts, or why there are none, clock skew in seconds) by node id."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task: Any = ray.remote(num_cpus=0, max_retries=0)(look)
    text, path = plan.to_json(), str(folder.absolute())
    pending: dict[Any, str] = {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node.id, soft=False)
        ref = task.options(scheduling_strategy=there).remote(text, path)
        pending[ref] = node.id
    facts: dict[str, Facts | str] = dict.fromkeys(
        pending.values(), f"no answer within {ANSWER_TIMEOUT_S:.0f} s"
    )
    skews: dict[str, float] = {}
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    waiting = list(pending)
    while waiting and time.monotonic() < deadline:
        ready, waiting = ray.wait(waiting, timeout=max(0.0, deadline - time.monotonic()))
        for ref in ready:
            id_ = pending[ref]
            try:
                facts[id_] = answer = ray.get(ref)
                # The answer is as old as its way back, a few milliseconds.
                skews[id_] = answer["clock"] - time.time()
            except ray.exceptions.RayError as error:  # rlinf is absent or another one, or the process died
                facts[id_] = str(explain(error)).partition("\n")[0]
    return facts, skews


def compare(
    node: str, driver: Facts, facts: Facts | str, skew_s: float, gpus: int, writes: bool
) -> list[Difference]:
    """What is wrong with a node, against the driver's facts. gpus: how many Ray gives out there."""

    def differs(what: str, expected: str, got: str) -> Difference:
        return Difference(node=node, what=what, driver=expected, here=got)

    if isinstance(facts, str):
        return [differs("rlinf", "answers", facts)]
    found = []
    for name in dict.fromkeys([*driver["versions"], *facts["versions"]]):
        mine, theirs = (side["versions"].get(name, "absent") for side in (driver, facts))
        if mine != theirs:
            found.append(differs(name, mine, theirs))
    found += [differs(what, planned, here) for what, planned, here in facts["rows"]]
    if gpus and not facts["torch_cuda"]:
        found.append(differs("torch", f"CUDA for {gpus} GPUs", "built without CUDA"))
    if gpus and not facts["gpus"]:
        found.append(differs("GPU driver", f"{gpus} GPUs", "nvidia-smi shows none"))
    if facts["shm_free"] is not None and facts["shm_free"] < LEAST_SHM:
        found.append(differs("/dev/shm free", f">= {_mb(LEAST_SHM)}", _mb(facts["shm_free"])))
    if writes and facts["folder"] != driver["folder"]:
        found.append(differs("run folder", "shared by all trainers", "another folder there"))
    elif writes and facts["disk_free"] < LEAST_DISK:
        found.append(differs("disk free, run folder", f">= {_mb(LEAST_DISK)}", _mb(facts["disk_free"])))
    if abs(skew_s) > MOST_SKEW_S:
        found.append(differs("clock", f"within {MOST_SKEW_S:g} s", f"{skew_s:+.1f} s"))
    return found


def refusal(found: Sequence[Difference], nodes: int, driver: Facts) -> str:
    """The table: differences first, then what is alike everywhere."""
    wrong = len({row.node for row in found})
    lines = [f"preflight: {wrong} of {nodes} nodes cannot take part; nothing was started."]
    details: list[str] = []
    cells = [("what", "here", "there", "node")]
    for row in found:
        first, _, rest = row.here.partition("\n")
        if rest or len(first) > 28:
            details.append(f"{row.node}, {row.what}:\n  " + row.here.replace("\n", "\n  "))
            first = first if len(first) <= 28 else first[:25] + "..."
        cells.append((row.what, row.driver, first, row.node))
    widths = [max(len(row[column]) for row in cells) for column in range(3)]
    for row_ in cells:
        lines.append("  " + "  ".join(f"{text:<{width}}" for text, width in zip(row_, [*widths, 0])).rstrip())
    changed = {row.what for row in found}
    alike = [f"{name} {version}" for name, version in driver["versions"].items() if name not in changed]
    lines.append("alike everywhere: " + ", ".join(alike))
    lines.append(
        "Install on those nodes what is installed here, or send the run's plugins along with --ship."
    )
    return "\n".join([*lines, *details])


def _mb(number: int) -> str:
    return f"{number / 2**20:.0f} MB"
