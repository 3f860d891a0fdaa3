"""`model_type: openvla`: action tokens one after the other, with a key-value cache, for a whole batch."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from typing import Any

import torch
import torch.nn.functional as F
from rlinf.algorithms import masked_mean
from rlinf.models.embodiment.base_policy import check_mode
from rlinf.models.embodiment.sampling import categorical_per_sample
from rlinf.models.logprobs import entropy_from_logits
from torch import Tensor

from rlinf_openvla.network import Sequence
from rlinf_openvla.policy import VlaPolicy


class OpenvlaPolicy(VlaPolicy):
    """OpenVLA (Kim et al. 2024, arXiv:2406.09246)."""

    @torch.no_grad()
    def predict_action_batch(
        self,
        env_obs: dict[str, Any],
        mode: str = "train",
        compute_values: bool = True,
        *,
        generators: Rows[torch.Generator] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """See `BasePolicy`. forward_inputs: those of `inputs`, and action_tokens [B, chunk * A]."""
        check_mode(mode)
        inputs = self.inputs(env_obs)
        prompt = self.prompt(inputs["input_ids"], inputs["attention_mask"], self.pixel_values(inputs))
        tokens, logprobs, first = self.generate_actions(prompt, mode == "train", generators)
        inputs["action_tokens"] = tokens
        values = self.values(first) if compute_values else None
        if first.dtype != torch.float32:
            # Cached and whole passes round differently in half precision; training does the whole pass, and a
            # ratio must begin at 1.
            out = self.default_forward(inputs)
            logprobs, values = out["logprobs"], out.get("values") if compute_values else None
        result = {"prev_logprobs": logprobs.view(-1, self.chunk, self.action_dim), "forward_inputs": inputs}
        if values is not None:
            result["prev_values"] = values
        return self.actions(tokens), result

    def generate_actions(
        self, prompt: Sequence, sample: bool, generators: Rows[torch.Generator] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Action tokens int64 and their log-probabilities float32 [B, chunk * A]; the prompt's last hidden
        state [B,H]."""
        logprobs: list[Tensor] = []

        def choose(hidden: Tensor) -> Tensor:
            logp = self.logp(hidden)
            bins = categorical_per_sample(logp, generators) if sample else logp.argmax(-1)
            logprobs.append(logp.gather(-1, bins[:, None])[:, 0])
            return bins + self.tokens.first_id

        tokens, first = self.generate(prompt, self.action_tokens, choose)
        return tokens, torch.stack(logprobs, dim=1), first

    def actions(self, tokens: Tensor) -> Tensor:
        """Actions in the robot's units, float32 [B, chunk, A], of token ids [B, chunk * A]."""
        return self.stats.unnormalize(self.tokens.decode(tokens).view(-1, self.chunk, self.action_dim))

    def default_forward(self, forward_inputs: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        tokens = forward_inputs["action_tokens"].long()
        hidden = self.teacher_forced(forward_inputs, tokens[:, :-1])
        logp = self.logp(hidden)
        shape = (-1, self.chunk, self.action_dim)
        bins = (tokens - self.tokens.first_id).unsqueeze(-1)
        out = {
            "logprobs": logp.gather(-1, bins).view(shape),
            "entropy": entropy_from_logits(logp).view(shape),
        }
        values = self.values(hidden[:, 0])
        return out if values is None else {**out, "values": values}

    def teacher_forced(self, inputs: dict[str, Tensor], tokens: Tensor) -> Tensor:
        """Hidden states [B,T+1,H] from the prompt's last token on, T given tokens [B,T] behind it."""
        prompt = self.prompt(inputs["input_ids"], inputs["attention_mask"], self.pixel_values(inputs))
        sequence = prompt.then(self.embed(tokens)) if tokens.shape[1] else prompt
        return prompt.from_last(self.hidden(sequence), 1 + tokens.shape[1])

    def sft_forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        """Cross-entropy over the whole vocabulary of the action tokens and the end-of-text token behind them,
        as the original trains; only these positions go through the output layer. Padded steps do not count.

        Metrics: accuracy of the action tokens; l1 of the normalised actions.
        """
        actions, counted = self.demonstrated(batch)
        tokens = self.tokens.encode(actions.cpu()).to(actions.device).flatten(1)
        hidden = self.teacher_forced(self.inputs(batch, augmented=self.training), tokens)
        logits = self.language_model.lm_head(hidden).float()
        stop = torch.full_like(tokens[:, :1], self.stop_id)
        labels = torch.cat([tokens, stop], dim=1)
        error = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
        steps = counted.repeat_interleave(self.action_dim, dim=1)
        # The end is the label only where the last step is a real one.
        weight = torch.cat([steps, counted.all(1, keepdim=True)], dim=1)
        with torch.no_grad():
            bins = logits[:, :-1, self.tokens.first_id : self.tokens.vocab_end].argmax(-1)
            decoded = self.tokens.decode(bins + self.tokens.first_id)
            accuracy = masked_mean((logits[:, :-1].argmax(-1) == tokens).float(), steps)
            l1 = masked_mean((decoded - actions.flatten(1)).abs(), steps)
        return {"loss": masked_mean(error, weight), "accuracy": accuracy, "l1": l1}
