"""RLlib's PPO (new API stack) with tiny_vla as its RLModule; measured by rl_loop.py."""

from __future__ import annotations

import logging
import resource
import time
from itertools import pairwise
from typing import Any

import torch
from chunk_env import ChunkEnv, policy_inputs
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch import TorchRLModule
from rlinf.config.schema import Config
from rlinf.models import get_model


class VlaModule(TorchRLModule, ValueFunctionAPI):
    """tiny_vla, whole: its trunk, its action head, its value head."""

    def setup(self) -> None:
        self.vla = get_model(self.model_config["model"])

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return self._run(batch)[0]

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        out, value_features = self._run(batch)
        return {**out, Columns.EMBEDDINGS: value_features}

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> torch.Tensor:
        if embeddings is None:
            embeddings = self._run(batch)[1]
        return self.vla.value_head(embeddings).squeeze(-1)

    def _run(self, batch: dict[str, Any]) -> tuple[dict[str, Any], torch.Tensor]:
        action_features, value_features = self.vla.features(policy_inputs(batch[Columns.OBS]))
        mean, log_std = self.vla.action_head(action_features)
        return {
            Columns.ACTION_DIST_INPUTS: torch.cat([mean.flatten(1), log_std.flatten(1)], -1)
        }, value_features


def make_env(env_config: dict[str, Any]) -> ChunkEnv:
    return ChunkEnv(Config.model_validate(env_config["config"]))


def algorithm_config(config: Config, runners: int) -> PPOConfig:
    """The run's batch, minibatches and losses in RLlib's words."""
    from ray.tune.registry import register_env

    register_env("chunked", make_env)
    algorithm, optim = config.algorithm, config.actor.optim
    calls = config.env.steps_per_rollout // config.model.num_action_chunks
    return (
        PPOConfig()
        .environment(
            "chunked",
            env_config={"config": config.model_dump(mode="json")},
            normalize_actions=False,
            clip_actions=True,
        )
        .env_runners(
            num_env_runners=runners,
            num_envs_per_env_runner=config.env.num_envs // runners,
            rollout_fragment_length=calls,
        )
        .rl_module(
            rl_module_spec=RLModuleSpec(
                module_class=VlaModule, model_config={"model": config.model.model_dump(mode="json")}
            )
        )
        .learners(num_learners=0)
        .training(
            train_batch_size_per_learner=calls * config.env.num_envs,
            minibatch_size=config.actor.global_batch_size,
            num_epochs=algorithm.update_epoch,
            lr=optim.lr,
            gamma=algorithm.gamma,
            lambda_=algorithm.gae_lambda,
            clip_param=algorithm.clip_ratio_high,
            vf_loss_coeff=algorithm.value_coef,
            entropy_coeff=algorithm.entropy_bonus,
            grad_clip=optim.clip_grad,
            use_kl_loss=False,
        )
        .reporting(min_time_s_per_iteration=0)
        .debugging(seed=config.runner.seed, log_level="ERROR")
    )


def measure(config: Config, iterations: int, runners: int) -> dict[str, Any]:
    """Frames and seconds of every iteration, with `runners` processes of env runners beside the learner."""
    import ray

    ray.init(num_cpus=runners + 1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    algo = algorithm_config(config, runners).build_algo()
    frames, seconds = [0], []
    for _ in range(iterations):
        begin = time.perf_counter()
        algo.train()
        seconds.append(time.perf_counter() - begin)
        frames.append(sum(algo.env_runner_group.foreach_env_runner(executed_frames, local_env_runner=False)))
    memory = algo.env_runner_group.foreach_env_runner(peak_memory, local_env_runner=False)
    module = algo.get_module()
    parameters = sum(p.numel() for p in module.parameters())
    algo.stop()
    ray.shutdown()
    return {
        "frames": [after - before for before, after in pairwise(frames)],
        "seconds": seconds,
        "parameters": parameters,
        "peak_memory": {"env runner": memory},
    }


def executed_frames(runner: Any) -> int:
    """Frames of an env runner's simulators so far."""
    return sum(env.unwrapped.frames for env in runner.env.unwrapped.envs)


def peak_memory(runner: Any) -> int:
    """Largest resident size of an env runner's process, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
