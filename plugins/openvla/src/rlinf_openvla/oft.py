"""`model_type: openvla_oft`: several views and the state, and all actions of a chunk in one pass."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from typing import Any

import torch
import torch.nn.functional as F
from rlinf.algorithms import masked_mean
from rlinf.models.embodiment.base_policy import check_mode
from rlinf.models.embodiment.heads import LOG_STD_RANGE
from rlinf.models.embodiment.sampling import (
    categorical_per_sample,
    gaussian_entropy,
    gaussian_logprobs,
    randn_per_sample,
)
from rlinf.models.logprobs import entropy_from_logits
from torch import Tensor, nn

from rlinf_openvla.codec import ActionStats
from rlinf_openvla.config import OpenvlaOftConfig
from rlinf_openvla.network import Sequence
from rlinf_openvla.policy import VlaPolicy


class ResidualBlock(nn.Module):
    """Pre-norm residual layer of the head; `ffn` is the checkpoints' name."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.ffn(x)


class ResidualMlp(nn.Module):
    def __init__(self, input_dim: int, hidden: int, output_dim: int, blocks: int = 2) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(input_dim)
        self.fc1 = nn.Linear(input_dim, hidden)
        self.mlp_resnet_blocks = nn.ModuleList(ResidualBlock(hidden) for _ in range(blocks))
        self.layer_norm2 = nn.LayerNorm(hidden)
        self.fc2 = nn.Linear(hidden, output_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc1(self.layer_norm1(x)))
        for block in self.mlp_resnet_blocks:
            x = block(x)
        return self.fc2(self.layer_norm2(x))


class L1Head(nn.Module):
    """Hidden states of an action's slots [B, chunk * A, H] -> the action, normalised, and the log standard
    deviation of the Gaussian around it in RL, which no checkpoint has: float32 [B, chunk, A] each."""

    _fsdp_wrap_name = "action_head"
    _is_policy_head = True

    def __init__(self, width: int, hidden: int, action_dim: int, init_log_std: float) -> None:
        super().__init__()
        self.action_dim = action_dim
        self.model = ResidualMlp(width * action_dim, hidden, action_dim)
        self.log_std = nn.Parameter(torch.full((action_dim,), init_log_std))

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        dtype = self.model.fc1.weight.dtype
        mean = self.model(hidden.to(dtype).unflatten(1, (-1, self.action_dim)).flatten(2)).float()
        return mean, self.log_std.float().expand_as(mean).clamp(*LOG_STD_RANGE)


class ProprioProjector(nn.Module):
    """Normalised state [B,P] -> an embedding [B,1,H]."""

    _is_policy_head = True

    def __init__(self, proprio_dim: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(proprio_dim, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, proprio: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(proprio.to(self.fc1.weight.dtype))))[:, None]


class OpenvlaOftPolicy(VlaPolicy):
    """OpenVLA-OFT (Kim et al. 2025, arXiv:2502.19645)."""

    config: OpenvlaOftConfig

    def __init__(
        self, config: OpenvlaOftConfig, *args: Any, proprio_stats: ActionStats | None, **kwargs: Any
    ):
        super().__init__(config, *args, **kwargs)
        self.proprio_stats = proprio_stats
        self.proprio_projector = self.action_head = None
        if config.proprio_dim:
            self.proprio_projector = ProprioProjector(config.proprio_dim, self.width)
        if config.head == "l1":
            self.action_head = L1Head(
                self.width, config.head_hidden or self.width, self.action_dim, config.init_log_std
            )
            self.language_model.lm_head.requires_grad_(False)  # the checkpoint's; nothing reads it

    def inputs(self, env_obs: dict[str, Any], *, augmented: bool = False) -> dict[str, Tensor]:
        """As `VlaPolicy.inputs`; with a state: proprio float32 [B,P], normalised."""
        inputs = super().inputs(env_obs, augmented=augmented)
        if self.config.proprio_dim:
            inputs["proprio"] = self._proprio(env_obs.get("states"))
        return inputs

    def _proprio(self, states: Any) -> Tensor:
        expected = self.config.proprio_dim
        if states is None or states.ndim != 2 or states.shape[1] != expected:
            got = "none" if states is None else tuple(states.shape)
            raise ValueError(f"states: expected [B, {expected}] (proprio_dim), got {got}")
        states = torch.as_tensor(states).float().to(self.device)
        return states if self.proprio_stats is None else self.proprio_stats.normalize(states)

    def slots(self, inputs: dict[str, Tensor]) -> Tensor:
        """Hidden states [B, chunk * A, H], read one position before each of the action slots."""
        prompt = self.prompt_of(inputs)
        return self.hidden_of_slots(prompt)[:, : self.action_tokens]

    def prompt_of(self, inputs: dict[str, Tensor]) -> Sequence:
        state = None
        if self.proprio_projector is not None:
            state = self.proprio_projector(inputs["proprio"])
        pixels = self.pixel_values(inputs)
        return self.prompt(inputs["input_ids"], inputs["attention_mask"], pixels, state)

    def hidden_of_slots(self, prompt: Sequence) -> Tensor:
        """Hidden states from the prompt's last token on: empty slots, and perhaps the stop token."""
        sequence = prompt.then(prompt.x.new_zeros(len(prompt.x), self.action_tokens, self.width))
        if self.config.stop_token:
            stop = torch.full((len(prompt.x), 1), self.stop_id, device=self.device)
            sequence = sequence.then(self.embed(stop))
        bidirectional = self.config.attention == "bidirectional"
        hidden = self.hidden(sequence, bidirectional=bidirectional)
        return prompt.from_last(hidden, 1 + self.action_tokens + self.config.stop_token)

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
        """See `BasePolicy`. forward_inputs have `action_tokens` int64 or `action` float32 (normalised)."""
        check_mode(mode)
        inputs = self.inputs(env_obs)
        hidden = self.slots(inputs)
        if self.action_head is None:
            logp = self.logp(hidden)
            bins = categorical_per_sample(logp, generators) if mode == "train" else logp.argmax(-1)
            inputs["action_tokens"] = bins + self.tokens.first_id
            normalized = self.tokens.decode(inputs["action_tokens"]).view(-1, self.chunk, self.action_dim)
        else:
            normalized, log_std = self.action_head(hidden)
            if mode == "train":
                noise = randn_per_sample(normalized.shape, generators, normalized.device)
                normalized = normalized + log_std.exp() * noise
            inputs["action"] = normalized
        out = self._distribution(hidden, inputs)
        result = {"prev_logprobs": out["logprobs"], "forward_inputs": inputs}
        if compute_values and "values" in out:
            result["prev_values"] = out["values"]
        return self.stats.unnormalize(normalized), result

    def default_forward(self, forward_inputs: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        return self._distribution(self.slots(forward_inputs), forward_inputs)

    def _distribution(self, hidden: Tensor, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Log-probabilities, entropy and values of what `inputs` recorded."""
        shape = (-1, self.chunk, self.action_dim)
        if self.action_head is None:
            logp = self.logp(hidden)
            bins = (inputs["action_tokens"].long() - self.tokens.first_id).unsqueeze(-1)
            logprobs, entropy = logp.gather(-1, bins).view(shape), entropy_from_logits(logp).view(shape)
        else:
            mean, log_std = self.action_head(hidden)
            logprobs = gaussian_logprobs(inputs["action"], mean, log_std)
            entropy = gaussian_entropy(log_std)
        out = {"logprobs": logprobs, "entropy": entropy}
        values = self.values(hidden[:, 0])
        return out if values is None else {**out, "values": values}

    def sft_forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        """l1: mean absolute error of the normalised actions; tokens: cross-entropy over the vocabulary.
        Padded steps do not count."""
        actions, counted = self.demonstrated(batch)
        hidden = self.slots(self.inputs(batch, augmented=self.training))
        if self.action_head is not None:
            return {"loss": masked_mean((self.action_head(hidden)[0] - actions).abs(), counted[..., None])}
        tokens = self.tokens.encode(actions.cpu()).to(actions.device).flatten(1)
        logits = self.language_model.lm_head(hidden).float()
        error = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").view_as(tokens)
        steps = counted.repeat_interleave(self.action_dim, dim=1)
        accuracy = masked_mean((logits.argmax(-1) == tokens).float(), steps).detach()
        return {"loss": masked_mean(error, steps), "accuracy": accuracy}
