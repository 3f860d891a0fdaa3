"""Live progress on a terminal of 80 columns; one plain line now and then where there is no terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

#: Seconds between two plain lines when the output is not a terminal.
PLAIN_INTERVAL_S = 10.0


class TrainingProgress:
    """Shows phase, step, success rate, frames/s and time left.

    Use as a context manager; `phase` starts a new bar, `update` moves it, `message` prints a line above it.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(file=sys.stderr, highlight=False)
        self._live = self._console.is_terminal
        self._bar = Progress(
            TextColumn("{task.description:<14}"),
            BarColumn(bar_width=12),
            TextColumn("{task.completed:>4.0f}/{task.total:<4.0f}"),
            TextColumn("{task.fields[metrics]}"),
            TimeRemainingColumn(compact=True),
            console=self._console,
        )
        self._task: TaskID | None = None
        self._name = ""
        self._total = 0
        self._started = self._printed = time.monotonic()

    def __enter__(self) -> TrainingProgress:
        if self._live:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def phase(self, name: str, total: int, completed: int = 0) -> None:
        """Start the phase `name` of `total` steps, `completed` of which are already done (resume)."""
        self._name, self._total = name, total
        self._started = time.monotonic()
        self._printed = self._started - PLAIN_INTERVAL_S
        if self._task is not None:
            self._bar.update(self._task, completed=self._bar.tasks[-1].total)
        if self._live:
            self._task = self._bar.add_task(name, total=total, completed=completed, metrics="")

    def update(self, step: int, **metrics: float) -> None:
        """`step` steps of the phase are done. `success` and `frames_per_s` have their units."""
        text = format_metrics(metrics)
        if self._live:
            assert self._task is not None, "phase() comes before update()"
            self._bar.update(self._task, completed=step, metrics=text)
            return
        now = time.monotonic()
        if now - self._printed < PLAIN_INTERVAL_S and step < self._total:
            return
        self._printed = now
        left = (now - self._started) / max(step, 1) * (self._total - step)
        self._console.print(f"{self._name:<14} {step:>4}/{self._total:<4} {text}  {left:.0f} s left")

    def message(self, text: str) -> None:
        """Print one line that stays."""
        self._console.print(text)

    def close(self) -> None:
        """Stop the live display; lines printed so far stay."""
        if self._live:
            self._bar.stop()


def format_metrics(metrics: dict[str, float]) -> str:
    """`success 83%  1234 frames/s  loss 0.123`: short enough for one line of 80 columns."""
    parts = []
    for name, value in metrics.items():
        if name == "success":
            parts.append(f"success {value:4.0%}")
        elif name == "frames_per_s":
            parts.append(f"{value:.0f} frames/s")
        elif name == "samples_per_s":
            parts.append(f"{value:.0f} samples/s")
        elif name == "skipped":
            parts.append(f"{value:.0f} skipped")
        else:
            parts.append(f"{name} {value:.3g}")
    return "  ".join(parts)
