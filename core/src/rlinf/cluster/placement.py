"""`cluster.component_placement` as processes, and these on nodes: who sits where, with what share of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rlinf.cluster.errors import UserError
from rlinf.cluster.nodes import Node, group_nodes, local_node
from rlinf.config import Config, ConfigError, check_placement, parse_placement
from rlinf.config.placement import COMPONENTS
from rlinf.config.schema import ClusterConfig

#: Components that compute on the accelerator; environments stay on the CPU.
ON_ACCELERATOR = ("actor", "rollout")


@dataclass(frozen=True, kw_only=True)
class Process:
    """One process of the run: the `rank`-th of its component, on these places of its node group."""

    component: str
    rank: int
    places: tuple[int, ...]
    node_group: str = ""

    @property
    def name(self) -> str:
        return f"{self.component}[{self.rank}]"


@dataclass(frozen=True, kw_only=True)
class Placement:
    """All processes of a run."""

    processes: tuple[Process, ...]
    config: ClusterConfig

    def of(self, component: str) -> tuple[Process, ...]:
        """The processes of one component, by rank."""
        return tuple(p for p in self.processes if p.component == component)


def place(config: ClusterConfig, components: tuple[str, ...] = COMPONENTS) -> Placement:
    """The processes of `components`. Raises ValueError for a placement that cannot be read."""
    placed = parse_placement(config.component_placement, components)
    return Placement(
        processes=tuple(
            Process(component=component, rank=rank, places=places, node_group=placed[component].node_group)
            for component in components
            for rank, places in enumerate(placed[component].processes)
        ),
        config=config,
    )


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """Places of one node that Ray gives out together, and the processes that share them."""

    node: Node
    #: Numbers of the accelerators (or cores) within the node.
    places: tuple[int, ...]
    processes: tuple[Process, ...]

    @property
    def resources(self) -> dict[str, float]:
        """What Ray reserves: a CPU for each process, the accelerators if any process computes on them."""
        resources = {"CPU": float(len(self.processes))}
        if self.node.gpus and any(p.component in ON_ACCELERATOR for p in self.processes):
            resources["GPU"] = float(len(self.places))
        return resources

    def gpus(self, process: Process) -> float:
        """The accelerators that a process takes; processes on one and the same share it evenly."""
        if process.component not in ON_ACCELERATOR or not self.node.gpus:
            return 0.0
        sharers = sum(p.component in ON_ACCELERATOR for p in self.processes)
        return len(self.places) / sharers


def seat(placement: Placement, nodes: Sequence[Node]) -> list[Bundle]:
    """The processes on real nodes, by node and place.

    Raises:
        UserError: a place, or a node's CPUs, are not there; a process would span nodes, or share several
            accelerators.
    """
    seats: dict[tuple[int, tuple[int, ...]], list[Process]] = {}
    for process in placement.processes:
        members = group_nodes(placement.config.node_groups, process.node_group, nodes)
        seats.setdefault(_seat(process, members), []).append(process)
    by_rank = {node.rank: node for node in nodes}
    bundles = [
        Bundle(node=by_rank[rank], places=places, processes=tuple(processes))
        for (rank, places), processes in sorted(seats.items())
    ]
    _require_disjoint(bundles)
    _require_cpus(bundles)
    return bundles


def _seat(process: Process, members: Sequence[Node]) -> tuple[int, tuple[int, ...]]:
    """(rank of the node, places within it) of a process."""
    # One node with accelerators makes the group's places accelerators; nodes without any have none to count.
    has_gpus = any(node.gpus for node in members)
    all_places = [(node.rank, i) for node in members for i in range(node.gpus if has_gpus else node.cpus)]
    kind = "accelerators" if has_gpus else "CPU cores"
    where = f" of node group {process.node_group!r}" if process.node_group else ""
    if max(process.places) >= len(all_places):
        raise UserError(
            f"cluster.component_placement.{process.component}: {process.name} asks for place "
            f"{max(process.places)}{where}, which has {len(all_places)} {kind} on "
            f"{_count(len(members), 'node')} (0-{len(all_places) - 1})"
        )
    chosen = [all_places[place] for place in process.places]
    if len({rank for rank, _ in chosen}) > 1:
        raise UserError(
            f"cluster.component_placement.{process.component}: {process.name} takes places "
            f"{', '.join(map(str, process.places))}{where}, which lie on nodes "
            f"{' and '.join(map(str, sorted({rank for rank, _ in chosen})))}: one process, one node"
        )
    return chosen[0][0], tuple(i for _, i in chosen)


def _require_disjoint(bundles: Sequence[Bundle]) -> None:
    """A process with several accelerators has them for itself: Ray gives out no parts of several."""
    users = Counter((b.node.rank, place) for b in bundles for place in b.places)
    for bundle in bundles:
        computing = [p for p in bundle.processes if p.component in ON_ACCELERATOR]
        clash = any(users[bundle.node.rank, place] > 1 for place in bundle.places)
        if len(bundle.places) > 1 and bundle.node.gpus and (clash or len(computing) > 1):
            raise UserError(
                f"cluster.component_placement: {bundle.processes[0].name} takes several accelerators of node "
                f"{bundle.node.rank} that other processes take as well; several cannot be shared: give it "
                "places of its own, or one"
            )


def _require_cpus(bundles: Sequence[Bundle]) -> None:
    """Each process needs a CPU. (A local Ray says that it has as many as there are processes.)"""
    wanted: Counter[int] = Counter()
    for bundle in bundles:
        wanted[bundle.node.rank] += len(bundle.processes)
    for node in {bundle.node.rank: bundle.node for bundle in bundles}.values():
        if node.id and wanted[node.rank] > node.cpus:
            raise UserError(
                f"cluster.component_placement: {wanted[node.rank]} processes on node {node.rank} "
                f"({node.address}), which offers {node.cpus} CPUs to Ray: start it with a larger --num-cpus, "
                "or place fewer there"
            )


def table(bundles: Sequence[Bundle]) -> str:
    """The placement for people, one line per node and place."""
    rows = []
    for bundle in bundles:
        first, last = bundle.places[0], bundle.places[-1]
        where = f"{bundle.node.kind} {first}" + (f"-{last}" if last > first else "")
        shares = [p.name + _share(bundle.gpus(p)) for p in bundle.processes]
        rows.append((f"{bundle.node.rank:>4}", bundle.node.address, where, "  ".join(shares)))
    rows.insert(0, ("node", "address", "place", "processes"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  " + "  ".join(f"{text:<{width}}" for text, width in zip(row, [*widths, 0])).rstrip()
        for row in rows
    )


def _share(gpus: float) -> str:
    return f" ({gpus:.2g} GPU)" if 0 < gpus < 1 else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def require_room(config: Config, available: int) -> None:
    """Refuse a placement that names places which are not there. Raises ConfigError."""
    problems = check_placement(config, available)
    if problems:
        raise ConfigError(problems)


def local_places() -> int:
    """Accelerators of this machine; its CPU cores if it has none."""
    node = local_node()
    return node.gpus or node.cpus
