"""`rlinf.algorithms` against the recorded reference. Where the reference divides by the wrong count or leaves
garbage at masked entries, the exact relation to the recorded value is tested; everything else is equal.
"""

from __future__ import annotations

import pytest
import torch
from rlinf import algorithms as A
from rlinf.algorithms.levels import align
from torch import Tensor
from torch.testing import assert_close

pytestmark = pytest.mark.golden("algorithms")

ATOL, GRAD_ATOL = 1e-6, 1e-7
VARIANTS = {"plain", "dual", "ratio", "nomask", "small_huber", "clip_log_ratio"}


def close(ours: Tensor, recorded: Tensor, atol: float = ATOL) -> None:
    assert_close(ours.reshape(recorded.shape), recorded, atol=atol, rtol=1e-6)


# -- flat ----------------------------------------------------------------------------------------------------


def flat_gae(case) -> tuple[Tensor, Tensor]:
    plain, given = case.config["plain"], case.inputs
    return A.gae(
        given["flat.rewards"],
        given["flat.values"],
        given["flat.dones"],
        gamma=plain["gamma"],
        gae_lambda=plain["gae_lambda"],
    )


def test_gae(case):
    advantages, returns = flat_gae(case)
    close(advantages, case.outputs["flat.gae.advantages.normalised_False"])
    close(returns, case.outputs["flat.gae.returns.normalised_False"])
    close(returns, case.outputs["flat.gae.returns.normalised_True"])


def test_normalised_advantages_are_the_recorded_ones_with_masked_entries_zeroed(case):
    mask = case.inputs["flat.loss_mask"]
    ours = A.normalize_masked(flat_gae(case)[0], mask)
    close(ours, case.outputs["flat.gae.advantages.normalised_True"] * mask)


def test_critic_free_returns(case):
    rewards, dones, mask = (case.inputs[f"flat.{name}"] for name in ("rewards", "dones", "loss_mask"))
    close(A.discounted_returns(rewards, dones, gamma=1.0), case.outputs["flat.critic_free.returns"])
    # Without a critic the reference's GAE is REINFORCE++ without its baseline (up to where eps stands).
    ours = A.reinforce_pp_advantages(rewards, dones, mask, gamma=1.0)
    close(ours, case.outputs["flat.critic_free.advantages"] * mask)


# -- rollouts [T, B, chunk] ----------------------------------------------------------------------------------


def test_loss_mask(case):
    mask, total = A.loss_mask_from_dones(case.inputs["dones"])
    for recorded in (case.inputs, case.outputs):
        assert torch.equal(mask, recorded["loss_mask"])
        close(total, recorded["loss_mask_sum"])


@pytest.mark.golden("algorithms", each=r"embodied\.(\w+)\.(\w+)\.(masked|unmasked)\.")
def test_rollout_advantages(case, match):
    adv_type, reward_type, masked = match
    plain, given, name = case.config["plain"], case.inputs, "embodied." + ".".join(match)
    mask = given["loss_mask"] if masked == "masked" else None
    counts = torch.ones_like(given["rewards"], dtype=torch.bool) if mask is None else mask
    counts = counts.any(-1, keepdim=True) if reward_type == "chunk_level" else counts

    def ours(normalize: bool) -> A.AdvantageResult:
        return A.compute_advantages(
            adv_type=adv_type,
            rewards=given["rewards"],
            values=given[f"values_{reward_type}"],
            dones=given["dones"],
            loss_mask=mask,
            gamma=plain["gamma"],
            gae_lambda=plain["gae_lambda"],
            group_size=plain["group_size"],
            reward_type=reward_type,
            normalize_advantages=normalize,
        )

    # The reference leaves its numbers in the entries that do not count; here they are 0.
    result = ours(normalize=True)
    close(result.advantages, case.outputs[f"{name}.advantages"] * counts)
    if adv_type == "gae":
        close(ours(normalize=False).advantages, case.outputs[f"{name}.advantages_raw"] * counts)
        close(result.returns, case.outputs[f"{name}.returns"] * counts)
    else:
        assert result.returns is None


# -- losses --------------------------------------------------------------------------------------------------


class Ppo:
    """Our loss on the inputs of one recorded variant, and by what the reference's counts differ from ours."""

    def __init__(self, case, logprob_type: str, reward_type: str, variant: str) -> None:
        assert variant in VARIANTS, f"no test knows the variant {variant!r}"
        plain, given = case.config["plain"], case.inputs
        level = reward_type.removesuffix("_level")
        self.logprobs = given["logprobs"].requires_grad_()
        self.values = given[f"{level}.values"].requires_grad_()
        self.old_values, self.value_clip = given[f"{level}.prev_values"], plain["value_clip"]
        self.advantages = given[f"{level}.advantages"]
        self.mask = None if variant == "nomask" else given[f"{level}.loss_mask"]
        weights = None
        if variant == "ratio":
            total = given[f"{level}.loss_mask_sum"]
            weights = A.episode_weights(self.mask, total, plain["max_episode_steps"])
        self.settings = {
            "logprobs": self.logprobs,
            "old_logprobs": given["old_logprobs"],
            "advantages": self.advantages,
            "loss_mask": self.mask,
            "values": self.values,
            "old_values": self.old_values,
            "returns": given[f"{level}.returns"],
            "logprob_type": logprob_type,
            "reward_type": reward_type,
            "clip_ratio_low": plain["clip_ratio_low"],
            "clip_ratio_high": plain["clip_ratio_high"],
            "clip_ratio_c": plain["clip_ratio_c"] if variant == "dual" else None,
            "clip_log_ratio": tuple(plain["clip_log_ratio"]) if variant == "clip_log_ratio" else None,
            "value_clip": self.value_clip,
            "huber_delta": plain["huber_delta_small" if variant == "small_huber" else "huber_delta"],
            "value_coef": 1.0,
            "weights": weights,
        }
        # An entry of the mask covers this many elements; the reference divides by the number of entries.
        elements = A.reduce_logprobs(self.logprobs, logprob_type)
        covered = elements.numel() // self.advantages.numel()
        self.count = 1 if variant == "nomask" else covered
        self.loss_count = 1 if variant == "ratio" else self.count  # its plain mean is over all elements
        self.ratio_count = 1 if logprob_type == "token_level" else self.count  # the metric expands the mask

    def __call__(self, loss_type: str = "actor_critic") -> tuple[Tensor, dict[str, Tensor]]:
        return A.ppo_loss(loss_type=loss_type, **self.settings)


EACH_PPO = pytest.mark.golden("algorithms", each=r"ppo\.(\w+)\.(\w+)\.(\w+)\.")


@EACH_PPO
def test_loss_and_gradients_are_the_recorded_ones_up_to_the_count(case, match):
    ppo, name = Ppo(case, *match), "ppo." + ".".join(match)
    loss, metrics = ppo()
    policy, value = metrics["actor/policy_loss"], metrics["critic/value_loss"]
    close(policy * ppo.loss_count, case.outputs[f"{name}.actor_policy_loss"])
    close(value, case.outputs[f"{name}.critic_value_loss"])
    close(policy * ppo.loss_count + value, case.outputs[f"{name}.loss"])
    close(policy + value, loss.detach())
    loss.backward()
    close(ppo.logprobs.grad * ppo.loss_count, case.outputs[f"{name}.grad_logprobs"], GRAD_ATOL)
    close(ppo.values.grad, case.outputs[f"{name}.grad_values"], GRAD_ATOL)
    if f"{name}.actor_only_loss" in case.outputs:
        close(ppo("actor")[0] * ppo.loss_count, case.outputs[f"{name}.actor_only_loss"])


@EACH_PPO
def test_metrics_are_the_recorded_ones_up_to_the_count(case, match):
    ppo, name = Ppo(case, *match), "ppo." + ".".join(match)
    metrics = ppo()[1]
    close(metrics["actor/approx_kl"] * ppo.count, case.outputs[f"{name}.actor_approx_kl"])
    close(metrics["actor/clip_fraction"] * ppo.count, case.outputs[f"{name}.actor_clip_fraction"])
    close(metrics["actor/ratio"] * ppo.ratio_count, case.outputs[f"{name}.actor_ratio"])
    recorded = case.outputs[f"{name}.actor_dual_cliped_ratio"]
    close(metrics["actor/dual_clipped_ratio"] * ppo.ratio_count, recorded)
    for share in ("actor/clip_fraction", "actor/dual_clip_fraction", "critic/value_clip_ratio"):
        assert 0 <= metrics[share] <= 1
    assert metrics["actor/approx_kl_k3"] >= 0


@EACH_PPO
def test_value_clip_ratio_counts_what_the_reference_sees_through_rounding_only(case, match):
    """The reference compares the clipped update with the bound, which only a rounding error exceeds."""
    ppo, name = Ppo(case, *match), "ppo." + ".".join(match)
    old, bound = ppo.old_values, ppo.value_clip
    update = ppo.values.detach() - old
    recomputed = (old + update.clamp(-bound, bound) - old).abs() > bound
    close(recomputed.float().mean(), case.outputs[f"{name}.critic_value_clip_ratio"])
    counts = torch.ones_like(recomputed) if ppo.mask is None else ppo.mask
    close(ppo()[1]["critic/value_clip_ratio"], (update.abs() > bound)[counts].float().mean())


@pytest.mark.golden("algorithms", each=r"ppo\.(\w+)\.(\w+)\.(\w+)\.(?:reduced|expanded)_")
def test_reductions(case, match):
    name, level = "ppo." + ".".join(match), match[1].removesuffix("_level")
    new = A.reduce_logprobs(case.inputs["logprobs"], match[0])
    close(new, case.outputs[f"{name}.reduced_logprobs"])
    close(
        A.reduce_logprobs(case.inputs["old_logprobs"], match[0]), case.outputs[f"{name}.reduced_old_logprobs"]
    )
    for ours in ("advantages", "loss_mask"):
        recorded = case.outputs[f"{name}.expanded_{ours}"]
        assert torch.equal(align(case.inputs[f"{level}.{ours}"], new).reshape(recorded.shape), recorded)


def test_combination_that_the_reference_skips(case):
    """One ratio per chunk and an advantage per action: refused, unless a chunk is one action anyway."""
    ppo = Ppo(case, "action_level", "action_level", "plain")
    settings = ppo.settings | {"logprob_type": "chunk_level"}
    if ppo.logprobs.shape[1] == 1:
        assert_close(A.ppo_loss(loss_type="actor", **settings)[0], ppo("actor")[0])
        return
    with pytest.raises(ValueError, match="logprob_type chunk_level needs reward_type chunk_level"):
        A.ppo_loss(loss_type="actor", **settings)


# -- element-wise --------------------------------------------------------------------------------------------


@pytest.mark.golden("algorithms", each=r"((?:masked_)?logits)\.")
def test_logits(case, match):
    logits = case.inputs[match[0]].requires_grad_()
    targets = case.inputs["targets_masked" if match[0] == "masked_logits" else "targets"]
    logprobs, entropy = A.logprobs_from_logits(logits, targets), A.entropy_from_logits(logits)
    close(logprobs.detach(), case.outputs[f"{match[0]}.logprobs"])
    close(entropy.detach(), case.outputs[f"{match[0]}.entropy"])
    (logprobs.sum() + entropy.sum()).backward()
    assert logits.grad.isfinite().all()


@pytest.mark.golden("algorithms", each=r"kl\.(\w+)")
def test_kl(case, match):
    ours = A.kl_divergence(case.inputs["kl.logprob"], case.inputs["kl.ref_logprob"], match[0])
    close(ours, case.outputs[f"kl.{match[0]}"])


@pytest.mark.golden("algorithms", each=r"huber\.(\w+)")
def test_huber(case, match):
    recorded, rewards = case.outputs[f"huber.{match[0]}"], case.inputs["flat.rewards"]
    delta = case.config["plain"][match[0]]
    # The recorded argument is a whole multiple of the rewards; the inverse of huber tells which.
    size = torch.where(recorded < delta**2 / 2, (2 * recorded).sqrt(), recorded / delta + delta / 2)
    scale = (size / rewards.abs()).median().round()
    close(A.huber(scale * rewards, delta), recorded)
