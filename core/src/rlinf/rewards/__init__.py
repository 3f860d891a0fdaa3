"""Rewards for answers in text: rules, models, and sums of both with weights.

A reward is a function `f(answers) -> scores`. A plugin offers one by an entry point of the group
`rlinf.rewards`, whose module implements `rlinf_reward_spec`. Importing this package costs nothing.
"""

from rlinf.rewards.base import Answer, Reward, RewardConfig, RewardError, build_reward, check_scores

__all__ = ["Answer", "Reward", "RewardConfig", "RewardError", "build_reward", "check_scores"]
