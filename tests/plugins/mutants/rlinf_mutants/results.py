"""Defects of what a policy returns."""

from __future__ import annotations

from typing import Any

import torch
from rlinf.models.embodiment.sampling import gaussian_logprobs
from torch import Tensor, nn

from rlinf_mutants.correct import Correct
from rlinf_mutants.registry import mutant


class Amending(Correct):
    """A correct policy whose results a subclass changes."""

    def amend(self, actions: Tensor, result: dict[str, Any], mode: str) -> tuple[Tensor, dict[str, Any]]:
        return actions, result

    def predict_action_batch(
        self, env_obs: dict[str, Any], mode: str = "train", compute_values: bool = True, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Any]]:
        actions, result = super().predict_action_batch(env_obs, mode, compute_values, **kwargs)
        return self.amend(actions, result, mode)


@mutant("test_actions_are_float32_chunks")
class FlatActions(Amending):
    """Actions come as [B, chunk * action_dim]."""

    def amend(self, actions: Tensor, result: dict[str, Any], mode: str) -> tuple[Tensor, dict[str, Any]]:
        return actions.flatten(1), result


@mutant("test_actions_are_float32_chunks")
class DoubleActions(Amending):
    """Actions come as float64."""

    def amend(self, actions: Tensor, result: dict[str, Any], mode: str) -> tuple[Tensor, dict[str, Any]]:
        return actions.double(), result


@mutant(
    "test_recorded_result_has_the_contract_keys",
    also=("test_training_result_has_the_contract_keys",),
    because="the head gives the wrong shape on both sides",
)
class FlatValues(Amending):
    """Values come as [B]."""

    def amend(self, actions: Tensor, result: dict[str, Any], mode: str) -> tuple[Tensor, dict[str, Any]]:
        return actions, {**result, "prev_values": result["prev_values"][:, 0]}

    def default_forward(self, forward_inputs: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        out = super().default_forward(forward_inputs)
        return {**out, "values": out["values"][:, 0]}


@mutant(
    "test_recorded_result_has_the_contract_keys",
    also=("test_any_rows_can_be_recomputed", "test_two_ranks_train_as_one"),
    because="what has no row per sample cannot be cut into minibatches, nor dealt out to ranks",
)
class SharedInput(Amending):
    """forward_inputs hold a tensor that is not per sample."""

    def amend(self, actions: Tensor, result: dict[str, Any], mode: str) -> tuple[Tensor, dict[str, Any]]:
        result["forward_inputs"]["noise_schedule"] = torch.zeros(2)
        return actions, result


@mutant("test_forward_inputs_stack_over_steps")
class PromptsOfTheBatch(Correct):
    """Prompts are padded to the longest of the batch only."""

    def tokens(self, texts: Any) -> Tensor:
        tokens = super().tokens(texts)
        return tokens[:, : int((tokens != 0).sum(1).max())]


@mutant(
    "test_recomputed_logprobs_equal_recorded",
    also=("test_recomputation_holds_under_bf16_weights",),
    because="it is the same law for other weights",
)
class ClippedRecord(Amending):
    """The trainer gets the clipped actions, the log-probabilities are those of the samples."""

    def amend(self, actions: Tensor, result: dict[str, Any], mode: str) -> tuple[Tensor, dict[str, Any]]:
        if mode == "train":
            result["forward_inputs"]["action"] = actions.clamp(-0.5, 0.5)
        return actions, result


@mutant("test_recomputation_holds_under_bf16_weights")
class RoundedRecord(Amending):
    """The trainer gets the sampled actions in the dtype of the weights."""

    def amend(self, actions: Tensor, result: dict[str, Any], mode: str) -> tuple[Tensor, dict[str, Any]]:
        result["forward_inputs"]["action"] = actions.to(self.state.weight.dtype)
        return actions, result


class Tempered(Correct):
    """Samples at a temperature that training does not know."""

    temperature = 1.3

    def predict_action_batch(
        self, env_obs: dict[str, Any], mode: str = "train", *args: Any, generators: Any = None, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Any]]:
        actions, result = super().predict_action_batch(env_obs, mode, *args, generators=generators, **kwargs)
        if mode == "train":
            mean, log_std = self.action_head(self.features(result["forward_inputs"])[0])
            std = log_std.exp() * self.temperature
            mean, std = mean.detach(), std.detach()
            actions = mean + (actions - mean) * self.temperature
            result["prev_logprobs"] = gaussian_logprobs(actions, mean, std.log())
            result["forward_inputs"]["action"] = actions
        return actions, result


@mutant(
    "test_recomputed_logprobs_equal_recorded",
    also=("test_samples_follow_the_density", "test_recomputation_holds_under_bf16_weights"),
    because="default_forward's entropy is not that of the samples either, nor do other weights help",
)
class SecretTemperature(Tempered):
    """The rollout samples at temperature 1.3, training computes at 1."""


@mutant(
    "test_rollout_and_training_share_the_sampling_filters",
    sampling_filters={"mutant_configured_temperature": {"temperature": 1.5}},
)
class ConfiguredTemperature(Tempered):
    """The configured temperature acts in the rollout only."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.temperature = (cfg.get(cfg.model_type) or {}).get("temperature", 1.0)


@mutant("test_recomputed_values_equal_recorded")
class ScaledValues(Amending):
    """The rollout scales values back, training does not."""

    def amend(self, actions: Tensor, result: dict[str, Any], mode: str) -> tuple[Tensor, dict[str, Any]]:
        return actions, {**result, "prev_values": result["prev_values"] * 1.1}


@mutant(
    "test_any_rows_can_be_recomputed",
    also=("test_gradient_reaches_every_trainable_parameter",),
    because="what comes out of the cache has no gradient",
)
class CachedByPosition(Correct):
    """default_forward takes image features from a cache of the rollout, by their place in the batch."""

    cache: Tensor | None = None
    reading = False

    def predict_action_batch(self, *args: Any, **kwargs: Any) -> Any:
        self.reading = False
        actions, result = super().predict_action_batch(*args, **kwargs)
        self.cache = self.see(result["forward_inputs"]["images"]).detach()
        return actions, result

    def default_forward(self, forward_inputs: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        self.reading = True
        return super().default_forward(forward_inputs)

    def see(self, images: Tensor) -> Tensor:
        if self.reading and self.cache is not None:
            return self.cache[: len(images)]
        return super().see(images)


@mutant("test_training_mode_changes_no_probability")
class Dropout(Correct):
    """Dropout in the trunk, active in the trainer."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.dropout = nn.Dropout(0.1)

    def layer(self, i: int, x: Tensor) -> Tensor:
        return self.dropout(super().layer(i, x))


@mutant("test_samples_follow_the_density")
class LoudNoise(Correct):
    """Noise is 1.5 times as wide as the density says."""

    def predict_action_batch(
        self, env_obs: dict[str, Any], mode: str = "train", *args: Any, generators: Any = None, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Any]]:
        actions, result = super().predict_action_batch(env_obs, mode, *args, generators=generators, **kwargs)
        if mode == "train":
            mean, log_std = self.action_head(self.features(result["forward_inputs"])[0])
            mean, log_std = mean.detach(), log_std.detach()
            actions = mean + 1.5 * (actions - mean)
            result["prev_logprobs"] = gaussian_logprobs(actions, mean, log_std)
            result["forward_inputs"]["action"] = actions
        return actions, result


@mutant(
    "test_training_result_has_the_contract_keys",
    also=("test_samples_follow_the_density",),
    because="without an entropy there is nothing to compare the samples with",
)
class NoEntropy(Correct):
    """default_forward returns no entropy, and nothing declares it."""

    def default_forward(self, forward_inputs: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        out = super().default_forward(forward_inputs)
        return {key: out[key] for key in ("logprobs", "values")}


@mutant("test_logprobs_are_float32_under_bf16_weights")
class CoarseDensity(Amending):
    """Log-probabilities are computed in the dtype of the weights and cast to float32."""

    def amend(self, actions: Tensor, result: dict[str, Any], mode: str) -> tuple[Tensor, dict[str, Any]]:
        return actions, {**result, "prev_logprobs": self.coarse(result["prev_logprobs"])}

    def default_forward(self, forward_inputs: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        out = super().default_forward(forward_inputs)
        return {**out, "logprobs": self.coarse(out["logprobs"])}

    def coarse(self, logprobs: Tensor) -> Tensor:
        return logprobs.to(self.state.weight.dtype).float()


@mutant("test_observation_is_left_alone")
class EditsObservation(Correct):
    """States are normalised in place."""

    def inputs(self, env_obs: dict[str, Any]) -> dict[str, Tensor]:
        env_obs["states"] -= 0.5
        return super().inputs(env_obs)
