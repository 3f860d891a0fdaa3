"""Tiny OpenVLAs learn from the image by SFT and then by PPO and GRPO, each better than before.

One step, no simulator: bright images ask for an action of 0.5, dark ones for -0.5. Two thirds of the
demonstrations are off by 0.25, so that imitation alone leaves something to do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from rlinf.algorithms.advantages import grpo_advantages
from rlinf.algorithms.losses import policy_loss
from rlinf.models import get_model
from test_openvla_kit import TINY

GOAL, OFF, RIGHT, BATCH, GROUP = 0.5, 0.25, 0.35, 32, 8
KINDS: dict[str, dict[str, Any]] = {
    "openvla": {},
    "openvla_oft": {"head": "l1", "init_log_std": -1.5},
}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    own = {**TINY, **KINDS[kind]}
    return get_model({"model_type": kind, "action_dim": 2, "num_action_chunks": 1, kind: own})


def scenes(seed: int, group: int = 1) -> tuple[dict[str, Any], torch.Tensor]:
    """Observations, neighbours in a group alike, and what action each asks for [B,1,1]."""
    rng = np.random.default_rng(seed)
    # As many bright ones as dark: whoever does not look gets -0.5 at best.
    bright = np.repeat(np.arange(BATCH // group) % 2, group)
    images = rng.integers(0, 60, (BATCH, 28, 28, 3)) + 190 * bright[:, None, None, None]
    obs = {"main_images": images.astype(np.uint8), "task_descriptions": ["act"] * BATCH}
    return obs, torch.from_numpy(np.where(bright, GOAL, -GOAL)).float()[:, None, None]


def reward(actions: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """[B], 0 at best."""
    return -(actions - wanted).abs().mean(dim=(1, 2))


def score(policy: Any) -> float:
    """Mean reward of the deterministic policy on scenes of their own."""
    obs, wanted = scenes(10_000)
    return float(reward(policy.predict_action_batch(obs, mode="eval")[0], wanted).mean())


def imitate(policy: Any, steps: int) -> None:
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    draws = torch.Generator().manual_seed(0)
    for seed in range(steps):
        obs, wanted = scenes(seed)
        off = OFF * (torch.rand(BATCH, 1, 1, generator=draws) > RIGHT)
        demonstration = {
            **obs,
            "actions": (wanted + off).expand(-1, 1, 2),
            "action_is_pad": torch.zeros(BATCH, 1, dtype=torch.bool),
        }
        optimizer.zero_grad()
        policy(forward_type="sft", batch=demonstration)["loss"].backward()
        optimizer.step()


def reinforce(policy: Any, algorithm: str, steps: int) -> None:
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    for step in range(steps):
        obs, wanted = scenes(step + 500, GROUP)
        actions, result = policy.predict_action_batch(obs, mode="train")
        rewards = reward(actions, wanted)
        if algorithm == "grpo":
            advantages = grpo_advantages(rewards.view(-1, GROUP)).flatten()
        else:
            advantages = rewards - result["prev_values"][:, 0]
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-6)
        for _ in range(2):
            out = policy(forward_inputs=result["forward_inputs"])
            loss, _ = policy_loss(
                logprobs=out["logprobs"],
                old_logprobs=result["prev_logprobs"],
                advantages=advantages[:, None, None],
                loss_mask=None,
                clip_ratio_low=0.2,
                clip_ratio_high=0.2,
            )
            if algorithm == "ppo":
                loss = loss + 0.5 * (out["values"][:, 0] - rewards).square().mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
@pytest.mark.parametrize("kind", KINDS)
def test_imitation_helps_and_rewards_help_further(kind: str, algorithm: str) -> None:
    policy = build(kind)
    untrained = score(policy)
    imitate(policy, 60)
    imitated = score(policy)
    assert imitated > untrained + 0.05, f"SFT: from {untrained:.3f} to {imitated:.3f}"
    torch.manual_seed(1)
    reinforce(policy, algorithm, 60)
    learnt = score(policy)
    print(f"{kind} {algorithm}: {untrained:.3f}, SFT {imitated:.3f}, RL {learnt:.3f}")
    assert learnt > imitated + 0.08, f"{algorithm}: from {imitated:.3f} to {learnt:.3f}"
