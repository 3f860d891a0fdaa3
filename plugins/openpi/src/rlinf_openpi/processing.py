"""Observations of an environment -> inputs of the network, and its actions -> those of the environment.

Done once per policy call, batched; what training needs again travels in `forward_inputs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rlinf.data.stats import NormStats
from torch import Tensor

from rlinf_openpi.data_config import DataConfig
from rlinf_openpi.tokenizer import PromptTokenizer
from rlinf_openpi.transforms import (
    bool_mask,
    camera_image,
    normalize,
    pad_to,
    resize_with_pad,
    to_absolute,
    to_relative,
    unnormalize,
)


@dataclass(frozen=True)
class Processor:
    """The transforms of one data configuration.

    image_size: pixels of a side, for the network.
    action_dim: of the environment; the network's is `max_action_dim`.
    stats: of `state` and `actions`; None: nothing is normalised.
    """

    data: DataConfig
    tokenizer: PromptTokenizer
    image_size: int
    action_dim: int
    max_action_dim: int
    stats: Mapping[str, NormStats] | None = None

    def inputs(self, env_obs: Mapping[str, Any], device: torch.device) -> dict[str, Tensor]:
        """`images` uint8 [B, cameras, S, S, 3], `tokenized_prompt` int64 and `tokenized_prompt_mask` bool
        [B, max_token_len], `state` float32 [B, max_action_dim] (normalised), on `device`."""
        state = self.normalized(self.raw_state(env_obs), "state")
        ids, mask = self.tokenizer(self._instructions(env_obs, len(state)), state.cpu().numpy())
        found = {
            "images": self._images(env_obs, device),
            "tokenized_prompt": torch.from_numpy(ids),
            "tokenized_prompt_mask": torch.from_numpy(mask),
            "state": pad_to(state, self.max_action_dim),
        }
        return {name: value.to(device) for name, value in found.items()}

    def raw_state(self, env_obs: Mapping[str, Any]) -> Tensor:
        """The environment's state float32 [B, D] as the data configuration cuts it."""
        states = env_obs.get("states")
        if states is None:
            raise ValueError("openpi needs 'states' in the observation")
        state = torch.as_tensor(states).float()
        if self.data.state_indices is not None and "prepared" not in env_obs:
            if max(self.data.state_indices) >= state.shape[-1]:
                raise ValueError(
                    f"state_indices reaches dimension {max(self.data.state_indices)}; states have "
                    f"{state.shape[-1]}"
                )
            state = state[:, self.data.state_indices]
        return state

    def normalized(self, x: Tensor, name: str) -> Tensor:
        """`state` or `actions` [..., D] by their statistics."""
        if self.stats is None:
            return x
        stats = self.stats[name]
        if stats.mean.shape[-1] < x.shape[-1] and self.data.normalization != "none":
            raise ValueError(
                f"{name} has {x.shape[-1]} dimensions, the normalisation statistics {stats.mean.shape[-1]}"
            )
        return normalize(x, stats, self.data.normalization)

    def model_actions(self, actions: Tensor, env_obs: Mapping[str, Any]) -> Tensor:
        """Demonstrated actions [B, n, action_dim] -> the network's [B, n, max_action_dim], normalised."""
        actions = actions.float()
        if self.data.delta_mask is not None and "prepared" not in env_obs:
            state = self.raw_state(env_obs).to(actions.device)
            actions = to_relative(actions, state, bool_mask(self.data.delta_mask))
        return pad_to(self.normalized(actions, "actions"), self.max_action_dim)

    def env_actions(self, actions: Tensor, env_obs: Mapping[str, Any]) -> Tensor:
        """The network's actions float32 [B, n, max_action_dim] -> the environment's [B, n, action_dim]."""
        if self.stats is not None:
            actions = unnormalize(actions, self.stats["actions"], self.data.normalization)
        actions = actions[..., : self.action_dim]
        if self.data.delta_mask is not None:
            state = self.raw_state(env_obs).to(actions.device)
            actions = to_absolute(actions, state, bool_mask(self.data.delta_mask))
        return actions.float()

    def _images(self, env_obs: Mapping[str, Any], device: torch.device) -> Tensor:
        views = []
        for source in self.data.cameras.values():
            image = torch.as_tensor(np.asarray(camera_image(env_obs, source)))
            if image.dtype != torch.uint8 or image.dim() != 4 or image.shape[-1] != 3:
                raise ValueError(
                    f"{source}: expected uint8 [B, H, W, 3], got {image.dtype} {tuple(image.shape)}"
                )
            views.append(resize_with_pad(image.to(device), self.image_size))
        return torch.stack(views, dim=1)

    def _instructions(self, env_obs: Mapping[str, Any], batch: int) -> list[str]:
        if self.data.default_prompt is not None:
            return [self.data.default_prompt] * batch
        texts = env_obs.get("task_descriptions")
        if texts is None or len(texts) != batch:
            raise ValueError(f"openpi needs {batch} 'task_descriptions' in the observation, got {texts!r}")
        return list(texts)
