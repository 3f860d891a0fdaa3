"""tiny_vla: a vision-language-action transformer that trains on two CPU cores."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rlinf.models.embodiment.gaussian_policy import GaussianPolicy
from rlinf.models.embodiment.tiny_vla.config import TinyVlaConfig
from rlinf.models.embodiment.tiny_vla.modules import Stem, TextEncoder, TinyVlaBlock
from rlinf.models.embodiment.tiny_vla.tokenizer import PAD, tokenize


class TinyVla(GaussianPolicy):
    """Tokens of the image, of the instruction and of the state, and one learned query per action of the
    chunk and one for the value, go through a transformer; the heads read the queries."""

    _no_split_modules = ("TinyVlaBlock",)
    _no_split_names = ("stem", "text_encoder", "action_head")

    def __init__(
        self, config: TinyVlaConfig, *, num_action_chunks: int, action_dim: int, add_value_head: bool = True
    ) -> None:
        super().__init__(config)
        self.config = config
        dim = config.dim
        self.text_encoder = TextEncoder(dim, config.hash_rows, config.max_instruction_tokens)
        self.stem = Stem(dim, config.stem_channels, config.visual_tokens)
        self.state_proj = nn.Sequential(nn.Linear(config.state_dim, dim), nn.GELU(), nn.Linear(dim, dim))
        self.queries = nn.Parameter(torch.randn(num_action_chunks + 1, dim) * 0.5)
        self.blocks = nn.ModuleList(
            TinyVlaBlock(dim, config.num_heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.make_heads(config, dim, action_dim=action_dim, steps=1, add_value_head=add_value_head)

    def inputs(self, env_obs: dict[str, Any]) -> dict[str, Tensor]:
        images = self.image_input(env_obs)
        return {
            "main_images": images,
            "states": self.state_input(env_obs, self.config.state_dim),
            "tokenized_prompt": self._prompt(env_obs, len(images)),
        }

    def _prompt(self, env_obs: dict[str, Any], batch: int) -> Tensor:
        """int32 [B, max_instruction_tokens]."""
        texts = env_obs.get("task_descriptions")
        if texts is None:
            raise ValueError(
                "TinyVla needs 'task_descriptions' in the observation (an empty text is allowed)"
            )
        if len(texts) != batch:
            raise ValueError(f"task_descriptions: expected {batch}, got {len(texts)}")
        return tokenize(texts, self.config.max_instruction_tokens).to(self.device)

    def features(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        tokens = inputs["tokenized_prompt"]
        if not tokens.is_cuda:  # drop columns that are padding for all; on a GPU the length would cost a wait
            tokens = tokens[:, : int((tokens != PAD).sum(dim=1).max())]
        mask = tokens != PAD
        words, instruction = self.text_encoder(tokens, mask)
        visual = self.stem(inputs["main_images"], instruction)
        state = self.state_proj(inputs["states"].to(visual.dtype))
        queries = self.queries + (instruction + state + visual[:, -1])[:, None]
        x = torch.cat([words, visual, state[:, None], queries], dim=1)
        bias = torch.zeros(len(x), 1, 1, x.shape[1], dtype=x.dtype, device=x.device)
        bias[:, 0, 0, : mask.shape[1]].masked_fill_(~mask, -torch.inf)
        for block in self.blocks[:-1]:
            x = block(x, bias)
        x = self.norm(self.blocks[-1](x, bias, readout=self.queries.shape[0]))
        return x[:, :-1], x[:, -1]
