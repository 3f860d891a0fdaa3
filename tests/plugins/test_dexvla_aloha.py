"""The conformance kit of environments on gym-aloha."""

from __future__ import annotations

import numpy as np
import pytest
from rlinf.testing import EnvironmentTests, Support

pytest.importorskip("gym_aloha")


class TestAloha(EnvironmentTests):
    env_type = "aloha"
    env_config = {"max_episode_steps": 12, "height": 60, "width": 80}
    episode_limit = 12
    supports = {"expert": Support.no("gym-aloha scripts no expert for joint actions")}


def test_the_stages_are_a_potential():
    from rlinf_dexvla.aloha.config import AlohaConfig
    from rlinf_dexvla.aloha.env import make_env

    env = make_env(AlohaConfig(stage_reward=True, height=32, width=32))
    obs, _ = env.reset(seed=0)
    assert obs["states"].shape == (14,)
    # Stages 1, 2, 1: reached rewards are given back when they are lost.
    stages = iter([1.0, 2.0, 1.0])
    env._env.task.get_reward = lambda physics: next(stages)
    rewards = [env.step(obs["states"])[1] for _ in range(3)]
    np.testing.assert_allclose(rewards, [0.25, 0.25, -0.25])
