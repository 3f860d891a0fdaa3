"""Ray for one run: start a local one or join a cluster, place the run's processes, take all down again."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from rlinf.cluster.errors import UserError, fetch
from rlinf.cluster.machine import wait_without_spinning
from rlinf.cluster.nodes import Node, cluster_nodes, local_node, wait_for_nodes
from rlinf.cluster.placement import Placement, Process, seat
from rlinf.config import Config
from rlinf.plugins import resolve_attr

#: Seconds until a placement that the cluster cannot give is refused.
PLACEMENT_TIMEOUT_S: Final = 60.0
#: Seconds for the head node to accept a connection.
CONNECT_TIMEOUT_S: Final = 10.0
#: Longest folder for Ray's sockets: the path of a Unix socket below it must stay under 108 bytes.
_MAX_TEMP_DIR: Final = 40
#: Variables that a joined cluster's workers get from the driver (a local Ray inherits the environment).
_FORWARDED: Final = ("RLINF_EXT_MODULE",)
#: For a local Ray. It has no other node to reach, so it talks over loopback only. Its workers get the normal
#: priority instead of niceness 15: they are the run's own work, not a side job. Messages up to 1 MB travel in
#: the call instead of through the object store: 4 % less processor time for a rollout of 64 environments.
_LOCAL_RAY: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_worker_niceness": "0",
    "RAY_max_direct_call_object_size": "1000000",
    # Calls that were under way when a process was lost all fail; the run reports the loss once, itself.
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
}
#: Ray's own label with the id of a node: it pins a bundle to its node.
_NODE_LABEL: Final = "ray.io/node-id"
#: Ray's concurrency group of calls that do not wait for the one that a worker is in.
_ASIDE: Final = "aside"
#: Of `ray.init`: its own log lines are not the run's.
_QUIET: Final[dict[str, Any]] = {"logging_level": logging.ERROR, "log_to_driver": False}


def joined_address(config: Config) -> str | None:
    """The cluster that the run joins: `cluster.address`, or the one that runs it as a submitted job."""
    return config.cluster.address or ("auto" if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ else None)


@contextmanager
def ray_cluster(
    config: Config,
    processes: int,
    say: Callable[[str], None] = lambda text: None,
    ship: Callable[[list[Node]], Path | None] | None = None,
) -> Iterator[None]:
    """A running Ray inside the `with`: one that is connected already stays, else it is started or joined.

    A local Ray gets as many logical CPUs as there are processes, also on a smaller machine: env, rollout and
    trainer take turns, so a core can serve several. It listens on loopback only, and ends with the block.
    `say` is told about a wait for nodes. `ship` gets the nodes and gives a folder that is to be on the
    workers' `sys.path`, or None if they have all that they need.

    Raises:
        UserError: `cluster.address` answers not, or `cluster.num_nodes` nodes do not join in time.
    """
    address = joined_address(config)
    if address is None:
        with local_ray(max(os.cpu_count() or 1, processes)):
            yield
        return
    folder = None
    if ship is not None:
        with joined(config, address):
            folder = ship(wait_for_nodes(config.cluster, say))
    with joined(config, address, folder):
        wait_for_nodes(config.cluster, say)
        yield


def planned_nodes(config: Config, say: Callable[[str], None]) -> list[Node]:
    """The nodes that a run would take, for `--dry-run`: those of the cluster, which is looked at and left."""
    address = joined_address(config)
    if address is None:
        return [local_node()]
    with joined(config, address):
        return wait_for_nodes(config.cluster, say)


@contextmanager
def local_ray(num_cpus: int) -> Iterator[Any]:
    """The module `ray`, connected to a Ray on this machine alone, over loopback, that ends with the block.

    A Ray that is connected already is used as it is and stays. Raises UserError if it does not start.
    """
    wait_without_spinning()
    for name, value in _LOCAL_RAY.items():
        os.environ.setdefault(name, value)
    import ray  # after its variables are set: it reads some of them when imported

    if ray.is_initialized():
        yield ray
        return
    temp_dir = _temp_dir()
    try:
        try:
            ray.init(
                address="local", num_cpus=num_cpus, include_dashboard=False, _temp_dir=temp_dir, **_QUIET
            )
        except Exception as error:  # Ray raises a bare Exception when a process of its own is late
            raise UserError(
                f"Ray did not start on this machine: {error}\nIs it busy, or out of memory?"
            ) from error
        yield ray
    finally:
        ray.shutdown()
        shutil.rmtree(temp_dir, ignore_errors=True)


@contextmanager
def joined(config: Config, address: str, folder: Path | None = None) -> Iterator[None]:
    """Connected to a cluster inside the `with`; `folder` is sent to the workers, first on their `sys.path`.

    Raises UserError if none answers at `address`.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    require_listener("cluster.address", address)
    environment: dict[str, Any] = {}
    if variables := {name: os.environ[name] for name in _FORWARDED if name in os.environ}:
        environment["env_vars"] = variables
    if folder is not None:
        environment["working_dir"] = str(folder)
    try:
        ray.init(address=address, runtime_env=environment, **_QUIET)
    except ConnectionError as error:
        raise UserError(f"cluster.address: no Ray cluster answers at {address!r}: {error}") from None
    try:
        yield
    finally:
        ray.shutdown()


def require_listener(key: str, address: str) -> None:
    """Refuse an address where nothing listens: Ray itself would try again for many minutes.

    Raises UserError that begins with `key`.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (colon and port.isdigit()):
        return  # "auto" and the like: Ray's own names
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"{key}: no Ray cluster answers at {address!r}: {error}") from None


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
        wait_without_spinning()
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

    def submit_aside(self, method: str, *args: Any) -> Any:
        """Call a method in a thread of its own, whatever the worker is doing: see `worker_groups`."""
        return self.handle.call.options(concurrency_group=_ASIDE).remote(method, *args)


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
    placement: Placement,
    classes: dict[str, str],
    arguments: Callable[[Process], dict[str, Any]],
    environments: Mapping[str, dict[str, Any]] | None = None,
    interruptible: Collection[str] = (),
) -> Iterator[dict[str, WorkerGroup]]:
    """The run's processes on a placement group: component -> group. They end with the block.

    classes: component -> worker class as "module:attr", called with `arguments(process)`.
    environments: component -> Ray's `runtime_env`, for those that have one of their own.
    interruptible: components whose workers take calls aside (`RemoteWorker.submit_aside`); their other calls
    then run, one after another, in a thread that is not the process's first.
    """
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    bundles = seat(placement, cluster_nodes(placement.config.num_nodes))
    group = placement_group(
        [bundle.resources for bundle in bundles],
        strategy="PACK",
        bundle_label_selector=[{_NODE_LABEL: bundle.node.id} for bundle in bundles],
    )
    if not group.wait(PLACEMENT_TIMEOUT_S):
        remove_placement_group(group)
        raise UserError(
            f"cluster.component_placement: Ray could not give {[bundle.resources for bundle in bundles]} "
            f"within {PLACEMENT_TIMEOUT_S:.0f} s; there are {_shown(ray.cluster_resources())}, free are "
            f"{_shown(ray.available_resources())}"
        )
    workers: dict[str, dict[int, RemoteWorker]] = {component: {} for component in classes}
    try:
        for number, bundle in enumerate(bundles):
            for process in bundle.processes:
                strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=number)
                host: Any = ray.remote(Host)
                if process.component in interruptible:
                    host = ray.remote(concurrency_groups={_ASIDE: 1})(Host)  # type: ignore[call-overload]
                actor = host.options(
                    num_cpus=1,
                    num_gpus=bundle.gpus(process),
                    scheduling_strategy=strategy,
                    max_concurrency=1,
                    runtime_env=(environments or {}).get(process.component),
                )
                handle = actor.remote(classes[process.component], arguments(process))
                workers[process.component][process.rank] = RemoteWorker(handle)
        yield {
            component: WorkerGroup(component, [by_rank[rank] for rank in sorted(by_rank)])
            for component, by_rank in workers.items()
        }
    finally:
        for worker in (worker for by_rank in workers.values() for worker in by_rank.values()):
            ray.kill(worker.handle)
        remove_placement_group(group)


def _shown(resources: dict[str, float]) -> str:
    return ", ".join(f"{name} {resources.get(name, 0):g}" for name in ("CPU", "GPU"))
