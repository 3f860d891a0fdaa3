"""The run folder: what a run was, what it measured, and where it continues."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from rlinf.cluster.errors import UserError
from rlinf.config import Config
from rlinf.config.secrets import redacted
from rlinf.plugins import Plan

#: Held by the run that works in the folder.
_LOCK: Final = ".lock"


@dataclass
class RunState:
    """Where a run is; goes into every checkpoint, so that a resumed run continues exactly there.

    phase: "new", "sft", "warm" (SFT is done) or "rl". sft_steps, iteration: SFT steps and RL iterations done.
    data: fingerprints of the datasets of SFT. rows: lines of metrics.jsonl.
    frames, errors: training frames and simulator failures so far. restarts: after lost processes.
    results: what summary.json will report.
    """

    phase: str = "new"
    sft_steps: int = 0
    iteration: int = 0
    data: list[str] = field(default_factory=list)
    rows: int = 0
    frames: int = 0
    errors: int = 0
    wall_s: float = 0.0
    restarts: int = 0
    results: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(checkpoint: Path, data: Any) -> RunState:
        """What `to_json` gave, as found in a checkpoint. Raises UserError for anything else."""
        fresh = RunState().to_json()
        data = {**fresh, **data} if isinstance(data, dict) else {}
        wrong = [name for name, value in fresh.items() if not isinstance(data.get(name), type(value) | int)]
        if wrong or set(data) != set(fresh):
            names = ", ".join(wrong or sorted(set(data) - set(fresh)))[:200]
            raise UserError(
                f"{checkpoint / 'metadata.json'}: the state of the run in it is not one ({names}); was it "
                "written by another version?"
            )
        return RunState(**data)


class RunFolder:
    """`config.yaml`, `plan.json`, `metrics.jsonl`, `summary.json` of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics_path = path / "metrics.jsonl"

    @contextmanager
    def open(self, config: Config, plan: Plan, *, resume: bool) -> Iterator[None]:
        """Make the folder, keep it to this process inside the `with`, and write what is known before the run.

        Raises:
            UserError: the folder holds something and the run does not resume, or another run works in it.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"runner.output_dir: {self.path} is no folder")
        self.path.mkdir(parents=True, exist_ok=True)
        with self._locked():
            self._begin(config, plan, resume)
            yield

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """The lock ends with the process, however that ends."""
        with (self.path / _LOCK).open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                raise UserError(
                    f"runner.output_dir: another run is at work in {self.path} ({lock.read().strip()}). Wait "
                    "for its end, or give another runner.output_dir"
                ) from None
            lock.truncate(0)
            lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            lock.flush()
            yield

    def _begin(self, config: Config, plan: Plan, resume: bool) -> None:
        if not resume and any(path.name != _LOCK for path in self.path.iterdir()):
            raise UserError(
                f"runner.output_dir: {self.path} is not empty. Continue the run in it with "
                "runner.resume=true, or give another runner.output_dir"
            )
        write_aside(self.path / "config.yaml", config_yaml(config))
        write_aside(self.path / "plan.json", plan.to_json() + "\n")

    def append(self, row: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl."""
        with self.metrics_path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")

    def truncate(self, rows: int) -> None:
        """Forget the metrics after the first `rows` lines: those of work that no checkpoint holds."""
        lines: list[str] = []
        if self.metrics_path.exists():
            lines = self.metrics_path.read_text(encoding="utf-8").splitlines(keepends=True)
        if len(lines) < rows:
            raise UserError(
                f"{self.metrics_path}: has {len(lines)} lines, the checkpoint was made after {rows}; restore "
                "the file or start a new run"
            )
        write_aside(self.metrics_path, "".join(lines[:rows]))

    def write_processes(self, rows: list[dict[str, Any]]) -> None:
        """Who runs where, for people who look for a process."""
        write_aside(self.path / "processes.json", json.dumps(rows, indent=1) + "\n")

    def write_summary(self, summary: dict[str, Any]) -> None:
        write_aside(self.path / "summary.json", json.dumps(summary, indent=1) + "\n")


def config_yaml(config: Config) -> str:
    """The resolved configuration as YAML that `load_config` reads back; secrets are hidden."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(redacted(config.model_dump(mode="json"))))


def write_aside(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part."""
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)
