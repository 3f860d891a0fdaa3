"""Simulators that hang: what each process is at is in a file, which outlives it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TextIO

import numpy as np

#: In the run folder: stacks, and which simulator was called.
_FOLDER: Final = "hangs"


@dataclass
class Watch:
    """What an env process keeps for the case that it hangs. Native code that hangs can be asked nothing."""

    #: Where the watchdog writes the stacks.
    stacks: TextIO
    _now: np.ndarray

    @staticmethod
    def open(run: Path, rank: int) -> Watch:
        """In the run folder, if this is a training run; else stacks go to stderr."""
        if not run.is_dir():
            return Watch(stacks=sys.stderr, _now=np.zeros(3, np.int64))
        file = run / _FOLDER / f"env_{rank}.txt"
        file.parent.mkdir(exist_ok=True)
        now = np.memmap(file.with_suffix(".now"), np.int64, "w+", shape=(3,))
        return Watch(stacks=file.open("a"), _now=now)

    @property
    def busy(self) -> np.ndarray:
        """int64 [2]: number within its VecEnv, and episode seed, of the simulator that was called last."""
        return self._now[1:]

    @property
    def first(self) -> int:
        """Number within the run of the VecEnv's first environment."""
        return int(self._now[0])

    @first.setter
    def first(self, number: int) -> None:
        self._now[0] = number


@dataclass(frozen=True, kw_only=True)
class Hang:
    """A simulator that was ended for hanging: its number within the run, the episode's seed, the stacks."""

    environment: int
    seed: int
    process: str
    stacks: str

    def __str__(self) -> str:
        return (
            f"env.step_timeout_s: a simulator of {self.process} hung, environment {self.environment} in the "
            f"episode of seed {self.seed}, here:\n{self.stacks}"
        )


def take_hangs(run: Path) -> list[Hang]:
    """Those since the last time; read before the processes are started again."""
    found = []
    for file in sorted((run / _FOLDER).glob("*.txt")):
        if file.stat().st_size:
            first, index, seed = np.fromfile(file.with_suffix(".now"), np.int64).tolist()
            found.append(
                Hang(environment=first + index, seed=seed, process=file.stem, stacks=file.read_text())
            )
            file.write_text("")
    return found
