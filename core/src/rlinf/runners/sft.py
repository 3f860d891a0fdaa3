"""Supervised fine-tuning: demonstrations, then optimizer steps on them."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from rlinf.cluster.errors import RunError, UserError, fetch
from rlinf.config import Config
from rlinf.config.schema import SftConfig
from rlinf.data.demonstrations import Demonstrations, write_demonstrations
from rlinf.runners.session import Session
from rlinf.workers.recording import Recorded

#: Expert episodes per request to an env process, and optimizer steps per request to the trainers.
_ATTEMPTS, _STEPS = 4, 10
#: An expert that succeeds less often than once in this many episodes is broken.
_MAX_ATTEMPTS_PER_SUCCESS: Final = 10


def collect_demonstrations(
    session: Session, run_dir: Path, progress: Callable[[int], None] = lambda done: None
) -> list[Path]:
    """The folders that SFT reads: those of the configuration and, if asked for, one with episodes of the
    environment's expert in the run folder. An interrupted recording starts again; a finished one stays."""
    sft = session.config.sft
    assert sft is not None
    folders = [Path(path) for path in session.config.data.train_data_paths]
    if sft.expert_episodes:
        folder = run_dir / "demonstrations"
        if not (folder / "meta.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
            episodes = record_expert(session, sft.expert_episodes, progress)
            write_demonstrations(folder, as_dataset(session.config.env.env_type, episodes))
        folders.append(folder)
    return folders


def record_expert(session: Session, wanted: int, progress: Callable[[int], None]) -> list[Recorded]:
    """The first `wanted` successful episodes of the expert in the order of their numbers.

    All env processes record; which process plays an episode does not matter to it.
    """
    good: list[Recorded] = []
    first, errors = 0, Counter[str]()
    while len(good) < wanted:
        if first >= _MAX_ATTEMPTS_PER_SUCCESS * (wanted + _ATTEMPTS):
            raise RunError(
                f"the expert of {session.config.env.env_type!r} succeeded in only {len(good)} of {first} "
                f"episodes; simulator errors: {dict(errors) or 'none'}; sft.expert_noise may be too large"
            )
        refs = []
        for worker in session.env.workers:
            refs.append(worker.submit("record_expert", list(range(first, first + _ATTEMPTS))))
            first += _ATTEMPTS
        for recorded in (episode for part in fetch(refs) for episode in part):
            if recorded.error is not None:
                errors[recorded.error] += 1
            if recorded.success and len(good) < wanted:
                good.append(recorded)
        progress(len(good))
    return good


def as_dataset(env_type: str, episodes: list[Recorded]) -> Demonstrations:
    """Recorded episodes as one dataset."""
    tasks: dict[str, int] = {}
    columns: dict[str, list[np.ndarray]] = {}
    for number, episode in enumerate(episodes):
        length = len(episode.arrays["actions"])
        task = tasks.setdefault(episode.instruction, len(tasks))
        indices = {"task_index": np.full(length, task), "episode_index": np.full(length, number)}
        for name, array in {**episode.arrays, **indices}.items():
            columns.setdefault(name, []).append(array)
    return Demonstrations(
        env_type=env_type,
        tasks=tuple(tasks),
        arrays={name: np.concatenate(parts) for name, parts in columns.items()},
    )


def run_sft_phase(
    session: Session,
    folders: list[Path],
    first_step: int,
    on_step: Callable[[int, dict[str, float]], None],
    at_stop: Callable[[int], None],
) -> None:
    """The SFT steps from `first_step` on. `on_step(steps done, metrics)` is called for each, `at_stop(steps
    done)` where the configuration asks for something between steps, and at the end."""
    sft = session.config.sft
    assert sft is not None
    session.actor.call("begin_sft", folders, first_step)
    step = first_step
    while step < sft.max_steps:
        last = next_stop(step, sft)
        began = time.perf_counter()
        results = session.actor.call("sft", step, last)[0]
        rate = (last - step) * sft.batch_size / (time.perf_counter() - began)
        for offset, metrics in enumerate(results):
            on_step(step + offset + 1, {**metrics, "time/samples_per_s": rate})
        step = last
        at_stop(step)


def next_stop(step: int, sft: SftConfig) -> int:
    """Where the driver next looks after `step` steps: at a multiple of an interval, but not later than in
    `_STEPS` steps."""
    intervals = [n for n in (sft.val_interval, sft.eval_interval, sft.save_interval) if n]
    return min(step + _STEPS, sft.max_steps, *((step // n + 1) * n for n in intervals))


def run_sft(config: Config, *, dry_run: bool = False, **options: Any) -> int:
    """`rlinf sft`: demonstrations, SFT, evaluation, checkpoint; no RL. Returns the exit status."""
    from rlinf.runners.train import run_training

    if config.sft is None:
        raise UserError("rlinf sft needs the block `sft` in the configuration (sft.max_steps and its data)")
    runner = config.runner.model_copy(update={"max_steps": 0})
    return run_training(config.model_copy(update={"runner": runner}), dry_run=dry_run, **options)
