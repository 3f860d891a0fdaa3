"""The policy that the mutants are made of. It keeps every law."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from rlinf.models.embodiment.config import PolicyConfig
from rlinf.models.embodiment.gaussian_policy import GaussianPolicy
from torch import Tensor, nn

DIM, STATE, WORDS, LONGEST = 8, 3, 32, 10


class Correct(GaussianPolicy):
    """A mean over words, a pooled image and the state, two layers, Gaussian actions."""

    def __init__(self, cfg: Any) -> None:
        config = PolicyConfig(state_dim=STATE, value_hidden=(8,))
        super().__init__(config)
        self.words = nn.Embedding(WORDS, DIM)
        self.pixels = nn.Linear(12, DIM)
        self.state = nn.Linear(STATE, DIM)
        self.layers = nn.ModuleList(nn.Linear(DIM, DIM) for _ in range(2))
        self.make_heads(
            config, DIM, action_dim=cfg.action_dim, steps=cfg.num_action_chunks, add_value_head=True
        )

    def inputs(self, env_obs: dict[str, Any]) -> dict[str, Tensor]:
        return {
            "images": self.image_input(env_obs),
            "states": self.state_input(env_obs, STATE),
            "tokens": self.tokens(env_obs["task_descriptions"]),
        }

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """int64 [B, LONGEST]; 0 is padding."""
        out = torch.zeros(len(texts), LONGEST, dtype=torch.int64)
        for row, text in zip(out, texts, strict=True):
            ids = [1 + zlib.crc32(word.encode()) % (WORDS - 1) for word in text.split()]
            row[: len(ids)] = torch.tensor(ids)
        return out

    def features(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        x = self.read(inputs["tokens"]) + self.see(inputs["images"]) + self.feel(inputs["states"])
        for i in range(len(self.layers)):
            x = x + torch.tanh(self.layer(i, x))
        return x[:, None], x

    def read(self, tokens: Tensor) -> Tensor:
        tokens = tokens[:, : int((tokens != 0).sum(1).max())]
        mask = (tokens != 0).unsqueeze(-1)
        return (self.words(tokens) * mask).sum(1) / mask.sum(1)

    def see(self, images: Tensor) -> Tensor:
        pixels = images.permute(0, 3, 1, 2).to(self.pixels.weight.dtype) / 127.5 - 1
        return self.pixels(F.adaptive_avg_pool2d(pixels, 2).flatten(1))

    def feel(self, states: Tensor) -> Tensor:
        return self.state(states.to(self.state.weight.dtype))

    def layer(self, i: int, x: Tensor) -> Tensor:
        return self.layers[i](x)
