"""The nodes of a run: who they are, in which order, and the wait until they are there."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rlinf.cluster.errors import UserError
from rlinf.config.placement import parse_ranks
from rlinf.config.schema import ClusterConfig, NodeGroupConfig

#: A Ray node label with which an operator fixes a node's rank (`ray start --labels rlinf-node-rank=3`).
RANK_LABEL: Final = "rlinf-node-rank"
#: Seconds between two looks at a cluster that is not complete, and between two lines about it.
_LOOK_S, _SAY_S = 0.5, 10.0


@dataclass(frozen=True, kw_only=True)
class Node:
    """One node of a run. `id` is Ray's, "" before Ray has started."""

    rank: int
    id: str
    address: str
    cpus: int
    gpus: int

    @property
    def label(self) -> str:
        """For people."""
        return f"node {self.rank} ({self.address})"

    @property
    def kind(self) -> str:
        """What the places of this node are."""
        return "GPU" if self.gpus else "CPU"


def local_node() -> Node:
    """This machine, before Ray has started."""
    gpus = 0
    if Path("/proc/driver/nvidia").exists():
        import torch  # here only: where there is no driver, the count is known without it

        gpus = torch.cuda.device_count()
    return Node(rank=0, id="", address="this machine", cpus=os.cpu_count() or 1, gpus=gpus)


def cluster_nodes(num_nodes: int) -> list[Node]:
    """The run's nodes in the order of their ranks: the first `num_nodes` of the connected cluster.

    Nodes that carry the label `rlinf-node-rank` come first, by that number; then the head node; then the
    others by address.
    """
    import ray

    alive = sorted((row for row in ray.nodes() if row["Alive"]), key=_order)
    return [
        Node(
            rank=rank,
            id=row["NodeID"],
            address=row["NodeManagerAddress"],
            cpus=int(row["Resources"].get("CPU", 0)),
            gpus=int(row["Resources"].get("GPU", 0)),
        )
        for rank, row in enumerate(alive[:num_nodes])
    ]


def _order(row: Mapping[str, Any]) -> tuple[int, bool, str, str]:
    number = row["Labels"].get(RANK_LABEL, "")
    rank = int(number) if number.isdecimal() else 1 << 30
    is_head = "node:__internal_head__" in row["Resources"]
    return rank, not is_head, row["NodeManagerAddress"], row["NodeID"]


def wait_for_nodes(config: ClusterConfig, say: Callable[[str], None]) -> list[Node]:
    """The run's nodes, once all have joined the connected cluster; `say` is told how the wait goes.

    Raises UserError after `cluster.node_timeout_s`.
    """
    begin = said = time.monotonic()
    before = -1
    while True:
        nodes = cluster_nodes(config.num_nodes)
        if len(nodes) == config.num_nodes:
            return nodes
        now = time.monotonic()
        left = begin + config.node_timeout_s - now
        here = ", ".join(node.address for node in nodes)
        if left <= 0:
            raise UserError(
                f"cluster.num_nodes: the run wants {config.num_nodes} nodes, and after "
                f"{config.node_timeout_s:g} s the cluster at {config.address or 'hand'} has {len(nodes)} "
                f"({here}). Start the others (ray start --address=...), or wait longer with "
                "cluster.node_timeout_s"
            )
        if len(nodes) != before or now - said >= _SAY_S:
            say(f"waiting for nodes: {len(nodes)} of {config.num_nodes} ({here}), {left:.0f} s left")
            before, said = len(nodes), now
        time.sleep(min(_LOOK_S, left))


def group_nodes(groups: Sequence[NodeGroupConfig], label: str, nodes: Sequence[Node]) -> list[Node]:
    """The nodes of a group ("" is all), by rank. Raises UserError for a group without any."""
    if not label:
        return list(nodes)
    group = next(group for group in groups if group.label == label)
    found = list(nodes)
    if group.node_ranks is not None:
        ranks = set(parse_ranks(group.node_ranks))
        found = [node for node in found if node.rank in ranks]
    if group.ray_labels:
        labels = _labels()
        found = [n for n in found if group.ray_labels.items() <= labels.get(n.id, {}).items()]
    if not found:
        raise UserError(
            f"cluster.node_groups: no node belongs to {label!r} (node_ranks {group.node_ranks}, ray_labels "
            f"{group.ray_labels}); the run has {', '.join(f'{n.rank} at {n.address}' for n in nodes)}"
        )
    return found


def _labels() -> dict[str, dict[str, str]]:
    import ray

    return {row["NodeID"]: row["Labels"] for row in ray.nodes()} if ray.is_initialized() else {}
