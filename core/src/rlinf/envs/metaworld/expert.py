"""MetaWorld's own scripted policies as the environment's expert."""

from __future__ import annotations

import warnings
from typing import Any, Final

import numpy as np

from rlinf.envs.metaworld.env import MetaworldEnv

#: Position of the first object in MetaWorld's full observation.
_OBJECT: Final = slice(4, 7)


class MetaworldExpert:
    """Acts in a MetaworldEnv by its full state; `act()` gives the next action [4] float32 in [-1,1]."""

    def __init__(self, env: MetaworldEnv) -> None:
        from metaworld.policies import ENV_POLICY_MAP

        # MetaWorld warns at every step that its own gains saturate the action, which is clipped below.
        warnings.filterwarnings("ignore", message="Constant.* may be too high", module="metaworld")
        self._env = env
        self._classes: dict[str, Any] = dict(ENV_POLICY_MAP)
        self._policies: dict[str, Any] = {}

    def reset(self, rng: np.random.Generator | None = None) -> None:
        """Begin an episode; `rng` is not used, these experts are deterministic."""
        self._policies.clear()

    def act(self) -> np.ndarray:
        simulator = self._env.simulator
        policy = self._policies.get(simulator.task)
        if policy is None:
            policy = self._policies[simulator.task] = self._classes[simulator.task]()
        seen = simulator.full_obs.copy()
        seen[_OBJECT] += self._env.config.expert_offset
        action = np.clip(policy.get_action(seen), -1, 1).astype(np.float32)
        action[:3] *= self._env.config.expert_speed
        return action
