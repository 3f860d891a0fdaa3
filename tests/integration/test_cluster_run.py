"""Runs on several real Ray nodes: who sits where, the wait for nodes, what a dry run shows."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from cluster_kit import add, ray_nodes
from rlinf.cluster.errors import UserError
from rlinf.cluster.placement import place
from rlinf.cluster.ray_cluster import ray_cluster, worker_groups
from rlinf.config import Config
from rlinf.runners.train import run_training

BASE: dict[str, Any] = {
    "runner": {"max_steps": 1, "loggers": []},
    "env": {"env_type": "tabletop", "num_envs": 8, "steps_per_rollout": 8},
    "model": {"model_type": "mlp_policy", "num_action_chunks": 2},
    "actor": {"micro_batch_size": 4, "global_batch_size": 8},
}


class Whereabouts:
    """A worker that knows where it is."""

    def __init__(self, name: str) -> None:
        self.name = name

    def node(self) -> tuple[str, str]:
        return self.name, ray.get_runtime_context().get_node_id()


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A head, and a node for simulators."""
    here = {"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}}
    with ray_nodes([here, {**here, "labels": {"kind": "sim"}}]) as cluster:
        yield cluster


def config(address: str, **cluster: Any) -> Config:
    return Config.model_validate({**BASE, "cluster": {"address": address, **cluster}})


def test_components_sit_in_their_node_groups_after_the_last_node_came(nodes: Any) -> None:
    """Rollout and trainer on the first node, environments on the nodes with the label, the third of which
    comes while the run waits."""
    late = threading.Timer(2.0, add, (nodes, 2, {"labels": {"kind": "sim"}, "num_cpus": 1}))
    wanted = config(
        nodes.address,
        num_nodes=3,
        node_groups=[{"label": "first", "node_ranks": 0}, {"label": "sim", "ray_labels": {"kind": "sim"}}],
        component_placement={
            "actor,rollout": {"node_group": "first", "placement": 0},
            "env": {"node_group": "sim", "placement": "0-2"},
        },
    )
    said: list[str] = []
    late.start()
    with ray_cluster(wanted, 5, said.append):
        ids = [row["NodeID"] for row in sorted(ray.nodes(), key=lambda row: row["Labels"]["rlinf-node-rank"])]
        classes = dict.fromkeys(("actor", "env", "rollout"), "test_cluster_run:Whereabouts")
        with worker_groups(place(wanted.cluster), classes, lambda process: {"name": process.name}) as groups:
            found = [where for group in groups.values() for where in group.call("node")]
    late.join()
    expected = {"actor[0]": 0, "rollout[0]": 0, "env[0]": 1, "env[1]": 1, "env[2]": 2}
    assert dict(found) == {name: ids[node] for name, node in expected.items()}
    assert said and said[0].startswith("waiting for nodes: 2 of 3 (")


def test_nodes_that_do_not_come(nodes: Any) -> None:
    with (
        pytest.raises(UserError, match=r"wants 9 nodes, and after 0\.1 s the cluster at .* Start the others"),
        ray_cluster(config(nodes.address, num_nodes=9, node_timeout_s=0.1), 3),
    ):
        raise AssertionError("not reached")


def test_a_dry_run_shows_the_nodes(nodes: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    placement = {"actor,rollout": 0, "env": "0-2"}
    wanted = config(nodes.address, num_nodes=2, component_placement=placement)
    assert run_training(wanted, dry_run=True) == 0
    rows = [line.split() for line in capfd.readouterr().out.splitlines()]
    assert [row[2:] for row in rows if row[-1:] == ["env[1]"]] == [["CPU", "1", "env[1]"]]
    assert not ray.is_initialized()


def test_an_address_where_nothing_listens() -> None:
    with pytest.raises(UserError, match=r"cluster.address: no Ray cluster answers at '127.0.0.1:1'"):  # noqa: SIM117
        with ray_cluster(config("127.0.0.1:1"), 3):
            raise AssertionError("not reached")
