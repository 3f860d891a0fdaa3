"""The rollout worker: the policy in evaluation mode, and the record of what it did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch

from rlinf.cluster.errors import UserError
from rlinf.data.messages import concat_obs, obs_size
from rlinf.data.seeds import Stream, derive
from rlinf.data.trajectory import Trajectory, join
from rlinf.envs.results import Observation, StepResult
from rlinf.fsdp.weights import Index, copy_into, unpack
from rlinf.workers.base import Worker, user_errors

#: What an env worker sends: an observation after a reset, a result after a step.
Message = Observation | StepResult


class RolloutWorker(Worker):
    """Chooses actions for the environments that it serves and keeps what the trainer needs of it."""

    @user_errors
    def setup(self) -> None:
        self._device = self.device()
        self._model = self.build_model().to(self._device).eval()
        self._posted: SimpleQueue[tuple[np.ndarray, Index, int]] = SimpleQueue()
        #: Number of the sync whose weights the model has, and whether a rollout was under way.
        self._sync, self._early = -1, False
        try:
            self._model.prepare_rollout(self._refresh if self.config.rollout.interruptible else None)
        except (ValueError, ImportError) as error:
            raise UserError(f"model_type {self.config.model.model_type}: {error}") from None
        self._wants_values = self.config.algorithm.adv_type == "gae"
        self._records: dict[int, StageRecord] = {}
        self._texts: list[list[str]] = []

    def load_weights(self, buffer: np.ndarray, index: Index, sync: int) -> Load:
        """Take over the trainer's weights (see `rlinf.fsdp.weights`). sync: the transfer's number, rising."""
        if sync > self._sync:
            copy_into(self._model, unpack(buffer, index))
            self._sync, self._early = sync, False
        return Load(nbytes=buffer.nbytes, early=self._early)

    def post_weights(self, buffer: np.ndarray, index: Index, sync: int) -> None:
        """The same weights for a worker in the middle of a rollout. This runs in a thread of its own; the
        worker takes them over when it comes to it (`_refresh`), and `load_weights` then has nothing to do."""
        self._posted.put((buffer, index, sync))

    def _refresh(self) -> bool:
        """Take over the newest weights that were posted; returns whether the model has other ones now."""
        before = self._sync
        while not self._posted.empty():
            self.load_weights(*self._posted.get())
        self._early |= self._sync > before
        return self._sync > before

    @torch.no_grad()
    def predict(self, stage: int, step: int, iteration: int, *messages: Message) -> Any:
        """Sample the actions of policy call `step` of a rollout.

        messages: one of each env process that this worker serves in `stage`, in their order.

        Returns:
            actions float32 [n, chunk, dim] for each of them (Ray wants a lone one bare).
        """
        if step == 0:
            numbers = self.layout.served_indices(self.rank, stage)
            self._records[stage] = StageRecord(numbers, self._generators(numbers, iteration))
            self._model.set_global_step(iteration)
        record = self._records[stage]
        if self._refresh() and not any(begun.decisions for begun in self._records.values()):
            self._early = False
        obs = self._receive(record, messages)
        actions, result = self._model.predict_action_batch(
            obs, mode="train", compute_values=self._wants_values, generators=record.generators
        )
        record.decisions.append(
            {
                "logprobs": _numpy(result["prev_logprobs"]),
                "values": _numpy(result["prev_values"]) if self._wants_values else None,
                "inputs": {name: _numpy(x) for name, x in result["forward_inputs"].items()},
            }
        )
        return _split(_numpy(actions), [_size(message) for message in messages])

    @torch.no_grad()
    def predict_held_out(self, *messages: Message) -> Any:
        """The deterministic actions of an evaluation; nothing is kept."""
        obs = concat_obs([_obs(message) for message in messages])
        actions, _ = self._model.predict_action_batch(obs, mode="eval", compute_values=False)
        return _split(_numpy(actions), [_size(message) for message in messages])

    @torch.no_grad()
    def predict_filmed(self, message: Message) -> Any:
        """As `predict_held_out` for a film; what the policy says it is about to do is kept (`take_texts`)."""
        actions, result = self._model.predict_action_batch(_obs(message), mode="eval", compute_values=False)
        self._texts.append(result.get("texts", [""] * _size(message)))
        return _numpy(actions)

    def take_texts(self) -> list[list[str]]:
        """The texts of each policy call since the last time, one per episode; "" from a policy without."""
        texts, self._texts = self._texts, []
        return texts

    @torch.no_grad()
    def finish(self, *messages: Message) -> Trajectory | None:
        """The trajectory of the rollout; messages: the last ones of all stages, stage by stage.

        None for a worker that serves no environment.
        """
        waiting = list(messages)
        parts = []
        for stage in sorted(self._records):
            record = self._records.pop(stage)
            served = len(self.layout.served_by(self.rank, stage))
            obs = self._receive(record, waiting[:served])
            del waiting[:served]
            parts.append(record.trajectory(self._last_values(record, obs) if self._wants_values else None))
        assert not waiting
        return join(parts) if parts else None

    def _receive(self, record: StageRecord, messages: Sequence[Message]) -> Observation:
        """Note the outcome of the last actions; returns the observations to act on."""
        results = [message for message in messages if isinstance(message, StepResult)]
        if not results:
            return concat_obs([message for message in messages if not isinstance(message, StepResult)])
        finals = [result.final_obs for result in results if result.final_obs is not None]
        final_values = None
        if self._wants_values:
            final_values = np.zeros(len(record.numbers), np.float32)
            if finals:
                mask = np.concatenate([result.final_mask for result in results])
                final_values[mask] = self._values(concat_obs(finals))[:, 0]
        record.outcomes.append(
            {
                **{
                    name: np.concatenate([getattr(result, name) for result in results])
                    for name in ("rewards", "terminations", "truncations", "valid_steps")
                },
                "final_values": final_values,
            }
        )
        return concat_obs([result.obs for result in results])

    def _last_values(self, record: StageRecord, obs: Observation) -> np.ndarray:
        """What bootstraps the rollout's cut: zeros where no episode goes on (a whole answer per rollout)."""
        if not self.config.env.auto_reset and record.is_over():
            return np.zeros_like(record.decisions[-1]["values"])
        return self._values(obs)

    def _values(self, obs: Observation) -> np.ndarray:
        _, result = self._model.predict_action_batch(obs, mode="eval", compute_values=True)
        return _numpy(result["prev_values"])

    def _generators(self, numbers: np.ndarray, iteration: int) -> list[torch.Generator]:
        """One generator per environment, so that its draws depend on nothing but its number."""
        return [
            torch.Generator(self._device).manual_seed(derive(self.seed, Stream.ACTION, iteration, number))
            for number in numbers.tolist()
        ]


@dataclass(frozen=True, kw_only=True)
class Load:
    """Bytes of weights that came, and whether they were taken over in the middle of a rollout."""

    nbytes: int
    early: bool


class StageRecord:
    """What happened in the environments of one stage since the rollout began."""

    def __init__(self, numbers: np.ndarray, generators: list[torch.Generator]) -> None:
        self.numbers = numbers
        self.generators = generators
        self.decisions: list[dict[str, Any]] = []
        self.outcomes: list[dict[str, Any]] = []

    def is_over(self) -> bool:
        """Whether an episode ended in every environment."""
        ends = [outcome["terminations"] | outcome["truncations"] for outcome in self.outcomes]
        return bool(np.concatenate(ends, axis=1).any(axis=1).all())

    def trajectory(self, last_values: np.ndarray | None) -> Trajectory:
        """All of it as arrays; last_values [B, 1]: the critic after the last step, None without a critic."""
        decisions, outcomes = self.decisions, self.outcomes
        assert len(decisions) == len(outcomes), "every decision has an outcome"
        values = None
        if last_values is not None:
            values = np.stack([*(decision["values"] for decision in decisions), last_values])
        return Trajectory(
            env_index=self.numbers,
            forward_inputs={
                name: np.stack([decision["inputs"][name] for decision in decisions])
                for name in decisions[0]["inputs"]
            },
            logprobs=np.stack([decision["logprobs"] for decision in decisions]),
            values=values,
            rewards=np.stack([outcome["rewards"] for outcome in outcomes]),
            terminations=np.stack([outcome["terminations"] for outcome in outcomes]),
            truncations=np.stack([outcome["truncations"] for outcome in outcomes]),
            valid_steps=np.stack([outcome["valid_steps"] for outcome in outcomes]),
            final_values=None
            if last_values is None
            else np.stack([outcome["final_values"] for outcome in outcomes]),
        )


def _size(message: Message) -> int:
    return obs_size(_obs(message))


def _obs(message: Message) -> Observation:
    return message.obs if isinstance(message, StepResult) else message


def _split(actions: np.ndarray, sizes: list[int]) -> Any:
    parts = np.split(actions, np.cumsum(sizes)[:-1])
    return parts if len(parts) > 1 else parts[0]


def _numpy(x: torch.Tensor) -> np.ndarray:
    x = x.detach()
    return (x.float() if x.dtype == torch.bfloat16 else x).cpu().numpy()
