"""Processes that stay: ranks of a gloo group that run functions by name."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

#: Seconds that the other ranks get to end as well when one has failed: they may wait for it in a collective.
_GRACE = 2.0


class RankError(RuntimeError):
    """A function failed on a rank, or took too long; the text holds the tracebacks of the ranks."""


class RankPool:
    """`pool(function, *arguments)` runs a function on every rank and returns the results in their order.

    The processes are spawned at the first call, have a gloo process group over loopback, and stay until
    `close`. Function, arguments and results travel by pickle, the function therefore by name: it is one of a
    module's, and its module is imported there. The caller's `sys.path` and plugin policy apply there as well.
    After a failure the group is made anew, and the
    processes as well if one of them does not answer.

    Args:
        size: number of ranks.
        timeout: seconds that one call may take.
    """

    def __init__(self, size: int = 2, timeout: float = 120.0) -> None:
        self.size, self.timeout = size, timeout
        self._folder: Path | None = None
        self._group = 0
        self._processes: list[Any] = []
        self._connections: list[Connection] = []

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Raises RankError when the function raises on a rank, a rank dies, or the time is over."""
        from rlinf.plugins import get_host

        # Plain pickle: a tensor travels as its bytes, not as a handle to memory that its owner may free.
        message = pickle.dumps((function, arguments))
        if not all(process.is_alive() for process in self._processes):
            self.close()
        if not self._processes:
            self._start()
        assert self._folder is not None
        state = pickle.dumps((str(self._folder / f"store{self._group}"), list(sys.path), get_host().policy))
        for connection in self._connections:
            connection.send_bytes(state)
            connection.send_bytes(message)
        replies = self._collect()
        failures = [
            f"rank {rank}: {'no answer' if reply is None else reply[1]}"
            for rank, reply in enumerate(replies)
            if reply is None or not reply[0]
        ]
        if failures:
            self._group += 1  # the ranks may have left it at different places
            if None in replies:
                self.close()
            raise RankError(f"{function.__module__}.{function.__qualname__} failed\n" + "\n".join(failures))
        return [reply[1] for reply in replies if reply is not None]

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join()
        for connection in self._connections:
            connection.close()
        self._processes, self._connections = [], []
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._folder = Path(tempfile.mkdtemp(prefix="rlinf-ranks-"))
        for rank in range(self.size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, self.size, theirs), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._connections.append(ours)

    def _collect(self) -> list[tuple[bool, Any] | None]:
        """A reply (whether it succeeded, result or traceback) of each rank, None where there is none."""
        replies: list[tuple[bool, Any] | None] = [None] * self.size
        waiting = {id(connection): rank for rank, connection in enumerate(self._connections)}
        deadline = time.monotonic() + self.timeout
        while waiting and (left := deadline - time.monotonic()) > 0:
            open_ones = [c for c in self._connections if id(c) in waiting]
            for connection in wait(open_ones, timeout=left):
                assert isinstance(connection, Connection)
                rank = waiting.pop(id(connection))
                try:
                    replies[rank] = pickle.loads(connection.recv_bytes())
                except EOFError:
                    replies[rank] = (False, f"the process ended with code {self._processes[rank].exitcode}")
                if not replies[rank][0]:  # type: ignore[index]
                    deadline = min(deadline, time.monotonic() + _GRACE)
        return replies


def _serve(rank: int, size: int, connection: Connection) -> None:
    """What a rank does until it is terminated."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    import torch
    import torch.distributed as dist

    from rlinf.plugins import configure_host

    torch.set_num_threads(1)
    joined = ""
    while True:
        store, path, policy = pickle.loads(connection.recv_bytes())
        message = connection.recv_bytes()
        if store != joined:
            if joined:
                dist.destroy_process_group()
            dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
            joined = store
        sys.path[:] = path
        configure_host(policy)
        try:
            function, arguments = pickle.loads(message)
            reply = pickle.dumps((True, function(*arguments)))
        except Exception:  # whatever it is, it is the caller's to see
            reply = pickle.dumps((False, traceback.format_exc()))
        connection.send_bytes(reply)
