"""The conformance kit of environments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest

from rlinf.envs.observations import BadObservation, ObservationCheck, copy
from rlinf.envs.results import EnvError
from rlinf.envs.vector import VecEnv, env_factory
from rlinf.plugins import get_host
from rlinf.testing.law import broken, law, listed, require
from rlinf.testing.support import Support


class EnvironmentTests:
    """Subclass this in a test module; each inherited test is a law of `rlinf.envs`.

    Set `env_type` and, for a small environment with short episodes, `env_config`.
    """

    #: Name of the entry point in the group `rlinf.envs`, and the environment's own configuration.
    env_type: ClassVar[str]
    env_config: ClassVar[Mapping[str, Any]] = {}
    #: "expert": the environment has no scripted expert (`EnvSpec.expert`).
    supports: ClassVar[Mapping[str, Support]] = {}
    #: Steps after which every episode has ended.
    episode_limit: ClassVar[int] = 500
    #: Episodes of the expert, and the share of them that it must solve.
    expert_episodes: ClassVar[int] = 10
    expert_success: ClassVar[float] = 0.8

    def make(self) -> gymnasium.Env:
        """A new simulator; override it to try one that no entry point offers."""
        return env_factory(self.env_type, dict(self.env_config))()

    def actions(self, env: gymnasium.Env | VecEnv, count: int, seed: int = 0) -> np.ndarray:
        """Random actions float32 [count, A] within the action space."""
        space = env.action_space
        assert isinstance(space, gymnasium.spaces.Box)
        low, high = np.maximum(space.low, -1.0), np.minimum(space.high, 1.0)
        return np.random.default_rng(seed).uniform(low, high, (count, *space.shape)).astype(np.float32)

    @law(cause="float64 arrays, values outside the space, numpy scalars, or no info['success']")
    def test_spaces_describe_what_is_returned(self) -> None:
        """The action space is a Box of one dimension; observations satisfy the contract of rlinf.envs and the
        observation space; rewards are finite numbers, terminated and truncated bools."""
        env, check = self.make(), ObservationCheck(self.env_type)
        space = env.action_space
        is_flat = isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 1
        require(is_flat, f"the action space is {space}")
        for seed in range(3):
            obs, _ = env.reset(seed=seed)
            self._require_good(env, check, obs)
            for action in self.actions(env, 3):
                obs, reward, terminated, truncated, _ = env.step(action)
                self._require_good(env, check, obs)
                require(bool(np.isfinite(float(reward))), f"the reward is {reward!r}")
                for name, flag in (("terminated", terminated), ("truncated", truncated)):
                    require(isinstance(flag, bool | np.bool_), f"{name} is {flag!r}, not a bool")
                if terminated or truncated:
                    break
        env.close()

    @law(cause="state that reset() does not set, or draws from a generator that it does not seed")
    def test_seed_determines_the_episode(self) -> None:
        """reset(seed=) and the actions determine an episode, whatever happened in the simulator before."""
        used, fresh = self.make(), self.make()
        used.reset(seed=5)
        used.step(self.actions(used, 1, seed=1)[0])
        for number, (one, other) in enumerate(zip(self._play(used, 7), self._play(fresh, 7), strict=True)):
            changed = _differences(one, other)
            require(not changed, f"step {number} of seed 7 differs in {listed(changed)}")
        used.close()
        fresh.close()

    @law(cause="reset() ignores its seed")
    def test_seeds_differ(self) -> None:
        """Different seeds begin different episodes."""
        env = self.make()
        first = [copy(env.reset(seed=seed)[0]) for seed in range(4)]
        require(any(_differences(first[0], other) for other in first[1:]), "seeds 0 to 3 begin alike")
        env.close()

    @law(cause="the camera looks past the scene, or the image is drawn before the simulator moves")
    def test_images_vary(self) -> None:
        """main_images differ between seeds, and change while the robot moves."""
        env = self.make()
        first = [env.reset(seed=seed)[0]["main_images"].copy() for seed in range(4)]
        require(any(not np.array_equal(first[0], other) for other in first[1:]), "alike for seeds 0 to 3")
        images = [obs["main_images"] for obs in self._play(env, 0)]
        still = all(np.array_equal(images[0], image) for image in images[1:])
        require(not still, f"alike during {len(images) - 1} random actions")
        env.close()

    @law(cause="chunk_step goes on after the first done, or renders before the last action")
    def test_chunk_step_equals_steps(self) -> None:
        """chunk_step does what as many calls of step do, up to the first done, and counts them in
        info["steps"]."""
        one, other = self.make(), self.make()
        chunk_step = getattr(one, "chunk_step", None)
        if chunk_step is None:
            pytest.skip(f"{type(one).__name__} has no chunk_step")
        one.reset(seed=3)
        other.reset(seed=3)
        actions = self.actions(one, 6)
        obs, rewards, terminated, truncated, info = chunk_step(actions)
        for number, action in enumerate(actions):
            stepped, reward, *done, _ = other.step(action)
            got = (rewards[number], terminated[number], truncated[number])
            require(got == (reward, *done), f"step {number}: {got} by chunk_step, {(reward, *done)} by step")
            if any(done):
                break
        require(info.get("steps") == number + 1, f"info['steps'] is {info.get('steps')}, not {number + 1}")
        changed = _differences(obs, stepped)
        require(not changed, f"the last observation differs in {listed(changed)}")
        one.close()
        other.close()

    @law(cause="no time limit: set truncated when it is reached")
    def test_episodes_end(self) -> None:
        """An episode under random actions ends within `episode_limit` steps, with info["success"]."""
        env = self.make()
        env.reset(seed=0)
        for action in self.actions(env, self.episode_limit):
            *_, terminated, truncated, info = env.step(action)
            if terminated or truncated:
                require("success" in info, f"the last info has no 'success'; it has {listed(info)}")
                env.close()
                return
        broken(f"no end in {self.episode_limit} steps")

    @law(cause="a buffer that the simulator returns and fills again: return copies")
    def test_vectorised_rollout_is_that_of_one(self) -> None:
        """Two simulators in one process, stepped in turn by chunks, do what one does alone."""
        alone, pair = (VecEnv(self.env_type, None, n, make=self.make) for n in (1, 2))
        try:
            actions = self.actions(alone, 6)[None]
            first = (alone.reset([11]), pair.reset([11, 12]))
            results = [
                (alone.chunk_step(part), pair.chunk_step(np.repeat(part, 2, axis=0)))
                for part in (actions[:, :3], actions[:, 3:])
            ]
        except EnvError as error:
            broken(str(error))
        finally:
            alone.close()
            pair.close()
        for one, two in (first, *((one.obs, two.obs) for one, two in results)):
            changed = [key for key in one if not np.array_equal(one[key][0], two[key][0])]
            require(not changed, f"beside another simulator {listed(changed)} differ")
        errors = [message for _, result in results for message in result.errors]
        require(not errors, f"simulators failed: {listed(errors)}")

    @law(
        needs=["expert"], cause="the expert of another version of the task, or one that looks at stale state"
    )
    def test_expert_succeeds(self) -> None:
        """The scripted expert that the spec names solves at least `expert_success` of its episodes."""
        spec = get_host().env_spec(self.env_type)
        if spec.expert is None:
            broken("EnvSpec.expert is None; declare supports = {'expert': Support.no('why')}")
        env = self.make()
        expert = get_host().resolve(spec, "expert")(env)
        solved = 0
        for seed in range(self.expert_episodes):
            env.reset(seed=seed)
            expert.reset(np.random.default_rng(seed))
            info: dict[str, Any] = {}
            for _ in range(self.episode_limit):
                *_, terminated, truncated, info = env.step(expert.act())
                if terminated or truncated:
                    break
            solved += bool(info.get("success"))
        env.close()
        wanted = self.expert_success * self.expert_episodes
        require(
            solved >= wanted, f"{solved} of {self.expert_episodes} solved, at least {wanted:.3g} expected"
        )

    @law(cause="a declaration that was copied, or that outlived its reason: remove it")
    def test_declared_gaps_are_gaps(self) -> None:
        """What `supports` declares missing is missing indeed."""
        unknown = sorted(set(self.supports) - {"expert"})
        require(not unknown, f"there is no capability {listed(unknown)}; known: expert")
        named = get_host().env_spec(self.env_type).expert
        wrong = "expert" in self.supports and named is not None
        require(not wrong, f"supports['expert'] = no, but EnvSpec.expert is {named!r}")

    def _require_good(self, env: gymnasium.Env, check: ObservationCheck, obs: Any) -> None:
        try:
            check(obs)
        except (BadObservation, EnvError) as error:
            broken(str(error))
        require(env.observation_space.contains(obs), f"an observation is not in {env.observation_space}")

    def _play(self, env: gymnasium.Env, seed: int) -> list[dict[str, Any]]:
        """Observations of the beginning of an episode, up to its end or six actions."""
        seen = [copy(env.reset(seed=seed)[0])]
        for action in self.actions(env, 6):
            obs, _, terminated, truncated, _ = env.step(action)
            seen.append(copy(obs))
            if terminated or truncated:
                break
        return seen


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    keys = dict.fromkeys([*one, *other])
    return [k for k in keys if k not in one or k not in other or not np.array_equal(one[k], other[k])]
