"""The same job without Ray, FSDP or worker processes: a plain loop in one process, to compare against.

It takes the same configuration as `rlinf train` and uses the same model, simulator, advantages and losses;
what it leaves out is everything that the framework adds.

    python benchmarks/single_process.py --config tabletop_ppo key=value ...

prints one line an iteration; `benchmarks/rl_loop.py` imports `SingleProcess` for its table.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch
from rlinf.algorithms import bootstrap_truncations, compute_advantages, loss_mask_from_valid_steps, ppo_loss
from rlinf.config import load_config, plugin_subtree
from rlinf.config.schema import Config
from rlinf.envs.vector import VecEnv
from rlinf.models import get_model
from rlinf.models.embodiment.base_policy import ForwardType
from rlinf.plugins import get_host, resolve_attr


class SingleProcess:
    """Simulator, policy and optimizer side by side. `sft`, `rollout`, `update`, `evaluate`: its phases."""

    def __init__(self, config: Config) -> None:
        self.config = config
        torch.manual_seed(config.runner.seed)
        self.model = get_model(config.model)
        self.envs = VecEnv(config.env.env_type, plugin_subtree(config, "env"), config.env.num_envs)
        self.chunk = config.model.num_action_chunks
        self.obs: dict[str, Any] = {}
        self.optimizer = self._adamw(config.actor.optim.lr)

    def _adamw(self, lr: float) -> torch.optim.AdamW:
        optim = self.config.actor.optim
        return torch.optim.AdamW(
            self.model.parameters(), lr=lr, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay
        )

    def demonstrations(self, episodes: int, noise: float, first_seed: int = 10_000) -> list[dict[str, Any]]:
        """Chunk samples of the environment's expert: observation and the clean actions after it."""
        spec = get_host().env_spec(self.config.env.env_type)
        env = resolve_attr(spec.factory)(plugin_subtree(self.config, "env"))
        expert = resolve_attr(spec.expert)(env)
        rng = np.random.default_rng(self.config.runner.seed)
        samples: list[dict[str, Any]] = []
        for episode in range(episodes):
            obs, _ = env.reset(seed=first_seed + self.config.runner.seed * 100_000 + episode)
            done, rows = False, []
            while not done:
                action = np.asarray(expert.act(), np.float32)
                rows.append((obs, action))
                obs, _, terminated, truncated, info = env.step(
                    np.clip(action + noise * rng.standard_normal(action.shape), -1, 1).astype(np.float32)
                )
                done = terminated or truncated
            if not info["success"]:
                continue
            actions = np.stack([action for _, action in rows])
            for start in range(len(rows)):
                part = actions[start : start + self.chunk]
                pad = self.chunk - len(part)
                samples.append(
                    rows[start][0]
                    | {
                        "actions": np.concatenate([part, np.repeat(part[-1:], pad, 0)]),
                        "action_is_pad": np.arange(self.chunk) >= len(part),
                    }
                )
        env.close()
        return samples

    def sft(self, samples: list[dict[str, Any]], steps: int, batch_size: int, lr: float) -> float:
        """Behaviour cloning; returns the mean loss of the last 20 steps."""
        optimizer = self._adamw(lr)
        rng = np.random.default_rng(self.config.runner.seed)
        losses = []
        self.model.train()
        for _ in range(steps):
            chosen = [samples[i] for i in rng.integers(len(samples), size=batch_size)]
            batch = {
                key: [s[key] for s in chosen]
                if key == "task_descriptions"
                else np.stack([s[key] for s in chosen])
                for key in chosen[0]
            }
            loss = self.model(forward_type=ForwardType.SFT, batch=batch)["loss"]
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.actor.optim.clip_grad)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return float(np.mean(losses[-20:]))

    @torch.no_grad()
    def evaluate(self, episodes: int, blind: bool = False) -> dict[str, float]:
        """Deterministic success on held-out seeds, overall and by the first word of the instruction."""
        outcome: dict[int, bool] = {}
        words: dict[int, str] = {}
        self.model.eval()
        envs = VecEnv(
            self.config.env.env_type, plugin_subtree(self.config, "env"), min(episodes, 64), auto_reset=False
        )
        first = self.config.env.eval.seed
        for start in range(0, episodes, envs.num_envs):
            seeds = [first + start + i for i in range(envs.num_envs)]
            obs = envs.reset(seeds)
            words |= {seed: text.split()[0] for seed, text in zip(seeds, obs["task_descriptions"])}
            while not set(seeds) <= set(outcome):
                if blind:
                    obs = obs | {"task_descriptions": [""] * envs.num_envs}
                actions, _ = self.model.predict_action_batch(obs, mode="eval", compute_values=False)
                step = envs.chunk_step(actions.numpy())
                obs = step.obs
                outcome |= {end.seed: end.success for end in step.episodes}
        envs.close()
        result = {"success": float(np.mean(list(outcome.values())))}
        for word in sorted(set(words.values())):
            result[word] = float(np.mean([ok for seed, ok in outcome.items() if words[seed] == word]))
        return result

    @torch.no_grad()
    def rollout(self, iteration: int) -> dict[str, Any]:
        """One batch of experience: tensors [T, N, ...] and the episodes that ended."""
        config = self.config
        self.model.eval()
        seeds = (
            np.random.SeedSequence([config.runner.seed, iteration]).generate_state(config.env.num_envs) >> 1
        )
        obs = self.envs.reset(seeds.tolist())
        steps = config.env.steps_per_rollout // self.chunk
        rows: list[dict[str, Any]] = []
        episodes: list[Any] = []
        for _ in range(steps):
            actions, result = self.model.predict_action_batch(obs, mode="train")
            step = self.envs.chunk_step(actions.numpy())
            final = torch.zeros(config.env.num_envs)
            if step.final_obs is not None:
                _, last = self.model.predict_action_batch(step.final_obs, mode="eval")
                final[torch.from_numpy(step.final_mask)] = last["prev_values"].flatten()
            rows.append({**result, "step": step, "final": final})
            episodes += step.episodes
            obs = step.obs
        _, last = self.model.predict_action_batch(obs, mode="eval")
        stack = lambda name: torch.from_numpy(np.stack([getattr(row["step"], name) for row in rows]))  # noqa: E731
        truncations = stack("truncations")
        dones = truncations | stack("terminations")
        return {
            "inputs": {
                key: torch.cat([row["forward_inputs"][key] for row in rows])
                for key in rows[0]["forward_inputs"]
            },
            "logprobs": torch.cat([row["prev_logprobs"] for row in rows]),
            "values": torch.stack([row["prev_values"] for row in rows] + [last["prev_values"]]),
            "rewards": bootstrap_truncations(
                stack("rewards"),
                truncations,
                torch.stack([row["final"] for row in rows]),
                config.algorithm.gamma,
            ),
            "dones": torch.cat([torch.zeros_like(dones[:1]), dones]),
            "mask": loss_mask_from_valid_steps(stack("valid_steps"), self.chunk),
            "frames": int(sum(row["step"].valid_steps.sum() for row in rows)),
            "episodes": episodes,
        }

    def update(self, batch: dict[str, Any], iteration: int) -> dict[str, float]:
        """PPO over one batch; returns the last minibatch's metrics."""
        config, algorithm = self.config, self.config.algorithm
        mask = batch["mask"].any(-1, keepdim=True)
        result = compute_advantages(
            adv_type=algorithm.adv_type,
            rewards=batch["rewards"],
            values=batch["values"],
            dones=batch["dones"],
            loss_mask=None,
            gamma=algorithm.gamma,
            gae_lambda=algorithm.gae_lambda,
            group_size=algorithm.group_size,
            reward_type=algorithm.reward_type,
            normalize_advantages=algorithm.normalize_advantages,
        )
        assert result.returns is not None
        flat = lambda x: x.reshape(-1, *x.shape[2:])  # noqa: E731
        advantages, returns, mask = flat(result.advantages), flat(result.returns), flat(mask)
        old_values = flat(batch["values"][:-1])
        rng = np.random.default_rng([config.runner.seed, iteration])
        metrics: dict[str, torch.Tensor] = {}
        self.model.train()
        for _ in range(algorithm.update_epoch):
            for index in rng.permutation(len(advantages)).reshape(-1, config.actor.global_batch_size):
                inputs = {key: value[index] for key, value in batch["inputs"].items()}
                out = self.model(forward_type=ForwardType.DEFAULT, forward_inputs=inputs)
                loss, metrics = ppo_loss(
                    loss_type=algorithm.loss_type,
                    logprobs=out["logprobs"],
                    old_logprobs=batch["logprobs"][index],
                    advantages=advantages[index],
                    loss_mask=mask[index],
                    logprob_type=algorithm.logprob_type,
                    reward_type=algorithm.reward_type,
                    clip_ratio_low=algorithm.clip_ratio_low,
                    clip_ratio_high=algorithm.clip_ratio_high,
                    values=out["values"],
                    old_values=old_values[index],
                    returns=returns[index],
                    value_clip=algorithm.value_clip,
                    huber_delta=algorithm.huber_delta,
                    value_coef=algorithm.value_coef,
                    entropy=out["entropy"],
                    entropy_bonus=algorithm.entropy_bonus,
                )
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.actor.optim.clip_grad)
                self.optimizer.step()
                self.optimizer.zero_grad()
        return {key: float(value) for key, value in metrics.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="tabletop_ppo")
    parser.add_argument("--eval-every", type=int, default=10)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    config = load_config(args.config, args.overrides)
    run = SingleProcess(config)
    start = time.perf_counter()
    clock = lambda: f"{time.perf_counter() - start:6.1f}s"  # noqa: E731
    if config.sft is not None:
        samples = run.demonstrations(config.sft.expert_episodes, config.sft.expert_noise)
        print(clock(), f"{len(samples)} samples of demonstrations", flush=True)
        loss = run.sft(samples, config.sft.max_steps, config.sft.batch_size, config.sft.lr)
        print(clock(), f"sft loss {loss:.4f}", flush=True)
        print(clock(), "eval", run.evaluate(config.env.eval.num_episodes), flush=True)
    for iteration in range(config.runner.max_steps):
        begin = time.perf_counter()
        batch = run.rollout(iteration)
        middle = time.perf_counter()
        metrics = run.update(batch, iteration)
        end = time.perf_counter()
        success = np.mean([episode.success for episode in batch["episodes"]] or [np.nan])
        print(
            f"{clock()} {iteration:3d} success {success:.3f} kl {metrics['actor/approx_kl_k3']:.4f} "
            f"value {metrics['critic/value_loss']:.4f} clip {metrics['actor/clip_fraction']:.2f} "
            f"rollout {middle - begin:.2f}s update {end - middle:.2f}s "
            f"{batch['frames'] / (end - begin):.0f} frames/s",
            flush=True,
        )
        if (iteration + 1) % args.eval_every == 0:
            print(clock(), "eval", run.evaluate(config.env.eval.num_episodes), flush=True)
    print(clock(), "blind", run.evaluate(config.env.eval.num_episodes, blind=True), flush=True)


if __name__ == "__main__":
    main()
