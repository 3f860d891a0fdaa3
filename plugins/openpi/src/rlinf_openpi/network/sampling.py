"""Denoising: the flow's ordinary differential equation by Euler steps, with all that repeats done once.

Per call: keys and values of the prefix (and of pi0's state token, which sees no action) lie in a buffer that
is made once, and each step writes behind them; times, rotary angles and pi0.5's modulations are computed for
the whole schedule at once. The loop waits for no result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlinf_openpi.network.gemma import (
    BlockModulation,
    Concatenated,
    KeyValues,
    Modulation,
    Past,
    Preallocated,
    Rotary,
)
from rlinf_openpi.network.pi0 import Pi0, Prefix, key_mask

StepFunction = Callable[..., Tensor]


def euler_times(steps: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Times [steps] and step size of openpi's sampler: a float32 scalar that starts at 1 and accumulates.

    The rounding matters: the fastest time frequency is 1/0.004.
    """
    delta = torch.tensor(-1.0 / steps, dtype=torch.float32)
    times = [torch.tensor(1.0, dtype=torch.float32)]
    while len(times) < steps:
        times.append(times[-1] + delta)
    return torch.stack(times).to(device), delta.to(device)


@dataclass(frozen=True)
class _Schedule:
    """What depends on the time alone, for each step."""

    embeddings: Tensor | None
    modulations: list[list[BlockModulation]] | None
    finals: list[Modulation] | None


class Denoiser:
    """The velocity field of one batch at the times of one schedule.

    Args:
        network: the network; no gradient flows.
        state: float32 [B, action_dim] for pi0.
        times: float32 [steps], the same for all samples.
        horizon: actions of a chunk.
        step: `Denoiser.step`, compiled or not.
        functional: join keys and values by concatenation, which compilers prefer to writes into a buffer.
    """

    def __init__(
        self,
        network: Pi0,
        prefix: Prefix,
        state: Tensor | None,
        times: Tensor,
        horizon: int,
        *,
        step: StepFunction | None = None,
        functional: bool = False,
    ) -> None:
        self.network = network
        self._step = step or expert_step
        batch, length = prefix.layers[0].k.shape[0], prefix.length
        extra = 0 if state is None else 1
        buffers, filled = _buffers(prefix, extra + horizon), prefix.layers[0].k.shape[2]
        self._mask = key_mask(prefix, extra + horizon)
        if state is not None:
            self._append_state(state, length, [Preallocated.behind(kv, filled, 1) for kv in buffers])
        filled += extra
        self._pasts: list[Past] = [
            _concatenated(kv, filled) if functional else Preallocated.behind(kv, filled, horizon)
            for kv in buffers
        ]
        positions = length[:, None] + extra + torch.arange(horizon, device=times.device)
        self._rotary = network._rotary(positions, network._expert_dtype)
        self._schedule = _schedule(network, times)
        self._batch = batch

    def hidden(self, x_t: Tensor, step: int) -> Tensor:
        """The expert's output float32 [B, T, expert width] for x_t [B, T, action_dim] at time `step`."""
        schedule = self._schedule
        embedding = None
        if schedule.embeddings is not None:
            embedding = schedule.embeddings[step : step + 1].expand(self._batch, -1)
        return self._step(
            self.network,
            x_t,
            embedding,
            self._rotary,
            self._pasts,
            self._mask,
            None if schedule.modulations is None else schedule.modulations[step],
            None if schedule.finals is None else schedule.finals[step],
        )

    def _append_state(self, state: Tensor, length: Tensor, pasts: list[Preallocated]) -> None:
        """pi0: the state token attends to the prefix and itself alone, so its keys and values stay."""
        network = self.network
        mask = None if self._mask is None else self._mask[..., : pasts[0].whole.k.shape[2]]
        rotary = network._rotary(length[:, None], network._expert_dtype)
        token = network.state_token(state).to(network._expert_dtype)
        network.run_expert(token, rotary, pasts, mask, None, None)


def expert_step(
    network: Pi0,
    x_t: Tensor,
    embedding: Tensor | None,
    rotary: Rotary,
    pasts: Sequence[Past],
    mask: Tensor | None,
    modulations: list[BlockModulation] | None,
    final: Modulation | None,
) -> Tensor:
    """One evaluation of the action expert; see `Denoiser.hidden`."""
    tokens = network.action_tokens(x_t, embedding).to(network._expert_dtype)
    return network.run_expert(tokens, rotary, pasts, mask, modulations, final).float()


@torch.no_grad()
def sample_actions(
    network: Pi0, prefix: Prefix, state: Tensor | None, noise: Tensor, num_steps: int
) -> Iterator[Tensor]:
    """The chain of openpi's sampler: `noise` [B, T, action_dim], then the result of each Euler step."""
    times, delta = euler_times(num_steps, noise.device)
    denoiser = Denoiser(network, prefix, state, times, noise.shape[1])
    x_t = noise
    yield x_t
    for step in range(num_steps):
        x_t = x_t + delta * network.velocity(denoiser.hidden(x_t, step))
        yield x_t


def _buffers(prefix: Prefix, room: int) -> list[KeyValues]:
    """The prefix's keys and values with room for `room` further tokens."""
    buffers = []
    for kv in prefix.layers:
        batch, heads, length, dim = kv.k.shape
        buffer = KeyValues(*(kv.k.new_empty(batch, heads, length + room, dim) for _ in range(2)))
        buffer.k[:, :, :length], buffer.v[:, :, :length] = kv.k, kv.v
        buffers.append(buffer)
    return buffers


def _concatenated(buffer: KeyValues, length: int) -> Concatenated:
    return Concatenated(KeyValues(*(x[:, :, :length] for x in buffer)))


def _schedule(network: Pi0, times: Tensor) -> _Schedule:
    if not network.pi05:
        return _Schedule(network.time_embedding(times), None, None)
    cond = network.condition(times).to(network._expert_dtype)
    blocks = [block.modulation(cond) for block in network.expert.layers]
    final = network.expert.norm.modulation(cond)
    steps = range(len(times))
    return _Schedule(
        None,
        [[tuple(_row(m, k) for m in block) for block in blocks] for k in steps],  # type: ignore[misc]
        [_row(final, k) for k in steps],
    )


def _row(modulation: Modulation, step: int) -> Modulation:
    return Modulation(*(x[step : step + 1] for x in modulation))
