"""The denoising chain as a Markov decision process (DPPO, Ren et al. 2024, arXiv:2409.00588).

The last K steps of DDIM are normal transitions whose noise has a floor, so that the last one, deterministic
in DDIM, has a density too. The steps before them are deterministic. Rollout and training take the mean of a
transition from one function.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rlinf.models.embodiment.sampling import gaussian_entropy, gaussian_logprobs, randn_per_sample
from torch import Tensor

from rlinf_dexvla.config import RlConfig
from rlinf_dexvla.ddim import Schedule, Step, denoise
from rlinf_dexvla.scaledp import ScaleDP


@dataclass(frozen=True, kw_only=True)
class Chain:
    """How actions are sampled, and the density of what was sampled.

    trained: K, the number of trained steps; eta, min_std: see `rlinf_dexvla.config.RlConfig`.
    """

    schedule: Schedule
    trained: int
    eta: float
    min_std: float

    def deterministic(self, head: ScaleDP, cond: Tensor, states: Tensor, noise: Tensor) -> Tensor:
        """DDIM without noise, as the original acts: the states x float32 [steps + 1, B, T, A], from `noise`
        [B, T, A] to the actions."""
        return self._run(head, cond, states, noise, None)

    def sample(
        self, head: ScaleDP, cond: Tensor, states: Tensor, generators: Sequence[torch.Generator] | None
    ) -> Tensor:
        """The trained end of a sampled chain, float32 [K + 1, B, T, A]; the last entry is the actions."""
        shape = (len(cond), 1 + self.trained, head.pos_embed.shape[1], head.x_embedder.in_features)
        draws = randn_per_sample(shape, generators, cond.device).transpose(0, 1)
        return self._run(head, cond, states, draws[0], draws[1:])[-self.trained - 1 :]

    def _run(self, head: ScaleDP, cond: Tensor, states: Tensor, x: Tensor, draws: Tensor | None) -> Tensor:
        modulations = head.plan(self.schedule.timesteps, cond, states)
        count = len(modulations)
        alphas, afters = self.schedule.levels(torch.arange(count, device=x.device))
        visited = [x.float()]
        for i, modulation in enumerate(modulations):
            eps = head.predict(visited[-1], modulation)
            if draws is None or i < count - self.trained:
                visited.append(denoise(visited[-1], eps, alphas[i], afters[i]).mean)
            else:
                step = self._transition(visited[-1], eps, alphas[i], afters[i])
                visited.append(step.mean + step.std * draws[i - count + self.trained])
        return torch.stack(visited)

    def step_logprobs(self, head: ScaleDP, chain: Tensor, cond: Tensor, states: Tensor) -> Tensor:
        """Log-densities of the transitions of chain [B, K + 1, T, A]: float32 [B, K, T, A]."""
        x = chain.transpose(0, 1)
        before, after = x[:-1], x[1:]
        times = torch.tensor(self.schedule.timesteps[-self.trained :], device=x.device)
        eps = head(before.flatten(0, 1), times.repeat_interleave(x.shape[1]), cond, states)
        step = self._transition(before, eps.unflatten(0, before.shape[:2]), *self._levels(x.device))
        return gaussian_logprobs(after, step.mean, step.std.log()).transpose(0, 1)

    def step_entropy(self, device: torch.device) -> Tensor:
        """Entropy of a transition per action dimension, in nats: float32 [K]."""
        zero = torch.zeros((), device=device)
        std = self._transition(zero, zero, *self._levels(device)).std
        return gaussian_entropy(std.log()).flatten()

    def discounts(self, rl: RlConfig) -> tuple[float, ...]:
        """Factor of the advantage for each trained step: `step_discount` to the number of steps after it."""
        return tuple(rl.step_discount**after for after in reversed(range(self.trained)))

    def clips(self, rl: RlConfig) -> tuple[float, ...]:
        """Factor of PPO's clip for each trained step: tighter for the noisier ones, exponentially up to 1."""
        last = max(self.trained - 1, 1)
        return tuple(rl.clip_base ** ((self.trained - 1 - k) / last) for k in range(self.trained))

    def _levels(self, device: torch.device) -> tuple[Tensor, Tensor]:
        count = len(self.schedule.timesteps)
        alphas, afters = self.schedule.levels(torch.arange(count - self.trained, count, device=device))
        return alphas[:, None, None, None], afters[:, None, None, None]

    def _transition(self, x: Tensor, eps: Tensor, alpha: Tensor, after: Tensor) -> Step:
        step = denoise(x, eps, alpha, after, eta=self.eta, consistent_eps=True)
        return Step(step.mean, step.std.clamp(min=self.min_std))
