"""The network: vision backbone, projector and Llama, and the sequence that they make of an observation."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from rlinf_openvla.codec import ActionTokens
from rlinf_openvla.hf_config import OpenVLAConfig
from rlinf_openvla.vision import FusedVisionBackbone, Projector


@dataclass(frozen=True, kw_only=True)
class Sequence:
    """Embeddings [B,S,H] with the padding at the end; how many of each row are real, int64 [B]."""

    x: Tensor
    lengths: Tensor

    @property
    def valid(self) -> Tensor:
        """bool [B,S], True where a position is real."""
        return torch.arange(self.x.shape[1], device=self.x.device) < self.lengths[:, None]

    def then(self, x: Tensor) -> Sequence:
        """With further real positions [B,T,H] right behind the real ones of each row."""
        valid = torch.cat([self.valid, self.lengths.new_ones(x.shape[:2], dtype=torch.bool)], dim=1)
        joined = compact(torch.cat([self.x, x], dim=1), valid)
        return Sequence(x=joined, lengths=self.lengths + x.shape[1])

    def from_last(self, hidden: Tensor, count: int) -> Tensor:
        """Of [B,S',H], the `count` positions from this sequence's last real one on: [B,count,H]."""
        index = self.lengths[:, None] - 1 + torch.arange(count, device=hidden.device)
        return hidden.gather(1, index[..., None].expand(-1, -1, hidden.shape[-1]))


def compact(values: Tensor, valid: Tensor) -> Tensor:
    """What is valid [B,N] of each row of `values` [B,N,...] first, in its order: any padding goes to the end.

    There causal attention needs no mask to stay clear of it, and runs on torch's fast kernels.
    """
    # `valid` is a prefix of each row: nothing to move.
    if bool((valid[:, :-1] >= valid[:, 1:]).all()):
        return values
    order = (~valid).int().argsort(dim=1, stable=True)
    return values[torch.arange(len(values), device=values.device)[:, None], order]


class VlaNetwork(nn.Module):
    """The modules under the checkpoints' names, and what they compute; the heads are the subclasses'."""

    vision_backbone: FusedVisionBackbone
    projector: Projector
    language_model: LlamaForCausalLM
    tokens: ActionTokens

    def make_network(self, config: OpenVLAConfig, *, skip_init: bool = False) -> None:
        """skip_init: parameters are on the meta device until a checkpoint brings them."""
        dino, siglip = config.towers
        llm = config.text_config
        assert isinstance(llm, LlamaConfig)
        with torch.device("meta") if skip_init else nullcontext():
            self.vision_backbone = FusedVisionBackbone(dino, siglip, config.image_size)
            self.projector = Projector(dino.dim + siglip.dim, llm.hidden_size)
            self.language_model = LlamaForCausalLM(llm)
        # Its tables are no part of a checkpoint.
        self.language_model.model.rotary_emb = LlamaRotaryEmbedding(llm)
        self.tokens = ActionTokens(config.vocab_end, config.n_action_bins)

    def embed(self, ids: Tensor) -> Tensor:
        return self.language_model.model.embed_tokens(ids)

    def vision(self, pixel_values: Tensor) -> Tensor:
        """Pixel values [B, 6 * views, H, W] -> embeddings [B, views * N, H]."""
        return self.projector(self.vision_backbone(pixel_values))

    def prompt(
        self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor, extra: Tensor | None = None
    ) -> Sequence:
        """BOS, patches, further embeddings `extra` [B,E,H] (a state), the prompt. Any padding convention:
        the order of the tokens decides, wherever the padding is."""
        mask = attention_mask.bool()
        longest = int(mask.sum(1).max())
        ids = compact(input_ids, mask)[:, :longest]
        words = self.embed(ids)
        seen = self.vision(pixel_values.to(words.dtype))
        if extra is not None:
            seen = torch.cat([seen, extra.to(words.dtype)], dim=1)
        x = torch.cat([words[:, :1], seen, words[:, 1:]], dim=1)
        return Sequence(x=x, lengths=mask.sum(1) + seen.shape[1])

    def hidden(
        self, sequence: Sequence, *, bidirectional: bool = False, cache: DynamicCache | None = None
    ) -> Tensor:
        """Hidden states after the final norm [B,S,H]; what stands at padding means nothing.

        cache: is filled with the whole sequence, for `generate`.
        """
        mask = self._key_mask(sequence.valid, sequence.x.dtype) if bidirectional else None
        out = self.language_model.model(
            inputs_embeds=sequence.x,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return out.last_hidden_state

    def generate(
        self, prompt: Sequence, count: int, choose: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """`count` tokens int64 [B,count], each chosen from the hidden state [B,H] before it; and the prompt's
        last hidden state [B,H]. Stops at the last token, whose own hidden state nothing needs."""
        cache = DynamicCache(config=self.language_model.config)
        hidden = first = prompt.from_last(self.hidden(prompt, cache=cache), 1)[:, 0]
        valid, positions = prompt.valid, prompt.lengths
        tokens = [choose(hidden)]
        while len(tokens) < count:
            valid = F.pad(valid, (0, 1), value=True)
            hidden = self._next_hidden(self.embed(tokens[-1])[:, None], cache, valid, positions)
            positions = positions + 1
            tokens.append(choose(hidden))
        return torch.stack(tokens, dim=1), first

    def _next_hidden(self, x: Tensor, cache: DynamicCache, valid: Tensor, positions: Tensor) -> Tensor:
        """Hidden state [B,H] of one further position [B,1,H] of each row, whose place is `positions` [B].

        valid: bool [B,S], the real positions of the cache and the new one. Behind a shorter prompt the cache
        has a hole, which only this mask hides.
        """
        out = self.language_model.model(
            inputs_embeds=x,
            position_ids=positions[:, None],
            attention_mask=None if bool(valid.all()) else self._key_mask(valid, x.dtype),
            past_key_values=cache,
            use_cache=True,
        )
        return out.last_hidden_state[:, 0]

    def _key_mask(self, valid: Tensor, dtype: torch.dtype) -> Tensor:
        """[B,1,1,S], True where every query may look; as something to add where attention is "eager"."""
        allowed = valid[:, None, None, :]
        if self.language_model.config._attn_implementation == "eager":
            bias = torch.zeros(allowed.shape, dtype=dtype, device=valid.device)
            return bias.masked_fill(~allowed, torch.finfo(dtype).min)
        return allowed

    def action_logits(self, hidden: Tensor) -> Tensor:
        """Logits of the action bins, float32 [..., bins]: the rows of the output layer that can be drawn."""
        rows = self.language_model.lm_head.weight[self.tokens.first_id : self.tokens.vocab_end]
        return F.linear(hidden.float(), rows.float())
