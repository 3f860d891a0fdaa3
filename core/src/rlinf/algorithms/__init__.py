"""Advantages and losses: pure tensor functions on float32; no Ray, no files, no host synchronisation.

The path of a training step: `compute_advantages` on the rollout [T, B, chunk], then `ppo_loss` on shuffled
parts of it [M, chunk, dim], whose losses and metrics add up because all divide by one global `normalizer`,
then `finish_metrics` on the sums. The registries hold the names that a configuration may use.
"""

from rlinf.algorithms.advantages import (
    ADVANTAGES,
    AdvantageResult,
    best_of_group,
    bootstrap_truncations,
    compute_advantages,
    discounted_returns,
    episode_scores,
    gae,
    grpo_advantages,
    reinforce_pp_advantages,
)
from rlinf.algorithms.divergences import KL_ESTIMATORS, huber, kl_divergence
from rlinf.algorithms.levels import (
    LOGPROB_TYPES,
    REWARD_TYPES,
    StepRewards,
    chunk_rewards,
    reduce_entropy,
    reduce_logprobs,
)
from rlinf.algorithms.losses import (
    LOSSES,
    finish_metrics,
    loss_over_transitions,
    policy_loss,
    ppo_loss,
    value_loss,
)
from rlinf.algorithms.masks import (
    episode_weights,
    filter_groups,
    group_reward_filter,
    highest,
    loss_mask_from_dones,
    loss_mask_from_valid_steps,
    masked_mean,
    normalize_masked,
)
from rlinf.models.logprobs import entropy_from_logits
from rlinf.models.logprobs import log_probs_from_logits as logprobs_from_logits

__all__ = [
    "ADVANTAGES",
    "KL_ESTIMATORS",
    "LOGPROB_TYPES",
    "LOSSES",
    "REWARD_TYPES",
    "AdvantageResult",
    "StepRewards",
    "best_of_group",
    "bootstrap_truncations",
    "chunk_rewards",
    "compute_advantages",
    "discounted_returns",
    "entropy_from_logits",
    "episode_scores",
    "episode_weights",
    "filter_groups",
    "finish_metrics",
    "gae",
    "group_reward_filter",
    "grpo_advantages",
    "highest",
    "huber",
    "kl_divergence",
    "logprobs_from_logits",
    "loss_mask_from_dones",
    "loss_mask_from_valid_steps",
    "loss_over_transitions",
    "masked_mean",
    "normalize_masked",
    "policy_loss",
    "ppo_loss",
    "reduce_entropy",
    "reduce_logprobs",
    "reinforce_pp_advantages",
    "value_loss",
]
