"""stable-baselines3's PPO with tiny_vla as its policy; measured by rl_loop.py."""

from __future__ import annotations

import time
from typing import Any

import torch
from chunk_env import ChunkEnv, policy_inputs
from rlinf.config.schema import Config
from rlinf.models import get_model
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv


class VlaPolicy(ActorCriticPolicy):
    """tiny_vla, whole: its trunk, its action head, its value head; nothing of SB3's own networks."""

    def __init__(self, *args: Any, model: Any, **kwargs: Any) -> None:
        self._model_config = model
        super().__init__(*args, **kwargs)

    def _build(self, lr_schedule: Any) -> None:
        self.vla = get_model(self._model_config)
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)

    def _run(self, obs: dict[str, torch.Tensor]) -> tuple[Distribution, torch.Tensor]:
        action_features, value_features = self.vla.features(policy_inputs(obs))
        mean, log_std = self.vla.action_head(action_features)
        distribution = self.action_dist.proba_distribution(mean.flatten(1), log_std.flatten(1))
        return distribution, self.vla.value_head(value_features)

    def forward(
        self, obs: Any, deterministic: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        distribution, values = self._run(obs)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, values, distribution.log_prob(actions)

    def evaluate_actions(
        self, obs: Any, actions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        distribution, values = self._run(obs)
        return values, distribution.log_prob(actions), distribution.entropy()

    def get_distribution(self, obs: Any) -> Distribution:
        return self._run(obs)[0]

    def predict_values(self, obs: Any) -> torch.Tensor:
        return self._run(obs)[1]


class Clock(BaseCallback):
    """Begin and end of each rollout, and the frames executed in it."""

    def __init__(self) -> None:
        super().__init__()
        self.begins: list[float] = []
        self.ends: list[float] = []
        self.frames: list[int] = []

    def _on_rollout_start(self) -> None:
        self.begins.append(time.perf_counter())
        self.frames.append(0)

    def _on_step(self) -> bool:
        self.frames[-1] += sum(info["steps"] for info in self.locals["infos"])
        return True

    def _on_rollout_end(self) -> None:
        self.ends.append(time.perf_counter())


def measure(config: Config, iterations: int) -> dict[str, Any]:
    """Frames and seconds of every iteration."""
    algorithm, optim = config.algorithm, config.actor.optim
    env = DummyVecEnv([lambda: ChunkEnv(config)] * config.env.num_envs)
    calls = config.env.steps_per_rollout // config.model.num_action_chunks
    ppo = PPO(
        VlaPolicy,
        env,
        learning_rate=optim.lr,
        n_steps=calls,
        batch_size=config.actor.global_batch_size,
        n_epochs=algorithm.update_epoch,
        gamma=algorithm.gamma,
        gae_lambda=algorithm.gae_lambda,
        clip_range=algorithm.clip_ratio_high,
        clip_range_vf=algorithm.value_clip,
        normalize_advantage=algorithm.normalize_advantages,
        ent_coef=algorithm.entropy_bonus,
        vf_coef=algorithm.value_coef,
        max_grad_norm=optim.clip_grad,
        policy_kwargs={
            "model": config.model,
            "optimizer_class": torch.optim.AdamW,
            "optimizer_kwargs": {"betas": optim.betas, "eps": optim.eps, "weight_decay": optim.weight_decay},
        },
        seed=config.runner.seed,
        device="cpu",
    )
    clock = Clock()
    ppo.learn(iterations * calls * config.env.num_envs, callback=clock, log_interval=None)
    over = time.perf_counter()
    env.close()
    nexts = [*clock.begins[1:], over]
    return {
        "frames": clock.frames,
        "seconds": [end - begin for begin, end in zip(clock.begins, nexts)],
        "rollout_s": [end - begin for begin, end in zip(clock.begins, clock.ends)],
        "update_s": [end - begin for begin, end in zip(clock.ends, nexts)],
        "parameters": sum(p.numel() for p in ppo.policy.parameters()),
    }
