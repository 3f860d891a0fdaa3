"""Placement on nodes: node groups, several accelerators for a process, several processes for one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
from rlinf.cluster.errors import UserError
from rlinf.cluster.nodes import Node
from rlinf.cluster.placement import Bundle, place, seat, table
from rlinf.config.placement import parse_processes
from rlinf.config.schema import ClusterConfig


def nodes(*sizes: tuple[int, int]) -> list[Node]:
    """(CPUs, GPUs) of each."""
    return [
        Node(rank=rank, id=f"id{rank}", address=f"10.0.0.{rank}", cpus=cpus, gpus=gpus)
        for rank, (cpus, gpus) in enumerate(sizes)
    ]


def bundles(placement: dict[str, Any], members: Sequence[Node], **cluster: Any) -> list[Bundle]:
    data = {"component_placement": placement, "num_nodes": len(members), **cluster}
    return seat(place(ClusterConfig.model_validate(data)), members)


@pytest.mark.parametrize(
    ("text", "processes"),
    [
        (2, ((2,),)),
        ("0-1,4", ((0,), (1,), (4,))),
        ("0-3:0-1", ((0, 1), (2, 3))),
        ("0-1:0-3", ((0,), (0,), (1,), (1,))),
        ("0,2:0,4-5:1-2", ((0, 2), (4,), (5,))),
    ],
)
def test_places_of_processes(text: str | int, processes: Any) -> None:
    assert parse_processes(text) == processes


@pytest.mark.parametrize("text", ["0-2:0-1", "0:1", ":", "0:0:0", "0-1:0,1:0", "1-0:0", ""])
def test_places_that_cannot_be_read(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|do not divide|empty"):
        parse_processes(text)


def test_those_who_compute_share_accelerators_evenly() -> None:
    found = bundles({"actor,rollout": "0-1", "env": "0-1"}, nodes((8, 2)))
    assert [b.resources for b in found] == [{"CPU": 3, "GPU": 1}, {"CPU": 3, "GPU": 1}]
    assert [b.gpus(p) for b in found for p in b.processes] == [0.5, 0, 0.5, 0.5, 0, 0.5]
    without = bundles({"actor,rollout": "0-1", "env": "1-2"}, nodes((8, 0)))
    assert [b.resources for b in without] == [{"CPU": 2}, {"CPU": 3}, {"CPU": 1}]


def test_several_accelerators_and_parts_of_one() -> None:
    found = bundles({"actor": 0, "rollout": "2-5:0-1", "env": "1:0-2"}, nodes((16, 4), (16, 4)))
    assert [(b.node.rank, b.places, b.resources.get("GPU")) for b in found] == [
        (0, (0,), 1),
        (0, (1,), None),
        (0, (2, 3), 2),
        (1, (0, 1), 2),
    ]
    shared = bundles({"actor": 0, "rollout": "1:0-3", "env": 0}, nodes((16, 2)))
    assert [b.gpus(p) for b in shared for p in b.processes] == [1.0, 0, 0.25, 0.25, 0.25, 0.25]


def test_node_groups_count_their_own_places() -> None:
    groups = [{"label": "train", "node_ranks": "0-1"}, {"label": "sim", "node_ranks": 2}]
    placement = {
        "actor,rollout": {"node_group": "train", "placement": "0-3"},
        "env": {"node_group": "sim", "placement": "0-2"},
    }
    found = bundles(placement, nodes((8, 2), (8, 2), (4, 0)), node_groups=groups)
    assert [(b.node.rank, b.places) for b in found] == [
        *((0, (i,)) for i in range(2)),
        *((1, (i,)) for i in range(2)),
        *((2, (i,)) for i in range(3)),
    ]
    text = table(found)
    lines = [line.split() for line in text.splitlines()]
    assert ["1", "10.0.0.1", "GPU", "0", "actor[2]", "(0.5", "GPU)", "rollout[2]", "(0.5", "GPU)"] in lines
    assert ["2", "10.0.0.2", "CPU", "2", "env[2]"] in lines
    assert all(len(line) <= 80 for line in text.splitlines())


@pytest.mark.parametrize(
    ("placement", "cluster", "words"),
    [
        ({"actor,env": 0, "rollout": 5}, {}, r"rollout\[0\] asks for place 5, which has 4 accelerators on 2"),
        (
            {"actor,env": 0, "rollout": "1-2:0"},
            {},
            r"rollout\[0\] takes places 1, 2, which lie on nodes 0 and 1",
        ),
        (
            {"actor,env": 0, "rollout": "0-1:0"},
            {},
            "several accelerators of node 0 that other processes take",
        ),
        (
            {"actor,rollout": 0, "env": "1:0-9"},
            {},
            r"12 processes on node 0 \(10.0.0.0\), which offers 8 CPUs",
        ),
        (
            {"actor,rollout": 0, "env": {"node_group": "far", "placement": 0}},
            {"node_groups": [{"label": "far", "node_ranks": 7}]},
            "no node belongs to 'far'",
        ),
    ],
)
def test_what_cannot_be_placed(placement: dict[str, Any], cluster: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        bundles(placement, nodes((8, 2), (8, 2)), **cluster)
    assert re.search(words, str(caught.value)), caught.value
