"""The run folder: what a run was, what it measured, and where it continues."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rlinf.cluster.errors import UserError
from rlinf.config import Config
from rlinf.plugins import Plan


@dataclass
class RunState:
    """Where a run is; goes into every checkpoint, so that a resumed run continues exactly there.

    phase: "new", "warm" (SFT is done) or "rl". iteration: RL iterations done. rows: lines of metrics.jsonl.
    frames, errors: training frames and simulator failures so far. results: what summary.json will report.
    """

    phase: str = "new"
    iteration: int = 0
    rows: int = 0
    frames: int = 0
    errors: int = 0
    wall_s: float = 0.0
    results: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class RunFolder:
    """`config.yaml`, `plan.json`, `metrics.jsonl`, `summary.json` of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics_path = path / "metrics.jsonl"

    def open(self, config: Config, plan: Plan, *, resume: bool) -> None:
        """Make the folder and write what is known before the run.

        Raises:
            UserError: the folder holds something and the run does not resume.
        """
        if not resume and self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise UserError(
                f"runner.output_dir: {self.path} is not empty. Continue the run in it with "
                "runner.resume=true, or give another runner.output_dir"
            )
        self.path.mkdir(parents=True, exist_ok=True)
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

    def write_summary(self, summary: dict[str, Any]) -> None:
        write_aside(self.path / "summary.json", json.dumps(summary, indent=1) + "\n")


def config_yaml(config: Config) -> str:
    """The resolved configuration as YAML that `load_config` reads back."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(config.model_dump(mode="json")))


def write_aside(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part."""
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)
