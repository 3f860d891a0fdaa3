"""RL on flow matching against RLinf's policy, on its own draws: chains, densities, values, entropies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from openpi_case import architecture, close, load, observation
from rlinf_openpi import flow
from rlinf_openpi.config import OpenpiConfig
from rlinf_openpi.data_config import load_data_config
from rlinf_openpi.policy import OpenpiPolicy
from torch import Tensor

pytestmark = pytest.mark.golden("pi_rl")
LOGPROB, MEAN = 1e-4, 2e-5


class Variant:
    """One variant of a case: the policy that its hyper-parameters configure, on its base's observation."""

    def __init__(self, case: Any, name: str, golden_case: Any) -> None:
        self.name, self.case = name, case
        self.given = case.config["reference"]["variants"][name]
        self.base = golden_case(self.given["base"])
        reference = self.base.config["reference"]
        self.policy = self._policy(reference)
        self.obs = observation(self.base)
        self.state = self.base.inputs["state"]
        self.steps = self.given["num_steps"]

    def _policy(self, reference: dict[str, Any]) -> OpenpiPolicy:
        given, base = self.given, self.given["base"]
        keys = ("noise_method", "num_steps", "noise_level", "joint_logprob", "noise_logvar_range")
        more = ("value_after_vlm", "value_vlm_mode", "num_images_in_input", "chunk_critic_input")
        options = {key: given[key] for key in (*keys, *more) if key in given}
        heads = {
            n.removeprefix(f"{base}/"): n for n in self.case.weights if n.startswith(f"{base}/value_head.")
        }
        heads |= {
            n.removeprefix(f"{self.name}/"): n
            for n in self.case.weights
            if n.startswith(f"{self.name}/noise_head.")
        }
        weights = [n for n in heads if n.startswith("value_head.") and n.endswith(".weight")]
        hidden = [
            len(self.case.weights[heads[n]]) for n in sorted(weights, key=lambda n: int(n.split(".")[2]))
        ]
        config = OpenpiConfig(
            config_name=given.get("config_name", "pi0_libero"),
            architecture=architecture(self.base.config),
            max_action_dim=reference["action_dim"],
            action_horizon=reference["action_horizon"],
            reference_conventions=True,
            value_hidden=tuple(hidden[:-1]),
            **options,
        )
        data = load_data_config(config.config_name)
        assert data.pi05 == reference["pi05"]
        policy = OpenpiPolicy(
            config, data, num_action_chunks=given["action_chunk"], action_dim=given["action_env_dim"]
        )
        network = dict(self.base.weights.items())
        network |= {n: self.case.weights[stored].float() for n, stored in heads.items()}
        return load(policy, network)

    def input(self, name: str) -> Tensor:
        return self.case.inputs[f"{self.name}/{name}"]

    def output(self, tag: str, name: str) -> Tensor:
        return self.case.outputs[f"{tag}.{name}"]

    @property
    def rollouts(self) -> list[tuple[str, Tensor | None]]:
        """(tag, index of the random step for each sample, or None where every step is random)."""
        batch = len(self.input("noise_init"))
        if self.given["joint_logprob"]:
            return [(self.name, None)]
        tags = [(f"{self.name}.ind{k}", torch.full((batch,), k)) for k in range(self.steps)]
        return [(tag, index) for tag, index in tags if f"{tag}.chains" in self.case.outputs]

    def recompute(self, chains: Tensor, index: Tensor | None, prefix: Any) -> dict[str, Tensor]:
        inputs = {"state": self.state, "noise_level": torch.full((len(chains),), self.policy._noise_level())}
        rows = torch.arange(len(chains))
        if index is None:
            inputs["chains"] = chains
        else:
            inputs["denoise_inds"] = index
            inputs["chains"] = torch.stack([chains[rows, index], chains[rows, index + 1]], dim=1)
        return self.policy._evaluate(inputs, prefix, True)


@pytest.fixture
def variants(case: Any, golden_case: Any) -> list[Variant]:
    return [Variant(case, name, golden_case) for name in case.config["reference"]["variants"]]


@torch.no_grad()
def test_rollout_and_recomputation(variants: list[Variant]) -> None:
    for variant in variants:
        policy = variant.policy
        prefix = policy.observed_prefix(variant.obs)
        times = flow.timesteps(variant.steps)
        close(times, variant.output(variant.name, "timesteps"), 1e-7, "timesteps")
        noise = variant.input("noise_init")
        step_noise = variant.input("noise_steps").transpose(0, 1)
        for tag, index in variant.rollouts:
            chains = policy.denoise(prefix, variant.state, noise=noise, step_noise=step_noise, index=index)
            close(chains, variant.output(tag, "chains"), MEAN, f"{tag}.chains")
            close(chains[:, -1], variant.output(tag, "actions"), MEAN, f"{tag}.actions")
            check_steps(variant, tag, index, chains, prefix)
            check_density(variant, tag, index, chains, prefix)


def check_steps(variant: Variant, tag: str, index: Tensor | None, chains: Tensor, prefix: Any) -> None:
    """Mean, deviation, velocity and value of every step of a rollout."""
    policy, inds = variant.policy, variant.output(tag, "denoise_inds")
    level = torch.full((len(chains),), policy._noise_level())
    on_expert = not variant.given.get("value_after_vlm", False)
    found: dict[str, list[Tensor]] = {"step_mean": [], "step_std": [], "step_velocity": [], "step_value": []}
    times = flow.timesteps(variant.steps)
    for k in range(variant.steps):
        now = torch.full((len(chains),), k)
        x = chains[:, k]
        state = policy._own_state(variant.state)
        velocity = policy.velocity(policy.suffix_hidden(x, times[now], state, prefix))
        step = policy.transition(prefix, variant.state, x, now, level, values=on_expert)
        euler, zero = flow.transition("flow_ode", x, velocity, now, times, level)
        random = (inds[:, k] == k)[:, None, None]
        assert index is None or torch.equal(random.flatten(), index == k)
        found["step_mean"].append(torch.where(random, step.mean, euler))
        found["step_std"].append(torch.where(random, step.std, zero))
        found["step_velocity"].append(velocity)
        found["step_value"].append(torch.zeros(len(x)) if step.value is None else step.value)
    for name, values in found.items():
        close(torch.stack(values, dim=1), variant.output(tag, name), MEAN, f"{tag}.{name}")


def check_density(variant: Variant, tag: str, index: Tensor | None, chains: Tensor, prefix: Any) -> None:
    """Log-probabilities, values and entropy, of the rollout and recomputed."""
    policy = variant.policy
    out = variant.recompute(chains, index, prefix)
    close(out["logprobs"], variant.output(tag, "prev_logprobs"), LOGPROB, f"{tag}.prev_logprobs")
    close(out["logprobs"], variant.output(tag, "train_logprobs"), LOGPROB, f"{tag}.train_logprobs")
    close(out["values"][:, 0], variant.output(tag, "train_values"), MEAN, f"{tag}.train_values")
    rollout = out["values"]
    if not variant.given.get("value_after_vlm", False):
        rollout = policy.mean_value(prefix, variant.state, chains)
    close(rollout, variant.output(tag, "prev_values"), MEAN, f"{tag}.prev_values")
    entropy = out["entropy"].mean(dim=(1, 2))[:, None]
    close(entropy, variant.output(tag, "train_entropy"), LOGPROB, f"{tag}.train_entropy")
    check_training_steps(variant, tag, index, chains, prefix)


def check_training_steps(
    variant: Variant, tag: str, index: Tensor | None, chains: Tensor, prefix: Any
) -> None:
    level = torch.full((len(chains),), variant.policy._noise_level())
    rows = torch.arange(len(chains))
    steps = []
    for k in range(variant.steps if index is None else 1):
        now = torch.full((len(chains),), k) if index is None else index
        x = chains[rows, now]
        steps.append(variant.policy.transition(prefix, variant.state, x, now, level, values=False))
    means, stds = torch.stack([s.mean for s in steps], 1), torch.stack([s.std for s in steps], 1)
    close(means, variant.output(tag, "train_step_mean"), MEAN, f"{tag}.train_step_mean")
    close(stds, variant.output(tag, "train_step_std"), MEAN, f"{tag}.train_step_std")


@torch.no_grad()
def test_an_index_per_sample(variants: list[Variant]) -> None:
    """Another random step for every row of one recorded chain."""
    for variant in variants:
        tag = f"{variant.name}.mixed_on_ind1_chain"
        inds = variant.input("mixed_denoise_inds")
        if f"{tag}.train_logprobs" not in variant.case.outputs:
            continue
        chains = variant.output(f"{variant.name}.ind1", "chains")
        prefix = variant.policy.observed_prefix(variant.obs)
        index = inds[:, 0]
        out = variant.recompute(chains, index, prefix)
        close(out["logprobs"], variant.output(tag, "train_logprobs"), LOGPROB, f"{tag}.train_logprobs")
        close(out["values"][:, 0], variant.output(tag, "train_values"), MEAN, f"{tag}.train_values")
        entropy = out["entropy"].mean(dim=(1, 2))[:, None]
        close(entropy, variant.output(tag, "train_entropy"), LOGPROB, f"{tag}.train_entropy")
        check_training_steps(variant, tag, index, chains, prefix)


@torch.no_grad()
def test_evaluation(variants: list[Variant]) -> None:
    for variant in variants:
        policy, tag = variant.policy, f"{variant.name}.eval"
        prefix = policy.observed_prefix(variant.obs)
        noise = variant.input("noise_init")
        chains = policy.denoise(prefix, variant.state, noise=noise, step_noise=noise[:, None], explore=False)
        close(chains, variant.output(tag, "chains"), MEAN, f"{tag}.chains")
        close(chains[:, -1], variant.output(tag, "actions"), MEAN, f"{tag}.actions")
        if variant.given.get("value_after_vlm", False):
            values = policy.value_head(prefix.hidden)  # type: ignore[misc]
        else:
            values = policy.mean_value(prefix, variant.state, chains)
        close(values, variant.output(tag, "prev_values"), MEAN, f"{tag}.prev_values")
        reference = variant.output(tag, "prev_logprobs")
        if variant.given["joint_logprob"]:  # only the initial noise was drawn: its density over K + 1 terms
            first = flow.logprobs(noise, torch.zeros_like(noise), torch.ones_like(noise))
            first = first[:, : policy.chunk, : policy.action_dim] / (variant.steps + 1)
            close(first, reference, LOGPROB, f"{tag}.prev_logprobs")
        else:
            assert not reference.any(), "a deterministic step has log-probability 0 in the reference"
