"""MetaWorld with its real scenes, images and experts; without a system GL library, its message instead."""

from __future__ import annotations

import json
import subprocess
import sys
from ctypes.util import find_library

import gymnasium
import numpy as np
import pytest
import yaml
from pydantic import ValidationError
from rlinf.config import load_config
from rlinf.envs.gl import OffscreenRenderer, find_backend
from rlinf.envs.metaworld.config import MetaworldConfig
from rlinf.envs.metaworld.tasks import INSTRUCTIONS
from rlinf.envs.results import EnvError
from rlinf.envs.vector import VecEnv
from rlinf.plugins import get_host
from rlinf.runners.train import run_training

TASKS = ("reach-v3", "button-press-topdown-v3", "drawer-open-v3")


def missing() -> str:
    """Why images cannot be made here, or ''."""
    try:
        find_backend("auto")
    except EnvError as error:
        return str(error)
    return ""


needs_gl = pytest.mark.skipif(bool(missing()), reason=missing())


def run(code: str) -> str:
    """The output of a fresh interpreter, errors included."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    return done.stdout + done.stderr


def make(n: int, **config) -> VecEnv:
    return VecEnv("metaworld", {"image_size": 48, **config}, n)


def test_every_task_has_an_instruction_and_an_expert():
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    from metaworld.policies import ENV_POLICY_MAP

    assert set(INSTRUCTIONS) == set(ALL_V3_ENVIRONMENTS) == set(ENV_POLICY_MAP)
    assert len(set(INSTRUCTIONS.values())) == len(INSTRUCTIONS)


@needs_gl
def test_three_tasks_in_one_run_by_seed_with_images_and_without_the_goal():
    env = make(6, tasks=TASKS)
    obs = env.reset(range(6))
    assert obs["main_images"].shape == (6, 48, 48, 3) and obs["main_images"].dtype == np.uint8
    assert obs["states"].shape == (6, 4) and env.action_dim == 4
    assert set(obs["task_descriptions"]) == {INSTRUCTIONS[task] for task in TASKS}
    for instruction in set(obs["task_descriptions"]):
        same = [i for i in range(6) if obs["task_descriptions"][i] == instruction]
        # Another layout shows in the image alone: the state is the hand's, which starts where it always does.
        assert np.ptp(obs["states"][same], axis=0).max() < 1e-4
        assert len({obs["main_images"][i].tobytes() for i in same}) == len(same)
    env.close()


@needs_gl
def test_a_rollout_does_not_depend_on_which_simulators_are_reused():
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (3, 4, 5, 4)).astype(np.float32)

    def rollout(env: VecEnv) -> list:
        first = env.reset([11, 12, 13, 14])
        return [first, *(env.chunk_step(chunk) for chunk in actions)]

    fresh, used = make(4, tasks=TASKS), make(4, tasks=TASKS)
    expected = rollout(fresh)
    for seed in range(3):
        used.reset(range(seed, seed + 4))
        used.chunk_step(actions[seed])
    for a, b in zip(expected, rollout(used)):
        a, b = (a, b) if isinstance(a, dict) else (a.obs, b.obs)
        np.testing.assert_array_equal(a["states"], b["states"])
        np.testing.assert_array_equal(a["main_images"], b["main_images"])
    fresh.close()
    used.close()


def play_expert(**config) -> tuple[list[float], bool, dict]:
    """One episode of the expert: its rewards, whether it terminated, the last info."""
    host = get_host()
    spec = host.env_spec("metaworld")
    env = host.resolve(spec, "factory")(MetaworldConfig(image_size=16, **config))
    expert = host.resolve(spec, "expert")(env)
    env.reset(seed=3)
    expert.reset()
    rewards, terminated, truncated, info = [], False, False, {}
    while not (terminated or truncated):
        _, reward, terminated, truncated, info = env.step(expert.act())
        rewards.append(reward)
    env.close()
    return rewards, terminated, info


@needs_gl
@pytest.mark.parametrize("dense", [False, True])
def test_the_expert_solves_each_task(dense):
    for task in TASKS:
        rewards, terminated, info = play_expert(tasks=(task,), max_episode_steps=120, dense_reward=dense)
        assert terminated and info["success"] and 20 < len(rewards) < 120, task
        if dense:
            assert np.count_nonzero(rewards) > 10 and 1.2 < sum(rewards) < 2.0
        else:
            assert sum(rewards) == rewards[-1] == 1


@needs_gl
def test_a_slow_expert_takes_longer():
    fast, slow = (
        play_expert(tasks=TASKS[:1], max_episode_steps=200, expert_speed=speed) for speed in (1.0, 0.5)
    )
    assert fast[1] and slow[1], "both terminate"
    assert 1.5 < len(slow[0]) / len(fast[0]) < 2.5


@needs_gl
def test_an_expert_that_mistakes_the_place_fails():
    """It believes that the button is 6 cm higher than it is, and stops short of it."""
    ends = [
        play_expert(tasks=("button-press-topdown-v3",), max_episode_steps=100, expert_offset=(0.0, 0.0, z))
        for z in (0.0, 0.06)
    ]
    assert [info["success"] for _, _, info in ends] == [True, False]


@needs_gl
def test_a_chunk_equals_its_steps_and_episodes_are_cut_off():
    actions = np.random.default_rng(1).uniform(-1, 1, (8, 4)).astype(np.float32)
    chunked, stepped = (
        make(1, tasks=TASKS[:1], max_episode_steps=6),
        make(1, tasks=TASKS[:1], max_episode_steps=6),
    )
    chunked.reset([5])
    stepped.reset([5])
    a = chunked.chunk_step(actions[None])
    for action in actions[:6]:
        b = stepped.chunk_step(action[None, None])
    assert a.valid_steps.tolist() == [6] and a.truncations[0].tolist() == [False] * 5 + [True, False, False]
    for key in ("states", "main_images"):
        np.testing.assert_array_equal(a.final_obs[key], b.final_obs[key])
        np.testing.assert_array_equal(a.obs[key], b.obs[key])
    assert chunked.render().shape == (256, 256, 3)
    chunked.close()
    stepped.close()


@needs_gl
def test_upside_down_cameras_are_turned_upright():
    """In the last of these views the red arm comes from the upper left."""
    from rlinf.envs.metaworld.simulators import Simulator

    for camera in ("corner", "corner2", "corner3", "corner4"):
        simulator = Simulator("reach-v3", MetaworldConfig(camera=camera, fovy=None))
        simulator.reset(0)
        up = simulator.data.cam_xmat[simulator.camera].reshape(3, 3)[2, 1]
        assert up < 0, camera
    renderer = OffscreenRenderer(simulator.model, 64, 64)
    image = renderer.render(simulator.model, simulator.data, simulator.camera).astype(int)
    renderer.close()
    red = (image[..., 0] > 90) & (image[..., 1] < 60) & (image[..., 2] < 60)
    rows, columns = np.nonzero(red)
    assert len(rows) > 50 and rows.mean() < 32 and columns.mean() < 32


@needs_gl
def test_a_closed_renderer_does_not_blacken_the_others():
    """Freeing an EGL context unbinds every other one of the process."""
    env, other = make(1, tasks=TASKS[:1]), make(1, tasks=TASKS[:1], camera="corner3")
    before = env.reset([1])["main_images"]
    other.reset([1])
    other.close()
    np.testing.assert_array_equal(env.reset([1])["main_images"], before)
    env.close()


@needs_gl
def test_diverged_physics_and_a_lost_gl_context_restart_the_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes MUJOCO_LOG.TXT where it runs
    env = make(2, tasks=TASKS[:1])
    env.reset([1, 2])
    quiet = np.zeros((2, 3, 4), np.float32)
    env._slots[0].env.simulator.data.qvel[:] = np.nan
    step = env.chunk_step(quiet)
    (message,) = step.errors
    assert message.startswith("RuntimeError: reach-v#: the physics diverged (mjWARN_BADQ")
    assert step.valid_steps.tolist() == [0, 3] and step.episodes[0].error == message
    pool = env._slots[0].env._pool
    pool._renderers["reach-v3", 48]._gl.free()
    step = env.chunk_step(quiet)
    # The first environment loses its frame, and the renderer made anew serves both.
    assert sum(step.errors.values()) == 1 and step.valid_steps.tolist() == [0, 3]
    step = env.chunk_step(quiet)
    assert not step.errors and step.obs["main_images"].std(axis=(1, 2, 3)).min() > 10
    env.close()
    assert not pool._renderers and not pool._idle


@needs_gl
def test_gymnasium_vector_api_steps_metaworld():
    from gymnasium.wrappers.vector import RecordEpisodeStatistics
    from rlinf.envs.gym_vector import GymVectorEnv

    env = RecordEpisodeStatistics(GymVectorEnv(make(3, tasks=TASKS, max_episode_steps=3)))
    obs, _ = env.reset(seed=0)
    assert isinstance(env.unwrapped, gymnasium.vector.VectorEnv) and obs["states"].shape == (3, 4)
    assert env.observation_space.contains(obs)
    for _ in range(3):
        obs, _, terminated, truncated, infos = env.step(np.zeros((3, 4), np.float32))
    assert truncated.all() and not terminated.any()
    assert infos["_final_info"].all() and not infos["final_info"]["success"].any()
    assert infos["final_obs"][0]["main_images"].shape == (48, 48, 3)
    assert infos["final_info"]["episode_length"].tolist() == [3, 3, 3]
    env.close()


@needs_gl
@pytest.mark.timeout(300)
def test_the_shipped_run_in_small(tmp_path):
    """`metaworld_ppo` on Ray with few demonstrations, steps and episodes: SFT, PPO, each task evaluated."""
    sizes = {
        "runner": {"max_steps": 2, "eval_interval": 2, "output_dir": str(tmp_path / "run")},
        "env": {"num_envs": 4, "eval": {"num_episodes": 6}, "metaworld": {"expert_offset": [0, 0, 0]}},
        "actor": {"micro_batch_size": 9, "global_batch_size": 18},
        "sft": {"max_steps": 20, "batch_size": 16, "expert_episodes": 3},
        "algorithm": {"critic_warmup_steps": 1},
    }
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump({"defaults": ["metaworld_ppo"], **sizes}))
    assert run_training(load_config(file)) == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["iterations"] == 2 and summary["env_errors"] == 0
    tasks = ("handle-press-side-v3", "handle-press-v3", "door-unlock-v3")
    assert set(summary["success_by_instruction"]) == {INSTRUCTIONS[task] for task in tasks}
    rows = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    losses = [row["sft/loss"] for row in rows if "sft/loss" in row]
    assert losses[-1] < 0.8 * losses[0]
    assert (tmp_path / "run/before_after.gif").stat().st_size > 0


def test_configuration_errors_name_the_closest_task():
    with pytest.raises(ValidationError, match=r"unknown MetaWorld task 'reach-v2'; did you mean 'reach-v3'"):
        MetaworldConfig(tasks=("reach-v2",))
    with pytest.raises(ValidationError, match="named twice"):
        MetaworldConfig(tasks=("reach-v3", "reach-v3"))


@pytest.mark.skipif(
    not (find_library("OSMesa") and find_library("EGL")), reason="libosmesa6 or libegl1 is not installed"
)
def test_osmesa_draws_what_egl_draws():
    """In an interpreter of its own: PyOpenGL serves one platform per process."""
    code = (
        "from rlinf.envs.vector import VecEnv; "
        "env = VecEnv('metaworld', {'image_size': 48, 'renderer': 'osmesa'}, 1); "
        "image = env.reset([1])['main_images']; print(*image.mean((0, 1, 2)), image.std()); env.close()"
    )
    env = make(1, renderer="egl")
    image = env.reset([1])["main_images"]
    env.close()
    with pytest.raises(EnvError, match="this process draws with egl already"):
        make(1, renderer="osmesa").reset([1])
    got = np.array(run(code).split(), float)
    np.testing.assert_allclose(got, [*image.mean((0, 1, 2)), image.std()], rtol=0.02)


MAKE = "from rlinf.envs.vector import VecEnv; VecEnv('metaworld', {'renderer': %r}, 1)"


@pytest.mark.parametrize(
    ("renderer", "command"),
    [
        ("auto", "needs the system library libEGL: apt-get install -y libegl1 libgl1"),
        ("osmesa", "needs the system library libOSMesa: apt-get install -y libosmesa6"),
    ],
)
def test_missing_gl_gives_the_install_command(renderer, command):
    """In an interpreter whose loader finds no GL library."""
    hide = "import ctypes.util; ctypes.util.find_library = lambda name: None; "
    assert command in run(hide + MAKE % renderer).splitlines()[-1]


def test_missing_metaworld_gives_the_pip_command():
    """In an interpreter that cannot import it."""
    hide = "import sys; sys.modules['metaworld'] = None; "
    assert "pip install 'rlinf-core[metaworld]'" in run(hide + MAKE % "auto").splitlines()[-1]


def test_the_configuration_module_is_light():
    code = "import sys, rlinf.envs.builtin_plugin, rlinf.envs.metaworld.config; print(sorted(sys.modules))"
    loaded = run(code)
    for heavy in ("'torch'", "'mujoco'", "'metaworld'", "'ray'", "'gymnasium'"):
        assert heavy not in loaded
