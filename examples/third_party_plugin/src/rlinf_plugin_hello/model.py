"""A policy small enough to read at once: everything is pooled, joined, and sent through one MLP."""

from __future__ import annotations

import zlib

import torch
import torch.nn.functional as F
from rlinf.models.embodiment.base_policy import BasePolicy
from rlinf.models.embodiment.modules.value_head import ValueHead
from rlinf.models.embodiment.sampling import gaussian_entropy, gaussian_logprobs, randn_per_sample
from torch import nn

from rlinf_plugin_hello.config import HelloConfig

#: Cells of the pooled image, and slots of the bag of hashed words.
CELLS, WORDS = 8, 64


def build(cfg, torch_dtype):
    """The builder that `plugin.py` names; `cfg` is the configuration's block `model`."""
    config = HelloConfig.model_validate(cfg.get("hello_policy") or {})
    return HelloPolicy(config, cfg.num_action_chunks, cfg.action_dim).to(torch_dtype)


class HelloPolicy(BasePolicy):
    def __init__(self, config: HelloConfig, num_action_chunks: int, action_dim: int) -> None:
        super().__init__()
        self.shape = (num_action_chunks, action_dim)
        inputs = 3 * CELLS * CELLS + config.state_dim + WORDS
        self.body = nn.Sequential(nn.Linear(inputs, config.hidden_size), nn.ReLU())
        self.mean = nn.Linear(config.hidden_size, num_action_chunks * action_dim)
        self.log_std = nn.Parameter(torch.full((action_dim,), config.log_std))
        self.value_head = ValueHead(config.hidden_size)

    def forward_inputs(self, env_obs):
        words = torch.zeros(len(env_obs["task_descriptions"]), WORDS)
        for row, text in zip(words, env_obs["task_descriptions"]):
            for word in text.split():
                row[zlib.crc32(word.encode()) % WORDS] = 1
        images = torch.as_tensor(env_obs["main_images"])
        return {"images": images, "states": torch.as_tensor(env_obs["states"]), "words": words}

    def distribution(self, inputs):
        weight = self.mean.weight
        pixels = inputs["images"].permute(0, 3, 1, 2).to(weight) / 255
        pooled = F.adaptive_avg_pool2d(pixels, CELLS).flatten(1)
        features = self.body(
            torch.cat([pooled, inputs["states"].to(weight), inputs["words"].to(weight)], dim=1)
        )
        mean = self.mean(features).float().unflatten(1, self.shape)
        return features, mean, self.log_std.float().expand_as(mean)

    @torch.no_grad()
    def predict_action_batch(self, env_obs, mode="train", compute_values=True, *, generators=None, **kwargs):
        inputs = self.forward_inputs(env_obs)
        features, mean, log_std = self.distribution(inputs)
        noise = randn_per_sample(mean.shape, generators, mean.device) if mode == "train" else 0
        actions = mean + log_std.exp() * noise
        return actions, {
            "prev_logprobs": gaussian_logprobs(actions, mean, log_std),
            "prev_values": self.value_head(features),
            "forward_inputs": {**inputs, "action": actions},
        }

    def default_forward(self, forward_inputs, **kwargs):
        features, mean, log_std = self.distribution(forward_inputs)
        return {
            "logprobs": gaussian_logprobs(forward_inputs["action"], mean, log_std),
            "entropy": gaussian_entropy(log_std),
            "values": self.value_head(features),
        }

    def sft_forward(self, batch, **kwargs):
        _, mean, _ = self.distribution(self.forward_inputs(batch))
        error = (torch.as_tensor(batch["actions"]) - mean).square().mean(-1)
        counted = ~torch.as_tensor(batch["action_is_pad"])
        return {"loss": (error * counted).sum() / counted.sum().clamp(min=1)}
