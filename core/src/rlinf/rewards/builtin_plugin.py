"""The core's own rewards: the module behind their entry points in the group `rlinf.rewards`."""

from __future__ import annotations

from typing import Final

from rlinf.plugins import RewardSpec, hookimpl

_RULES: Final = "rlinf.rewards.rules"
_SPECS: Final = {
    spec.reward_type: spec
    for spec in (
        RewardSpec(
            reward_type="exact_match",
            builder=f"{_RULES}:exact_match",
            config_schema=f"{_RULES}:ExactMatchOptions",
            description="1 where the answer is the reference.",
        ),
        RewardSpec(
            reward_type="regex",
            builder=f"{_RULES}:regex",
            config_schema=f"{_RULES}:RegexOptions",
            description="1 where the answer has a form.",
        ),
        RewardSpec(
            reward_type="numeric",
            builder=f"{_RULES}:numeric",
            config_schema=f"{_RULES}:NumericOptions",
            description="1 where the last number of the answer is the reference.",
        ),
        RewardSpec(
            reward_type="length",
            builder=f"{_RULES}:length",
            config_schema=f"{_RULES}:LengthOptions",
            description="A penalty that grows with the answer's length.",
        ),
        RewardSpec(
            reward_type="python",
            builder=f"{_RULES}:python",
            config_schema=f"{_RULES}:PythonOptions",
            description="A function of the user's, named as 'module:attr'.",
        ),
        RewardSpec(
            reward_type="reward_model",
            builder="rlinf.workers.reward_server:served",
            config_schema="rlinf.workers.reward_server:RewardModelOptions",
            description="Scores of a reward model that `rlinf sft` trained, served by a process of its own.",
        ),
    )
}


@hookimpl
def rlinf_reward_spec(reward_type: str) -> RewardSpec | None:
    """The spec of one of the core's rewards."""
    return _SPECS.get(reward_type)
