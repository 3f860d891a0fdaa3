"""The network: vision backbone, projector and Llama, and the sequence that they make of an observation."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

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
    """Embeddings [B,S,H], which of them are real, bool [B,S]; places without padding, int64 [B,S]."""

    x: Tensor
    valid: Tensor
    positions: Tensor

    def then(self, x: Tensor) -> Sequence:
        """With further real positions [B,T,H] at the end."""
        valid = torch.cat([self.valid, self.valid.new_ones(x.shape[:2])], dim=1)
        return Sequence(x=torch.cat([self.x, x], dim=1), valid=valid, positions=_positions(valid))


def canonical_prompt(input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Whatever the padding, BOS in slot 0, then the padding, then the rest flush right; [B,L] each.

    The order of the tokens decides: padding left of BOS (the official wrapper), behind BOS (RLinf) or after
    the prompt gives the same. Columns that are padding for all are dropped.
    """
    mask = attention_mask.bool()
    order = mask.int().argsort(dim=1, stable=True)  # padding first, the rest in its order
    ids, mask = input_ids.gather(1, order), mask.gather(1, order)
    first = (~mask).sum(1, keepdim=True)
    # BOS stands right behind the padding: it changes places with slot 0.
    places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    places = torch.where(places == first, torch.zeros_like(first), places)
    places = torch.cat([first, places[:, 1:]], dim=1)
    ids, mask = ids.gather(1, places), mask.gather(1, places)
    unused = int(first.min())
    return torch.cat([ids[:, :1], ids[:, 1 + unused :]], dim=1), torch.cat(
        [mask[:, :1], mask[:, 1 + unused :]], dim=1
    )


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
        """BOS, patches, further embeddings `extra` [B,E,H] (a state), the prompt; the last position is the
        prompt's last token in every row. Any padding convention."""
        ids, mask = canonical_prompt(input_ids, attention_mask)
        words = self.embed(ids)
        seen = self.vision(pixel_values.to(words.dtype))
        if extra is not None:
            seen = torch.cat([seen, extra.to(words.dtype)], dim=1)
        x = torch.cat([words[:, :1], seen, words[:, 1:]], dim=1)
        valid = torch.cat([mask[:, :1], mask.new_ones(seen.shape[:2]), mask[:, 1:]], dim=1)
        return Sequence(x=x, valid=valid, positions=_positions(valid))

    def hidden(
        self, sequence: Sequence, *, bidirectional: bool = False, cache: DynamicCache | None = None
    ) -> Tensor:
        """Hidden states after the final norm, of the positions that the cache does not hold yet: [B,T,H]."""
        done = cache.get_seq_length() if cache is not None else 0
        mask = self._attention_mask(sequence.valid, done, bidirectional, sequence.x.dtype)
        out = self.language_model.model(
            inputs_embeds=sequence.x[:, done:],
            position_ids=sequence.positions[:, done:],
            attention_mask=mask,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return out.last_hidden_state

    def _attention_mask(self, valid: Tensor, done: int, bidirectional: bool, dtype: torch.dtype) -> Any:
        """[B,1,T,S], True where a query may look; as something to add where attention is "eager"."""
        length = valid.shape[1]
        allowed = valid[:, None, None, :].expand(-1, 1, length - done, length)
        if not bidirectional:
            causal = torch.ones(length - done, length, dtype=torch.bool, device=valid.device).tril(done)
            allowed = allowed & causal
        if self.language_model.config._attn_implementation == "eager":
            bias = torch.zeros(allowed.shape, dtype=dtype, device=valid.device)
            return bias.masked_fill(~allowed, torch.finfo(dtype).min)
        return allowed

    def action_logits(self, hidden: Tensor) -> Tensor:
        """Logits of the action bins, float32 [..., bins]: the rows of the output layer that can be drawn."""
        rows = self.language_model.lm_head.weight[self.tokens.first_id : self.tokens.vocab_end]
        return F.linear(hidden.float(), rows.float())


def _positions(valid: Tensor) -> Tensor:
    return (valid.long().cumsum(1) - 1).clamp(min=0)
