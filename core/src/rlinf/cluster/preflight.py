"""Before any worker starts: one look at every node and environment of the run, compared with the driver."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from rlinf.cluster.errors import UserError, explain
from rlinf.cluster.interpreter import SHARED, interpreter_rows
from rlinf.cluster.look import Facts, disk_free, look
from rlinf.cluster.nodes import Node
from rlinf.plugins import Plan
from rlinf.plugins.discovery import ENVS, GROUPS, REWARDS

#: Seconds for all nodes to answer.
ANSWER_TIMEOUT_S: Final = 90.0
#: A run does not begin with less shared memory, or less disk at the run folder, free than this.
LEAST_SHM: Final = 64 * 2**20
LEAST_DISK: Final = 256 * 2**20
#: Clocks that are further apart make nonsense of logs and of certificates.
MOST_SKEW_S: Final = 5.0
#: Who needs the run folder: ranks write their shards of a checkpoint there.
_WRITERS: Final = "actor"
#: What a component needs of the plan where it has an environment of its own.
GROUPS_OF: Final = {"env": (ENVS, REWARDS)}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What one node has otherwise than the driver; `environment`: within one of a component's own."""

    node: str
    what: str
    driver: str
    here: str
    environment: str = ""


def require_disk(folder: Path) -> None:
    """Refuse a run folder on a disk that is as good as full. Raises UserError."""
    free = disk_free(str(folder))
    if free < LEAST_DISK:
        raise UserError(
            f"runner.output_dir: {_mb(free)} are free on the disk of {folder}; a run needs {_mb(LEAST_DISK)} "
            "and room for its checkpoints: free some, or give another runner.output_dir"
        )


def preflight(
    plan: Plan,
    folder: Path,
    nodes: Mapping[str, Sequence[Node]],
    say: Callable[[str], None],
    environments: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Look at every node that has processes of the run and compare it with this process.

    nodes: component -> its nodes. environments: component -> Ray's `runtime_env` with a `py_executable`, for
        those that have one of their own.

    Raises:
        UserError: a table of what differs, before anything was started.
    """
    begin = time.monotonic()
    environments = environments or {}
    here = look(plan.to_json(), str(folder.absolute()))
    every = {node.id: node for members in nodes.values() for node in members}
    plain = {node.id: node for name, members in nodes.items() if name not in environments for node in members}
    facts, skews = ask(plan, folder, list(plain.values()))
    writers = {node.id for node in nodes[_WRITERS]}
    found: list[Difference] = []
    for id_, node in plain.items():
        skew_s = skews.get(id_, 0.0)
        found += compare(node.label, here, facts[id_], skew_s, node.gpus, id_ in writers)
    for component, environment in environments.items():
        members = list({node.id: node for node in nodes[component]}.values())
        found += _look_within(component, environment, members, plan, folder, here)
    if found:
        raise UserError(refusal(found, len(every), here))
    say(f"preflight: {len(every)} nodes agree ({time.monotonic() - begin:.1f} s)")


def _look_within(
    component: str,
    environment: Mapping[str, Any],
    nodes: Sequence[Node],
    plan: Plan,
    folder: Path,
    here: Facts,
) -> list[Difference]:
    """What is wrong with a component's own environment on its nodes."""
    name = f"{component}.runtime_env"
    path, expected = environment["py_executable"], {key: here["versions"][key] for key in SHARED}
    found: list[Difference] = []
    usable = []
    for node, (rows, _) in zip(nodes, _on_nodes(nodes, interpreter_rows, path, expected)):
        rows = [("rlinf", "answers", rows)] if isinstance(rows, str) else rows
        for what, mine, theirs in rows:
            row = Difference(node=node.label, what=what, driver=mine, here=theirs, environment=name)
            found.append(row)
        usable += [] if rows else [node]
    facts, skews = ask(plan, folder, usable, environment, GROUPS_OF[component])
    for node in usable:
        found += compare_within(node.label, name, here, facts[node.id], skews.get(node.id, 0.0))
    return found


def ask(
    plan: Plan,
    folder: Path,
    nodes: Sequence[Node],
    environment: Mapping[str, Any] | None = None,
    groups: Sequence[str] = GROUPS,
) -> tuple[dict[str, Facts | str], dict[str, float]]:
    """(facts, or why there are none, clock skew in seconds) by node id."""
    args = (plan.to_json(), str(folder.absolute()), tuple(groups))
    facts: dict[str, Facts | str] = {}
    skews: dict[str, float] = {}
    for node, (answer, came) in zip(nodes, _on_nodes(nodes, look, *args, environment=environment)):
        facts[node.id] = answer
        if not isinstance(answer, str):
            # The answer is as old as its way back, a few milliseconds.
            skews[node.id] = answer["clock"] - came
    return facts, skews


def _on_nodes(
    nodes: Sequence[Node],
    function: Callable[..., Any],
    *args: Any,
    environment: Mapping[str, Any] | None = None,
) -> list[tuple[Any, float]]:
    """Call a function on each node; returns its value, or as text why there is none, and when it came."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task: Any = ray.remote(num_cpus=0, max_retries=0)(function)
    refs = []
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node.id, soft=False)
        own = {"runtime_env": dict(environment)} if environment else {}
        refs.append(task.options(scheduling_strategy=there, **own).remote(*args))
    answers: dict[Any, tuple[Any, float]] = {}
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    waiting = list(refs)
    while waiting and time.monotonic() < deadline:
        ready, waiting = ray.wait(waiting, timeout=max(0.0, deadline - time.monotonic()))
        for ref in ready:
            try:
                answers[ref] = ray.get(ref), time.time()
            except ray.exceptions.RayError as error:  # rlinf is absent or another one, or the process died
                answers[ref] = str(explain(error)).partition("\n")[0], 0.0
    late = f"no answer within {ANSWER_TIMEOUT_S:.0f} s", 0.0
    return [answers.get(ref, late) for ref in refs]


def compare_within(
    node: str, environment: str, driver: Facts, facts: Facts | str, skew_s: float
) -> list[Difference]:
    """What is wrong with a component's own environment, which may have other packages than the driver's."""
    shared = {name: driver["versions"][name] for name in SHARED}
    if not isinstance(facts, str):
        theirs = {name: text for name, text in facts["versions"].items() if name in SHARED}
        facts = {**facts, "versions": theirs}
    found = compare(node, {**driver, "versions": shared}, facts, skew_s, 0, False)
    return [replace(row, environment=environment) for row in found]


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
    if driver["processors"] != facts["processors"] and not facts["rows"]:
        mine, theirs = (side["processors"] or "none" for side in (driver, facts))
        found.append(differs("action processors", mine, theirs))
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
        where = f"{row.node}, {row.environment}" if row.environment else row.node
        cells.append((row.what, row.driver, first, where))
    widths = [max(len(row[column]) for row in cells) for column in range(3)]
    for row_ in cells:
        lines.append("  " + "  ".join(f"{text:<{width}}" for text, width in zip(row_, [*widths, 0])).rstrip())
    changed = {row.what for row in found}
    alike = [f"{name} {version}" for name, version in driver["versions"].items() if name not in changed]
    lines.append("alike everywhere: " + ", ".join(alike))
    if any(not row.environment for row in found):
        lines.append(
            "Install on those nodes what is installed here, or send the run's plugins along with --ship."
        )
    if any(row.environment for row in found):
        lines.append(
            "Into an environment of its own belong the versions of Python, Ray and rlinf-core from here, the "
            "simulator's plugin, and the plugins whose action processors the run uses (without their "
            "requirements, where these conflict: pip install --no-deps)."
        )
    return "\n".join([*lines, *details])


def _mb(number: int) -> str:
    return f"{number / 2**20:.0f} MB"
