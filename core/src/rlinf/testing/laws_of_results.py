"""Laws of what a policy returns: shapes, dtypes, keys, and recomputation of what was recorded."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import torch

from rlinf.testing.law import broken, law, listed, require, require_close, require_tensor
from rlinf.testing.material import act, generators, recompute, recorded, rows
from rlinf.testing.subject import PolicySubject


class ResultLaws(PolicySubject):
    """Contract of `predict_action_batch` and `default_forward`."""

    @law(cause="the chunk is left flattened, or the last layer's bfloat16 or numpy's float64 comes through")
    def test_actions_are_float32_chunks(self) -> None:
        """Actions are float32 [B, chunk, action_dim], finite, and carry no gradient, in both modes."""
        policy = self.build()
        for mode in ("train", "eval"):
            actions, _ = act(policy, self.observation(), mode, generators(4))
            require_tensor(
                f"actions of mode {mode!r}", actions, torch.float32, (4, self.chunk, self.action_dim)
            )
            require(not actions.requires_grad, f"actions of mode {mode!r} require a gradient")

    @law(
        needs=["rl"],
        cause="a missing key, a value head that returns [B], or a number that stands for the batch",
    )
    def test_recorded_result_has_the_contract_keys(self) -> None:
        """The result holds prev_logprobs float32 [B, chunk, action_dim], prev_values float32 [B, 1], and
        forward_inputs whose every entry has a row per sample."""
        _, result = act(self.build(), self.observation(), "train", generators(4))
        _require_keys("the result of predict_action_batch", result, ["prev_logprobs", "forward_inputs"])
        shape = (4, self.chunk, self.action_dim)
        require_tensor("prev_logprobs", result["prev_logprobs"], torch.float32, shape)
        if self.has("values"):
            _require_keys("the result of predict_action_batch", result, ["prev_values"])
            require_tensor("prev_values", result["prev_values"], torch.float32, (4, 1))
        for name, value in result["forward_inputs"].items():
            is_batch = isinstance(value, torch.Tensor) and value.dim() > 0 and len(value) == 4
            require(is_batch, f"forward_inputs[{name!r}] is no tensor with 4 rows: {_shape(value)}")

    @law(needs=["rl"], cause="prompts are padded to the longest of the batch instead of to a fixed length")
    def test_forward_inputs_stack_over_steps(self) -> None:
        """Names, dtypes and shapes of forward_inputs are the same at every step, whatever the instructions
        are: the trainer stacks them."""
        policy, found = self.build(), []
        for text in (min(self.instructions, key=len), max(self.instructions, key=len)):
            obs = {**self.observation(2), "task_descriptions": [text] * 2}
            inputs = act(policy, obs, "train", generators(2))[1]["forward_inputs"]
            found.append({name: (value.dtype, tuple(value.shape)) for name, value in inputs.items()})
        changed = [name for name in found[0] | found[1] if found[0].get(name) != found[1].get(name)]
        short, long = ([one.get(name) for name in changed] for one in found)
        require(
            not changed, f"{listed(changed)}: {short} with the shortest instruction, {long} with the longest"
        )

    @law(
        needs=["rl"],
        cause="actions are clipped, rounded or filtered (temperature, top-k) on one of the two sides only, "
        "or forward_inputs hold something else than what the policy saw",
    )
    def test_recomputed_logprobs_equal_recorded(self) -> None:
        """On unchanged weights default_forward gives the log-probabilities that were recorded."""
        self._require_recomputed(self.build(), "train")

    @law(
        needs=["rl", "values"],
        cause="the value head reads other features in default_forward than in the rollout",
    )
    def test_recomputed_values_equal_recorded(self) -> None:
        """On unchanged weights default_forward gives the values that were recorded."""
        policy = self.build()
        _, result = act(policy, self.observation(), "train", generators(4))
        _require_keys("the result of predict_action_batch", result, ["prev_values"])
        out = recompute(policy, result["forward_inputs"])
        _require_keys("the result of default_forward", out, ["values"])
        require_close("recorded and recomputed values", out["values"], result["prev_values"], self.atol)

    @law(
        needs=["rl"], cause="a statistic over the batch, or an index that counts rows of the rollout's batch"
    )
    def test_any_rows_can_be_recomputed(self) -> None:
        """A shuffled part of the recorded rows gives what the whole gives: minibatches are random."""
        policy = self.build()
        _, result = act(policy, self.plain_observation(6), "train", generators(6))
        index = [4, 1, 5]
        inputs = recorded(result["forward_inputs"])
        whole, part = recompute(policy, inputs), recompute(policy, rows(inputs, index))
        for key in sorted(set(whole) & {"logprobs", "values"}):
            require_close(
                f"{key} of rows {index}, alone and among 6", part[key], whole[key][index], self.atol
            )

    @law(needs=["rl"], cause="dropout, or batch statistics: switch them off in default_forward")
    def test_training_mode_changes_no_probability(self) -> None:
        """default_forward gives the same log-probabilities under policy.train(), in which the trainer works,
        and under policy.eval(), in which they were recorded: an update begins with ratio 1."""
        policy = self.build()
        _, result = act(policy, self.observation(), "train", generators(4))
        evaluating = recompute(policy, result["forward_inputs"])["logprobs"]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            training = recompute(policy.train(), result["forward_inputs"])["logprobs"]
        require_close("log-probabilities of train() and eval()", training, evaluating, self.atol)

    @law(
        needs=["rl"],
        cause="the filter acts where actions are drawn, but not where probabilities are recomputed",
    )
    def test_rollout_and_training_share_the_sampling_filters(self) -> None:
        """With the filters that `sampling_filters` configures, recomputed log-probabilities equal the
        recorded ones; and what mode "eval" records can be recomputed as well."""
        if self.sampling_filters:
            self._require_recomputed(self.build(**self.sampling_filters), "train")
        self._require_recomputed(self.build(), "eval")

    @law(
        needs=["rl", "entropy"],
        cause="noise of another scale than the density's, or an entropy of another distribution",
    )
    def test_samples_follow_the_density(self) -> None:
        """The mean of -log p over samples is the entropy: what is drawn is what the density describes."""
        policy, batch = self.build(), 64
        _, result = act(policy, self.observation(batch), "train", generators(batch))
        out = recompute(policy, result["forward_inputs"])
        _require_keys("the result of default_forward", out, ["entropy"])
        surprise, entropy = -result["prev_logprobs"].flatten(1), out["entropy"].detach().flatten(1)
        # Per sample: entropy [B, 1] is that of the whole chunk, else one number per action dimension.
        gap = (surprise.sum(1) - entropy.sum(1)) / surprise.shape[1]
        limit = 5 * float(gap.std()) / math.sqrt(batch) + self.atol
        mean = float(gap.mean())
        require(
            abs(mean) <= limit,
            f"the mean of -log p is {mean:+.3g} nats per dimension off the entropy; five standard errors of "
            f"{batch} samples are {limit:.3g}",
        )

    @law(needs=["rl"], cause="a key is missing, or it has the dtype of the weights, or the shape [B]")
    def test_training_result_has_the_contract_keys(self) -> None:
        """default_forward returns logprobs float32 [B, chunk, action_dim], values float32 [B, 1] and entropy
        float32 [B, chunk, action_dim] or [B, 1], all finite, logprobs and values with gradients."""
        policy = self.build()
        _, result = act(policy, self.observation(), "train", generators(4))
        out = recompute(policy, result["forward_inputs"])
        shape = (4, self.chunk, self.action_dim)
        _require_keys("the result of default_forward", out, ["logprobs"])
        require_tensor("logprobs", out["logprobs"], torch.float32, shape)
        require(out["logprobs"].requires_grad, "logprobs carry no gradient")
        if self.has("values"):
            _require_keys("the result of default_forward", out, ["values"])
            require_tensor("values", out["values"], torch.float32, (4, 1))
            require(out["values"].requires_grad, "values carry no gradient")
        if self.has("entropy"):
            _require_keys("the result of default_forward", out, ["entropy"])
            allowed = (4, 1) if out["entropy"].dim() == 2 else shape
            require_tensor("entropy", out["entropy"], torch.float32, allowed)

    @law(
        needs=["rl", "bf16"], cause="the density is computed in the dtype of the weights and cast afterwards"
    )
    def test_logprobs_are_float32_under_bf16_weights(self) -> None:
        """With bfloat16 weights log-probabilities are computed in float32, not merely stored in it."""
        policy = self.build(precision="bf16")
        _, result = act(policy, self.observation(), "train", generators(4))
        out = recompute(policy, result["forward_inputs"])
        for name, value in (("prev_logprobs", result["prev_logprobs"]), ("logprobs", out["logprobs"])):
            require(value.dtype == torch.float32, f"{name} are {value.dtype}")
            coarse = float((value.bfloat16().float() == value).float().mean())
            require(coarse < 0.5, f"{coarse:.0%} of {name} have no more digits than bfloat16")

    @law(needs=["rl", "bf16"], cause="forward_inputs hold the actions in the dtype of the weights")
    def test_recomputation_holds_under_bf16_weights(self) -> None:
        """With bfloat16 weights, too, default_forward gives the log-probabilities that were recorded."""
        self._require_recomputed(self.build(precision="bf16"), "train")

    @law(cause="normalisation in place; torch.as_tensor and torch.from_numpy share memory with numpy")
    def test_observation_is_left_alone(self) -> None:
        """predict_action_batch does not change the observation that it is given."""
        obs = self.observation()
        before = copy.deepcopy(obs)
        self.build().predict_action_batch(obs, mode="train", generators=generators(4))
        changed = [key for key in before if not _same(before[key], obs.get(key))]
        require(obs.keys() == before.keys() and not changed, f"changed: {listed(changed or sorted(obs))}")

    def _require_recomputed(self, policy: Any, mode: str) -> None:
        _, result = act(policy, self.observation(), mode, generators(4))
        out = recompute(policy, result["forward_inputs"])
        what = f"recorded (mode {mode!r}) and recomputed log-probabilities"
        require_close(what, out["logprobs"], result["prev_logprobs"], self.atol)


def _require_keys(what: str, result: dict[str, Any], keys: list[str]) -> None:
    missing = [key for key in keys if result.get(key) is None]
    if missing:
        broken(f"{what} lacks {', '.join(missing)}; it has {', '.join(result) or 'nothing'}")


def _shape(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, torch.Tensor) else type(value).__name__


def _same(one: Any, other: Any) -> bool:
    return np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other
