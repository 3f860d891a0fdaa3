"""Small plugins for the tests of training, really installed: a simulator with faults, and a broken model."""

from __future__ import annotations

from pathlib import Path

from plugin_kit import Source, build, install_to_folder

#: A point must reach the side that the instruction names. Episodes with seed % failing == 0 throw.
DOTS = """
import os
import time

import gymnasium
import numpy as np
from pydantic import BaseModel, ConfigDict
from rlinf.plugins import EnvSpec, hookimpl


class DotsConfig(BaseModel):
    model_config = ConfigDict(extra="forbid")
    failing: int = 0
    limit: int = 8
    #: A file: the simulator that finds it takes it away and hangs.
    hang_if: str = ""
    #: A file with the seed at which each simulator hangs; the first to find it empty writes its own there.
    hang_at: str = ""
    #: A file that grows by a byte with each step.
    steps: str = ""
    #: Zeros that make the state wider, and messages larger.
    padding: int = 0
    #: Seconds that a step takes.
    sleep: float = 0.0


class Dots(gymnasium.Env):
    def __init__(self, config):
        self.config = config
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.steps = seed, 0
        self.place = self.np_random.uniform(-0.5, 0.5, 2)
        self.side = int(self.np_random.integers(2)) * 2 - 1
        return self._obs(), {}

    def step(self, action):
        self.steps += 1
        time.sleep(self.config.sleep)
        if self.config.steps:
            with open(self.config.steps, "a") as file:
                file.write(".")
        if self.config.hang_if and os.path.exists(self.config.hang_if):
            os.remove(self.config.hang_if)
            time.sleep(3600)
        if self.config.hang_at and os.path.exists(self.config.hang_at):
            with open(self.config.hang_at, "r+") as file:
                seed = file.read() or str(file.write(str(self.seed)) and self.seed)
            if seed == str(self.seed):
                time.sleep(3600)
        if self.config.failing and self.seed % self.config.failing == 0:
            raise RuntimeError(f"dots diverged in step {self.steps}")
        self.place = np.clip(self.place + 0.4 * np.asarray(action), -1, 1)
        success = bool(self.place[0] * self.side > 0.8)
        over = not success and self.steps >= self.config.limit
        return self._obs(), float(success), success, over, {"success": success}

    def render(self):
        return np.kron(self._obs()["main_images"], np.ones((8, 8, 1), np.uint8))

    def _obs(self):
        image = np.full((16, 16, 3), 40, np.uint8)
        row, column = ((self.place + 1) * 7).astype(int)
        image[row : row + 2, column : column + 2] = 255
        return {
            "main_images": image,
            "states": np.array([*self.place, self.steps / 8, *[0] * self.config.padding], np.float32),
            "task_descriptions": "go up" if self.side > 0 else "go down",
        }


class Expert:
    def __init__(self, env):
        self.env = env

    def reset(self, rng=None):
        pass

    def act(self):
        return np.array([self.env.side, 0.0], np.float32)


def make(config):
    return Dots(config)


@hookimpl
def rlinf_env_spec(env_type):
    return EnvSpec(
        env_type="dots", factory="dots_plugin:make", config_schema=DotsConfig, expert="dots_plugin:Expert"
    )
"""

SOURCES = [
    Source(name="dots-plugin", modules={"dots_plugin": DOTS}, envs={"dots": "dots_plugin"}),
    Source(
        name="broken-plugin",
        modules={"broken_plugin": "import does_not_exist_at_all\n"},
        models={"broken_policy": "broken_plugin"},
    ),
    Source(
        name="driver-only-plugin",
        modules={"driver_only": DOTS.replace("dots_plugin:", "driver_only:").replace('"dots"', '"far_dots"')},
        envs={"far_dots": "driver_only"},
    ),
]


def install_toys(folder: Path) -> tuple[Path, Path]:
    """Install them; returns the folder of the first two and that of the one that only the driver has."""
    wheels = build(folder, SOURCES)
    everywhere = install_to_folder(folder / "everywhere", *(source.wheel(wheels) for source in SOURCES[:2]))
    return everywhere, install_to_folder(folder / "driver_only", SOURCES[2].wheel(wheels))
