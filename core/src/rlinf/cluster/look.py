"""What preflight asks of a node. It imports little: the process that answers is started for it.

A node's facts are JSON-able: {"host", "versions", "rows", "processors", "gpus", "torch_cuda", "shm_free",
"disk_free", "folder", "clock"}; `rows` are the differences between the run's plan and what is resolved there.
"""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rlinf.cluster.machine import examine_machine, wait_without_spinning
from rlinf.cluster.provenance import versions
from rlinf.plugins import Plan
from rlinf.plugins.discovery import ENVS, GROUPS, MODELS
from rlinf.plugins.fingerprint import hash_files

Facts = dict[str, Any]
#: Files by which a node tells whether it sees the driver's folder: of a run, of a checkpoint.
_MARKS: Final = ("config.yaml", "metadata.json")


def look(plan: str, folder: str, groups: Sequence[str] = GROUPS) -> Facts:
    """The facts of this process, for the plan's entries of `groups` and the run folder."""
    from rlinf.plugins.plan import resolve_here

    wait_without_spinning()  # a plugin may import torch, and Ray may make a worker of this process
    machine = examine_machine()
    whole = Plan.from_json(plan)
    _, rows = resolve_here(whole, groups)
    return {
        "host": socket.gethostname(),
        "versions": versions(),
        "rows": rows,
        "processors": "" if rows else _processors(whole),
        "gpus": list(machine.gpus),
        "torch_cuda": machine.torch_cuda,
        "shm_free": machine.shm_free,
        "disk_free": disk_free(folder),
        "folder": {mark: _digest(Path(folder) / mark) for mark in _MARKS},
        "clock": time.time(),
    }


def _processors(plan: Plan) -> str:
    """The functions that post-process the model's actions for the environment, in their order."""
    from rlinf.plugins import get_host

    pairs = [(env, model) for env in plan.names(ENVS) for model in plan.names(MODELS)]
    return ", ".join(spec.function for pair in pairs for spec in get_host().action_processors(*pair))


def _digest(path: Path) -> str:
    return hash_files({path.name: str(path)})


def disk_free(folder: str) -> int:
    """Free bytes where a folder is, or would be."""
    path = Path(folder).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
