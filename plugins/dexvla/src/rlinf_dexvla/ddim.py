"""DDIM (Song et al. 2021, arXiv:2010.02502) as DexVLA uses it, as pure functions of a small schedule.

Squared-cosine betas (Nichol and Dhariwal 2021, arXiv:2102.09672), epsilon prediction, the estimate of the
clean actions clipped to [-1, 1], "leading" spacing of the inference timesteps, cumulative alpha 1 after the
last one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import torch
from torch import Tensor

#: Betas are cut here: the cosine schedule's last one would be 1.
_MAX_BETA: Final = 0.999


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Noise levels of training and the timesteps of inference."""

    num_train_timesteps: int = 100
    num_inference_timesteps: int = 10

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """float32 [num_train_timesteps]: the signal's share of the variance after step t."""
        count = self.num_train_timesteps

        def level(t: float) -> float:
            return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

        betas = [min(1 - level((i + 1) / count) / level(i / count), _MAX_BETA) for i in range(count)]
        return torch.cumprod(1 - torch.tensor(betas, dtype=torch.float32), dim=0)

    @property
    def timesteps(self) -> tuple[int, ...]:
        """The inference timesteps from noisy to clean, such as 90, 80, ..., 0."""
        stride = self.num_train_timesteps // self.num_inference_timesteps
        return tuple(i * stride for i in reversed(range(self.num_inference_timesteps)))

    def levels(self, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Cumulative alphas before and after the inference steps `steps` (int64 [S], 0 is the noisiest)."""
        times = torch.tensor(self.timesteps)
        alphas = self.alphas_cumprod[times]
        after = torch.cat([alphas[1:], torch.ones(1)])
        index = steps.cpu()
        return alphas[index].to(steps.device), after[index].to(steps.device)

    def add_noise(self, actions: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The forward process q(x_t | actions): sqrt(a_t) actions + sqrt(1 - a_t) noise.

        Args:
            actions, noise: [B, T, A]. timesteps: int64 [B].
        """
        alpha = self.alphas_cumprod.to(actions.device)[timesteps][:, None, None]
        return alpha.sqrt().to(actions.dtype) * actions + (1 - alpha).sqrt().to(actions.dtype) * noise


@dataclass(frozen=True)
class Step:
    """A transition of the denoising chain: a normal with this mean [..., T, A] and standard deviation."""

    mean: Tensor
    std: Tensor


def denoise(
    x: Tensor,
    eps: Tensor,
    alpha: Tensor,
    alpha_after: Tensor,
    *,
    eta: float = 0.0,
    consistent_eps: bool = False,
) -> Step:
    """One DDIM step from x at cumulative alpha `alpha` to `alpha_after` (equation 12 of the paper).

    Args:
        x, eps: [..., T, A]; computed in float32. alpha, alpha_after: broadcastable to x.
        eta: 0 is deterministic, 1 is DDPM's variance.
        consistent_eps: recompute the noise from x and the *clipped* clean estimate, so that both describe the
            same x (DPPO does; the reference's scheduler keeps the network's output).

    Returns:
        mean [..., T, A] and std, broadcastable to it; std is 0 where eta is 0 or alpha_after is 1.
    """
    x, eps = x.float(), eps.float()
    clean = ((x - (1 - alpha).sqrt() * eps) / alpha.sqrt()).clamp(-1, 1)
    if consistent_eps:
        eps = (x - alpha.sqrt() * clean) / (1 - alpha).sqrt()
    variance = (1 - alpha_after) / (1 - alpha) * (1 - alpha / alpha_after)
    std = eta * variance.clamp(min=0).sqrt()
    direction = (1 - alpha_after - std.square()).clamp(min=0).sqrt()
    return Step(alpha_after.sqrt() * clean + direction * eps, std)
