"""The measurements of rl_loop.py that need nothing but rlinf-core: the run, its halves, and the plain loop.

Each returns, for every iteration, executed `frames` and `seconds`, and what else there is to say.
"""

from __future__ import annotations

import multiprocessing
import queue
import resource
import time
from typing import Any

import numpy as np
import torch
from rlinf.cluster.placement import place
from rlinf.config import plugin_subtree
from rlinf.config.schema import Config
from rlinf.envs.vector import VecEnv
from rlinf.runners.embodied import EmbodiedRunner
from rlinf.runners.session import session, threads
from rlinf.runners.train import make_plan
from rlinf.workers.actor import ActorWorker
from rlinf.workers.base import WorkerArgs
from rlinf.workers.env import EnvWorker
from rlinf.workers.layout import EnvLayout
from rlinf.workers.rollout import RolloutWorker
from single_process import SingleProcess


def run(config: Config, iterations: int) -> dict[str, Any]:
    """The real thing: `EmbodiedRunner.iterate` on Ray, with the processes that the configuration places."""
    rows: list[dict[str, float]] = []
    frames, seconds = [], []
    with session(config, make_plan(config), config.runner.output_dir) as processes:
        runner = EmbodiedRunner(processes)
        processes.actor.call("begin_rl")
        runner.sync_weights()
        for iteration in range(iterations):
            begin = time.perf_counter()
            metrics, stats = runner.iterate(iteration)
            seconds.append(time.perf_counter() - begin)
            frames.append(stats.frames)
            rows.append(metrics)
        groups = {group.name: group for group in (processes.env, processes.rollout, processes.actor)}
        memory = {name: group.call("peak_memory") for name, group in groups.items()}
    return {
        "frames": frames,
        "seconds": seconds,
        "rollout_s": [row["time/rollout"] for row in rows],
        "update_s": [row["time/update"] for row in rows],
        "sync_s": [row["time/sync"] for row in rows],
        "updates": [row["train/updates"] for row in rows],
        "peak_memory": {**memory, "driver": [own_peak_memory()]},
        "processes": {name: len(group.workers) for name, group in groups.items()},
    }


def simulator(config: Config, iterations: int) -> dict[str, Any]:
    """The simulators alone, one process for each env worker of the run; actions as an untrained policy's."""
    count = len(place(config.cluster).of("env"))
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(count), context.Queue()
    arguments = (config.model_dump(mode="json"), config.env.num_envs // count, iterations, barrier, results)
    workers = [context.Process(target=_simulate, args=(rank, *arguments)) for rank in range(count)]
    reports = _reports(workers, results, len(workers))
    return {
        "frames": np.sum([report["frames"] for report in reports], axis=0).tolist(),
        "seconds": np.max([report["seconds"] for report in reports], axis=0).tolist(),
        "core_s": np.sum([report["core_s"] for report in reports], axis=0).tolist(),
        "processes": {"simulator": count},
    }


def _simulate(
    rank: int, dumped: dict[str, Any], num_envs: int, iterations: int, barrier: Any, results: Any
) -> None:
    config = Config.model_validate(dumped)
    envs = VecEnv(config.env.env_type, plugin_subtree(config, "env"), num_envs)
    rng = np.random.default_rng([config.runner.seed, rank])
    std = np.exp(plugin_subtree(config, "model").init_log_std)
    chunk = config.model.num_action_chunks
    report: dict[str, list[float]] = {"frames": [], "seconds": [], "core_s": []}
    for iteration in range(iterations):
        seeds = np.random.SeedSequence([config.runner.seed, iteration, rank]).generate_state(num_envs) >> 1
        barrier.wait(timeout=600)
        begin, begin_core, frames = time.perf_counter(), time.process_time(), 0
        envs.reset(seeds.tolist())
        for _ in range(config.env.steps_per_rollout // chunk):
            actions = std * rng.standard_normal((num_envs, chunk, envs.action_dim))
            frames += int(envs.chunk_step(actions.astype(np.float32)).valid_steps.sum())
        report["frames"].append(frames)
        report["seconds"].append(time.perf_counter() - begin)
        report["core_s"].append(time.process_time() - begin_core)
    envs.close()
    results.put(report)


def policy(config: Config, iterations: int) -> dict[str, Any]:
    """The policy alone: the run's workers called directly, on the observations and the batch of one rollout.

    Inference and update by one process with one thread (`seconds`, their sum), and the update by as many
    ranks and threads as the run has (`update_run_s`).
    """
    placement = place(config.cluster)
    if len(placement.of("rollout")) != 1:
        raise SystemExit("rl_loop.py wants one rollout process in cluster.component_placement")
    envs = [_worker(config, EnvWorker, "env", rank) for rank in range(len(placement.of("env")))]
    rollout = _worker(config, RolloutWorker, "rollout", 0)
    messages, trajectory, frames = _record(rollout, envs, config)
    actor = _worker(config, ActorWorker, "actor", 0)
    seconds: dict[str, list[float]] = {"inference_s": [], "update_s": [], "core_s": []}
    torch.set_num_threads(1)
    for iteration in range(iterations):
        core = time.process_time()
        seconds["inference_s"].append(_timed(lambda: _replay(rollout, messages)))
        seconds["update_s"].append(_timed(lambda: actor.update(iteration, 0, trajectory)))  # noqa: B023
        seconds["core_s"].append(time.process_time() - core)
    ranks = len(placement.of("actor"))
    return {
        "frames": [frames] * iterations,
        "seconds": [sum(pair) for pair in zip(seconds["inference_s"], seconds["update_s"])],
        **seconds,
        "update_run_s": _update_on_ranks(config, trajectory, iterations, ranks),
        "parameters": sum(p.numel() for p in actor._engine.model.parameters()),
        "processes": {"rollout": 1, "actor": ranks},
    }


def _update_on_ranks(config: Config, trajectory: Any, iterations: int, ranks: int) -> list[float]:
    """Seconds of each update by `ranks` trainer processes."""
    context = multiprocessing.get_context("spawn")
    addresses, results = context.Queue(), context.Queue()
    dumped = config.model_dump(mode="json")
    workers = [
        context.Process(target=_train, args=(rank, ranks, dumped, trajectory, iterations, addresses, results))
        for rank in range(ranks)
    ]
    return _reports(workers, results, 1)[0]


def _train(
    rank: int,
    ranks: int,
    dumped: dict[str, Any],
    trajectory: Any,
    iterations: int,
    addresses: Any,
    results: Any,
) -> None:
    config = Config.model_validate(dumped)
    actor = _worker(config, ActorWorker, "actor", rank, ranks, addresses)
    seconds = [_timed(lambda: actor.update(i, 0, trajectory)) for i in range(iterations)]  # noqa: B023
    if rank == 0:
        results.put(seconds)


def _worker(
    config: Config, kind: type[Any], role: str, rank: int, ranks: int = 1, addresses: Any = None
) -> Any:
    """A worker of the run as a plain object of this process. Trainers meet at the address in the queue."""
    placement = place(config.cluster)
    args = WorkerArgs(
        role=role,
        rank=rank,
        world_size=ranks,
        threads=threads(placement, role, config.rollout.pipeline_stages),
        config=config.model_dump(mode="json"),
        plan=make_plan(config).to_json(),
        layout=EnvLayout(
            num_envs=config.env.num_envs,
            processes=len(placement.of("env")),
            stages=config.rollout.pipeline_stages,
            rollouts=1,
        ),
    )
    worker = kind(args)
    worker.preflight()
    if isinstance(worker, ActorWorker):
        if rank == 0:
            address = worker.open_store()
            for _ in range(1, ranks):
                addresses.put(address)
        else:
            address = addresses.get(timeout=600)
        worker.connect(*address)
    worker.start()
    if isinstance(worker, ActorWorker):
        worker.begin_rl()
    return worker


def _record(rollout: Any, envs: list[Any], config: Config) -> tuple[list[list[list[Any]]], Any, int]:
    """One rollout: the messages of the env workers [call][stage][process], its trajectory, its frames."""
    stages = range(config.rollout.pipeline_stages)
    messages = [[[env.reset(stage, 0) for env in envs] for stage in stages]]
    for call in range(config.env.steps_per_rollout // config.model.num_action_chunks):
        row = []
        for stage in stages:
            actions = rollout.predict(stage, call, 0, *messages[call][stage])
            chunks = actions if len(envs) > 1 else [actions]
            row.append([env.step("train", stage, chunk) for env, chunk in zip(envs, chunks)])
        messages.append(row)
    trajectory = rollout.finish(*(message for stage in messages[-1] for message in stage))
    return messages, trajectory, sum(env.take_stats().frames for env in envs)


def _replay(rollout: Any, messages: list[list[list[Any]]]) -> None:
    """All that the rollout worker does in a rollout, the simulators' answers being there already."""
    for call, row in enumerate(messages[:-1]):
        for stage, received in enumerate(row):
            rollout.predict(stage, call, 0, *received)
    rollout.finish(*(message for stage in messages[-1] for message in stage))


def plain_loop(config: Config, iterations: int) -> dict[str, Any]:
    """benchmarks/single_process.py: the same algorithm in one process, torch with all cores."""
    loop = SingleProcess(config)
    rollout, update, frames = [], [], []
    for iteration in range(iterations):
        begin = time.perf_counter()
        batch = loop.rollout(iteration)
        middle = time.perf_counter()
        loop.update(batch, iteration)
        rollout.append(middle - begin)
        update.append(time.perf_counter() - middle)
        frames.append(batch["frames"])
    return {
        "frames": frames,
        "seconds": [sum(pair) for pair in zip(rollout, update)],
        "rollout_s": rollout,
        "update_s": update,
        "parameters": sum(p.numel() for p in loop.model.parameters()),
        "processes": {"loop": 1},
    }


def _reports(workers: list[Any], results: Any, count: int) -> list[Any]:
    """Start the processes, take `count` reports from their queue, and end them; raise if one fails."""
    for worker in workers:
        worker.start()
    reports: list[Any] = []
    try:
        while len(reports) < count:
            try:
                reports.append(results.get(timeout=1))
            except queue.Empty:
                if any(worker.exitcode for worker in workers):
                    raise RuntimeError("a measured process failed, see above") from None
    except BaseException:
        for worker in workers:
            worker.kill()
        raise
    for worker in workers:
        worker.join()
    return reports


def own_peak_memory() -> int:
    """Largest resident size of this process, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _timed(action: Any) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin
