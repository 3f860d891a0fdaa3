"""What one rollout hands to the trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """T policy calls of `chunk` actions in each of B environments; numpy, which Ray passes without copies.

    env_index: int64 [B], the environments' numbers within the run; columns of one GRPO group are consecutive.
    forward_inputs: {name: [T, B, ...]}, what the policy's `default_forward` needs.
    logprobs: float32 [T, B, chunk, dim] of the sampled actions.
    values: float32 [T+1, B, 1 or chunk] of the critic; the last row bootstraps what the rollout cut.
        None: no critic.
    rewards: float32, terminations, truncations: bool; [T, B, chunk], zero for actions that were not executed.
    valid_steps: int64 [T, B], how many actions of the chunk were executed.
    final_values: float32 [T, B], the critic at the last observation of episodes cut in that chunk, else 0.
    """

    env_index: np.ndarray
    forward_inputs: dict[str, np.ndarray]
    logprobs: np.ndarray
    values: np.ndarray | None
    rewards: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray
    valid_steps: np.ndarray
    final_values: np.ndarray | None

    def __post_init__(self) -> None:
        shape = self.valid_steps.shape
        for name, array in self.arrays():
            rows = (shape[0] + 1,) if name == "values" else shape[:1]
            assert array.shape[:2] == (*rows, shape[1]), f"{name} {array.shape} beside valid_steps {shape}"
        assert self.env_index.shape == shape[1:]

    def arrays(self) -> list[tuple[str, np.ndarray]]:
        """All arrays whose first axes are time and environment."""
        out = list(self.forward_inputs.items())
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray) and field.name != "env_index":
                out.append((field.name, value))
        return out

    @property
    def num_samples(self) -> int:
        """T * B; sample n is chunk n // B of column n % B."""
        return int(self.valid_steps.size)


def join(parts: Sequence[Trajectory]) -> Trajectory:
    """The trajectories of several rollout workers as one, columns in the order of `env_index`."""
    order = np.argsort(np.concatenate([part.env_index for part in parts]), kind="stable")
    if len(parts) == 1 and (order == np.arange(len(order))).all():
        return parts[0]

    def columns(arrays: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(arrays, axis=1)[:, order]

    joined: dict[str, np.ndarray | None] = {}
    for field in fields(Trajectory):
        values = [getattr(part, field.name) for part in parts]
        if field.name not in ("env_index", "forward_inputs"):
            joined[field.name] = None if values[0] is None else columns(values)
    return Trajectory(
        env_index=np.concatenate([part.env_index for part in parts])[order],
        forward_inputs={
            name: columns([part.forward_inputs[name] for part in parts]) for name in parts[0].forward_inputs
        },
        **joined,  # type: ignore[arg-type]
    )
