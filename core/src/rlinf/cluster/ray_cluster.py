"""Ray for one run: start a local one or join a cluster, place the run's processes, take all down again."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from rlinf.cluster.errors import UserError, fetch
from rlinf.cluster.placement import Placement, Process, require_room
from rlinf.config import Config
from rlinf.plugins import resolve_attr

#: Seconds until a placement that the cluster cannot give is refused.
PLACEMENT_TIMEOUT_S: Final = 60.0
#: Longest folder for Ray's sockets: the path of a Unix socket below it must stay under 108 bytes.
_MAX_TEMP_DIR: Final = 40
#: Variables that a joined cluster's workers get from the driver (a local Ray inherits the environment).
_FORWARDED: Final = ("RLINF_EXT_MODULE",)
#: For all workers, unless set already. Threads that spin while they wait for each other are ten times slower
#: as soon as another process wants a core; measured on two cores, forward and backward of tiny_vla.
_DEFAULTS: Final = {"OMP_WAIT_POLICY": "PASSIVE"}
#: For a local Ray. It has no other node to reach, so it talks over loopback only. Its workers get the normal
#: priority instead of niceness 15: they are the run's own work, not a side job. Messages up to 1 MB travel in
#: the call instead of through the object store: 4 % less processor time for a rollout of 64 environments.
_LOCAL_RAY: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_worker_niceness": "0",
    "RAY_max_direct_call_object_size": "1000000",
}
#: Of `ray.init`: its own log lines are not the run's.
_QUIET: Final[dict[str, Any]] = {"logging_level": logging.ERROR, "log_to_driver": False}


@contextmanager
def ray_cluster(config: Config, processes: int) -> Iterator[None]:
    """A running Ray inside the `with`: one that is connected already stays, else it is started or joined.

    A local Ray gets as many logical CPUs as there are processes, also on a smaller machine: env, rollout and
    trainer take turns, so a core can serve several. It listens on loopback only, and ends with the block.

    Raises:
        UserError: `cluster.address` answers not, or has fewer nodes than `cluster.num_nodes`.
    """
    if config.cluster.address is None:
        with local_ray(max(os.cpu_count() or 1, processes)):
            yield
        return
    import ray

    if ray.is_initialized():
        yield
        return
    _join(config)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def local_ray(num_cpus: int) -> Iterator[Any]:
    """The module `ray`, connected to a Ray on this machine alone, over loopback, that ends with the block.

    A Ray that is connected already is used as it is and stays.
    """
    for name, value in {**_DEFAULTS, **_LOCAL_RAY}.items():
        os.environ.setdefault(name, value)
    import ray  # after its variables are set: it reads some of them when imported

    if ray.is_initialized():
        yield ray
        return
    temp_dir = _temp_dir()
    try:
        ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, _temp_dir=temp_dir, **_QUIET)
        yield ray
    finally:
        ray.shutdown()
        shutil.rmtree(temp_dir, ignore_errors=True)


def _join(config: Config) -> None:
    import ray

    variables = _DEFAULTS | {name: os.environ[name] for name in _FORWARDED if name in os.environ}
    cluster = config.cluster
    try:
        ray.init(address=cluster.address, runtime_env={"env_vars": variables}, **_QUIET)
    except ConnectionError as error:
        raise UserError(f"cluster.address: no Ray cluster answers at {cluster.address!r}: {error}") from None
    try:
        nodes = sum(node["Alive"] for node in ray.nodes())
        if nodes < cluster.num_nodes:
            raise UserError(
                f"cluster.num_nodes: the run wants {cluster.num_nodes}, the cluster at {cluster.address} has "
                f"{nodes}"
            )
        resources = ray.cluster_resources()
        require_room(config, int(resources.get("GPU", 0) or resources.get("CPU", 0)))
    except BaseException:
        ray.shutdown()
        raise


def _temp_dir() -> str:
    """A new folder for Ray's sockets and logs, named after this process; those of dead ones are removed."""
    base = Path(tempfile.gettempdir())
    if len(str(base)) > _MAX_TEMP_DIR - len("/rlinf-1234567-12345678"):
        base = Path("/tmp")
    for old in base.glob("rlinf-*-*"):
        owner = old.name.split("-")[1]
        # A killed driver could not clean up. Only our own folders: others' are not ours to judge.
        if owner.isdigit() and not _is_alive(int(owner)) and old.stat().st_uid == os.getuid():
            shutil.rmtree(old, ignore_errors=True)
    return tempfile.mkdtemp(prefix=f"rlinf-{os.getpid()}-", dir=base)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class Host:
    """The Ray actor around every worker. It imports the worker's class by name, in the worker's process: so
    the driver needs none of what the workers import (torch, above all)."""

    def __init__(self, target: str, arguments: dict[str, Any]) -> None:
        self._worker = resolve_attr(target)(**arguments)

    def call(self, method: str, *args: Any) -> Any:
        """Call a method of the worker. Ray replaces references among `args` by their values."""
        return getattr(self._worker, method)(*args)


class RemoteWorker:
    """A worker in another process."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle

    def submit(self, method: str, *args: Any, num_returns: int = 1) -> Any:
        """Call a method; returns the reference to its value (a list of them if there are several)."""
        return self.handle.call.options(num_returns=num_returns).remote(method, *args)


class WorkerGroup:
    """The processes of one component, by rank."""

    def __init__(self, name: str, workers: Sequence[RemoteWorker]) -> None:
        self.name = name
        self.workers = tuple(workers)

    def __getitem__(self, rank: int) -> RemoteWorker:
        return self.workers[rank]

    def submit(self, method: str, *args: Any) -> list[Any]:
        """Call a method on every rank; returns the references."""
        return [worker.submit(method, *args) for worker in self.workers]

    def call(self, method: str, *args: Any) -> list[Any]:
        """Call a method on every rank and wait for all values. Errors: `fetch`."""
        return fetch(self.submit(method, *args))


@contextmanager
def worker_groups(
    placement: Placement, classes: dict[str, str], arguments: Callable[[Process], dict[str, Any]]
) -> Iterator[dict[str, WorkerGroup]]:
    """The run's processes on a placement group: component -> group. They end with the block.

    classes: component -> worker class as "module:attr", called with `arguments(process)`.
    """
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    gpus = ray.cluster_resources().get("GPU", 0) > 0
    bundles = placement.bundles(gpus=gpus)
    group = placement_group(bundles, strategy="PACK")
    if not group.wait(PLACEMENT_TIMEOUT_S):
        remove_placement_group(group)
        raise UserError(
            f"cluster.component_placement: Ray could not give {bundles} within {PLACEMENT_TIMEOUT_S:.0f} s; "
            f"the cluster has {_shown(ray.cluster_resources())}, free are {_shown(ray.available_resources())}"
        )
    workers: dict[str, list[RemoteWorker]] = {component: [] for component in classes}
    try:
        for process in placement.processes:
            strategy = PlacementGroupSchedulingStrategy(
                group, placement_group_bundle_index=placement.places.index(process.place)
            )
            actor: Any = ray.remote(Host).options(
                num_cpus=1,
                num_gpus=placement.gpu_share(process) if gpus else 0,
                scheduling_strategy=strategy,
                max_concurrency=1,
            )
            handle = actor.remote(classes[process.component], arguments(process))
            workers[process.component].append(RemoteWorker(handle))
        yield {component: WorkerGroup(component, handles) for component, handles in workers.items()}
    finally:
        for worker in (worker for group_ in workers.values() for worker in group_):
            ray.kill(worker.handle)
        remove_placement_group(group)


def _shown(resources: dict[str, float]) -> str:
    return ", ".join(f"{name} {resources.get(name, 0):g}" for name in ("CPU", "GPU"))
