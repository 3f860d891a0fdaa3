"""A whole training run: demonstrations, SFT, RL, evaluations, report; resumable after every checkpoint."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from rlinf.cluster.errors import RunError, UserError
from rlinf.cluster.nodes import Node
from rlinf.cluster.placement import local_places, place, require_room, seat, table
from rlinf.cluster.preflight import require_disk
from rlinf.cluster.provenance import machine, versions
from rlinf.cluster.ray_cluster import joined_address, planned_nodes
from rlinf.config import Config, ConfigError, use_plugins
from rlinf.plugins import Plan, PluginError, get_host
from rlinf.runners.metrics import MetricLog, check_loggers
from rlinf.runners.progress import TrainingProgress
from rlinf.runners.run_folder import RunFolder, RunState

if TYPE_CHECKING:
    from rlinf.runners.session import Session

#: Episodes on film in the before/after video.
FILMED: Final = 4
#: More instructions than this are no tasks to be listed one by one.
_MAX_LISTED: Final = 24


def run_training(config: Config, *, dry_run: bool = False, allow_plugin_drift: bool = False) -> int:
    """`rlinf train`. Returns the exit status: 0; 1 when a process of the run failed; 2 when the
    configuration, a plugin or the data is not right. Errors go to stderr.

    dry_run: validate, discover and place, print the plan, start nothing and write nothing.
    allow_plugin_drift: resume although the plugins differ from those of the checkpoint.
    """
    return guarded(lambda: _run(config, dry_run=dry_run, allow_plugin_drift=allow_plugin_drift))


def guarded(run: Callable[[], None]) -> int:
    """Call `run` and turn its errors into an exit status and one message on stderr."""
    try:
        run()
    except (UserError, PluginError, ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def make_plan(config: Config) -> Plan:
    """Resolve the run's plugins, under the configuration's policy and with the extension module loaded.

    Raises PluginError.
    """
    use_plugins(config.plugins)
    return get_host().plan(model_type=config.model.model_type, env_type=config.env.env_type)


def _run(config: Config, *, dry_run: bool, allow_plugin_drift: bool) -> None:
    check_loggers(config)
    if joined_address(config) is None:
        require_room(config, local_places())
    plan = make_plan(config)
    if dry_run:
        nodes = planned_nodes(config, lambda text: print(text, file=sys.stderr, flush=True))
        print(describe_plan(config, plan, nodes))
        return
    from rlinf.runners.session import session

    require_disk(config.runner.output_dir)
    started = time.monotonic()
    folder = RunFolder(config.runner.output_dir)
    checkpoint, state = _resume_point(config, plan, allow_plugin_drift)
    folder.open(config, plan, resume=config.runner.resume)
    folder.truncate(state.rows)
    with TrainingProgress() as progress:
        progress.message(f"run folder {folder.path}; starting processes")
        with session(config, plan, folder.path, progress.message) as processes:
            Training(processes, folder, state, progress, plan, started).run(checkpoint)


def _resume_point(config: Config, plan: Plan, allow_plugin_drift: bool) -> tuple[Path | None, RunState]:
    """The newest good checkpoint of the run folder and the state in it; none for a new run."""
    from rlinf.fsdp.checkpoint import CheckpointError, CheckpointStore, read_metadata

    if not config.runner.resume:
        return None, RunState()
    try:
        checkpoint = CheckpointStore(config.runner.output_dir).latest_good()
        if checkpoint is None:
            return None, RunState()
        metadata = read_metadata(checkpoint)
    except CheckpointError as error:
        raise UserError(str(error)) from None
    differences = Plan.from_json(metadata["plan"]).differences(plan)
    if differences and not allow_plugin_drift:
        raise UserError(
            f"{checkpoint} was made with other plugins:\n  "
            + "\n  ".join(differences)
            + "\nResume with --allow-plugin-drift if that is what you want."
        )
    return checkpoint, RunState(**metadata["state"])


def describe_plan(config: Config, plan: Plan, nodes: Sequence[Node]) -> str:
    """What `--dry-run` prints: plugins, placement on the nodes, sizes."""
    algorithm, env, actor = config.algorithm, config.env, config.actor
    calls = env.steps_per_rollout // config.model.num_action_chunks
    lines = ["Plugins"]
    lines += [
        f"  {entry.group:<12} {entry.name:<16} {entry.distribution} {entry.version}" for entry in plan.entries
    ]
    lines += ["Placement", table(seat(place(config.cluster), nodes)), "Run"]
    if config.sft is not None:
        data = f"{config.sft.expert_episodes} expert episodes, {len(config.data.train_data_paths)} datasets"
        lines.append(f"  SFT         {config.sft.max_steps} steps of {config.sft.batch_size} samples; {data}")
    lines += [
        f"  RL          {config.runner.max_steps} iterations of {algorithm.adv_type}/{algorithm.loss_type}",
        f"  rollout     {env.num_envs} environments x {env.steps_per_rollout} steps = "
        f"{env.num_envs * calls} samples",
        f"  update      {algorithm.update_epoch} passes, {actor.global_batch_size} samples per step",
        f"  evaluation  {env.eval.num_episodes} held-out episodes",
        f"  run folder  {config.runner.output_dir}",
        "Nothing was started.",
    ]
    return "\n".join(lines)


class Training:
    """The phases of a run, each of which changes the state; a checkpoint holds the state and the weights."""

    def __init__(
        self,
        session: Session,
        folder: RunFolder,
        state: RunState,
        progress: TrainingProgress,
        plan: Plan,
        started: float,
    ) -> None:
        """`started`: when the run began, as `time.monotonic()` told it."""
        from rlinf.fsdp.checkpoint import CheckpointStore
        from rlinf.runners.embodied import EmbodiedRunner

        self.session, self.folder, self.state = session, folder, state
        self.progress, self.plan = progress, plan
        self.config: Config = session.config
        self.runner = EmbodiedRunner(session)
        self.store = CheckpointStore(folder.path, self.config.runner.keep_checkpoints)
        self.log = MetricLog(folder, self.config, state)
        self._started = started - state.wall_s

    def run(self, checkpoint: Path | None) -> None:
        """All phases that the state has not behind it."""
        try:
            if checkpoint is not None:
                self.session.actor.call("load", checkpoint)
                self.progress.message(f"continuing from {checkpoint}")
            else:
                self.warm_up()
            self.runner.sync_weights()
            self.reinforce()
            self.evaluate_blind()
            self.finish()
        finally:
            self.log.close()

    def warm_up(self) -> None:
        """Demonstrations, SFT, first evaluation, first checkpoint."""
        from rlinf.runners.sft import collect_demonstrations, run_sft_phase

        sft = self.config.sft
        if sft is not None:
            self.progress.phase("demonstrations", sft.expert_episodes)
            folders = collect_demonstrations(self.session, self.folder.path, self.progress.update)
            self.progress.phase("SFT", sft.max_steps)
            run_sft_phase(self.session, folders, self._sft_step)
        self.runner.sync_weights()
        rate = self.evaluate(0)
        self.state.results["success_after_sft"] = rate if sft is not None else None
        self.session.actor.call("begin_rl")
        self.state.phase = "warm"
        if self.config.runner.report:
            self._film("before")
        self.save()

    def _sft_step(self, step: int, metrics: dict[str, float]) -> None:
        self.log.write("sft", step, metrics)
        self.progress.update(step, loss=metrics["sft/loss"])

    def reinforce(self) -> None:
        """The RL iterations, with evaluations and checkpoints between them."""
        runner, state = self.config.runner, self.state
        if state.iteration < runner.max_steps:
            self.progress.phase("RL", runner.max_steps, state.iteration)
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
                "env/frames": self.state.frames,
                "env/errors": self.state.errors,
            },
        )
        per_instruction = result.by_instruction()
        if len(per_instruction) <= _MAX_LISTED:
            self.state.results["success_by_instruction"] = per_instruction
        self.progress.message(f"held-out success after {iteration} iterations: {result.success_rate:.1%}")
        return result.success_rate

    def evaluate_blind(self) -> None:
        """The control: how well the final policy does when it cannot read the instruction."""
        if self.config.env.eval.blind:
            result = self.runner.evaluate(blind=True)
            self._count_errors(result.errors)
            self.state.results["success_blind"] = result.success_rate
            self.progress.message(f"held-out success with the instruction hidden: {result.success_rate:.1%}")

    def save(self) -> None:
        """A checkpoint of the weights, the optimizer and the state."""
        self.state.wall_s = time.monotonic() - self._started
        metadata = {
            "plan": self.plan.to_json(),
            "config": self.config.model_dump(mode="json"),
            "versions": versions(),
            "state": self.state.to_json(),
        }
        with self.store.writing(self.state.iteration, metadata) as folder:
            self.session.actor.call("save", folder.absolute(), {})

    def finish(self) -> None:
        """Summary, and the report for people."""
        from rlinf.runners.report import summary_text, write_curve

        self.folder.write_summary(self.summary())
        if self.config.runner.report:
            write_curve(self.folder.path)
            if self.config.runner.max_steps:
                self._film("after")
            self._write_video()
        self.progress.message(summary_text(self.folder.path))

    def summary(self) -> dict[str, Any]:
        """The content of summary.json; what was not measured is null."""
        names = ("success_after_sft", "success_after_rl", "success_blind", "success_by_instruction")
        return {
            **{name: self.state.results.get(name) for name in names},
            "eval_episodes": self.config.env.eval.num_episodes,
            "iterations": self.state.iteration,
            "wall_s": time.monotonic() - self._started,
            "env_frames": self.state.frames,
            "env_errors": self.state.errors,
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
            arrays |= {f"frames_{i}": clip["frames"], f"success_{i}": np.array(clip["success"])}
            arrays[f"instruction_{i}"] = np.array(clip["instruction"])
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
                        )
                        for i in range(len(arrays.files) // 3)
                    ]
        write_gif(self.folder.path / "before_after.gif", rows)


def _due(interval: int, iteration: int) -> bool:
    return interval > 0 and (iteration + 1) % interval == 0
