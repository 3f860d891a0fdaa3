"""The machine under a run: GPUs, the CUDA that torch was built for, shared memory. Imports neither torch nor
ray."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rlinf.plugins.loading import source_file

_SHM: Final = "/dev/shm"
#: Ray's defaults (ray._private.ray_constants): the object store's share of the available memory, its largest
#: size, and the size up to which it insists on its share although /dev/shm is smaller.
_SHARE: Final = 0.3
_LARGEST: Final = 200 * 10**9
_INSISTS: Final = 10**10
_NVIDIA_SMI_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Facts about this machine."""

    #: Name, memory and driver of each GPU as nvidia-smi says them.
    gpus: tuple[str, ...]
    #: Why there are no GPUs, "" if there are.
    no_gpu: str
    #: The CUDA version that torch was built for; "" for a build without CUDA, or without torch.
    torch_cuda: str
    #: Free bytes of /dev/shm, None where there is none.
    shm_free: int | None
    #: Bytes that Ray's object store would take by default, about.
    shm_wanted: int | None
    problems: tuple[str, ...]


def wait_without_spinning() -> None:
    """Let threads that wait for each other sleep, unless the environment says otherwise: before torch loads.

    Threads that spin are ten times slower as soon as another process wants a core; measured on two cores,
    forward and backward of tiny_vla. A call in each process costs a cluster nothing; a variable in Ray's
    `runtime_env` would keep it from using the processes that it has ready.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def examine_machine() -> Machine:
    """Look at this machine; runs nvidia-smi if it is there."""
    gpus, no_gpu, problems = _gpus()
    cuda, has_torch = torch_cuda()
    if gpus and has_torch and not cuda:
        problems.append(f"{len(gpus)} GPU(s), but torch is a build without CUDA: install torch with CUDA")
    free = wanted = None
    if os.path.isdir(_SHM):
        stats = os.statvfs(_SHM)
        free = stats.f_bsize * stats.f_bavail
        wanted = object_store_bytes(available_memory(), free)
        if free < wanted:
            problems.append(
                f"/dev/shm has {_gb(free)} free and Ray's object store wants {_gb(wanted)}: Ray will use "
                "/tmp, on disk. Empty /dev/shm or enlarge it (docker run --shm-size)"
            )
    return Machine(
        gpus=tuple(gpus),
        no_gpu=no_gpu,
        torch_cuda=cuda,
        shm_free=free,
        shm_wanted=wanted,
        problems=tuple(problems),
    )


def _gpus() -> tuple[list[str], str, list[str]]:
    """(GPUs, why there are none, problems)."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return [], "nvidia-smi is not installed", []
    command = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_NVIDIA_SMI_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], "nvidia-smi failed", [f"nvidia-smi failed: {error}"]
    lines = (done.stdout.strip() or done.stderr.strip()).splitlines()
    if done.returncode:
        first = lines[0] if lines else f"status {done.returncode}"
        return [], "nvidia-smi failed", [f"nvidia-smi failed: {first}"]
    gpus = []
    for line in lines:
        name, memory, driver = (part.strip() for part in line.rsplit(",", 2))
        gpus.append(f"{name}, {memory}, driver {driver}")
    return gpus, "" if gpus else "nvidia-smi sees none", []


def torch_cuda() -> tuple[str, bool]:
    """(the CUDA version that torch was built for or "", whether torch is there), from its file version.py."""
    package = source_file("torch")
    if not package:
        return "", False
    text = Path(package).with_name("version.py").read_text(encoding="utf-8")
    found = re.search(r"""^cuda\b[^=\n]*=\s*['"]([^'"]+)['"]""", text, re.MULTILINE)
    return (found[1] if found else ""), True


def object_store_bytes(available: int, shm_free: int) -> int:
    """What Ray takes for its object store by default, given available memory and free shared memory (after
    ray._private.utils.resolve_object_store_memory)."""
    return min(int(available * _SHARE), _LARGEST, max(_INSISTS, int(shm_free * 0.95)))


def available_memory() -> int:
    """Bytes that a new process could use: of the machine, or what the control group leaves (Linux)."""
    meminfo = Path("/proc/meminfo").read_text(encoding="ascii")
    found = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo, re.MULTILINE)
    available = int(found[1]) * 1024 if found else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        most, taken = _number(limit), _number(used)
        if most is not None and taken is not None:
            available = min(available, max(0, most - taken))
    return available


def _number(file: str) -> int | None:
    try:
        text = Path(file).read_text(encoding="ascii").strip()
    except OSError:  # the other version of control groups, or none
        return None
    return int(text) if text.isdigit() else None


def _gb(number: int) -> str:
    return f"{number / 1e9:.1f} GB"
