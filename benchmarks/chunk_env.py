"""An rlinf simulator as other libraries want it: one gymnasium step is one chunk of actions.

So each library asks its policy as often per frame as rlinf does.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from rlinf.config import plugin_subtree
from rlinf.config.schema import Config
from rlinf.envs.vector import env_factory
from rlinf.models.embodiment.tiny_vla.tokenizer import tokenize


class ChunkEnv(gymnasium.Env):
    """Action float32 [chunk * dim]: a flattened chunk. `info["steps"]`: how many of its actions were run.

    Observation: main_images uint8 [H, W * 3] (two axes, so that no library takes it for an image and
    transposes or rescales it), states float32 [D], tokenized_prompt int32 [L].
    `frames` counts all actions that were executed.
    """

    def __init__(self, config: Config) -> None:
        self._env = env_factory(config.env.env_type, plugin_subtree(config, "env"))()
        if not hasattr(self._env, "chunk_step") or config.model.model_type != "tiny_vla":
            raise SystemExit("the comparison needs a simulator with chunk_step and model.model_type=tiny_vla")
        self._chunk, self._dim = config.model.num_action_chunks, config.model.action_dim
        self._tokens = plugin_subtree(config, "model").max_instruction_tokens
        self._prompts: dict[str, np.ndarray] = {}
        images, states = (self._env.observation_space[name] for name in ("main_images", "states"))
        height, width, channels = images.shape
        self.observation_space = gymnasium.spaces.Dict(
            {
                "main_images": Box(0, 255, (height, width * channels), np.uint8),
                "states": states,
                "tokenized_prompt": Box(0, 2**31 - 1, (self._tokens,), np.int32),
            }
        )
        space = self._env.action_space
        self.action_space = Box(np.tile(space.low, self._chunk), np.tile(space.high, self._chunk))
        self.frames = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        obs, info = self._env.reset(seed=seed)
        return self._seen(obs), info

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        obs, rewards, terminated, truncated, info = self._env.chunk_step(
            action.reshape(self._chunk, self._dim)
        )
        self.frames += info["steps"]
        return self._seen(obs), float(rewards.sum()), bool(terminated.any()), bool(truncated.any()), info

    def close(self) -> None:
        self._env.close()

    def _seen(self, obs: dict[str, Any]) -> dict[str, np.ndarray]:
        text = obs["task_descriptions"]
        if text not in self._prompts:
            self._prompts[text] = tokenize([text], self._tokens)[0].numpy()
        image = obs["main_images"]
        return {
            "main_images": image.reshape(len(image), -1),
            "states": obs["states"],
            "tokenized_prompt": self._prompts[text],
        }


def policy_inputs(obs: dict[str, Any]) -> dict[str, Any]:
    """Batched observations (tensors) as tiny_vla's `features` wants them: images [B, H, W, 3] again."""
    return {**obs, "main_images": obs["main_images"].unflatten(-1, (-1, 3))}
