"""Denoising as a stochastic policy: transition densities of one step. Pure functions of tensors.

Time runs from 1 (noise) to 0 (data); a step goes from t to t - delta. With the velocity v the endpoints that
the network predicts are x_0 = x - t v and x_1 = x + (1 - t) v.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def timesteps(steps: int, device: torch.device | str = "cpu") -> Tensor:
    """Times float32 [steps + 1] from 1 to 0 in equal steps."""
    times = torch.linspace(1, 1 / steps, steps, device=device)
    return torch.cat([times, times.new_zeros(1)])


def transition(
    method: str, x: Tensor, velocity: Tensor, index: Tensor, times: Tensor, noise_level: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the next x, float32 [B, T, D].

    flow_ode and flow_noise have the Euler step's mean; the deviation of flow_noise is learned, not given here
    (zero is returned for both). flow_sde (Liu et al. 2025, Flow-GRPO, eq. 9 and 12) with
    sigma = noise_level sqrt(t / (1 - t)), where t = 1 is replaced by the second time. flow_cps
    (Wang and Yu 2025, coefficient-preserving sampling) rotates the noise by noise_level * pi / 2.

    Args:
        x, velocity: float32 [B, T, D].
        index: int64 [B], the step of each sample.
        times: float32 [steps + 1], of `timesteps`.
        noise_level: float32 [B].
    """
    t, delta = _wide(times[index]), _wide(times[index] - times[index + 1])
    euler = x - delta * velocity
    level = _wide(noise_level)
    if method == "flow_sde":
        denominator = 1 - torch.where(times == 1, times[1], times)
        sigma = level * _wide((times / denominator)[index]).sqrt()
        drift = sigma.square() * delta / (2 * t) * (x + (1 - t) * velocity)
        return euler - drift, (delta.sqrt() * sigma).expand_as(x)
    if method == "flow_cps":
        after = t - delta
        angle = level * (math.pi / 2)
        data, noise = x - t * velocity, x + (1 - t) * velocity
        mean = (1 - after) * data + after * angle.cos() * noise
        return mean, (after * angle.sin()).expand_as(x)
    if method in ("flow_ode", "flow_noise"):
        return euler, torch.zeros_like(x)
    raise ValueError(f"noise_method: expected flow_sde, flow_noise, flow_cps or flow_ode; got {method!r}")


def logprobs(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Log-density of independent normals, float32; 0 where std is 0 (nothing was drawn there)."""
    drawn = std > 0
    safe = torch.where(drawn, std, 1.0)
    density = -0.5 * ((x - mean) / safe).square() - safe.log() - _HALF_LOG_2PI
    return torch.where(drawn, density, 0.0)


def entropy(std: Tensor) -> Tensor:
    """Of those normals, in nats; 0 where std is 0."""
    drawn = std > 0
    return torch.where(drawn, torch.where(drawn, std, 1.0).log() + 0.5 + _HALF_LOG_2PI, 0.0)


def annealed(params: tuple[float, float, int], iteration: int) -> float:
    """The noise level of an RL iteration: linear from the first to the last over `params[2]` iterations."""
    first, last, steps = params
    return first + (last - first) * min(iteration, steps) / steps


def _wide(x: Tensor) -> Tensor:
    return x[:, None, None]
