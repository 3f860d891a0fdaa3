"""The parts of `rlinf doctor` that are pure: requirements, differences between nodes, Ray's shared memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from rlinf.cluster.doctor import differences
from rlinf.cluster.doctor_text import cluster_text
from rlinf.cluster.machine import available_memory, object_store_bytes
from rlinf.plugins.requirements import find_conflicts


def conflicts(requires: Mapping[str, list[str]], **versions: str) -> list[str]:
    installed = {**dict.fromkeys(requires, "1.0"), **versions}
    return [str(found) for found in find_conflicts(requires, installed, lambda n: requires.get(n, []))]


@pytest.mark.parametrize(
    ("line", "version", "met"),
    [
        ("Lib_A>=2,<3", "2.5", True),
        ("lib.a[extra]>=2", "2.5", True),
        ("lib-a<2", "2.5", False),
        ("lib-a>=2.5", "2.6.0rc1", True),
        ("lib-a==2.13.0", "2.13.0+cpu", True),
        ("lib-a @ https://example.org/lib.whl", "0.1", True),
        ("lib-a", "no version at all", True),
        ("lib-a>1", "no version at all", False),
    ],
)
def test_one_requirement(line: str, version: str, met: bool) -> None:
    assert (conflicts({"p": [line]}, **{"lib-a": version}) == []) is met


def test_markers_and_extras() -> None:
    never = ["gone; sys_platform == 'nowhere'", "gone; extra == 'more'"]
    assert conflicts({"p": never}) == []
    core = ["base>=1", "sim>=3; extra == 'sim'", "q[all]; extra == 'all'"]
    requires = {"p": ["q[sim]>=1"], "q": core}
    assert conflicts(requires, base="1") == ["p 1.0 through q[sim] requires sim>=3; it is not installed"]
    assert conflicts(requires, base="1", sim="2") == [
        "p 1.0 through q[sim] requires sim>=3; installed is sim 2"
    ]
    assert conflicts({"p": ["q[all]"], "q": core}, base="1") == [], "an extra may name its own distribution"
    circle = {"p": ["q[x]", "a>=1; extra == 'y'"], "q": ["p[y]; extra == 'x'"]}
    [text] = conflicts(circle)
    assert text == "p 1.0 through q[x] through p[y] requires a>=1; it is not installed"


def test_a_conflict_names_those_whose_requirement_is_met() -> None:
    requires = {"one": ["lib>=5"], "two": ["lib<5"], "three": ["lib"]}
    assert conflicts(requires, lib="5.2") == [
        "two 1.0 requires lib<5; installed is lib 5.2, as one 1.0 (lib>=5) wants it"
    ]


def test_a_requirement_that_cannot_be_read() -> None:
    [text] = conflicts({"p": ["lib ~~ 3"]}, lib="3")
    assert text.startswith("p 1.0 requires lib ~~ 3, which cannot be read: ")


def test_shared_memory_is_what_ray_wants() -> None:
    from ray._private.utils import get_shared_memory_bytes, resolve_object_store_memory

    free = get_shared_memory_bytes()
    for available in (10**9, 20 * 10**9):
        expected = resolve_object_store_memory(available)
        assert object_store_bytes(available, free) == pytest.approx(expected, rel=0.01)
    assert object_store_bytes(10**12, 50 * 10**9) == 47_500_000_000, "a large machine adapts to its /dev/shm"
    assert object_store_bytes(10**12, 10**9) == 10**10, "but not to a tiny one"
    assert 10**8 < available_memory() < 10**14


def report(content: str, torch: str = "2.13.0") -> dict[str, Any]:
    row = {
        "group": "rlinf.models",
        "name": "far",
        "distribution": "rlinf-plugin-far",
        "version": "1.0",
        "state": "ok",
        "note": "",
        "content": content,
    }
    machine = {"gpus": ["A100"], "no_gpu": "", "torch_cuda": "12.8", "shm_free": 10**10, "shm_wanted": 10**9}
    return {
        "executable": "/usr/bin/python",
        "versions": {"python": "3.11.7", "torch": torch},
        "plugins": [row],
        "editable": [],
        "shadowed": [],
        "extension": "",
        "machine": machine,
        "problems": [],
    }


def test_differences_between_nodes() -> None:
    same = {"a": report("1" * 64), "b": report("1" * 64)}
    assert differences(same) == []
    assert "FACTS OF a, alike on all nodes" in cluster_text("here", same, [])
    edited = {**same, "c": report("2" * 64, torch="2.12.0"), "d": {"problems": ["did not answer"]}}
    found = differences(edited)
    assert [row["what"] for row in found] == ["torch", "rlinf.models far"]
    assert found[0]["values"] == {"a": "2.13.0", "b": "2.13.0", "c": "2.12.0"}
    text = cluster_text("here", edited, found)
    assert text.startswith("rlinf doctor: 4 nodes at here, 2 differences and 1 problem\n")
    assert "    rlinf-plugin-far 1.0, content 11111111: a, b\n" in text
    assert "PROBLEMS ON d\n  - did not answer" in text
