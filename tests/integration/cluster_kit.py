"""Ray on this machine: one that a module shares, or several nodes, each with an environment of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def one_ray(num_cpus: int) -> Iterator[None]:
    """A Ray on this machine that all runs of a module share; its workers are as nice as this process."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def ray_nodes(specs: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
    """A `ray.cluster_utils.Cluster` with a node per spec (arguments of `add_node`), ranked in their order.

    The head has no dashboard. `nodes.address` is where to join.
    """
    os.environ.setdefault("RAY_worker_niceness", "0")
    from ray.cluster_utils import Cluster

    nodes = Cluster()
    try:
        for rank, spec in enumerate(specs):
            add(nodes, rank, spec)
        yield nodes
    finally:
        nodes.shutdown()


def add(nodes: Any, rank: int, spec: Mapping[str, Any]) -> Any:
    """Another node."""
    first = {"include_dashboard": False} if rank == 0 else {}
    labels = {"rlinf-node-rank": str(rank), **spec.get("labels", {})}
    for attempt in range(3):
        try:
            return nodes.add_node(**{"num_cpus": 2, **first, **spec, "labels": labels})
        except Exception as error:  # Ray's own: its agents get 15 s to start, too little on a busy machine
            if attempt == 2 or "timed out during startup" not in str(error):
                raise
    raise AssertionError
