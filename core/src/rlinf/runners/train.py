"""From a configuration to a training run: checked, placed, started, and started again after a failure."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlinf.cluster.errors import LostWorker, RunError, UserError, is_disk_full, signals_through
from rlinf.cluster.nodes import Node
from rlinf.cluster.placement import local_places, place, require_room, seat, table
from rlinf.cluster.preflight import require_disk
from rlinf.cluster.ray_cluster import joined_address, planned_nodes, ray_cluster
from rlinf.config import Config, ConfigError, plugin_subtree, use_plugins
from rlinf.config.plugin_schema import TEXT_ENVS
from rlinf.data.errors import DatasetError
from rlinf.data.media import check_media
from rlinf.data.text import read_rows
from rlinf.data.training import check_data
from rlinf.plugins import Plan, PluginError, get_host
from rlinf.runners.metrics import check_loggers
from rlinf.runners.progress import TrainingProgress
from rlinf.runners.recovery import RESUME_ME, Preempted, Preemption, ResumePoint
from rlinf.runners.run_folder import RunFolder, RunState
from rlinf.runners.training import Training

if TYPE_CHECKING:
    from rlinf.workers.hangs import Hang


def run_training(
    config: Config, *, dry_run: bool = False, allow_plugin_drift: bool = False, ship: bool = False
) -> int:
    """`rlinf train`. Returns the exit status: 0; 1 when a process of the run failed; 2 when the
    configuration, a plugin or the data is not right; 75 when it was told to end (SIGTERM) and can be resumed.
    Errors go to stderr.

    dry_run: validate, discover and place, print the plan, start nothing and write nothing.
    allow_plugin_drift: resume although the plugins differ from those of the checkpoint.
    ship: send the run's plugins to the nodes of the cluster that do not have them.
    """
    return guarded(lambda: _run(config, dry_run=dry_run, allow_plugin_drift=allow_plugin_drift, ship=ship))


def guarded(run: Callable[[], None]) -> int:
    """Call `run` and turn its errors into an exit status and one message on stderr."""
    try:
        with signals_through():
            run()
    except (UserError, PluginError, ConfigError, DatasetError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Preempted:
        return RESUME_ME
    except OSError as error:
        if not is_disk_full(error):
            raise
        print(f"error: the disk is full: {error}", file=sys.stderr)
        return 1
    return 0


def make_plan(config: Config) -> Plan:
    """Resolve the run's plugins, under the configuration's policy and with the extension module loaded.

    Raises PluginError.
    """
    use_plugins(config.plugins)
    env_type: str | tuple[()] = config.env.env_type if config.has_simulator else ()
    rewards: list[str] = []
    if config.has_simulator:
        rewards = [reward["type"] for reward in config.subtree("env").get("rewards") or ()]
    return get_host().plan(model_type=config.model.model_type, env_type=env_type, rewards=rewards)


def check_prompts(config: Config) -> None:
    """Read the prompts or pairs of an environment of texts and look for their pictures and sounds. Raises
    DatasetError."""
    if config.has_simulator and config.env.env_type in TEXT_ENVS.values():
        options: Any = plugin_subtree(config, "env")
        for source, columns in options.sources:
            check_media(source, read_rows(source, columns))


def _run(config: Config, *, dry_run: bool, allow_plugin_drift: bool, ship: bool) -> None:
    check_loggers(config)
    if joined_address(config) is None:
        if ship:
            raise UserError("--ship sends plugins to other nodes, and without cluster.address there are none")
        require_room(config, local_places())
    plan = make_plan(config)
    data = check_data(config) if config.sft is not None and config.data.train_data_paths else []
    check_prompts(config)
    if dry_run:
        nodes = planned_nodes(config, lambda text: print(text, file=sys.stderr, flush=True))
        print(describe_plan(config, plan, nodes, data))
        return
    require_disk(config.runner.output_dir)
    started = time.monotonic()
    folder = RunFolder(config.runner.output_dir)
    with folder.open(config, plan, resume=config.runner.resume), TrainingProgress() as progress:
        checkpoint, state = _resume_point(config, plan, allow_plugin_drift)
        progress.message(f"run folder {folder.path}; starting processes")
        preemption = Preemption()
        with (
            tempfile.TemporaryDirectory() as parcel,
            ray_cluster(
                config,
                len(place(config.cluster, config.components).processes),
                progress.message,
                partial(_ship, plan, folder.path, Path(parcel), progress.message) if ship else None,
            ),
            preemption.listening(),
        ):
            point = ResumePoint.of(state, checkpoint)
            # A restart within this call keeps the beginning: its wall time counts what was lost, once.
            began = started - state.wall_s
            run = partial(Training, folder=folder, progress=progress, plan=plan, began=began)
            _restarting(config, point, partial(run, config=config, preemption=preemption))


def _ship(
    plan: Plan, run: Path, parcel: Path, say: Callable[[str], None], nodes: Sequence[Node]
) -> Path | None:
    """What the nodes lack, ready to be sent; None if they have all."""
    from rlinf.cluster.preflight import ask
    from rlinf.cluster.ship import lacking, pack

    facts, _ = ask(plan, run, nodes)
    names = lacking(plan, facts)
    if not names:
        return None
    say(f"shipping {', '.join(names)}")
    return pack(names, parcel)


def _restarting(config: Config, point: ResumePoint, start: Callable[..., Training]) -> None:
    """Train from `point` to the end; when a process or a node is lost, again from where it was.

    Raises RunError when `runner.max_restarts` are used up, and at once for errors that would come again: a
    simulator that hangs a second time in the same episode (its seed tells the iteration) is one.
    """
    from rlinf.workers.hangs import take_hangs

    seen: set[tuple[int, int]] = set()
    for restart in range(config.runner.max_restarts + 1):
        training = start(point=point)
        try:
            training.run()
            return
        except LostWorker as error:
            hangs = take_hangs(training.folder.path)
            text = "\n".join(map(str, [error, *hangs]))
            point = training.point
            places = {(hang.environment, hang.seed): hang for hang in hangs}
            for place in seen & set(places):
                raise RunError(f"{text}\n{_hangs_again(places[place], start, point)}") from None
            seen.update(places)
            if restart == config.runner.max_restarts:
                used = f"\nThe run was restarted {restart} times (runner.max_restarts)." if restart else ""
                raise RunError(f"{text}{used}") from None
            training.progress.message(text)
            if not point.is_there():
                training.progress.message("the trainer's state in memory is lost as well")
                point = _on_disk(point)
            training.progress.message(
                f"restart {restart + 1} of {config.runner.max_restarts}: all processes, from iteration "
                f"{point.state.iteration}"
            )
            point.state.restarts += 1


def _hangs_again(hang: Hang, start: Callable[..., Training], point: ResumePoint) -> str:
    """What to do about a simulator that hung at the same place as before; the state at `point` is saved."""
    training = start(point=point)
    if point.snapshot and point.is_there():
        try:
            training.keep()
        except RunError as error:
            training.progress.message(f"the state in memory could not be saved: {error}")
    env = training.config.env
    kept = training.store.latest()
    way_out = ""
    if kept is not None:
        way_out = (
            f" {kept} is complete: runner.resume=true goes on from it, and with another runner.seed it draws "
            "other episodes."
        )
    return (
        f"It hung there twice, in iteration {point.state.iteration + 1}, and would again: the run ends. To "
        f"see it alone, make one simulator of env_type {env.env_type!r}, reset(seed={hang.seed}) and step "
        f"it. If it is only slow, raise env.step_timeout_s ({env.step_timeout_s:g}).{way_out}"
    )


def _on_disk(point: ResumePoint) -> ResumePoint:
    """Where to go on without the snapshot."""
    from rlinf.fsdp.checkpoint import read_metadata

    saved = RunState()
    if point.checkpoint is not None:
        saved = RunState.from_json(point.checkpoint, read_metadata(point.checkpoint).get("state"))
    return ResumePoint.of(saved, point.checkpoint)


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
    differences = saved_plan(checkpoint, metadata).differences(plan)
    if differences and not allow_plugin_drift:
        raise UserError(
            f"{checkpoint} was made with other plugins:\n  "
            + "\n  ".join(differences)
            + "\nResume with --allow-plugin-drift if that is what you want."
        )
    return checkpoint, RunState.from_json(checkpoint, metadata.get("state"))


def saved_plan(checkpoint: Path, metadata: dict[str, Any]) -> Plan:
    """The plan in a checkpoint's metadata. Raises UserError if there is none."""
    try:
        return Plan.from_json(metadata.get("plan", {}))
    except PluginError as error:
        raise UserError(f"{checkpoint}: {str(error)[:500]}") from None


def describe_plan(config: Config, plan: Plan, nodes: Sequence[Node], datasets: Sequence[str]) -> str:
    """What `--dry-run` prints: plugins, placement on the nodes, sizes, a line for each of `datasets`."""
    lines = ["Plugins"]
    lines += [
        f"  {entry.group:<12} {entry.name:<16} {entry.distribution} {entry.version}" for entry in plan.entries
    ]
    lines += ["Placement", table(seat(place(config.cluster, config.components), nodes)), "Run"]
    if config.sft is not None:
        data = f"{config.sft.expert_episodes} expert episodes, {len(datasets)} datasets"
        lines.append(f"  SFT         {config.sft.max_steps} steps of {config.sft.batch_size} samples; {data}")
        lines += [f"    {line}" for line in datasets]
    if config.has_simulator:
        lines += _describe_rl(config)
    return "\n".join([*lines, f"  run folder  {config.runner.output_dir}", "Nothing was started."])


def _describe_rl(config: Config) -> list[str]:
    algorithm, env = config.algorithm, config.env
    calls = env.steps_per_rollout // config.model.num_action_chunks
    return [
        f"  RL          {config.runner.max_steps} iterations of {algorithm.adv_type}/{algorithm.loss_type}",
        f"  rollout     {env.num_envs} environments x {env.steps_per_rollout} steps = "
        f"{env.num_envs * calls} samples",
        f"  update      {algorithm.update_epoch} passes, {config.actor.global_batch_size} samples per step",
        f"  evaluation  {env.eval.num_episodes} held-out episodes",
    ]
