"""The files under examples/cluster: the configuration is valid, the SLURM script does what it says (with
stand-ins for SLURM, ray and rlinf), the KubeRay job starts what the command line understands."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from rlinf.cli.main import parse
from rlinf.config import load_config

FILES = Path(__file__).parents[2] / "examples" / "cluster"

STANDINS = {
    "scontrol": 'echo "scontrol $*" >> $LOG\n[ "$1" = show ] && printf "n0\\nn1\\nn2\\n" || true\n',
    # Options end with the first word that is a program of ours.
    "srun": 'while [ "$1" != ray ] && [ "$1" != hostname ]; do shift; done\nexec "$@"\n',
    "hostname": "echo 10.0.0.7\n",
    "ray": 'echo "ray $*" >> $LOG\nsleep 600 & child=$!\ntrap "kill $child" EXIT TERM\nwait\n',
    "rlinf": (
        'echo "rlinf $* RAY_AUTH_MODE=$RAY_AUTH_MODE $(stat -c %a $RAY_AUTH_TOKEN_PATH)" >> $LOG\n'
        '[ "$1" = train ] || exit 1\n'
        'trap "echo saved >> $LOG; exit 75" TERM\n'
        "for i in $(seq 300); do sleep 0.1; done\n"
    ),
}


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """An environment in which SLURM, ray and rlinf are stand-ins that log what they are called with."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in STANDINS.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}")
        (programs / name).chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "LOG": str(tmp_path / "log"),
        "SLURM_JOB_ID": "42",
        "SLURM_JOB_NODELIST": "n[0-2]",
        "SLURM_JOB_NUM_NODES": "3",
    }


@pytest.mark.parametrize("restarts", ["0", "1"])
def test_slurm_script_turns_its_signal_into_a_checkpoint_and_requeues(
    slurm: dict[str, str], tmp_path: Path, restarts: str
) -> None:
    slurm["SLURM_RESTART_COUNT"] = restarts
    command = ["bash", str(FILES / "slurm.sh"), "--config", "run.yaml"]
    job = subprocess.Popen(command, env=slurm, start_new_session=True)
    log = tmp_path / "log"
    try:
        deadline = time.monotonic() + 60
        while not (log.exists() and "rlinf train" in log.read_text()):
            assert job.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.3)  # until the stand-in's own trap is set
        job.send_signal(signal.SIGTERM)
        assert job.wait(60) == 75
    finally:
        os.killpg(job.pid, signal.SIGKILL)
    lines = log.read_text().splitlines()
    assert sum(line.startswith("ray start --head --block") for line in lines) == 1
    workers = [line for line in lines if line.startswith("ray start --block --address=10.0.0.7:6379")]
    assert sorted(line.rpartition(" ")[2] for line in workers) == [
        f"--labels=rlinf-node-rank={rank},kind=sim" for rank in (1, 2)
    ]
    [run] = [line for line in lines if line.startswith("rlinf train")]
    resume = "true" if restarts == "1" else "false"
    assert run == (
        "rlinf train --config run.yaml cluster.address=10.0.0.7:6379 cluster.num_nodes=3 "
        f"runner.resume={resume} RAY_AUTH_MODE=token 600"
    )
    assert "saved" in lines and lines[-1] == "scontrol requeue 42"
    assert not list(tmp_path.glob(".rlinf-*.token")), "the token is gone with the job"


def test_configuration_and_job_are_what_the_commands_understand() -> None:
    config = load_config(FILES / "run.yaml")
    assert {group.label for group in config.cluster.node_groups} == {"train", "sim"}
    job = yaml.safe_load((FILES / "kuberay.yaml").read_text())
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[0] == "rlinf"
    args = parse(words[1:])
    assert args.command == "train" and args.config == "/config/run.yaml"
    load_config(FILES / "run.yaml", args.overrides)
    groups = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert groups[0]["replicas"] + 1 == config.cluster.num_nodes
    assert "kind=sim" in groups[0]["rayStartParams"]["labels"]
