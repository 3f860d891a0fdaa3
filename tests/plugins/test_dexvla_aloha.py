"""The conformance kit of environments on gym-aloha."""

from __future__ import annotations

import numpy as np
import pytest
from rlinf.testing import EnvironmentTests

pytest.importorskip("gym_aloha")


class TestAloha(EnvironmentTests):
    env_type = "aloha"
    env_config = {"max_episode_steps": 290, "height": 24, "width": 32}
    episode_limit = 290
    expert_episodes = 1
    expert_success = 1.0


def test_further_cameras_are_views():
    from rlinf_dexvla.aloha.config import AlohaConfig
    from rlinf_dexvla.aloha.env import make_env

    env = make_env(AlohaConfig(views=("left_wrist", "right_wrist"), height=24, width=32))
    obs, _ = env.reset(seed=0)
    views = obs["extra_view_images"]
    assert views.shape == (2, 24, 32, 3) and env.observation_space.contains(obs)
    assert not np.array_equal(views[0], views[1]) and views[0].std() > 1 < views[1].std()


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
