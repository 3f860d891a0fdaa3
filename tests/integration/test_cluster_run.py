"""Runs on several real Ray nodes: who sits where, the wait for nodes, what a dry run shows."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
from cluster_kit import add, ray_nodes
from plugin_kit import Source, build, install_to_folder
from rlinf.cluster.errors import UserError
from rlinf.cluster.nodes import cluster_nodes
from rlinf.cluster.placement import place
from rlinf.cluster.preflight import preflight
from rlinf.cluster.ray_cluster import ray_cluster, worker_groups
from rlinf.config import Config
from rlinf.plugins import get_host
from rlinf.runners.train import _ship, run_training

BASE: dict[str, Any] = {
    "runner": {"max_steps": 1, "loggers": []},
    "env": {"env_type": "tabletop", "num_envs": 8, "steps_per_rollout": 8},
    "model": {"model_type": "mlp_policy", "num_action_chunks": 2},
    "actor": {"micro_batch_size": 4, "global_batch_size": 8},
}


PLUGIN = """
from rlinf.plugins import ModelSpec, hookimpl

@hookimpl
def rlinf_model_spec(model_type):
    return ModelSpec(model_type=model_type, builder="nowhere:build")  # {}
"""


class Whereabouts:
    """A worker that knows where it is."""

    def __init__(self, name: str) -> None:
        self.name = name

    def node(self) -> tuple[str, str]:
        return self.name, ray.get_runtime_context().get_node_id()

    def wait_policy(self) -> str | None:
        return os.environ.get("OMP_WAIT_POLICY")


def far(version: str) -> Source:
    modules = {"far_plugin": PLUGIN.format(version)}
    return Source(
        name="rlinf-plugin-far", version=version, modules=modules, models={"far_model": "far_plugin"}
    )


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders with two versions of a plugin, for PYTHONPATH."""
    folder = tmp_path_factory.mktemp("far")
    wheels = build(folder, [far("2.0"), far("1.9")])
    return [install_to_folder(folder / v, far(v).wheel(wheels)) for v in ("2.0", "1.9")]


@pytest.fixture(scope="module")
def nodes(paths: list[Path]) -> Iterator[Any]:
    """A head, and a node for simulators; the plugin is the same on both."""
    here = {"env_vars": {"PYTHONPATH": f"{paths[0]}:{Path(__file__).parent}"}}
    with ray_nodes([here, {**here, "labels": {"kind": "sim"}}]) as cluster:
        yield cluster


def config(address: str, **cluster: Any) -> Config:
    return Config.model_validate({**BASE, "cluster": {"address": address, **cluster}})


def test_components_sit_in_their_node_groups_after_the_last_node_came(nodes: Any, paths: list[Path]) -> None:
    """Rollout and trainer on the first node, environments on the nodes with the label, the third of which
    comes while the run waits."""
    path = f"{paths[1]}:{Path(__file__).parent}"
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

    def say(text: str) -> None:
        if not said:
            add(nodes, 2, {"labels": {"kind": "sim"}, "env_vars": {"PYTHONPATH": path}})
        said.append(text)

    with ray_cluster(wanted, 5, say):
        ids = [row["NodeID"] for row in sorted(ray.nodes(), key=lambda row: row["Labels"]["rlinf-node-rank"])]
        classes = dict.fromkeys(("actor", "env", "rollout"), "test_cluster_run:Whereabouts")
        with worker_groups(place(wanted.cluster), classes, lambda process: {"name": process.name}) as groups:
            found = [where for group in groups.values() for where in group.call("node")]
            assert groups["env"].call("wait_policy") == ["PASSIVE"] * 3
    expected = {"actor[0]": 0, "rollout[0]": 0, "env[0]": 1, "env[1]": 1, "env[2]": 2}
    assert dict(found) == {name: ids[node] for name, node in expected.items()}
    assert said and said[0].startswith("waiting for nodes: 2 of 3 (")


def test_preflight_names_the_node_that_differs(
    nodes: Any, paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third node has another version of the plugin; without it the run would begin. The run folder is
    there, its configuration is not what the driver wrote."""
    monkeypatch.syspath_prepend(str(paths[0]))
    plan = get_host().plan("far_model")
    wanted = config(nodes.address, num_nodes=3)
    (tmp_path / "config.yaml").touch()
    said: list[str] = []
    with ray_cluster(wanted, 3):
        members = cluster_nodes(3)
        preflight(plan, tmp_path, {"actor": members[:2], "env": members[1:2]}, said.append)
        begin = time.monotonic()
        with pytest.raises(UserError) as caught:
            preflight(plan, tmp_path, {"actor": members[:1], "env": members}, said.append)
        assert time.monotonic() - begin < 60
    assert said[0].startswith("preflight: 2 nodes agree (")
    lines = [line.split() for line in str(caught.value).splitlines()]
    assert lines[0][:4] == ["preflight:", "1", "of", "3"]
    where = ["node", "2", f"({members[2].address})"]
    assert ["rlinf.models", "far_model", "version", "2.0", "1.9", *where] in lines
    assert any(line[:4] == ["rlinf.models", "far_model", "content", "hash"] for line in lines)
    assert lines[2][0] == "rlinf.models" and "alike" in {line[0] for line in lines[4:]}


def test_shipped_plugins_are_those_of_the_driver(
    nodes: Any, paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node with the other version gets the driver's, and agrees; where all is equal nothing is sent."""
    monkeypatch.syspath_prepend(str(paths[0]))
    plan = get_host().plan("far_model")
    said: list[str] = []
    run, parcel = tmp_path / "run", tmp_path / "parcel"
    run.mkdir()
    ship = partial(_ship, plan, run, parcel, said.append)
    with ray_cluster(config(nodes.address, num_nodes=3), 3, said.append, ship):
        preflight(plan, run, {"actor": cluster_nodes(3)}, said.append)
    assert said[0] == "shipping rlinf-plugin-far" and said[1].startswith("preflight: 3 nodes agree")
    assert sorted(p.name for p in (parcel / "plugins").iterdir()) == [
        "far_plugin.py",
        "rlinf_plugin_far-2.0.dist-info",
    ]
    with ray_cluster(config(nodes.address, num_nodes=2), 3, said.append, ship):
        preflight(plan, run, {"actor": cluster_nodes(2)}, said.append)
    assert len(said) == 3, "nothing was shipped"


def test_nodes_that_do_not_come(nodes: Any) -> None:
    with (
        pytest.raises(UserError, match=r"wants 9 nodes, and after 0\.1 s the cluster at .* Start the others"),
        ray_cluster(config(nodes.address, num_nodes=9, node_timeout_s=0.1), 3),
    ):
        raise AssertionError("not reached")


def test_a_dry_run_shows_the_nodes(nodes: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    placement = {"actor,rollout": 0, "env": "2-3"}
    wanted = config(nodes.address, num_nodes=2, component_placement=placement)
    assert run_training(wanted, dry_run=True) == 0
    rows = [line.split() for line in capfd.readouterr().out.splitlines()]
    assert [row[2:] for row in rows if row[-1:] == ["env[1]"]] == [["CPU", "1", "env[1]"]]
    assert not ray.is_initialized()


def test_an_address_where_nothing_listens() -> None:
    with pytest.raises(UserError, match=r"cluster.address: no Ray cluster answers at '127.0.0.1:1'"):  # noqa: SIM117
        with ray_cluster(config("127.0.0.1:1"), 3):
            raise AssertionError("not reached")
