"""pi0 and pi0.5 as a policy: imitation by flow matching, policy gradients on the denoising process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from rlinf.models.embodiment.base_policy import BasePolicy, check_mode
from rlinf.models.embodiment.modules.value_head import ValueHead
from rlinf.models.embodiment.sampling import generators_of, rand_per_sample, randn_per_sample
from torch import Tensor

from rlinf_openpi import flow
from rlinf_openpi.config import OpenpiConfig
from rlinf_openpi.data_config import DataConfig
from rlinf_openpi.heads import NoiseHead
from rlinf_openpi.network.gemma import KeyValues
from rlinf_openpi.network.pi0 import Observation, Pi0, Prefix
from rlinf_openpi.network.sampling import Denoiser, StepFunction
from rlinf_openpi.processing import Processor

#: Modules that stay float32 in a bfloat16 model, as in openpi: they are small, and actions pass through them.
FLOAT32 = (
    "action_in_proj",
    "action_out_proj",
    "state_proj",
    "time_mlp_in",
    "time_mlp_out",
    "action_time_mlp_in",
    "action_time_mlp_out",
)


@dataclass(frozen=True)
class Transition:
    """One denoising step of each sample: mean and std float32 [B, T, D] of the next x, value [B] or None."""

    mean: Tensor
    std: Tensor
    value: Tensor | None


class OpenpiPolicy(Pi0, BasePolicy):
    """See `BasePolicy`. A chunk is denoised in `num_steps` steps. In training rollouts one step per sample,
    drawn at random, is a draw from a normal distribution (or every step, with `joint_logprob`); its density
    is the action's log-probability, and training computes it anew from the recorded x before and after."""

    def __init__(
        self,
        config: OpenpiConfig,
        data: DataConfig,
        *,
        num_action_chunks: int,
        action_dim: int,
        add_value_head: bool = True,
        processor: Processor | None = None,
    ) -> None:
        super().__init__(config.architecture, action_dim=config.max_action_dim, pi05=data.pi05)
        self.config = config
        self.horizon = config.action_horizon or data.action_horizon
        self.chunk, self.action_dim = num_action_chunks, action_dim
        self.processor = processor
        sizes = config.architecture
        self.value_head = None
        if add_value_head:
            width = sizes.vlm.width if config.value_after_vlm else sizes.expert.width
            hidden = config.value_hidden or data.value_hidden
            self.value_head = ValueHead(width, hidden, activation="relu", bias_last=True)
        self.noise_head = None
        if config.noise_method == "flow_noise":
            self.noise_head = NoiseHead(sizes.expert.width, config.max_action_dim, config.noise_logvar_range)
        self._value_on_vlm = add_value_head and config.value_after_vlm
        self._iteration = 0
        self._step: StepFunction | None = None
        if config.train_expert_only:
            self.vlm.requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return self.action_in_proj.weight.device

    @property
    def lora_targets(self) -> tuple[str, ...]:
        """Full paths (regular expressions) of the layers that `openpi.lora_targets` means."""
        expert = r"paligemma_with_expert\.gemma_expert\.model\.layers\..*_proj"
        vlm = (
            r"paligemma_with_expert\.paligemma\.model\.language_model\.layers\..*_proj",
            r"paligemma_with_expert\.paligemma\.model\.vision_tower\..*(_proj|fc[12])",
        )
        chosen = {"expert": (expert,), "vlm": vlm, "all": (expert, *vlm)}
        return chosen[self.config.lora_targets]

    def set_global_step(self, step: int) -> None:
        """The RL iteration, on which an annealed noise level depends."""
        self._iteration = step

    def compile_step(self, function: StepFunction) -> None:
        """Use a compiled `expert_step`."""
        self._step = function

    # -- acting ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def predict_action_batch(
        self,
        env_obs: dict[str, Any],
        mode: str = "train",
        compute_values: bool = True,
        *,
        generators: Sequence[torch.Generator] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """See `BasePolicy`. Mode "eval" follows the flow's differential equation from noise that the
        observation determines; what it records is the first step's density."""
        check_mode(mode)
        assert self.processor is not None, "a policy without a processor cannot see an environment"
        inputs = self.processor.inputs(env_obs, self.device)
        batch = len(inputs["images"])
        shape = (batch, self.horizon, self.config.max_action_dim)
        prefix = self._prefix(inputs)
        if mode == "train":
            draws = self._draws(shape, generators)
        else:
            draws = self._fixed_draws(shape, generators_of(inputs["images"]))
        chains = self.denoise(prefix, inputs["state"], explore=mode == "train", **draws)
        inputs |= {"noise_level": torch.full((batch,), self._noise_level(), device=self.device)}
        if self.config.joint:
            inputs["chains"] = chains
        else:
            rows = torch.arange(batch, device=chains.device)
            index = draws["index"]
            inputs |= {
                "denoise_inds": index,
                "chains": torch.stack([chains[rows, index], chains[rows, index + 1]], dim=1),
            }
        if self.config.cache_prefix:
            inputs |= self._recorded_prefix(prefix)
            del inputs["images"]
        out = self._evaluate(inputs, prefix, compute_values)
        result: dict[str, Any] = {"prev_logprobs": out["logprobs"], "forward_inputs": inputs}
        if "values" in out:
            result["prev_values"] = out["values"]
            if self.config.reference_conventions and not self._value_on_vlm:
                result["prev_values"] = self.mean_value(prefix, inputs["state"], chains)
        return self.processor.env_actions(chains[:, -1, : self.chunk], env_obs), result

    def _draws(
        self, shape: tuple[int, int, int], generators: Sequence[torch.Generator] | None
    ) -> dict[str, Tensor]:
        """Initial noise [B, T, D], noise of the random step(s) [B, 1 or K, T, D], and its index [B]."""
        if self.config.noise_method == "flow_ode":
            raise ValueError(
                "model.openpi.noise_method is flow_ode, which draws nothing: policy gradients need flow_sde, "
                "flow_noise or flow_cps"
            )
        batch, steps = shape[0], self.config.num_steps
        noise = randn_per_sample(shape, generators, self.device)
        if self.config.joint:
            every = randn_per_sample((batch, steps, *shape[1:]), generators, self.device)
            return {"noise": noise, "step_noise": every}
        step = randn_per_sample((batch, 1, *shape[1:]), generators, self.device)
        last = self.config.ignore_last or self.config.noise_method == "flow_cps"
        uniform = rand_per_sample((batch, 1), generators, self.device)[:, 0]
        index = (uniform * (steps - last)).long().clamp(max=steps - 1 - last)
        return {"noise": noise, "step_noise": step, "index": index}

    def _fixed_draws(
        self, shape: tuple[int, int, int], generators: Sequence[torch.Generator]
    ) -> dict[str, Tensor]:
        """What evaluation starts from; the recorded step is the first."""
        noise = randn_per_sample(shape, generators, self.device)
        index = torch.zeros(shape[0], dtype=torch.long, device=self.device)
        return {"noise": noise, "step_noise": noise[:, None], "index": index}

    def denoise(
        self,
        prefix: Prefix,
        state: Tensor,
        *,
        noise: Tensor,
        step_noise: Tensor,
        index: Tensor | None = None,
        explore: bool = True,
    ) -> Tensor:
        """The chain float32 [B, K + 1, T, D] of x from `noise` [B, T, D] to the actions.

        step_noise: standard normal [B, K or 1, T, D].
        index: int64 [B], the step of each sample that draws; None: all do. explore: else none does.
        """
        if explore and index is None:
            return self._denoise_jointly(prefix, state, noise, step_noise)
        method, steps = self.config.noise_method, self.config.num_steps
        times = flow.timesteps(steps, noise.device)
        level = torch.full((len(noise),), self._noise_level(), device=noise.device)
        denoiser = Denoiser(
            self,
            prefix,
            self._own_state(state),
            times[:-1],
            noise.shape[1],
            step=self._step,
            functional=self._step is not None,
        )
        x, chain = noise, [noise]
        for k in range(steps):
            hidden = denoiser.hidden(x, k)
            velocity = self.velocity(hidden)
            now = torch.full((len(x),), k, device=x.device)
            mean, _ = flow.transition("flow_ode", x, velocity, now, times, level)
            if explore:
                assert index is not None
                drawn_mean, std = flow.transition(method, x, velocity, now, times, level)
                std = self.noise_head(hidden) if self.noise_head is not None else std
                draw = drawn_mean + std * step_noise[:, k if step_noise.shape[1] > 1 else 0]
                mean = torch.where((index == k)[:, None, None], draw, mean)
            x = mean
            chain.append(x)
        return torch.stack(chain, dim=1)

    def _denoise_jointly(self, prefix: Prefix, state: Tensor, noise: Tensor, step_noise: Tensor) -> Tensor:
        x, chain = noise, [noise]
        level = torch.full((len(noise),), self._noise_level(), device=noise.device)
        for k in range(self.config.num_steps):
            now = torch.full((len(x),), k, device=x.device)
            step = self.transition(prefix, state, x, now, level, values=False)
            x = step.mean + step.std * step_noise[:, k]
            chain.append(x)
        return torch.stack(chain, dim=1)

    def _noise_level(self) -> float:
        config = self.config
        return (
            flow.annealed(config.noise_params, self._iteration) if config.noise_anneal else config.noise_level
        )

    # -- training ----------------------------------------------------------------------------------------

    def default_forward(self, forward_inputs: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        return self._evaluate(forward_inputs, self._prefix(forward_inputs), True)

    def sft_forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        """Conditional flow matching. Chunks may be shorter than the network's horizon; steps that are padded
        or beyond the chunk repeat the last action and do not count."""
        assert self.processor is not None, "a policy without a processor cannot see an environment"
        inputs = self.processor.inputs(batch, self.device)
        actions = torch.as_tensor(batch["actions"]).to(self.device)
        pad = torch.as_tensor(batch["action_is_pad"]).to(self.device).bool()
        if actions.shape[1] > self.horizon or actions.shape[2] != self.action_dim:
            raise ValueError(
                f"actions: expected [B, up to {self.horizon}, {self.action_dim}], got {tuple(actions.shape)}"
            )
        actions, counted = _fill(self.processor.model_actions(actions, batch), pad, self.horizon)
        noise = torch.randn_like(actions)
        # Beta(1.5, 1) by its inverse distribution function, then away from 0, where nothing is left to learn.
        time = torch.rand(len(actions), device=self.device) ** (2 / 3) * 0.999 + 0.001
        error = self.flow_loss(self._observation(inputs), actions, noise, time)
        weight = counted[..., None].expand_as(error).float()
        return {"loss": (error * weight).sum() / weight.sum().clamp(min=1)}

    def _evaluate(self, inputs: dict[str, Tensor], prefix: Prefix, compute_values: bool) -> dict[str, Tensor]:
        """Log-probabilities, entropy and values of recorded chains; rollout and training call this alike."""
        chains, state, level = inputs["chains"], inputs["state"], inputs["noise_level"]
        on_expert = compute_values and self.value_head is not None and not self._value_on_vlm
        steps = chains.shape[1] - 1
        logps, entropies, values = [], [], []
        for k in range(steps):
            index = torch.full((len(chains),), k, device=chains.device)
            index = index if self.config.joint else inputs["denoise_inds"].long()
            step = self.transition(prefix, state, chains[:, k], index, level, values=on_expert)
            logps.append(flow.logprobs(chains[:, k + 1], step.mean, step.std))
            entropies.append(flow.entropy(step.std))
            values.append(step.value)
        if self.config.joint:
            first, one = chains[:, 0], torch.ones_like(chains[:, 0])
            logps.append(flow.logprobs(first, torch.zeros_like(first), one))
            entropies.append(flow.entropy(one))
        out = {"logprobs": self._reduce(logps), "entropy": self._reduce(entropies)}
        if self.config.reference_conventions and self.config.noise_method != "flow_noise":
            out["entropy"] = torch.zeros_like(out["entropy"])
        if on_expert:
            out["values"] = torch.stack([v for v in values if v is not None], dim=1).mean(dim=1, keepdim=True)
        elif compute_values and self.value_head is not None:
            assert prefix.hidden is not None
            out["values"] = self.value_head(prefix.hidden)
        return out

    def transition(
        self, prefix: Prefix, state: Tensor, x: Tensor, index: Tensor, level: Tensor, *, values: bool
    ) -> Transition:
        """The distribution of step `index` [B] from x [B, T, D] under the noise method."""
        times = flow.timesteps(self.config.num_steps, x.device)
        hidden = self.suffix_hidden(x, times[index], self._own_state(state), prefix)
        mean, std = flow.transition(self.config.noise_method, x, self.velocity(hidden), index, times, level)
        if self.noise_head is not None:
            std = self.noise_head(hidden)
        return Transition(mean, std, self.expert_value(hidden) if values else None)

    def expert_value(self, hidden: Tensor) -> Tensor:
        """The value [B] that the head reads off the expert's output [B, T, width]."""
        assert self.value_head is not None
        hidden = hidden[:, : self.chunk] if self.config.chunk_critic_input else hidden
        features = hidden.mean(dim=1)
        return self.value_head(features.detach() if self.config.detach_critic_input else features)[:, 0]

    def mean_value(self, prefix: Prefix, state: Tensor, chains: Tensor) -> Tensor:
        """The reference's value of a rollout [B, 1]: the mean over all steps of its whole chain."""
        times = flow.timesteps(self.config.num_steps, chains.device)
        values = []
        for k in range(chains.shape[1] - 1):
            time = times[k].expand(len(chains))
            hidden = self.suffix_hidden(chains[:, k], time, self._own_state(state), prefix)
            values.append(self.expert_value(hidden))
        return torch.stack(values, dim=1).mean(dim=1, keepdim=True)

    def _reduce(self, terms: list[Tensor]) -> Tensor:
        """Over denoising steps, and cut to the executed actions: float32 [B, chunk, action_dim]."""
        stacked = torch.stack(terms, dim=1)[:, :, : self.chunk, : self.action_dim]
        if self.config.joint and self.config.joint_reduction == "sum":
            return stacked.sum(dim=1)
        return stacked.mean(dim=1)

    # -- prefix ------------------------------------------------------------------------------------------

    def _prefix(self, inputs: dict[str, Tensor]) -> Prefix:
        if "prefix_keys" in inputs:
            return _prefix_from_record(inputs, self._expert_dtype)
        return self.observed_prefix(self._observation(inputs))

    def observed_prefix(self, obs: Observation) -> Prefix:
        """The prefix; where the value head reads the language model, `hidden` is what it reads [B, width]."""
        padded = self._value_on_vlm and self.config.reference_conventions
        prefix = self.prefix(obs, hidden=self._value_on_vlm, reference_padding=padded)
        if not self._value_on_vlm:
            return prefix
        pooled = self._pooled(prefix, obs, everything=padded)
        return Prefix(prefix.layers, prefix.mask, prefix.length, pooled)

    def _pooled(self, prefix: Prefix, obs: Observation, *, everything: bool) -> Tensor:
        hidden = prefix.hidden
        assert hidden is not None
        hidden = hidden.float()
        counts = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        if prefix.mask is not None and not everything:
            counts = prefix.mask
        mode = self.config.value_vlm_mode
        rows = torch.arange(len(hidden), device=hidden.device)
        if mode == "first_token":
            return hidden[rows, counts.int().argmax(dim=1)]
        if mode == "last_token":
            places = torch.arange(counts.shape[1], device=hidden.device)
            return hidden[rows, torch.where(counts, places, -1).max(dim=1).values]
        if self.config.num_images_in_input is not None:
            counts = counts.clone()
            tokens = self.sizes.vision.tokens
            words = obs.tokens.shape[1] if everything else int(obs.token_mask.sum(dim=1).max())
            counts[:, self.config.num_images_in_input * tokens : counts.shape[1] - words] = False
        weight = counts[..., None].float()
        return (hidden * weight).sum(dim=1) / weight.sum(dim=1)

    def _recorded_prefix(self, prefix: Prefix) -> dict[str, Tensor]:
        """The prefix as batch-first tensors of one width, whatever the prompts' lengths are."""
        widest = len(self.processor.data.cameras) * self.sizes.vision.tokens  # type: ignore[union-attr]
        widest += self.processor.tokenizer.max_tokens  # type: ignore[union-attr]
        batch, _, length, _ = prefix.layers[0].k.shape
        mask = prefix.mask
        if mask is None:
            mask = torch.ones(batch, length, dtype=torch.bool, device=self.device)
        room = (0, 0, 0, widest - length)
        record = {
            "prefix_keys": torch.stack([F.pad(kv.k, room) for kv in prefix.layers], dim=1),
            "prefix_values": torch.stack([F.pad(kv.v, room) for kv in prefix.layers], dim=1),
            "prefix_mask": F.pad(mask, (0, widest - length)),
        }
        if prefix.hidden is not None:
            record["prefix_hidden"] = prefix.hidden
        return record

    def _observation(self, inputs: dict[str, Tensor]) -> Observation:
        return Observation(
            images=inputs["images"],
            tokens=inputs["tokenized_prompt"].long(),
            token_mask=inputs["tokenized_prompt_mask"].bool(),
            state=self._own_state(inputs["state"]),
        )

    def _own_state(self, state: Tensor) -> Tensor | None:
        return None if self.pi05 else state


def _prefix_from_record(inputs: dict[str, Tensor], dtype: torch.dtype) -> Prefix:
    mask = inputs["prefix_mask"].bool()
    longest = int(mask.sum(dim=1).max())
    keys, values = (inputs[f"prefix_{name}"][..., :longest, :].to(dtype) for name in ("keys", "values"))
    layers = [KeyValues(k, v) for k, v in zip(keys.unbind(1), values.unbind(1))]
    mask = mask[:, :longest]
    complete = bool(mask.all())
    return Prefix(
        layers,
        None if complete else mask,
        mask.sum(dim=1)[:1] if complete else mask.sum(dim=1),
        inputs.get("prefix_hidden"),
    )


def _fill(actions: Tensor, pad: Tensor, horizon: int) -> tuple[Tensor, Tensor]:
    """Actions [B, n, D] with what is padded, and what is missing up to `horizon`, replaced by the last action
    before it (0 where there is none); and which count, bool [B, horizon]."""
    missing = horizon - actions.shape[1]
    counted = F.pad(~pad, (0, missing))
    actions = F.pad(actions, (0, 0, 0, missing))
    places = torch.arange(horizon, device=actions.device)
    last = torch.where(counted, places, -1).cummax(dim=1).values
    rows = torch.arange(len(actions), device=actions.device)[:, None]
    filled = torch.where((last >= 0)[..., None], actions[rows, last.clamp(min=0)], 0.0)
    return filled, counted
