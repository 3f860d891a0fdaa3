"""Failures that clusters have, injected into real runs: what is lost, what is said, and that the metrics are
those of a run in which nothing failed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from cluster_kit import add, ray_nodes
from rlinf.config import Config
from rlinf.runners.train import run_training
from test_training import configuration, rows
from training_toys import install_toys

# Minutes of process starts on two cores: with the long runs, not with every change.
pytestmark = pytest.mark.soak

#: A small run; nothing is evaluated, so that a failure meets the rollout or the update.
CHANGES: dict[str, Any] = {
    "runner": {"max_steps": 5, "save_interval": 2, "report": False, "loggers": []},
    "cluster": {"component_placement": {"actor": "0-1", "env": "0-1", "rollout": 0}},
    "env": {"eval": {"num_episodes": 8, "blind": False}},
    "sft": None,
}
DRIVER = (
    "import sys; from rlinf.config import load_config; from rlinf.runners.train import run_training\n"
    "if __name__ == '__main__': sys.exit(run_training(load_config(sys.argv[1], sys.argv[2:])))"
)


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install_toys(tmp_path_factory.mktemp("toys"))[0]


@pytest.fixture(scope="module")
def ray_here(toys: Path) -> Iterator[None]:
    """One Ray for the module."""
    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", os.pathsep.join([str(toys), os.environ.get("PYTHONPATH", "")]))
    patch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    patch.setenv("RAY_worker_niceness", "0")
    patch.syspath_prepend(str(toys))
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()
    patch.undo()


def small(folder: Path, **changes: Any) -> Config:
    merged = {**CHANGES, **{k: {**(CHANGES.get(k) or {}), **v} for k, v in changes.items()}}
    return configuration(folder, **merged)


@pytest.fixture(scope="module")
def undisturbed_run(ray_here: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in which nothing fails."""
    config = small(tmp_path_factory.mktemp("undisturbed"))
    assert run_training(config) == 0
    return config.runner.output_dir


@pytest.fixture(scope="module")
def undisturbed(undisturbed_run: Path) -> list[dict[str, Any]]:
    """Its metrics."""
    return rows(undisturbed_run)


def done(run: Path) -> int:
    """Iterations whose metrics are written."""
    file = run / "metrics.jsonl"
    return file.read_text().count('"phase": "rl"') if file.exists() else 0


def when(condition: Callable[[], bool], act: Callable[[], None], alive: Callable[[], bool]) -> None:
    """Act once the condition holds."""
    while alive():
        if condition():
            act()
            return
        time.sleep(0.01)


def kill(run: Path, component: str, rank: int) -> None:
    for row in json.loads((run / "processes.json").read_text()):
        if (row["component"], row["rank"]) == (component, rank):
            os.kill(row["pid"], signal.SIGKILL)


def drive(file: Path, toys: Path, *overrides: str) -> subprocess.Popen[str]:
    """A run in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(file), *overrides],
        env={**os.environ, "PYTHONPATH": str(toys)},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.timeout(400)
def test_every_kind_of_process_is_killed_and_nothing_is_lost(
    undisturbed: list[dict[str, Any]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """SIGKILL of an env process, the rollout process between two of its answers, and both kinds of trainer
    rank, each in another iteration; and a simulator that hangs in the first."""
    hang, steps = tmp_path / "hang", tmp_path / "steps"
    hang.touch()
    config = small(
        tmp_path,
        runner={"max_restarts": 5},
        env={"step_timeout_s": 5.0, "dots": {"hang_if": str(hang), "steps": str(steps)}},
    )
    run = config.runner.output_dir
    over = threading.Event()

    def is_generating(iteration: int) -> bool:
        """Whether the simulators have made a few steps since that iteration."""
        if done(run) < iteration:
            return False
        before = steps.stat().st_size
        time.sleep(0.02)
        return steps.stat().st_size > before

    def killer() -> None:
        for iteration, component, rank in (
            (1, "env", 1),
            (2, "rollout", 0),
            (3, "actor", 1),
            (4, "actor", 0),
        ):
            when(
                lambda n=iteration, c=component: is_generating(n) if c == "rollout" else done(run) >= n,
                lambda c=component, r=rank: kill(run, c, r),
                lambda: not over.is_set(),
            )

    thread = threading.Thread(target=killer)
    thread.start()
    status = run_training(config)
    over.set()
    thread.join()
    err = capfd.readouterr().err
    assert status == 0, err
    assert rows(run) == undisturbed
    summary = json.loads((run / "summary.json").read_text())
    assert summary["restarts"] == 5 == err.count("restart "), err
    assert "restart 1 of 5: all processes, from iteration 0" in err
    assert "a simulator of env_" in err and "in step" in err and "dots_plugin.py" in err
    assert err.count("a worker process died") >= 4
    started = [int(number) for number in re.findall(r"all processes, from iteration (\d)", err)]
    assert started == sorted(started) and started[-1] >= 3


@pytest.mark.timeout(300)
def test_a_simulator_that_hangs_in_the_same_episode_again(
    ray_here: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One restart, then the run ends: the episode is named, and what was trained is on disk."""
    file = tmp_path / "seed"
    dots = {"hang_at": str(file)}
    config = small(tmp_path, runner={"save_interval": 0}, env={"step_timeout_s": 4.0, "dots": dots})
    run = config.runner.output_dir
    thread = threading.Thread(target=when, args=(lambda: done(run) >= 2, file.touch, lambda: True))
    thread.start()
    status = run_training(config)
    thread.join()
    err = capfd.readouterr().err
    assert status == 1 and err.count("restart ") == 1 and "Traceback" not in err, err
    number, seed = re.findall(r"environment (\d+) in the episode of seed (\d+)", err)[-1]
    assert seed == file.read_text() and int(number) < config.env.num_envs
    iteration = done(run) + 1
    assert f"It hung there twice, in iteration {iteration}" in err and f"reset(seed={seed})" in err
    assert f"checkpoints/step_{iteration - 1} is complete" in err
    file.unlink()
    resumed = config.runner.model_copy(update={"resume": True, "max_steps": iteration})
    assert run_training(config.model_copy(update={"runner": resumed})) == 0


def test_restarts_that_are_used_up_and_errors_that_would_come_again(
    ray_here: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = small(tmp_path, runner={"max_restarts": 0})
    thread = threading.Thread(
        target=when,
        args=(
            lambda: done(config.runner.output_dir) >= 1,
            lambda: kill(config.runner.output_dir, "env", 0),
            lambda: True,
        ),
    )
    thread.start()
    assert run_training(config) == 1
    thread.join()
    err = capfd.readouterr().err
    assert "error: a worker process died" in err and "restart 1" not in err and "Traceback" not in err
    assert config.runner.output_dir.joinpath("checkpoints").exists()


@pytest.mark.timeout(300)
def test_a_warm_start_goes_on_from_its_checkpoint(
    ray_here: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sft = {"max_steps": 400, "batch_size": 8, "expert_episodes": 4, "save_interval": 100}
    config = small(tmp_path, runner={"max_steps": 1}, sft=sft)
    run = config.runner.output_dir
    checkpoint = run / "checkpoints" / "step_100"
    killer = threading.Thread(
        target=when, args=(checkpoint.exists, lambda: kill(run, "actor", 1), lambda: True)
    )
    killer.start()
    status = run_training(config)
    killer.join()
    err = capfd.readouterr().err
    assert status == 0 and err.count("restart ") == 1 and "continuing from" in err, err
    assert [row["step"] for row in rows(run) if row["phase"] == "sft"] == list(range(1, 401))


@pytest.mark.timeout(300)
def test_told_to_end_and_resumed(undisturbed: list[dict[str, Any]], toys: Path, tmp_path: Path) -> None:
    """SIGTERM: a checkpoint at once, status 75; a second run meanwhile is refused; the resumed one ends as if
    nothing had been."""
    config = small(tmp_path, runner={"save_interval": 0})
    run, file = config.runner.output_dir, tmp_path / "config.yaml"
    driver = drive(file, toys)
    try:
        deadline = time.monotonic() + 200
        while done(run) < 2:
            assert driver.poll() is None and time.monotonic() < deadline, driver.communicate()[1]
            time.sleep(0.02)
        second = drive(file, toys, "runner.resume=true")
        refusal = second.communicate()[1]
        assert second.returncode == 2
        assert f"another run is at work in {run} (process {driver.pid} on" in refusal
        driver.send_signal(signal.SIGTERM)
        err = driver.communicate(timeout=60)[1]
    finally:
        driver.kill()
        driver.wait()
    assert driver.returncode == 75, err
    assert "is complete: resume with runner.resume=true" in err and "Traceback" not in err
    steps = [path.name for path in (run / "checkpoints").iterdir()]
    assert f"step_{done(run)}" in steps and not (run / "summary.json").exists()
    resumed = config.model_copy(update={"runner": config.runner.model_copy(update={"resume": True})})
    assert run_training(resumed) == 0
    assert rows(run) == undisturbed


@pytest.mark.timeout(300)
def test_disk_full_during_a_checkpoint_and_a_damaged_one_on_resume(
    undisturbed_run: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Checkpoints go to a disk that has room for one and a half: the run goes on and says so, and what could
    not be kept at its end is an error. With room again, and the newest file flipped, it resumes from the one
    before."""
    mount = tmp_path / "small"
    mount.mkdir()
    checkpoint = next((undisturbed_run / "checkpoints").iterdir())
    size = sum(file.stat().st_size for file in checkpoint.rglob("*") if file.is_file()) * 3 // 2
    tried = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(mount)])
    if tried.returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        config = small(tmp_path, runner={"max_steps": 4, "save_interval": 1, "resume": True})
        run = config.runner.output_dir
        run.mkdir()
        (run / "checkpoints").symlink_to(mount)
        status = run_training(config)
        err = capfd.readouterr().err
        kept = sorted(path.name for path in mount.iterdir())
        assert status == 1 and kept, err
        assert "could not be written: the disk of" in err and "Free some space" in err
        assert "Traceback" not in err
        assert all(not name.startswith(".unfinished") for name in kept), kept
        subprocess.run(["mount", "-o", f"remount,size={20 * size}", str(mount)], check=True)
        first = run_training(config)
        assert first == 0, capfd.readouterr().err
        newest = max(mount.iterdir(), key=lambda path: int(path.name.removeprefix("step_")))
        shard = next((newest / "state").glob("*.safetensors"))
        content = bytearray(shard.read_bytes())
        content[-1] ^= 1
        shard.write_bytes(content)
        longer = config.runner.model_copy(update={"max_steps": 5})
        assert run_training(config.model_copy(update={"runner": longer})) == 0
        said = caplog.text
        assert "is corrupt: its sha256" in said and "step_3" in said and f"{newest.name}" in said
        expected = [row for row in rows(undisturbed_run) if row["phase"] == "rl"]
        assert [row for row in rows(run) if row["phase"] == "rl"] == expected
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_gradients_that_are_skipped_stop_the_run_with_the_batch(
    ray_here: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from safetensors import safe_open

    config = small(tmp_path, actor={"optim": {"skip_grad_norm": 1e-9, "max_skipped_steps": 3}})
    assert run_training(config) == 1
    err = capfd.readouterr().err
    file = config.runner.output_dir / "offending_batch.safetensors"
    assert "3 optimizer steps in a row were skipped" in err and str(file) in err
    with safe_open(file, framework="np") as batch:
        assert batch.get_tensor("old_logprobs").shape[1:] == (2, 2)
        assert {"inputs.action", "advantages", "mask"} <= set(batch.keys())


@pytest.mark.timeout(500)
def test_a_node_is_lost_and_another_takes_over(
    undisturbed: list[dict[str, Any]], toys: Path, tmp_path: Path
) -> None:
    """All processes of the node of the simulators are killed, Ray's own included; a third node is there."""
    spec = {"num_cpus": 4, "env_vars": {"PYTHONPATH": str(toys)}}
    with ray_nodes([spec]) as nodes:
        lost = add(nodes, 1, spec)
        add(nodes, 2, spec)
        cluster = {
            "address": nodes.address,
            "num_nodes": 2,
            "node_groups": [{"label": "train", "node_ranks": 0}, {"label": "sim", "node_ranks": 1}],
            "component_placement": {
                "actor": {"node_group": "train", "placement": "0-1"},
                "rollout": {"node_group": "train", "placement": "0"},
                "env": {"node_group": "sim", "placement": "0-1"},
            },
        }
        run = small(tmp_path, cluster=cluster).runner.output_dir
        driver = drive(tmp_path / "config.yaml", toys)
        try:
            when(lambda: done(run) >= 2, lambda: None, lambda: driver.poll() is None)
            nodes.remove_node(lost, allow_graceful=False)
            begin, before = time.monotonic(), done(run)
            when(lambda: done(run) > before, lambda: None, lambda: driver.poll() is None)
            seconds = time.monotonic() - begin
            err = driver.communicate(timeout=200)[1]
        finally:
            driver.kill()
            driver.wait()
    assert driver.returncode == 0, err
    # Trainers have more threads where there are more nodes: sums are rounded otherwise.
    found = rows(run)
    assert [row.pop("phase") for row in found] == [row["phase"] for row in undisturbed]
    expected = [{key: value for key, value in row.items() if key != "phase"} for row in undisturbed]
    assert found == [pytest.approx(row, rel=0.01, abs=1e-3) for row in expected]
    assert json.loads((run / "summary.json").read_text())["restarts"] == 1, err
    print(f"{seconds:.1f} s from the loss of the node to the end of the iteration that it interrupted\n{err}")


@pytest.mark.timeout(400)
@pytest.mark.parametrize("disk", ["roomy", "full"])
def test_the_object_store_is_smaller_than_a_rollout(disk: str, toys: Path, tmp_path: Path) -> None:
    """With room on the disk Ray takes that; without, the run ends and says what to do."""
    variables = {"PYTHONPATH": str(toys)}
    if disk == "full":  # to Ray, a disk of which more than this share is used
        variables["RAY_local_fs_capacity_threshold"] = "0.001"
    spec = {"num_cpus": 6, "object_store_memory": 80 * 2**20, "env_vars": variables}
    with ray_nodes([spec]) as nodes:
        config = small(
            tmp_path,
            runner={"max_steps": 1, "max_restarts": 1},
            cluster={"address": nodes.address},
            env={"num_envs": 64, "dots": {"padding": 45_000}},
            model={"model_type": "mlp_policy", "mlp_policy": {"state_dim": 45_003}},
        )
        driver = drive(tmp_path / "config.yaml", toys)
        try:
            err = driver.communicate(timeout=300)[1]
        finally:
            driver.kill()
            driver.wait()
    if disk == "roomy":
        assert driver.returncode == 0 and done(config.runner.output_dir) == 1, err
        return
    assert driver.returncode == 1, err
    assert "Ray's object store is full" in err and "--object-store-memory" in err, err
    assert "The run was restarted 1 times" in err and "Traceback" not in err, err
