"""The actor: the trainer, one process per rank, sharded by FSDP2."""

from __future__ import annotations

import datetime
import os
import shutil
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from rlinf.algorithms import LOSSES, finish_metrics, loss_over_transitions
from rlinf.cluster.errors import RunError
from rlinf.data.seeds import minibatches
from rlinf.data.trajectory import Trajectory, join
from rlinf.fsdp.convert import export
from rlinf.fsdp.engine import FsdpEngine, Snapshot
from rlinf.fsdp.export import export_safetensors, load_safetensors
from rlinf.fsdp.rollcall import RollCall, collective
from rlinf.fsdp.weights import Index
from rlinf.models.embodiment.base_policy import ForwardType
from rlinf.models.lora import merge_lora
from rlinf.plugins import get_host
from rlinf.workers.base import Worker, user_errors
from rlinf.workers.batch import Batch, make_batch, micro_batches, policy_tensors, save_batch
from rlinf.workers.sft import SftTrainer, add, sum_over_ranks

#: File in the run folder with the batch on which training diverged.
OFFENDING: Final = "offending_batch.safetensors"
#: Folder in the run folder with the weights that RL began with, where a KL term measures from them.
REFERENCE: Final = "reference"
#: The divergence that `algorithm.target_kl` bounds; unlike the k1 estimate it is never negative.
_STOP_METRIC: Final = "train/approx_kl_k3"


class ActorWorker(Worker):
    """Updates the policy. All ranks get every call; each works on its share of the samples.

    Raises `LostRank`, in methods that are collective, when another rank does not take part in them.
    """

    @property
    def _timeout(self) -> datetime.timedelta:
        """After this long without the other ranks a collective gives up."""
        return datetime.timedelta(seconds=self.args.config["cluster"]["collective_timeout_s"])

    def open_store(self) -> tuple[str, int]:
        """On rank 0: the meeting point of the ranks, on a free port that no one can take in between."""
        import ray

        host = ray.util.get_node_ip_address()
        # Bound here and handed over: the store itself would listen on every interface.
        listener = socket.create_server((host, 0))
        port = listener.getsockname()[1]
        self._store = dist.TCPStore(
            host,
            port,
            self.args.world_size,
            is_master=True,
            wait_for_workers=False,
            timeout=self._timeout,
            master_listen_fd=listener.detach(),
        )
        return host, port

    def connect(self, host: str, port: int) -> None:
        """Join the process group; returns when all ranks have."""
        if self.rank > 0:
            self._store = dist.TCPStore(
                host, port, self.args.world_size, is_master=False, timeout=self._timeout
            )
        self.roll_call = RollCall(self._store, self.rank, self.args.world_size)
        if host.startswith("127."):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(0)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=self._store,
            rank=self.rank,
            world_size=self.args.world_size,
            timeout=self._timeout,
        )

    @user_errors
    @collective
    def setup(self) -> None:
        spec = get_host().model_spec(self.config.model.model_type)
        self._wrap_policy = spec.wrap_policy
        self._device = self.device()
        self._engine = self._build_engine()
        self._engine.model.train()
        self._reference: dict[str, Tensor] | None = None
        self._sft: SftTrainer | None = None

    def _build_engine(self) -> FsdpEngine:
        actor = self.config.actor
        return FsdpEngine(
            self.build_model(),
            actor.fsdp_config,
            actor.optim,
            self._wrap_policy,
            self._device,
            agreement=self.agreement(),
        )

    # -- supervised fine-tuning --------------------------------------------------------------------------

    @user_errors
    def begin_sft(self, folders: Sequence[Path], first_step: int) -> int:
        """Open the data and, at the first step, set the optimizer for SFT; returns the number of samples.

        Raises:
            UserError: the data cannot be read, or does not fit the policy.
        """
        sft = self.config.sft
        assert sft is not None
        self._sft = SftTrainer(
            self._engine, self.config, folders, first_step, rank=self.rank, world_size=self.args.world_size
        )
        if first_step == 0:
            self._engine.begin_phase(sft.lr_warmup_steps)
            if sft.ema_decay is not None:
                self._engine.begin_average(sft.ema_decay)
        return len(self._sft)

    @user_errors
    @collective
    def sft(self, first: int, last: int) -> list[dict[str, float]]:
        """SFT steps first..last-1; returns their metrics."""
        assert self._sft is not None
        metrics = []
        for step in range(first, last):
            metrics.append(self._sft.step(step))
            self._require_progress(metrics[-1]["sft/grad_norm"], self._sft.last_batch)
        return metrics

    @user_errors
    @collective
    def validate(self) -> dict[str, float]:
        """Losses on held-out episodes."""
        assert self._sft is not None
        return self._sft.validate()

    @user_errors
    @collective
    def export(self, folder: Path) -> None:
        """Write the weights, with LoRA adapters merged, into a new folder, as the model's family has them."""
        state = self._engine.full_state()
        if self.rank == 0:
            if self.config.model.is_lora:
                model = self.build_model()
                model.load_state_dict(state)
                state = merge_lora(model).state_dict()
            export(state, self.config.model, folder)
        dist.barrier()

    def end_sft(self) -> None:
        """Close the data; the average of the weights, if one is kept, takes their place."""
        self._sft = None
        self._engine.adopt_average()

    # -- reinforcement learning --------------------------------------------------------------------------

    @collective
    def begin_rl(self) -> None:
        """Set the optimizer for RL: its own learning rates, no moments left over from SFT. With a KL term the
        weights are kept in the run folder, where a resumed run finds them."""
        optim = self.config.actor.optim
        self._engine.begin_phase(optim.lr_warmup_steps)
        self._engine.set_lr(optim.lr, optim.value_lr, optim.non_lora_lr)
        if self.config.algorithm.kl_beta:
            state = self._engine.full_state()
            if self.rank == 0:
                shutil.rmtree(self._reference_folder, ignore_errors=True)
                export_safetensors(self._reference_folder, state)
            self._reference = None

    @property
    def _reference_folder(self) -> Path:
        return self.config.runner.output_dir / REFERENCE

    def _open_reference(self) -> dict[str, Tensor]:
        """This rank's part of the weights that RL began with, as far as training changes them."""
        weights = self._engine.local_weights()
        self._engine.load_full_state(load_safetensors(self._reference_folder) if self.rank == 0 else {})
        self._engine.exchange(weights)
        return weights

    def _reference_logprobs(self, batch: Batch) -> Tensor:
        """As `_logprobs`, of the policy that RL began with: it takes the engine's place for a while."""
        if self._reference is None:
            self._reference = self._open_reference()
        self._engine.exchange(self._reference)
        try:
            with self._engine.evaluating():
                return self._logprobs(batch)
        finally:
            self._engine.exchange(self._reference)

    @collective
    def update(self, iteration: int, staleness: int, *trajectories: Trajectory | None) -> dict[str, float]:
        """One RL update: `update_epoch` passes over the rollout of `iteration` in shuffled minibatches.

        The minibatches are equal on all ranks, and each divides its loss by the count over all of it, so any
        number of ranks and micro-batches does the same steps. The passes stop early at `target_kl`.

        staleness: updates since the weights that acted; more than 0 takes the decoupled objective.

        Returns:
            metrics `train/...`, means over the optimizer steps; train/updates counts them. Where nothing
            trains (all groups filtered out) it is 0 and there are no losses.
        """
        algorithm = self.config.algorithm
        self._schedule_lr(iteration)
        batch = make_batch(join([part for part in trajectories if part is not None]), algorithm)
        if staleness:
            batch = replace(
                batch,
                behavior_logprobs=batch.old_logprobs,
                old_logprobs=self._logprobs(batch),
            )
        if algorithm.kl_beta:
            batch = replace(batch, ref_logprobs=self._reference_logprobs(batch))
        steps: list[dict[str, float]] = []
        stopped = len(batch.samples) == 0
        for epoch in range(algorithm.update_epoch):
            if stopped:
                break
            size = self.config.actor.global_batch_size
            for samples in minibatches(self.seed, iteration, epoch, batch.samples, size):
                steps.append(self._policy_step(batch, samples))
                if algorithm.target_kl is not None and steps[-1][_STOP_METRIC] > algorithm.target_kl:
                    stopped = True
                    break
        means = {name: float(np.mean([step[name] for step in steps])) for name in steps[0]} if steps else {}
        return {**batch.metrics, **means, "train/updates": float(len(steps))}

    def _schedule_lr(self, iteration: int) -> None:
        optim = self.config.actor.optim
        left = 1 - iteration / self.config.runner.max_steps if optim.lr_schedule == "linear" else 1.0
        warm = left * (iteration >= self.config.algorithm.critic_warmup_steps)
        self._engine.set_lr(
            optim.lr * warm, (optim.value_lr or optim.lr) * left, (optim.non_lora_lr or optim.lr) * warm
        )

    @torch.no_grad()
    def _logprobs(self, batch: Batch) -> Tensor:
        """Log-probabilities float32 [S, chunk, dim] under the engine's weights, which each rank computes for
        its share of the samples. What trains nothing keeps those of the policy that acted."""
        found = torch.zeros_like(batch.old_logprobs)
        for indices, counts in self._micro_batches(batch.samples) if len(batch.samples) else ():
            inputs = {name: torch.from_numpy(x[indices]).to(self._device) for name, x in batch.inputs.items()}
            out = self._engine.model(forward_type=ForwardType.DEFAULT, forward_inputs=inputs)
            rows = torch.from_numpy(indices[counts])
            found[rows] = out["logprobs"].float().cpu()[torch.from_numpy(counts)]
        found = found.to(self._device)
        dist.all_reduce(found)
        trains = torch.zeros(len(found), 1, 1, dtype=torch.bool)
        trains[torch.from_numpy(batch.samples)] = True
        return torch.where(trains & batch.executed.unsqueeze(-1), found.cpu(), batch.old_logprobs)

    def _policy_step(self, batch: Batch, samples: np.ndarray) -> dict[str, float]:
        normalizer = batch.mask[torch.from_numpy(samples)].sum().item()
        sums: dict[str, Tensor] = {}
        parts = self._micro_batches(samples)
        for number, (indices, counts) in enumerate(parts):
            self._engine.no_sync(number < len(parts) - 1)
            loss, metrics = self._policy_loss(batch, indices, counts, normalizer)
            self._engine.backward(loss)
            add(sums, metrics)
        step_metrics = self._engine.optimizer_step()
        self._require_progress(step_metrics["grad_norm"], lambda: policy_tensors(batch, samples))
        totals = {name: torch.tensor(value) for name, value in sum_over_ranks(sums).items()}
        finished = {f"train/{name.partition('/')[2]}": float(x) for name, x in finish_metrics(totals).items()}
        return {**finished, **{f"train/{name}": value for name, value in step_metrics.items()}}

    def _policy_loss(
        self, batch: Batch, indices: np.ndarray, counts: np.ndarray, normalizer: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """This micro-batch's term of the loss, and its terms of the metrics."""
        a, device = self.config.algorithm, self._device
        rows = torch.from_numpy(indices)
        inputs = {name: torch.from_numpy(x[indices]).to(device) for name, x in batch.inputs.items()}
        out = self._engine.model(forward_type=ForwardType.DEFAULT, forward_inputs=inputs)
        old_logprobs = batch.old_logprobs[rows].to(device)
        executed = batch.executed[rows].to(device).unsqueeze(-1)
        behavior = None if batch.behavior_logprobs is None else batch.behavior_logprobs[rows].to(device)
        loss, logprobs = LOSSES[a.loss_type], out["logprobs"]
        # Behind stale weights the recorded transitions are those of the policy that acted: joint ratios then.
        if "transition_logprobs" in out and behavior is None:
            transitions = {"discounts": out["transition_discounts"], "clips": out["transition_clips"]}
            loss = partial(loss_over_transitions, loss, **transitions)
            logprobs, old_logprobs = out["transition_logprobs"], inputs["transition_logprobs"]
            executed = executed.unsqueeze(1)
        return loss(
            # Actions after an episode's end were never executed: they must not move the chunk's ratio.
            logprobs=torch.where(executed, logprobs, old_logprobs),
            old_logprobs=old_logprobs,
            advantages=batch.advantages[rows].to(device),
            loss_mask=(batch.mask[rows] & torch.from_numpy(counts).unsqueeze(-1)).to(device),
            logprob_type=a.logprob_type,
            reward_type=a.reward_type,
            clip_ratio_low=a.clip_ratio_low,
            clip_ratio_high=a.clip_ratio_high,
            clip_ratio_c=a.clip_ratio_c,
            clip_log_ratio=a.clip_log_ratio,
            values=out.get("values"),
            old_values=None if batch.old_values is None else batch.old_values[rows].to(device),
            returns=None if batch.returns is None else batch.returns[rows].to(device),
            value_clip=a.value_clip,
            huber_delta=a.huber_delta,
            value_coef=a.value_coef,
            entropy=out.get("entropy"),
            entropy_bonus=a.entropy_bonus,
            behavior_logprobs=behavior,
            behavior_weight_cap=a.behavior_weight_cap,
            ref_logprobs=None if batch.ref_logprobs is None else batch.ref_logprobs[rows].to(device),
            kl_beta=a.kl_beta,
            kl_type=a.kl_type,
            normalizer=normalizer,
        )

    # -- weights and checkpoints -------------------------------------------------------------------------

    @collective
    def export_weights(self, trainable_only: bool) -> tuple[np.ndarray | None, Index | None]:
        """On rank 0 the whole weights as a buffer and its index, nothing on the others."""
        packed = self._engine.packed_state(trainable_only)
        return (None, None) if packed is None else packed

    @collective
    def save(self, folder: Path, extra: Mapping[str, Any]) -> None:
        """Write this rank's part of a checkpoint into the folder of a `CheckpointStore`."""
        self._engine.save(folder, extra)

    @user_errors
    @collective
    def load(self, folder: Path) -> dict[str, Any]:
        """Restore weights, optimizer and counters; returns the `extra` of `save`."""
        return self._engine.load(folder)

    def snapshot(self) -> Snapshot:
        """This rank's state; the driver keeps the reference to it, so that it outlives this process."""
        return self._engine.snapshot()

    def restore(self, snapshot: Snapshot) -> None:
        """Take over what this rank's predecessor had."""
        self._engine.restore(snapshot)

    # -- inside ------------------------------------------------------------------------------------------

    def _micro_batches(self, samples: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        return list(
            micro_batches(
                samples,
                rank=self.rank,
                world_size=self.args.world_size,
                size=self.config.actor.micro_batch_size,
            )
        )

    def _require_progress(self, norm: float, tensors: Callable[[], Mapping[str, Any]]) -> None:
        """Stop after `max_skipped_steps` steps in a row that were skipped; rank 0 keeps the last one's batch.

        Raises RunError on all ranks.
        """
        skipped, optim = self._engine.skipped_in_a_row, self.config.actor.optim
        if skipped < optim.max_skipped_steps:
            return
        file = self.config.runner.output_dir / OFFENDING
        if self.rank == 0:
            save_batch(file, tensors())
        raise RunError(
            f"{skipped} optimizer steps in a row were skipped (actor.optim.max_skipped_steps), the last with "
            f"the gradient norm {norm:g} (actor.optim.skip_grad_norm: {optim.skip_grad_norm}): training has "
            f"diverged. The last batch is in {file}; a smaller actor.optim.lr, or fp32, may help"
        )
