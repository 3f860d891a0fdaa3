"""What a cluster costs: preflight against nodes, recovery per failure, overhead of fault tolerance, and
scaling of env workers whose simulators sleep; what the asynchronous mode gains.

    python benchmarks/cluster.py preflight --nodes 1,2,4,8
    python benchmarks/cluster.py recovery
    python benchmarks/cluster.py overhead --iterations 30
    python benchmarks/cluster.py scaling --workers 1,2,4,8,16,32,64
    python benchmarks/cluster.py asynchronous --seeds 0,1,2 --iterations 90

Nodes are Ray nodes on this machine. `overhead` takes iterations with and without a snapshot in turn, within
one run. `scaling` prints the share of the throughput that as many workers would have if nothing but their
sleep took time. `asynchronous` trains the demo with `rollout.max_staleness` 0 and 1, simulators and policy on
one core, the trainer on another, whichever the mode.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any
from unittest import mock

from rlinf.cluster.nodes import cluster_nodes
from rlinf.cluster.preflight import preflight
from rlinf.cluster.ray_cluster import local_ray, ray_cluster
from rlinf.config import Config, load_config
from rlinf.runners.embodied import EmbodiedRunner
from rlinf.runners.recovery import secured
from rlinf.runners.run_folder import RunFolder
from rlinf.runners.session import session
from rlinf.runners.train import make_plan, run_training

_SETTLING_S = 15.0
#: A simulator whose steps take time and nothing else.
SLEEPY = """
import time
import gymnasium
import numpy as np
from rlinf.plugins import EnvSpec, hookimpl


class Sleepy(gymnasium.Env):
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._obs(), {}

    def step(self, action):
        time.sleep(SECONDS)
        return self._obs(), 0.0, False, False, {"success": False}

    def _obs(self):
        image = np.zeros((8, 8, 3), np.uint8)
        image[0] = 255
        return {"main_images": image, "states": np.zeros(3, np.float32), "task_descriptions": "wait"}


def make(config):
    return Sleepy()


@hookimpl
def rlinf_env_spec(env_type):
    return EnvSpec(env_type="sleepy", factory="sleepy_env:make")
"""


def install_sleepy(folder: Path, seconds: float) -> None:
    """The simulator as an installed distribution, here and in the processes that this one starts."""
    (folder / "sleepy_env.py").write_text(SLEEPY.replace("SECONDS", str(seconds)))
    metadata = folder / "sleepy_env-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: sleepy-env\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[rlinf.envs]\nsleepy = sleepy_env\n")
    (metadata / "RECORD").write_text("sleepy_env.py,,\n")
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])


def preflight_times(counts: list[int]) -> None:
    """Seconds until that many nodes have agreed: the first time (workers start), and again."""
    from ray.cluster_utils import Cluster

    nodes = Cluster()
    try:
        for count in range(1, max(counts) + 1):
            nodes.add_node(num_cpus=1, **({"include_dashboard": False} if count == 1 else {}))
            if count not in counts:
                continue
            # The agents of nodes that were just made take the processor for some seconds more.
            time.sleep(_SETTLING_S)
            config = load_config(
                "tabletop_ppo", [f"cluster.address={nodes.address}", f"cluster.num_nodes={count}"]
            )
            with tempfile.TemporaryDirectory() as run, ray_cluster(config, 1):
                seconds = []
                for _ in range(2):
                    begin = time.perf_counter()
                    preflight(
                        make_plan(config), Path(run), {"actor": cluster_nodes(count)}, lambda text: None
                    )
                    seconds.append(time.perf_counter() - begin)
            print(
                f"preflight of {count:2d} nodes   {seconds[0]:6.2f} s, again {seconds[1]:6.2f} s", flush=True
            )
    finally:
        nodes.shutdown()


def recovery_times() -> None:
    """Seconds from the SIGKILL of a process to the end of the iteration that it interrupted."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        config = _tabletop(f"runner.output_dir={run}", "runner.max_steps=12", "runner.max_restarts=3")
        killed: list[tuple[str, int, float]] = []
        over = threading.Event()

        def kill() -> None:
            for number, component in enumerate(("env", "rollout", "actor")):
                _until(lambda n=number: _iterations(run) >= 3 * n + 2, over)
                rows = json.loads((run / "processes.json").read_text())
                os.kill(next(row["pid"] for row in rows if row["component"] == component), signal.SIGKILL)
                begin, before = time.perf_counter(), _iterations(run)
                _until(lambda b=before: _iterations(run) > b, over)
                killed.append((component, before, time.perf_counter() - begin))

        thread = threading.Thread(target=kill)
        thread.start()
        status = run_training(config)
        over.set()
        thread.join()
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        usual = statistics.median(
            sum(row[key] for key in ("time/rollout", "time/update", "time/sync"))
            for row in rows
            if row["phase"] == "rl"
        )
        assert status == 0 and len(killed) == 3
        print(f"an iteration                    {usual:6.2f} s")
        for component, _, seconds in killed:
            print(f"with the {component:<8} killed in it   {seconds:6.2f} s, {seconds - usual:6.2f} s more")


def overhead(iterations: int) -> None:
    """The median iteration with a snapshot after it, against that without; each kind every other time."""
    times: dict[bool, list[float]] = {True: [], False: []}
    with tempfile.TemporaryDirectory() as folder:
        config = _tabletop(f"runner.output_dir={folder}/run", f"runner.max_steps={iterations}")
        with session(config, make_plan(config), Path(folder)) as processes:
            runner = EmbodiedRunner(processes)
            processes.actor.call("begin_rl")
            runner.sync_weights()
            for iteration in range(iterations):
                with_snapshot = iteration % 2 == 0
                begin = time.perf_counter()
                runner.iterate(iteration)
                if with_snapshot:
                    secured(processes.actor.submit("snapshot"))
                if iteration >= 2:
                    times[with_snapshot].append(time.perf_counter() - begin)
    medians = {kind: statistics.median(values) for kind, values in times.items()}
    print(f"an iteration without a snapshot {medians[False]:.3f} s, with one {medians[True]:.3f} s")
    print(f"ratio                           {medians[True] / medians[False]:.4f}  (aim: below 1.02)")


def scaling(counts: list[int], seconds: float, stages: int) -> None:
    """Rollout throughput of N env workers whose simulators sleep, one environment each in each stage."""
    with tempfile.TemporaryDirectory() as folder:
        install_sleepy(Path(folder), seconds)
        for count in counts:
            changes = [
                "env.env_type=sleepy",
                f"env.num_envs={count * stages}",
                "env.steps_per_rollout=32",
                "env.auto_reset=true",
                f"cluster.component_placement={{actor: 0, rollout: 0, env: '0:0-{count - 1}'}}",
                f"rollout.pipeline_stages={stages}",
                "model={model_type: mlp_policy, action_dim: 2, num_action_chunks: 4}",
                "model.mlp_policy={state_dim: 3}",
                "sft=null",
                "actor.micro_batch_size=8",
                "actor.global_batch_size=8",
                f"runner.output_dir={folder}/run",
            ]
            config = load_config("tabletop_ppo", [*changes, "~env.tabletop", "~model.tiny_vla"])
            with local_ray(count + 4), session(config, make_plan(config), Path(folder)) as processes:
                runner = EmbodiedRunner(processes)
                runner.sync_weights()
                runner.begin_rollout(0).wait()
                begin = time.perf_counter()
                frames = sum(runner.begin_rollout(i).wait().frames for i in (1, 2))
                rate = frames / (time.perf_counter() - begin)
            share = rate * seconds / count
            print(f"{count:3d} env workers  {rate:9.1f} frames/s  {share:6.1%} of sleep alone", flush=True)


def asynchronous(seeds: list[int], iterations: int) -> None:
    """Held-out success of the demo and seconds of its RL iterations, in both modes, on two cores."""
    runs: dict[int, list[tuple[float, float]]] = {0: [], 1: []}
    for seed in seeds:
        for staleness in runs:
            success, seconds = _pinned_run(seed, staleness, iterations)
            runs[staleness].append((success, seconds))
            print(
                f"seed {seed}, max_staleness {staleness}: success {success:.1%}, {seconds:.0f} s", flush=True
            )
    means = {}
    for staleness, name in ((0, "synchronous"), (1, "asynchronous")):
        successes, times = zip(*runs[staleness])
        spread = f" (from {min(successes):.1%} to {max(successes):.1%})"
        means[staleness] = statistics.mean(times)
        print(f"{name:<13} success {statistics.mean(successes):.1%}{spread}; {means[staleness]:.0f} s of RL")
    print(f"ratio         {means[1] / means[0]:.3f}  (below 1: faster)")


def _pinned_run(seed: int, staleness: int, iterations: int) -> tuple[float, float]:
    """One run of the demo: (held-out success in the end, seconds of all RL iterations)."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        config = load_config(
            "tabletop_ppo",
            [
                f"runner.seed={seed}",
                f"runner.output_dir={run}",
                f"runner.max_steps={iterations}",
                f"rollout.max_staleness={staleness}",
                "cluster.component_placement={actor: 0, rollout: 0, env: 0}",
                "runner.report=false",
                "runner.loggers=[]",
                # Nothing between two iterations: a rollout that is under way would gain by it.
                "runner.eval_interval=0",
                "runner.snapshot_interval=0",
                "env.eval.blind=false",
            ],
        )
        over = threading.Event()
        pinning = threading.Thread(target=_pin, args=(run, over))
        pinning.start()
        try:
            # One thread for the one core that each process will have.
            with mock.patch("rlinf.runners.session.threads", lambda *args: 1):
                status = run_training(config)
        finally:
            over.set()
            pinning.join()
        if status:
            sys.exit(status)
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        parts = ("time/rollout", "time/update", "time/sync")
        seconds = sum(row[part] for row in rows if row["phase"] == "rl" for part in parts)
        return json.loads((run / "summary.json").read_text())["success_after_rl"], seconds


def _pin(run: Path, over: threading.Event) -> None:
    """Simulators and policy on the first core that this process may use, the trainer on the second."""
    _until((run / "processes.json").exists, over)
    if over.is_set():
        return
    first, second = sorted(os.sched_getaffinity(0))[:2]
    for row in json.loads((run / "processes.json").read_text()):
        core = {second if row["component"] == "actor" else first}
        # Threads that are begun meanwhile have the affinity of the one that began them: look again.
        while loose := [t for t in map(int, os.listdir(f"/proc/{row['pid']}/task")) if _is_loose(t, core)]:
            for thread in loose:
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setaffinity(thread, core)


def _is_loose(thread: int, core: set[int]) -> bool:
    try:
        return os.sched_getaffinity(thread) != core
    except ProcessLookupError:  # ended since it was listed
        return False


def _tabletop(*changes: str) -> Config:
    return load_config("tabletop_ppo", ["sft=null", "runner.report=false", "runner.loggers=[]", *changes])


def _iterations(run: Path) -> int:
    file = RunFolder(run).metrics_path
    return file.read_text().count('"phase": "rl"') if file.exists() else 0


def _until(condition: Any, over: threading.Event) -> None:
    while not condition() and not over.is_set():
        time.sleep(0.01)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["preflight", "recovery", "overhead", "scaling", "asynchronous"])
    parser.add_argument("--nodes", default="1,2,4,8")
    parser.add_argument("--iterations", type=int, default=30)
    parser.add_argument("--workers", default="1,2,4,8,16,32,64")
    parser.add_argument("--step-seconds", type=float, default=0.1, help="sleep of a step, for scaling")
    parser.add_argument("--stages", type=int, default=2, help="pipeline stages, for scaling")
    parser.add_argument("--seeds", default="0,1,2", help="of asynchronous")
    args = parser.parse_args()
    if args.what == "preflight":
        preflight_times([int(n) for n in args.nodes.split(",")])
    elif args.what == "recovery":
        recovery_times()
    elif args.what == "overhead":
        overhead(args.iterations)
    elif args.what == "asynchronous":
        asynchronous([int(n) for n in args.seeds.split(",")], args.iterations)
    else:
        scaling([int(n) for n in args.workers.split(",")], args.step_seconds, args.stages)


if __name__ == "__main__":
    main()
