"""The phases of a training run: demonstrations, SFT, RL, evaluations, report; resumable after every save."""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
import time
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from rlinf.cluster.errors import RunError, UserError, fetch, is_disk_full, signals_through
from rlinf.cluster.provenance import machine, versions
from rlinf.config import Config, can_film
from rlinf.config.schema import SftConfig
from rlinf.config.secrets import redacted
from rlinf.data.training import data_identity
from rlinf.plugins import Plan, get_host
from rlinf.runners.metrics import MetricLog
from rlinf.runners.progress import TrainingProgress, format_metrics
from rlinf.runners.recovery import Preempted, Preemption, ResumePoint, secured
from rlinf.runners.run_folder import RunFolder

#: Episodes on film in the before/after video.
FILMED: Final = 4
#: More instructions than this are no tasks to be listed one by one.
_MAX_LISTED: Final = 24
#: What is kept of an episode on film.
_FILM: Final = ("frames", "instruction", "success", "texts")


class Training:
    """The phases of a run, each of which changes the state; a checkpoint holds the state and the weights."""

    def __init__(
        self,
        *,
        config: Config,
        point: ResumePoint,
        folder: RunFolder,
        progress: TrainingProgress,
        plan: Plan,
        began: float,
        preemption: Preemption,
    ) -> None:
        """`began`: `time.monotonic()` less all seconds that the run has taken, earlier calls included."""
        from rlinf.fsdp.checkpoint import CheckpointStore

        self.config, self.folder, self.progress, self.plan = config, folder, progress, plan
        #: Where this run, or the next after a failure, goes on.
        self.point = point
        self.state = copy.deepcopy(point.state)
        self.preemption = preemption
        self.store = CheckpointStore(folder.path, config.runner.keep_checkpoints)
        self._began = began

    def run(self) -> None:
        """Start the processes; then all phases that the state has not behind it.

        Raises:
            LostWorker: go on from `point`. Preempted: after a checkpoint, where there was something to keep.
        """
        from rlinf.runners.embodied import EmbodiedRunner
        from rlinf.runners.session import processes

        self.folder.truncate(self.state.rows)
        self.log = MetricLog(self.folder, self.config, self.state)
        try:
            with processes(self.config, self.plan, self.folder.path, self.progress.message) as self.session:
                self.folder.write_processes(self.session.whereabouts())
                self.runner = EmbodiedRunner(self.session, self.preemption.hold)
                try:
                    with signals_through():
                        self._phases()
                except Preempted:
                    self._save_before_the_end()
                    raise
        finally:
            self.log.close()

    def _phases(self) -> None:
        self._begin()
        self.preemption.release()
        if self.config.has_simulator:
            self.runner.sync_weights()
            self.reinforce()
            self.evaluate_blind()
        self.finish()

    def _begin(self) -> None:
        """The trainer's state at `point`; from the very beginning, the warm start."""
        point = self.point
        if point.checkpoint is None and not point.snapshot:
            self.warm_up()
            return
        if point.checkpoint is not None and not point.snapshot:
            self.session.actor.call("load", point.checkpoint)
            self.progress.message(f"continuing from {point.checkpoint}")
            if self.state.phase == "sft":
                self.warm_up()
            return
        workers = self.session.actor.workers
        fetch([worker.submit("restore", part) for worker, part in zip(workers, point.snapshot)])

    def _mark(self) -> None:
        """From here on a failure costs no more than what comes after."""
        interval = self.config.runner.snapshot_interval
        if interval and self.state.iteration % interval == 0:
            snapshot = secured(self.session.actor.submit("snapshot"))
            self.point = ResumePoint.of(self.state, self.store.latest(), snapshot)
        elif self.store.latest() != self.point.checkpoint:
            self.point = ResumePoint.of(self.state, self.store.latest())

    def _save_before_the_end(self) -> None:
        """A checkpoint of the last whole iteration, unless there is one."""
        if self.state.phase in ("new", "sft"):
            where = self.store.latest() or "its start"
            self.progress.message(f"told to end during the warm start, which goes on from {where} on resume")
            return
        if self.store.latest() != self.store.path(self._number()):
            self.save()
        self.progress.message(
            f"told to end; {self.store.latest()} is complete: resume with runner.resume=true"
        )

    def keep(self) -> None:
        """Start the processes once more, only to write the state at `point` to the disk."""
        self.preemption.request()
        with contextlib.suppress(Preempted):
            self.run()

    def warm_up(self) -> None:
        """Demonstrations, SFT, first evaluation, first checkpoint."""
        sft = self.config.sft
        if sft is not None:
            self.supervise(sft)
        if self.config.has_simulator:
            self.runner.sync_weights()
            rate = self.evaluate(0)
            self.state.results["success_before_rl" if sft is None else "success_after_sft"] = rate
        self.session.actor.call("begin_rl")
        self.state.phase = "warm"
        if self._films:
            self._film("before")
        self.save()

    def supervise(self, sft: SftConfig) -> None:
        """The SFT steps that are still to be done, with validations, evaluations and checkpoints between."""
        from rlinf.runners.sft import collect_demonstrations, run_sft_phase

        data = data_identity(self.config)
        if self.state.phase == "sft" and data != self.state.data:
            raise UserError(
                "data.train_data_paths: these are not the datasets that the checkpoint was made with (their "
                "episodes, lengths, features or instructions differ), so its order of samples means nothing"
            )
        self.state.data = data
        self.progress.phase("demonstrations", sft.expert_episodes)
        folders = collect_demonstrations(self.session, self.folder.path, self.progress.update)
        self.progress.phase("SFT", sft.max_steps, self.state.sft_steps)
        run_sft_phase(self.session, folders, self.state.sft_steps, self._sft_step, self._sft_stop)
        self.session.actor.call("end_sft")
        if sft.export:
            shutil.rmtree(self.folder.path / "export", ignore_errors=True)
            self.session.actor.call("export", (self.folder.path / "export").absolute())

    def _sft_step(self, step: int, metrics: dict[str, float]) -> None:
        self.log.write("sft", step, metrics)
        shown = {"skipped": metrics["sft/skipped_samples"]} if "sft/skipped_samples" in metrics else {}
        rate = metrics["time/samples_per_s"]
        self.progress.update(step, loss=metrics["sft/loss"], samples_per_s=rate, **shown)

    def _sft_stop(self, step: int) -> None:
        """What is due after `step` SFT steps."""
        sft, is_last = self.config.sft, False
        assert sft is not None
        is_last = step == sft.max_steps
        metrics: dict[str, float] = {}
        if self.config.data.val_fraction and (is_last or _due(sft.val_interval, step - 1)):
            metrics |= self.session.actor.call("validate")[0]
            self.state.results["val_loss"] = metrics["sft/val_loss"]
        if _due(sft.eval_interval, step - 1) and not is_last:
            self.runner.sync_weights()
            result = self.runner.evaluate()
            self._count_errors(result.errors)
            metrics["sft/success_rate"] = result.success_rate
        if metrics:
            self.log.write("sft", step, metrics)
            self.progress.message(f"after {step} SFT steps: {format_metrics(metrics)}")
        self.state.phase, self.state.sft_steps = "sft", step
        if _due(sft.save_interval, step - 1) and not is_last and self.save():
            self.point = ResumePoint.of(self.state, self.store.path(self._number()))

    def reinforce(self) -> None:
        """The RL iterations, with evaluations and checkpoints between them."""
        runner, state = self.config.runner, self.state
        if state.iteration < runner.max_steps:
            self.progress.phase("RL", runner.max_steps, state.iteration)
            self._mark()
        for iteration in range(state.iteration, runner.max_steps):
            metrics, stats = self.runner.iterate(iteration)
            state.iteration, state.phase = iteration + 1, "rl"
            state.frames += stats.frames
            self._count_errors(stats.errors)
            metrics |= {"env/frames": state.frames, "env/errors": state.errors}
            self.log.write("rl", iteration + 1, metrics)
            get_host().hook.rlinf_step_ended(step=iteration, metrics=metrics)
            shown = {"frames_per_s": metrics["env/frames_per_s"]}
            if "rollout/success_rate" in metrics:
                shown["success"] = metrics["rollout/success_rate"]
            self.progress.update(iteration + 1, **shown)
            is_last = iteration + 1 == runner.max_steps
            if is_last or _due(runner.eval_interval, iteration):
                state.results["success_after_rl"] = self.evaluate(iteration + 1)
            if is_last or _due(runner.save_interval, iteration):
                self.save()
            self._mark()
            self.preemption.release()

    def evaluate(self, iteration: int) -> float:
        """Held-out success of the present weights, as a row of its own."""
        result = self.runner.evaluate()
        self._count_errors(result.errors)
        self.log.write(
            "eval",
            iteration,
            {
                "eval/success_rate": result.success_rate,
                "eval/episode_length": result.mean_length,
                **{f"eval/{name}": value for name, value in result.scores.items()},
                "env/frames": self.state.frames,
                "env/errors": self.state.errors,
            },
        )
        per_instruction = result.by_instruction()
        if len(per_instruction) <= _MAX_LISTED:
            self.state.results["success_by_instruction"] = per_instruction
        self.progress.message(f"held-out success after {iteration} iterations: {result.success_rate:.1%}")
        for text in result.examples:
            self.progress.message(f"  {text}")
        return result.success_rate

    def evaluate_blind(self) -> None:
        """The control: how well the final policy does when it cannot read the instruction."""
        if self.config.env.eval.blind:
            result = self.runner.evaluate(blind=True)
            self._count_errors(result.errors)
            self.state.results["success_blind"] = result.success_rate
            self.progress.message(f"held-out success with the instruction hidden: {result.success_rate:.1%}")

    def save(self) -> bool:
        """A checkpoint of the weights, the optimizer and the state; returns whether the disk had room."""
        self.state.wall_s = time.monotonic() - self._began
        metadata = {
            "plan": self.plan.to_json(),
            "config": redacted(self.config.model_dump(mode="json")),
            "versions": versions(),
            "state": self.state.to_json(),
        }
        try:
            with self.store.writing(self._number(), metadata) as folder:
                self.session.actor.call("save", folder.absolute(), {})
        except (OSError, RunError) as error:
            if not is_disk_full(error):
                raise
            self._disk_full()
            return False
        return True

    def _number(self) -> int:
        """Of the next checkpoint: RL iterations, and SFT steps where SFT leaves checkpoints of its own."""
        sft = self.config.sft
        counts_sft = sft is not None and (sft.save_interval > 0 or self.config.runner.max_steps == 0)
        return self.state.iteration + (self.state.sft_steps if counts_sft else 0)

    def _disk_full(self) -> None:
        """A checkpoint that does not fit is no reason to lose the work after it, as long as there is more."""
        text = (
            f"the checkpoint of iteration {self.state.iteration} could not be written: the disk of "
            f"{self.store.directory} is full; the newest complete one is {self.store.latest()}"
        )
        if self.state.iteration >= self.config.runner.max_steps:
            raise RunError(f"{text}. Free some space and resume with runner.resume=true")
        self.progress.message(text)

    def finish(self) -> None:
        """Summary, and the report for people."""
        from rlinf.runners.report import summary_text, write_curve

        self.folder.write_summary(self.summary())
        if self.config.runner.report:
            write_curve(self.folder.path)
        if self._films:
            if self.config.runner.max_steps:
                self._film("after")
            self._write_video()
        self.progress.message(summary_text(self.folder.path))

    @property
    def _films(self) -> bool:
        """Whether there is something to see on film."""
        return self.config.runner.report and can_film(self.config)

    def summary(self) -> dict[str, Any]:
        """The content of summary.json; what was not measured is null."""
        names = (
            "success_before_rl",
            "success_after_sft",
            "success_after_rl",
            "success_blind",
            "success_by_instruction",
        )
        return {
            **{name: self.state.results.get(name) for name in names},
            "eval_episodes": self.config.env.eval.num_episodes if self.config.has_simulator else None,
            "iterations": self.state.iteration,
            "wall_s": time.monotonic() - self._began,
            "env_frames": self.state.frames,
            "env_errors": self.state.errors,
            "restarts": self.state.restarts,
            "seed": self.config.runner.seed,
            "versions": versions(),
            "machine": machine(),
            "peak_memory_bytes": {
                group.name: group.call("peak_memory")
                for group in (self.session.env, self.session.rollout, self.session.actor)
            },
            "plan": json.loads(self.plan.to_json()),
        }

    def _count_errors(self, errors: dict[str, int]) -> None:
        for message, count in errors.items():
            self.state.errors += count
            self.progress.message(f"simulator error, environment restarted ({count} x): {message}")

    def _film(self, when: str) -> None:
        """Keep the clips in the run folder: a resumed run still has those from before."""
        clips = self.runner.film(min(FILMED, self.config.env.eval.num_episodes))
        arrays: dict[str, np.ndarray] = {}
        for i, clip in enumerate(clips):
            arrays |= {f"{name}_{i}": np.asarray(clip[name]) for name in _FILM}
        (self.folder.path / "films").mkdir(exist_ok=True)
        np.savez_compressed(self.folder.path / "films" / f"{when}.npz", **arrays)  # type: ignore[arg-type]

    def _write_video(self) -> None:
        from rlinf.runners.video import Clip, write_gif

        titles = {"before": "after SFT" if self.config.sft else "untrained", "after": "after RL"}
        rows: dict[str, Sequence[Clip]] = {}
        for when, title in titles.items():
            path = self.folder.path / "films" / f"{when}.npz"
            if path.exists():
                with np.load(path, allow_pickle=False) as arrays:
                    rows[title] = [
                        Clip(
                            frames=arrays[f"frames_{i}"],
                            instruction=str(arrays[f"instruction_{i}"]),
                            success=bool(arrays[f"success_{i}"]),
                            texts=arrays[f"texts_{i}"].tolist(),
                        )
                        for i in range(len(arrays.files) // len(_FILM))
                    ]
        write_gif(self.folder.path / "before_after.gif", rows)


def _due(interval: int, iteration: int) -> bool:
    return interval > 0 and (iteration + 1) % interval == 0
