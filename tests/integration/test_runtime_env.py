"""A simulator and a policy that need two versions of one distribution, in one run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from plugin_kit import Environment, Source, build

SIMULATOR = """
import os

import gymnasium
import numpy as np
import quarrel
from rink_plugin import NEEDS

if quarrel.VERSION != NEEDS:
    raise ImportError(f"rink needs quarrel {NEEDS}, here is {quarrel.VERSION}")


class Rink(gymnasium.Env):
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.steps = self.np_random.uniform(-0.5, 0.5, 2), 0
        return self._obs(), {}

    def step(self, action):
        self.steps += 1
        self.place = np.clip(self.place + action, -1, 1)
        return self._obs(), 0.0, False, self.steps == 4, {"success": bool(self.place[0] > 0)}

    def _obs(self):
        image = np.zeros((8, 8, 3), np.uint8)
        image[self.steps] = 255
        states = np.array([*self.place, self.steps], np.float32)
        return {"main_images": image, "states": states, "task_descriptions": os.environ["RINK"]}


def make(config):
    return Rink()
"""
ENV_PLUGIN = """
from rlinf.plugins import EnvSpec, hookimpl

NEEDS = 1


@hookimpl
def rlinf_env_spec(env_type):
    return EnvSpec(env_type="rink", factory="rink_simulator:make")
"""
POLICY = """
import quarrel

if quarrel.VERSION != 2:
    raise ImportError(f"skate needs quarrel 2, here is {quarrel.VERSION}")


def build(cfg, torch_dtype=None):
    from omegaconf import OmegaConf
    from rlinf.models.embodiment.mlp_policy import build as build_mlp
    own = {"model_type": "mlp_policy", "mlp_policy": {"state_dim": 3}}
    return build_mlp(OmegaConf.merge(cfg, own), torch_dtype)
"""
MODEL_PLUGIN = """
from rlinf.plugins import ActionProcessorSpec, ModelSpec, hookimpl


@hookimpl
def rlinf_model_spec(model_type):
    return ModelSpec(model_type="skate", builder="skate_policy:build")


@hookimpl
def rlinf_action_processors():
    return [ActionProcessorSpec(env_type="rink", model_type="skate", function="skate_plugin:mirror")]


def mirror(raw_chunk_actions, **context):
    return -raw_chunk_actions
"""
OLD, NEW = (
    Source(name="quarrel", version=v, modules={"quarrel": f"VERSION = {v[0]}\n"}) for v in ("1.0", "2.0")
)
RINK = Source(
    name="rlinf-plugin-rink",
    modules={"rink_plugin": ENV_PLUGIN, "rink_simulator": SIMULATOR},
    envs={"rink": "rink_plugin"},
    requires=("quarrel==1.0",),
)
SKATE = Source(
    name="rlinf-plugin-skate",
    modules={"skate_plugin": MODEL_PLUGIN, "skate_policy": POLICY},
    models={"skate": "skate_plugin"},
    requires=("quarrel==2.0",),
)
CONFIG: dict[str, Any] = {
    "runner": {"max_steps": 1, "report": False, "loggers": []},
    "env": {"env_type": "rink", "num_envs": 4, "steps_per_rollout": 8, "eval": {"num_episodes": 4}},
    "model": {"model_type": "skate", "action_dim": 2, "num_action_chunks": 2},
    "actor": {"micro_batch_size": 8, "global_batch_size": 16},
}
#: A driver in the policy's environment: one Ray, a run for each `env.runtime_env` that it is told.
DRIVER = """
import contextlib, io, json, os
from rlinf.cluster.ray_cluster import local_ray
from rlinf.config import load_config
from rlinf.runners.train import run_training

results = {}
with local_ray(8):
    for name, changes in json.loads(os.environ["RUNS"]).items():
        err = io.StringIO()
        with contextlib.redirect_stderr(err):
            status = run_training(load_config("run.yaml", [f"runner.output_dir={name}", *changes]))
        results[name] = [status, err.getvalue()]
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("quarrel"), [OLD, NEW, RINK, SKATE])


@pytest.fixture(scope="module")
def results(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """(status, stderr) of each run."""
    folder = tmp_path_factory.mktemp("environments")
    driver = Environment(folder / "driver", NEW.wheel(wheels), SKATE.wheel(wheels), RINK.wheel(wheels))
    simulator = Environment(folder / "simulator", OLD.wheel(wheels), RINK.wheel(wheels), SKATE.wheel(wheels))
    lacking = Environment(folder / "lacking", OLD.wheel(wheels), RINK.wheel(wheels))
    bare = folder / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    (driver.folder / "run.yaml").write_text(json.dumps(CONFIG))

    def own(python: Path) -> list[str]:
        return [f"env.runtime_env.py_executable={python}"]

    runs = {
        "apart": [*own(simulator.python), "env.runtime_env.env_vars.RINK=slide"],
        "lacking": own(lacking.python),
        "bare": own(bare / "bin" / "python"),
        "nowhere": own(folder / "nowhere" / "python"),
    }
    done = driver.run("-c", DRIVER, RUNS=json.dumps(runs), OMP_NUM_THREADS="1")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return json.loads(done.stdout.splitlines()[-1])


def test_pip_finds_no_environment_for_both(wheels: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "--find-links", str(wheels)]
    done = subprocess.run([*command, RINK.name, SKATE.name], capture_output=True, text=True)
    assert done.returncode and "conflicting dependencies" in done.stderr, done.stderr


def test_each_has_its_own(results: dict[str, tuple[int, str]]) -> None:
    """Either module raises where it finds the other's version."""
    status, err = results["apart"]
    assert status == 0 and "preflight: 1 nodes agree" in err, err


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("lacking", ["action", "processors", "skate_plugin:mirror", "none"]),
        ("bare", ["rlinf-core", "0.1.0", "absent"]),
        ("nowhere", ["py_executable"]),
    ],
)
def test_an_environment_that_will_not_do(
    name: str, cells: list[str], results: dict[str, tuple[int, str]]
) -> None:
    """Said at once, where Ray alone would start workers again and again."""
    status, err = results[name]
    assert status == 2 and "preflight: 1 of 1 nodes cannot take part" in err, err
    rows = [line.split() for line in err.splitlines() if line.endswith("env.runtime_env")]
    assert cells in [row[: len(cells)] for row in rows], err
    assert "pip install --no-deps" in err and "Traceback" not in err
