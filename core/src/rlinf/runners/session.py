"""The processes of a run: started, checked against the plan, ready to work."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rlinf.cluster.errors import UserError, fetch
from rlinf.cluster.nodes import cluster_nodes, wait_for_nodes
from rlinf.cluster.placement import Placement, Process, place, seat
from rlinf.cluster.preflight import preflight
from rlinf.cluster.ray_cluster import WorkerGroup, joined_address, ray_cluster, worker_groups
from rlinf.config import Config
from rlinf.plugins import Plan, get_host
from rlinf.workers.base import WorkerArgs
from rlinf.workers.layout import EnvLayout

#: Named, not imported: the driver stays free of torch.
_EMBODIED: Final = {
    "env": "rlinf.workers.env:EnvWorker",
    "rollout": "rlinf.workers.rollout:RolloutWorker",
    "actor": "rlinf.workers.actor:ActorWorker",
}
#: `ModelSpec.category` -> classes of the components; others are like "embodied".
_CLASSES: Final = {
    "language": {**_EMBODIED, "env": "rlinf.workers.prompts:PromptWorker"},
    "reward": {**_EMBODIED, "env": "rlinf.workers.preferences:PreferenceWorker"},
}


@dataclass(frozen=True, kw_only=True)
class Session:
    """Env, rollout and actor processes, and which environment lives where. Without a simulator the first two
    groups are empty."""

    config: Config
    env: WorkerGroup
    rollout: WorkerGroup
    actor: WorkerGroup
    layout: EnvLayout

    def whereabouts(self) -> list[dict[str, Any]]:
        """Component, rank, host and process id of every process."""
        groups = (self.env, self.rollout, self.actor)
        return fetch([ref for group in groups for ref in group.submit("whereabouts")])


@contextmanager
def session(
    config: Config, plan: Plan, folder: Path, say: Callable[[str], None] = lambda text: None
) -> Iterator[Session]:
    """`processes` on a Ray that is started or joined for them."""
    with (
        ray_cluster(config, len(place(config.cluster, config.components).processes), say),
        processes(config, plan, folder, say) as running,
    ):
        yield running


@contextmanager
def processes(
    config: Config, plan: Plan, folder: Path, say: Callable[[str], None] = lambda text: None
) -> Iterator[Session]:
    """Look at the nodes of the connected Ray, start all processes, check each against the plan, then build
    models and simulators.

    folder: where the trainers read or write checkpoints; it exists. say: is told what takes long.

    Raises:
        UserError: a process resolves other plugins than the plan, or the cluster has no room.
        RunError: a process failed otherwise.
    """
    placement = place(config.cluster, config.components)
    category = get_host().model_spec(config.model.model_type).category
    classes = _CLASSES.get(category, _EMBODIED)
    layout = EnvLayout(num_envs=0, processes=1, stages=1, rollouts=1)
    if config.has_simulator:
        layout = EnvLayout(
            num_envs=config.env.num_envs,
            processes=len(placement.of("env")),
            stages=config.rollout.pipeline_stages,
            rollouts=len(placement.of("rollout")),
        )
    # Workers have other working directories than this process.
    paths = {"output_dir": str(config.runner.output_dir.absolute())}
    dumped, plan_json = config.model_dump(mode="json"), plan.to_json()
    dumped["runner"] |= paths
    dumped["data"]["train_data_paths"] = [_absolute(path) for path in config.data.train_data_paths]
    _locate(dumped["env"])

    def arguments(process: Process) -> dict[str, WorkerArgs]:
        args = WorkerArgs(
            role=process.component,
            rank=process.rank,
            world_size=len(placement.of(process.component)),
            threads=threads(placement, process.component, layout.stages),
            config=dumped,
            plan=plan_json,
            layout=layout,
        )
        return {"args": args}

    environments = {}
    if config.env.runtime_env is not None:
        environments["env"] = config.env.runtime_env.model_dump()
    if joined_address(config) is not None or environments:
        _examine(config, placement, plan, folder, say, environments)
    interruptible = ["rollout"] if config.rollout.interruptible else []
    with worker_groups(placement, classes, arguments, environments, interruptible) as groups:
        everyone = list(groups.values())
        fetch([ref for group in everyone for ref in group.submit("preflight")])
        host, port = fetch([groups["actor"][0].submit("open_store")])[0]
        fetch(groups["actor"].submit("connect", host, port))
        fetch([ref for group in everyone for ref in group.submit("start")])
        yield Session(config=config, layout=layout, **groups)


def _examine(
    config: Config,
    placement: Placement,
    plan: Plan,
    folder: Path,
    say: Callable[[str], None],
    environments: Mapping[str, Mapping[str, Any]],
) -> None:
    """Preflight on the run's nodes. One that is lost is still listed for some seconds: then on those that are
    left. Raises UserError."""
    while True:
        listed = wait_for_nodes(config.cluster, say)
        bundles = seat(placement, listed)
        nodes = {
            component: [b.node for b in bundles if any(p.component == component for p in b.processes)]
            for component in config.components
        }
        try:
            return preflight(plan, folder, nodes, say, environments)
        except UserError:
            there = {node.id for node in cluster_nodes(config.cluster.num_nodes)}
            lost = [node.label for node in listed if node.id not in there]
            if not lost:
                raise
            say(f"lost during preflight: {', '.join(lost)}; looking for other nodes")


def _absolute(path: str) -> str:
    """The path of something that exists here, absolute; everything else (hub ids, functions) as it is."""
    return str(Path(path).absolute()) if Path(path).exists() else path


def _locate(node: Any) -> None:
    """Make the files that a block of an environment of texts names absolute, in place."""
    for key, value in (
        node.items() if isinstance(node, dict) else enumerate(node if isinstance(node, list) else ())
    ):
        if key in ("path", "eval_path", "checkpoint") and isinstance(value, str):
            node[key] = _absolute(value)
        else:
            _locate(value)


def _cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads(placement: Placement, component: str, stages: int) -> int:
    """CPU threads of torch in a process. The trainer has the cores to itself, and so has inference with one
    pipeline stage; with more stages simulators run meanwhile and keep their cores. The nodes of a cluster are
    taken to be like this one, with equal parts of each component."""
    cores = _cores() * placement.config.num_nodes
    if component == "env":
        return 1
    if component == "rollout" and stages > 1:
        cores -= len(placement.of("env"))
    return max(1, cores // len(placement.of(component)))
