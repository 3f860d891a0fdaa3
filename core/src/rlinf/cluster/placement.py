"""`cluster.component_placement` as processes: which one sits where, and with what share of an accelerator."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rlinf.config import Config, ConfigError, check_placement, parse_placement
from rlinf.config.schema import ClusterConfig

#: Components that compute on the accelerator; environments stay on the CPU.
ON_ACCELERATOR = ("actor", "rollout")


@dataclass(frozen=True, kw_only=True)
class Process:
    """One process of the run: the `rank`-th of its component, on accelerator (or CPU core) `place`."""

    component: str
    rank: int
    place: int


@dataclass(frozen=True, kw_only=True)
class Placement:
    """All processes of a run."""

    processes: tuple[Process, ...]

    def of(self, component: str) -> tuple[Process, ...]:
        """The processes of one component, by rank."""
        return tuple(p for p in self.processes if p.component == component)

    @property
    def places(self) -> tuple[int, ...]:
        """The accelerators (or cores) in use, ascending."""
        return tuple(sorted({p.place for p in self.processes}))

    def bundles(self, *, gpus: bool) -> list[dict[str, float]]:
        """One Ray bundle per place: a CPU for each process there, the accelerator if any computes on it."""
        bundles: list[dict[str, float]] = []
        for place in self.places:
            here = [p.component for p in self.processes if p.place == place]
            bundle = {"CPU": float(len(here))}
            if gpus and any(component in ON_ACCELERATOR for component in here):
                bundle["GPU"] = 1.0
            bundles.append(bundle)
        return bundles

    def gpu_share(self, process: Process) -> float:
        """The part of its accelerator that a process takes: processes on the same one share it evenly."""
        if process.component not in ON_ACCELERATOR:
            return 0.0
        sharers = Counter(p.place for p in self.processes if p.component in ON_ACCELERATOR)
        return 1.0 / sharers[process.place]

    def table(self) -> str:
        """The placement for people, one line per place."""
        lines = []
        for place in self.places:
            here = [f"{p.component}[{p.rank}]" for p in self.processes if p.place == place]
            lines.append(f"  place {place:>3}  {'  '.join(here)}")
        return "\n".join(lines)


def place(config: ClusterConfig, components: tuple[str, ...] = ("actor", "env", "rollout")) -> Placement:
    """The processes of `components`. Raises ValueError for a placement that cannot be read."""
    ranges = parse_placement(config.component_placement)
    return Placement(
        processes=tuple(
            Process(component=component, rank=rank, place=place)
            for component in components
            for rank, place in enumerate(ranges[component])
        )
    )


def require_room(config: Config, available: int) -> None:
    """Refuse a placement that names places which are not there. Raises ConfigError."""
    problems = check_placement(config, available)
    if problems:
        raise ConfigError(problems)


def local_places() -> int:
    """Accelerators of this machine; its CPU cores if it has none."""
    if Path("/proc/driver/nvidia").exists():
        import torch  # here only: where there is no driver, the count is known without it

        if torch.cuda.device_count():
            return torch.cuda.device_count()
    return os.cpu_count() or 1
