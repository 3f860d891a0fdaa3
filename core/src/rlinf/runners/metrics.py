"""Metric sinks: the run folder's `metrics.jsonl` always, TensorBoard and Weights & Biases if asked for."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

from rlinf.cluster.errors import UserError
from rlinf.config import Config
from rlinf.config.secrets import redacted
from rlinf.runners.run_folder import RunFolder, RunState

Phase = Literal["sft", "rl", "eval"]


def check_loggers(config: Config) -> None:
    """Raise UserError for a logger that is not installed; called before anything starts."""
    from importlib.util import find_spec

    if "wandb" in config.runner.loggers and find_spec("wandb") is None:
        raise UserError(
            "runner.loggers: wandb is not installed. Install it with: pip install 'rlinf-core[wandb]'"
        )


class MetricLog:
    """Writes each row everywhere and counts the lines in the run's state."""

    def __init__(self, folder: RunFolder, config: Config, state: RunState) -> None:
        self._folder, self._state = folder, state
        self._board: Board | None = None
        self._wandb: Any = None
        if "tensorboard" in config.runner.loggers:
            # Steps after the checkpoint are shown from this run on, not from the one that was interrupted.
            purge = state.iteration + 1 if state.rows else None
            self._board = Board(folder.path / "tensorboard", purge)
        if "wandb" in config.runner.loggers:
            self._wandb = _start_wandb(folder.path, config)

    def write(self, phase: Phase, step: int, metrics: dict[str, float]) -> None:
        """One row; `step` counts optimizer steps (sft) or iterations (rl, eval) that are done."""
        self._folder.append({"phase": phase, "step": step, **metrics})
        self._state.rows += 1
        if self._board is not None:
            self._board.write(step, metrics)
        if self._wandb is not None:
            self._wandb.log({f"{phase}/step": step, **metrics})

    def close(self) -> None:
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


class Board:
    """TensorBoard's event file, written by its own package: torch's writer would import torch."""

    def __init__(self, folder: Path, purge_step: int | None) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(folder))
        if purge_step is not None:
            log = SessionLog(status=SessionLog.SessionStatus.START)
            self._writer.add_event(Event(wall_time=time.time(), step=purge_step, session_log=log))

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """One point per metric."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def close(self) -> None:
        self._writer.close()


def _start_wandb(path: Path, config: Config) -> Any:
    import wandb

    shown = redacted(config.model_dump(mode="json"))
    return wandb.init(dir=str(path), name=path.name, config=shown, resume="allow")
