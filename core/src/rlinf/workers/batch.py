"""From a rollout to the samples that train: advantages, masks, and their division among ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlinf.algorithms import (
    bootstrap_truncations,
    chunk_rewards,
    compute_advantages,
    episode_scores,
    filter_groups,
    highest,
    loss_mask_from_valid_steps,
)
from rlinf.config.schema import AlgorithmConfig
from rlinf.data.trajectory import Trajectory


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A rollout as S = T * B samples; n is chunk n // B of environment n % B. K: see `compute_advantages`.

    inputs: {name: [S, ...]} numpy, views of the trajectory. old_logprobs: float32 [S, chunk, dim].
    executed: bool [S, chunk]. advantages, returns, old_values: float32 [S, K] (None without a critic).
    behavior_logprobs: as old_logprobs, of the policy that acted, if `old_logprobs` are another's.
    mask: bool [S, K], what trains. samples: int64, the samples of which anything trains.
    """

    inputs: dict[str, np.ndarray]
    old_logprobs: Tensor
    executed: Tensor
    advantages: Tensor
    returns: Tensor | None
    old_values: Tensor | None
    mask: Tensor
    samples: np.ndarray
    metrics: dict[str, float]
    behavior_logprobs: Tensor | None = None
    #: As old_logprobs, of the policy that the KL term measures from.
    ref_logprobs: Tensor | None = None


def make_batch(trajectory: Trajectory, algorithm: AlgorithmConfig) -> Batch:
    """Advantages of the whole rollout. Every rank computes all: that is cheap, and equal everywhere."""
    _, envs, chunk = trajectory.rewards.shape
    rewards = torch.tensor(trajectory.rewards)
    truncations = torch.tensor(trajectory.truncations)
    ended = torch.tensor(trajectory.terminations) | truncations
    dones = torch.cat([torch.zeros(1, envs, chunk, dtype=torch.bool), ended])
    executed = loss_mask_from_valid_steps(torch.tensor(trajectory.valid_steps), chunk)
    mask, metrics = executed, {}
    if algorithm.filter_rewards is not None:
        bounds = algorithm.filter_rewards
        steps = chunk_rewards(rewards, dones, None, "chunk_level")
        scores = episode_scores(steps.rewards.squeeze(-1), steps.dones.squeeze(-1))
        mask = filter_groups(mask, scores, algorithm.group_size, bounds.lower, bounds.upper)
        metrics["train/groups_kept"] = float(mask.flatten(2).any(-1).any(0).float().mean())
    values = None if trajectory.values is None else torch.tensor(trajectory.values)
    if trajectory.final_values is not None and algorithm.bootstrap_truncations:
        final_values = torch.tensor(trajectory.final_values)
        rewards = bootstrap_truncations(rewards, truncations, final_values, algorithm.gamma)
    result = compute_advantages(
        adv_type=algorithm.adv_type,
        rewards=rewards,
        values=values,
        dones=dones,
        loss_mask=mask,
        gamma=algorithm.gamma,
        gae_lambda=algorithm.gae_lambda,
        group_size=algorithm.group_size,
        reward_type=algorithm.reward_type,
        normalize_advantages=algorithm.normalize_advantages,
        group_scores=algorithm.group_scores,
    )
    reduced = chunk_rewards(rewards, dones, mask, algorithm.reward_type).loss_mask
    assert reduced is not None
    flat_mask = reduced.flatten(0, 1)
    if algorithm.high_entropy_fraction is not None:
        entropy = torch.tensor(_flat(trajectory.forward_inputs["entropy"]))
        flat_mask = highest(entropy, flat_mask, algorithm.high_entropy_fraction)
    return Batch(
        inputs={name: _flat(x) for name, x in trajectory.forward_inputs.items()},
        old_logprobs=torch.tensor(_flat(trajectory.logprobs)),
        executed=executed.flatten(0, 1),
        advantages=result.advantages.flatten(0, 1),
        returns=None if result.returns is None else result.returns.flatten(0, 1),
        old_values=None if values is None else values[:-1].flatten(0, 1),
        mask=flat_mask,
        samples=np.flatnonzero(flat_mask.any(-1).numpy()),
        metrics=metrics,
    )


def _flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, *x.shape[2:])


def micro_batches(
    samples: np.ndarray, *, rank: int, world_size: int, size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """A rank's part of one optimizer step, cut into micro-batches of at most `size` samples.

    Every rank gets equally many of equal length (their collectives must match); where the samples do not
    divide, the last is repeated and marked as not counting.

    Yields:
        sample numbers int64 [m] and counting bool [m].
    """
    count = -(-len(samples) // (world_size * size))
    length = -(-len(samples) // (world_size * count))
    padded = np.concatenate([samples, np.repeat(samples[-1:], world_size * count * length - len(samples))])
    counts = np.arange(len(padded)) < len(samples)
    mine = slice(rank * count * length, (rank + 1) * count * length)
    yield from zip(np.split(padded[mine], count), np.split(counts[mine], count))


def policy_tensors(batch: Batch, samples: np.ndarray) -> dict[str, Tensor]:
    """What one optimizer step trained on, by name: [m, ...] each."""
    rows = torch.from_numpy(samples)
    named = {
        "old_logprobs": batch.old_logprobs,
        "executed": batch.executed,
        "advantages": batch.advantages,
        "mask": batch.mask,
        "returns": batch.returns,
        "old_values": batch.old_values,
    }
    inputs = {f"inputs.{name}": torch.from_numpy(x[samples]) for name, x in batch.inputs.items()}
    return {**inputs, **{name: x[rows] for name, x in named.items() if x is not None}, "samples": rows}


def save_batch(file: Path, batch: Mapping[str, Any]) -> None:
    """A batch's tensors as safetensors; what is no tensor (texts) goes to its metadata as JSON."""
    import json

    from safetensors.torch import save_file

    tensors = {name: x.contiguous() for name, x in batch.items() if isinstance(x, Tensor)}
    others = {name: json.dumps(x, default=str) for name, x in batch.items() if not isinstance(x, Tensor)}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(file), metadata=others or None)
