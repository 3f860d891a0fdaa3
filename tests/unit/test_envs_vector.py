"""VecEnv on a toy simulator that really throws, returns NaN and renders black."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import gymnasium
import numpy as np
import pytest
from pydantic import ValidationError
from rlinf.envs.results import EnvError, EpisodeEnd, StepResult
from rlinf.envs.slot import episode_seed, error_key
from rlinf.envs.vector import VecEnv
from rlinf.plugins import PluginError

LENGTH = 6


class Walk(gymnasium.Env):
    """A point walks on a line from a random start; beyond 2 it succeeds, after LENGTH steps it is cut off.

    faults: {(episode seed, step): what goes wrong then}. built counts the instances ever made.
    """

    built = 0

    def __init__(self, faults: dict[tuple[int, int], str] | None = None) -> None:
        type(self).built += 1
        self.faults = faults or {}
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self._image = np.zeros((4, 4, 3), np.uint8)  # reused, as simulators do
        self.closed = False

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.steps = seed, 0
        self.x = float(self.np_random.uniform(0, 1))
        self._fault()
        return self._obs(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.steps += 1
        self.x += float(action[0])
        self._fault()
        done = self.x > 2
        reward = float("inf") if self._kind() == "reward" else float(done)
        return self._obs(), reward, done, not done and self.steps >= LENGTH, {"success": done}

    def _kind(self) -> str | None:
        return self.faults.get((self.seed, self.steps)) or self.faults.get((-1, self.steps))

    def _fault(self) -> None:
        if self._kind() == "throw":
            raise RuntimeError(f"mj_step diverged at {hex(id(self))}, seed {self.seed}")

    def _obs(self):
        self._image[:] = np.arange(48).reshape(4, 4, 3)
        self._image[0, 0, 0] = 100 + self.steps
        if self._kind() == "black":
            self._image[:] = 0
        x = float("nan") if self._kind() == "nan" else self.x
        return {
            "main_images": self._image,
            "states": np.array([x, self.steps], np.float32),
            "task_descriptions": f"walk {self.seed}",
        }


class ChunkWalk(Walk):
    """The same with a chunk_step of its own, padded to the whole chunk."""

    def chunk_step(self, actions):
        rewards, flags = np.zeros(len(actions)), np.zeros((2, len(actions)), bool)
        for i, action in enumerate(actions):
            obs, rewards[i], flags[0, i], flags[1, i], info = self.step(action)
            if flags[:, i].any():
                break
        return obs, rewards, flags[0], flags[1], {**info, "steps": i + 1}


def vec(n: int = 2, faults=None, cls: Callable = Walk, **kw) -> VecEnv:
    return VecEnv("toy", None, n, make=partial(cls, faults), **kw)


def actions(n: int, chunk: int, x: float = 0.0) -> np.ndarray:
    return np.full((n, chunk, 2), x, np.float32)


def rollout(env: VecEnv, seeds: list[int], steps: int, chunk: int) -> list[StepResult]:
    rng = np.random.default_rng(0)
    env.reset(seeds)
    return [
        env.chunk_step(rng.uniform(-1, 1, (len(seeds), chunk, 2)).astype(np.float32)) for _ in range(steps)
    ]


def same(a: StepResult, b: StepResult) -> None:
    for name in ("rewards", "terminations", "truncations", "valid_steps", "final_mask"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert a.episodes == b.episodes
    for x, y in ((a.obs, b.obs), (a.final_obs or {}, b.final_obs or {})):
        assert x.keys() == y.keys()
        for key in x:
            np.testing.assert_array_equal(x[key], y[key])


@pytest.mark.parametrize("cls", [Walk, ChunkWalk])
def test_success_stops_the_chunk_and_the_next_episode_begins(cls):
    env = vec(cls=cls)
    first = env.reset([3, 4])
    assert first["main_images"].shape == (2, 4, 4, 3) and first["states"].shape == (2, 2)
    assert first["task_descriptions"] == ["walk 3", "walk 4"]
    step = env.chunk_step(np.stack([actions(1, 3, 1.0)[0], actions(1, 3)[0]]))
    assert step.valid_steps.tolist() == [2, 3]
    assert step.rewards.tolist() == [[0, 1, 0], [0, 0, 0]] and step.rewards.dtype == np.float32
    assert step.terminations.tolist() == [[False, True, False], [False] * 3]
    assert not step.truncations.any() and step.final_obs is None and not step.final_mask.any()
    (end,) = step.episodes
    assert end == EpisodeEnd(index=0, seed=3, success=True, length=2, return_=1.0)
    assert step.obs["task_descriptions"] == [f"walk {episode_seed(3, 1)}", "walk 4"]
    assert step.obs["states"][:, 1].tolist() == [0, 3]


@pytest.mark.parametrize("auto_reset", [True, False])
def test_truncation_gives_the_last_observation_although_the_simulator_reuses_its_image(auto_reset):
    env = vec(auto_reset=auto_reset)
    env.reset([0, 1])
    env.chunk_step(actions(2, 4))
    last = env.chunk_step(actions(2, 4))
    assert last.valid_steps.tolist() == [2, 2]
    assert last.truncations.tolist() == [[False, True, False, False]] * 2
    assert last.final_mask.all() and last.final_obs["states"][:, 1].tolist() == [6, 6]
    assert last.final_obs["main_images"][:, 0, 0, 0].tolist() == [106, 106]
    assert last.final_obs["task_descriptions"] == ["walk 0", "walk 1"]
    assert [end.success for end in last.episodes] == [False, False]
    if auto_reset:
        assert last.obs["main_images"][:, 0, 0, 0].tolist() == [100, 100]
    else:
        idle = env.chunk_step(actions(2, 4, 1.0))
        assert idle.valid_steps.tolist() == [0, 0] and not idle.rewards.any() and idle.episodes == []
        assert idle.obs["states"][:, 1].tolist() == [6, 6]
        assert env.reset([7, 8])["task_descriptions"] == ["walk 7", "walk 8"]


def test_a_rollout_is_a_function_of_the_seeds_and_actions_alone():
    env = vec(3)
    first = rollout(env, [5, 6, 5], 12, 4)
    rollout(env, [50, 60, 70], 5, 4)
    again = rollout(env, [5, 6, 5], 12, 4)
    chunked = rollout(vec(3, cls=ChunkWalk), [5, 6, 5], 12, 4)
    for a, b, c in zip(first, again, chunked):
        same(a, b)
        same(a, c)
    seeds = [end.seed for step in first for end in step.episodes if end.index == 0]
    assert len(set(seeds)) == len(seeds) > 3 and seeds[0] == 5 and all(s >= 2**31 for s in seeds[1:])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("throw", "RuntimeError: mj_step diverged at #, seed #"),
        ("nan", "BadObservation: states: holds NaN or infinity"),
        ("black", "BadObservation: main_images: every pixel is [#, #, #]"),
        ("reward", "ValueError: a reward is NaN or infinite"),
    ],
)
def test_a_failing_simulator_is_rebuilt_counted_and_the_others_go_on(kind, message):
    env = vec(2, {(3, 2): kind})
    built = Walk.built
    first = env.reset([3, 4])
    step = env.chunk_step(actions(2, 2))
    assert step.errors == {message: 1} and Walk.built == built + 1
    assert step.valid_steps.tolist() == [0, 2]
    assert step.truncations.tolist() == [[True, False], [False, False]]
    assert step.final_mask.tolist() == [True, False] and step.rewards.sum() == 0
    np.testing.assert_array_equal(step.final_obs["states"][0], first["states"][0])
    (end,) = step.episodes
    assert end == EpisodeEnd(index=0, seed=3, success=False, length=0, return_=0.0, error=message)
    assert step.obs["task_descriptions"] == [f"walk {episode_seed(3, 1)}", "walk 4"]
    again = env.chunk_step(actions(2, 1))
    assert again.valid_steps.tolist() == [1, 1] and not again.errors


def test_a_reset_that_fails_takes_the_next_seed():
    env = vec(1, {(3, 0): "throw", (episode_seed(3, 1), 0): "nan"})
    assert env.reset([3])["task_descriptions"] == [f"walk {episode_seed(3, 2)}"]
    step = env.chunk_step(actions(1, 1))
    assert sum(step.errors.values()) == 2 and step.episodes == []


def test_without_auto_reset_a_failed_environment_idles_on_its_last_good_observation():
    env = vec(2, {(3, 2): "nan"}, auto_reset=False)
    first = env.reset([3, 4])
    step = env.chunk_step(actions(2, 2))
    np.testing.assert_array_equal(step.obs["states"][0], first["states"][0])
    assert env.chunk_step(actions(2, 1)).valid_steps.tolist() == [0, 1]
    assert env.reset([5, 6])["states"][:, 1].tolist() == [0, 0]


def test_equal_errors_in_a_row_stop_the_run_with_the_traceback():
    env = vec(2, {(-1, 2): "throw"}, max_errors=4)
    env.reset([0, 1])
    for _ in range(3):
        assert env.chunk_step(actions(2, 2)).valid_steps.tolist() == [0, 0]
    with pytest.raises(EnvError, match=r"failed 4 times in a row") as caught:
        env.chunk_step(actions(2, 2))
    assert "mj_step diverged" in str(caught.value) and "in _fault" in str(caught.value)


def test_a_good_chunk_between_errors_keeps_the_run_alive():
    env = vec(1, {(-1, 3): "throw"}, max_errors=2)
    env.reset([0])
    total = 0
    for _ in range(6):
        total += sum(env.chunk_step(actions(1, 2)).errors.values())
    assert total == 3


def test_a_reset_that_always_fails_stops_at_once():
    env = vec(1, {(-1, 0): "black"})
    with pytest.raises(EnvError, match="failed 10 times in a row"):
        env.reset([0])


class Alternating(Walk):
    """Every reset fails, never twice with the same message."""

    def reset(self, *, seed=None, options=None):
        raise [ValueError, KeyError, OSError][seed % 3]("no two alike")


def test_errors_of_changing_kinds_stop_the_run_too():
    with pytest.raises(EnvError, match="times in a row"):
        vec(1, cls=Alternating).reset([0])


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (np.zeros((2, 4), np.float32), r"takes actions \[2, chunk, 2\], got float32 \[2, 4\]"),
        (np.zeros((1, 4, 2), np.float32), r"got float32 \[1, 4, 2\]"),
        (np.zeros((2, 4, 2), np.int64), "floating point"),
        (np.full((2, 4, 2), np.nan, np.float32), r"environments \[0, 1\] hold NaN"),
    ],
)
def test_bad_actions_are_the_callers_fault(value, match):
    env = vec()
    env.reset([0, 1])
    with pytest.raises(ValueError, match=match):
        env.chunk_step(value)


def test_actions_beyond_the_bounds_are_clipped():
    env = vec(1)
    x = env.reset([0])["states"][0, 0]
    step = env.chunk_step(actions(1, 1, 50.0))
    assert step.obs["states"][0, 0] == pytest.approx(x + 1)


def test_misuse_is_refused():
    with pytest.raises(ValueError, match="num_envs"):
        vec(0)
    with pytest.raises(ValueError, match="before reset"):
        vec().chunk_step(actions(2, 1))
    with pytest.raises(ValueError, match="a seed for each of 2"):
        vec().reset([1])


class WrongContract(Walk):
    def _obs(self):
        return {**super()._obs(), "states": [0.0]}


class NoSuccess(Walk):
    def step(self, action):
        return (*super().step(action)[:4], {})


def test_a_simulator_that_breaks_the_contract_is_not_restarted():
    with pytest.raises(EnvError, match="states must be float32 with 1 dimensions, got list"):
        vec(cls=WrongContract).reset([0, 1])
    env = vec(1, cls=NoSuccess)
    env.reset([0])
    with pytest.raises(EnvError, match="an episode ended without"):
        env.chunk_step(actions(1, 4, 1.0))


def test_equal_errors_differ_only_in_numbers():
    assert error_key(RuntimeError("at 0x7f at 3.5\nmore")) == "RuntimeError: at # at #"
    assert error_key(ValueError()) == "ValueError: "


def test_the_embedded_simulator_through_its_plugin(tmp_path, monkeypatch):
    """Found by entry point, configured by its schema; the same seeds and actions give the same images."""
    monkeypatch.chdir(tmp_path)  # MuJoCo writes MUJOCO_LOG.TXT where it runs
    config = {"image_size": 32, "max_episode_steps": 6}
    env = VecEnv("tabletop", config, 3)
    rng = np.random.default_rng(0)
    batches = rng.uniform(-1, 1, (3, 3, 4, env.action_dim)).astype(np.float32)

    def play(env: VecEnv) -> list[StepResult]:
        env.reset([1, 2, 3])
        return [env.chunk_step(batch) for batch in batches]

    first = play(env)
    for a, b, c in zip(first, play(env), play(VecEnv("tabletop", config, 3))):
        same(a, b)
        same(a, c)
    assert first[1].truncations[:, 1].all() and first[1].final_mask.all()
    assert env.render(1).ndim == 3
    env._slots[0].env.data.qpos[:] = np.nan
    broken = env.chunk_step(batches[0])
    assert sum(broken.errors.values()) == 1 and broken.valid_steps[0] == 0 and broken.valid_steps[1] > 0
    assert not env.chunk_step(batches[0]).errors
    env.close()


def test_unknown_environments_and_keys_are_refused():
    with pytest.raises(PluginError, match="tabletop"):
        VecEnv("tabeltop", {}, 1)
    with pytest.raises(ValidationError, match="imgae_size"):
        VecEnv("tabletop", {"imgae_size": 32}, 1)


def test_overhead_is_small():
    """32 environments: what VecEnv adds to a bare loop over them stays far below a simulator's step."""
    n, chunk, repeats = 32, 4, 50
    env, raw = vec(n, cls=ChunkWalk), [ChunkWalk() for _ in range(n)]
    env.reset(list(range(n)))
    for i, one in enumerate(raw):
        one.reset(seed=i)
    batch = actions(n, chunk)

    def bare() -> None:
        for one, chunk_actions in zip(raw, batch):
            if one.steps >= LENGTH - chunk:
                one.reset(seed=0)
            one.chunk_step(chunk_actions)

    def best(call: Callable[[], object]) -> float:
        times = []
        for _ in range(repeats):
            begin = time.perf_counter()
            call()
            times.append(time.perf_counter() - begin)
        return float(np.median(times))

    overhead = best(lambda: env.chunk_step(batch)) - best(bare)
    print(f"overhead {overhead / n * 1e6:.1f} us per environment and chunk")
    assert overhead / n < 500e-6
