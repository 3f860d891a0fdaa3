"""The trainer's engine: a sharded model, its optimizer, its checkpoints. Every call is made on all ranks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from rlinf.config.schema import FsdpConfig, OptimConfig
from rlinf.fsdp import sharding
from rlinf.fsdp.average import WeightAverage
from rlinf.fsdp.gather import gather_packed, scatter_into
from rlinf.fsdp.optim import (
    global_grad_norm,
    learning_rates,
    local,
    parameter_groups,
    scale_grads,
    warmup_factor,
)
from rlinf.fsdp.state import load_sharded, local_tensors, save_sharded, set_local_tensors
from rlinf.fsdp.weights import Index, pack, unpack
from rlinf.fsdp.wrap import WrapPlan, get_fsdp_wrap_policy
from rlinf.plugins.specs import WrapPolicySpec

_ENGINE_FILE = "engine.json"

#: One rank's buffer, its index, and the counters: what `FsdpEngine.snapshot` gives.
Snapshot = tuple[np.ndarray, Index, dict[str, Any]]


class FsdpEngine:
    """FSDP2 over the default process group (any world size, 1 included), AdamW, accumulation, checkpoints.

    Call the model only as `engine.model(...)`: FSDP gathers parameters in the hooks of `forward`. Ranks may
    hold different initial weights; rank 0's count.

    Losses: a rank gives `backward` its own part of the global loss, `sum over its samples / count over all
    ranks and micro-batches`. FSDP averages gradients over ranks; `backward` multiplies by the world size, so
    that the result is the gradient that one process would compute on the whole batch.

    Raises `ValueError` for a wrap policy that does not fit the model and, on all ranks, when they resolved
    different plans (before any collective that could hang).
    """

    def __init__(
        self,
        model: nn.Module,
        fsdp_config: FsdpConfig,
        optim: OptimConfig,
        wrap_policy: WrapPolicySpec | None = None,
        device: torch.device | str = "cpu",
        agreement: Mapping[str, Any] | None = None,
    ) -> None:
        """agreement: what else must be equal on all ranks (plugins, configuration), by name."""
        if not dist.is_initialized():
            raise RuntimeError(
                "FsdpEngine needs a process group: call torch.distributed.init_process_group first"
            )
        self.device = torch.device(device)
        self.world_size = dist.get_world_size()
        self.plan: WrapPlan = get_fsdp_wrap_policy(fsdp_config, model, wrap_policy)
        sharding.require_agreement(
            {
                "torch": torch.__version__,
                "world size": self.world_size,
                "fsdp_config": fsdp_config.model_dump_json(),
                "optim": optim.model_dump_json(),
                **(agreement or {}),
                **sharding.plan_items(model, self.plan),
            }
        )
        model.to(self.device)
        sharding.broadcast_weights(model)
        mesh = init_device_mesh(self.device.type, (self.world_size,))
        self._root = sharding.shard(model, self.plan, fsdp_config, mesh)
        self.model = model
        self._optim_config = optim
        self._rates = learning_rates(optim.lr, optim.value_lr, optim.non_lora_lr)
        self._warmup_steps = optim.lr_warmup_steps
        self.optimizer = torch.optim.AdamW(
            parameter_groups(model, optim), lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True
        )
        self._trainable = [p for group in self.optimizer.param_groups for p in group["params"]]
        #: Optimizer steps taken, and steps skipped because a gradient was not finite.
        self.step = 0
        self.skipped_steps = 0
        #: Steps skipped one after the other, without a good one since.
        self.skipped_in_a_row = 0
        self._sync = True
        self._unreduced = False
        self._average: WeightAverage | None = None

    # -- one optimizer step ------------------------------------------------------------------------------

    def no_sync(self, enabled: bool) -> None:
        """True: the next backwards accumulate without communication; False again before the last of them."""
        self._sync = not enabled
        self._root.set_requires_gradient_sync(self._sync)

    def backward(self, loss: torch.Tensor) -> None:
        """Accumulate the gradients of this rank's part of the global loss (see the class)."""
        (loss * self.world_size).backward()
        self._unreduced = not self._sync

    def optimizer_step(self) -> dict[str, float]:
        """Clip, step, clear the gradients. A gradient that is not finite anywhere, or larger than
        `skip_grad_norm`, skips the step on all ranks.

        Returns `grad_norm` (global L2 norm before clipping), `lr` (of the backbone) and `skipped_steps` (so
        far).
        """
        if self._unreduced:
            raise RuntimeError("the last backward ran under no_sync(True): call no_sync(False) before it")
        norm = global_grad_norm(self._trainable, self.device).item()
        lr = self._set_scheduled_lr()
        # A forward without backward leaves gathered parameters behind, which the next forward would trust.
        sharding.free_gathered(self.model)
        limit = self._optim_config.skip_grad_norm
        if np.isfinite(norm) and (limit is None or norm <= limit):
            self.skipped_in_a_row = 0
            if norm > self._optim_config.clip_grad:
                scale_grads(self._trainable, self._optim_config.clip_grad / (norm + 1e-6))
            self.optimizer.step()
            self.step += 1
            if self._average is not None:
                self._average.update()
        else:
            self.skipped_steps += 1
            self.skipped_in_a_row += 1
        self.optimizer.zero_grad(set_to_none=True)
        return {"grad_norm": norm, "lr": lr, "skipped_steps": float(self.skipped_steps)}

    def set_lr(self, lr: float, value_lr: float | None = None, non_lora_lr: float | None = None) -> None:
        """Change the learning rates (see `rlinf.fsdp.optim.learning_rates`)."""
        self._rates = learning_rates(lr, value_lr, non_lora_lr)

    def begin_phase(self, warmup_steps: int) -> None:
        """Another loss begins: forget the moments, start a warm-up of that many steps."""
        self.optimizer.state.clear()
        self.step, self._warmup_steps = 0, warmup_steps

    def _set_scheduled_lr(self) -> float:
        factor = warmup_factor(self.step, self._warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = factor * self._rates[group["kind"]] * group["lr_scale"]
        return factor * self._rates["lora"]

    # -- average of the weights --------------------------------------------------------------------------

    def begin_average(self, decay: float) -> None:
        """Keep an exponential moving average of the trainable weights from now on. It is what `packed_state`
        and `full_state` give and `evaluating` evaluates; training goes on with the weights themselves."""
        named = {
            name: parameter
            for group in self.optimizer.param_groups
            for name, parameter in zip(group["param_names"], group["params"], strict=True)
        }
        self._average = WeightAverage(named, decay)

    def adopt_average(self) -> None:
        """Let the average, if there is one, take the weights' place, and keep none."""
        if self._average is not None:
            sharding.free_gathered(self.model)
            self._average.put()
            self._average = None

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the weights are their average, if there is one."""
        if self._average is None:
            yield
            return
        sharding.free_gathered(self.model)
        saved = self._average.put()
        try:
            yield
        finally:
            sharding.free_gathered(self.model)
            self._average.restore(saved)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within, forwards compute no gradients, modules are in evaluation mode and weights averaged."""
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), self.averaged():
                yield
        finally:
            # A forward without backward leaves gathered parameters behind.
            sharding.free_gathered(self.model)
            self.model.train(training)

    # -- weights -----------------------------------------------------------------------------------------

    def packed_state(self, trainable_only: bool = False) -> tuple[np.ndarray, Index] | None:
        """Full weights and buffers as `(uint8 buffer, index)` on rank 0 (see `weights.unpack`), None
        elsewhere.

        `trainable_only` leaves out frozen parameters (LoRA); buffers, which training may change, stay.
        """
        with self.averaged():
            state = self.model.state_dict()
            if trainable_only:
                parameters = self.model.named_parameters(remove_duplicate=False)
                frozen = {name for name, p in parameters if not p.requires_grad}
                state = {name: tensor for name, tensor in state.items() if name not in frozen}
            return gather_packed(state, self.device)

    def full_state(self, trainable_only: bool = False) -> dict[str, torch.Tensor]:
        """Full weights and buffers as CPU tensors of their own on rank 0; empty on the other ranks."""
        packed = self.packed_state(trainable_only)
        return {} if packed is None else unpack(*packed)

    def load_full_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Set all weights and buffers from rank 0's `state` (the other ranks' argument is not read).

        Raises `ValueError` on all ranks when names or shapes are not those of the model.
        """
        own = self.model.state_dict()
        problem: list[str | None] = [None]
        if dist.get_rank() == 0:
            problem = [_difference(own, state)]
        dist.broadcast_object_list(problem, src=0)
        if problem[0]:
            raise ValueError(f"{type(self.model).__name__}: {problem[0]}")
        scatter_into(own, state, self.device)

    def local_weights(self) -> dict[str, torch.Tensor]:
        """CPU copies of this rank's shards of what training changes: trainable parameters, buffers."""
        return {name: mine.to("cpu", copy=True) for name, mine in self._changing().items()}

    @torch.no_grad()
    def exchange(self, weights: dict[str, torch.Tensor]) -> None:
        """Give what `local_weights` gave the weights' place, and the weights theirs, in place."""
        sharding.free_gathered(self.model)
        for name, mine in self._changing().items():
            saved = mine.to(weights[name].device, copy=True)
            mine.copy_(weights[name])
            weights[name] = saved

    def _changing(self) -> dict[str, torch.Tensor]:
        trainable = {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}
        return {
            name: local(tensor) for name, tensor in {**trainable, **dict(self.model.named_buffers())}.items()
        }

    # -- checkpoints -------------------------------------------------------------------------------------

    def save(self, directory: str | Path, extra: Mapping[str, Any] | None = None) -> None:
        """Write model, optimizer and counters below `directory` (one safetensors file per rank, JSON from
        rank 0).

        `extra` (JSON-able, rank 0's is kept) comes back from `load`. Use `CheckpointStore.writing` for a
        folder that appears only when complete.
        """
        target = Path(directory)
        save_sharded(target, self.model, self.optimizer, self._averages())
        failure: list[str | None] = [None]
        if dist.get_rank() == 0:
            content = {**self._counters(), "extra": dict(extra or {})}
            try:
                (target / _ENGINE_FILE).write_text(json.dumps(content, indent=2) + "\n")
            except OSError as error:  # a full disk, say: the other ranks must hear of it and not wait
                failure = [str(error)]
        dist.broadcast_object_list(failure, src=0)
        if failure[0]:
            raise OSError(failure[0])

    def load(self, directory: str | Path) -> dict[str, Any]:
        """Restore what `save` wrote, at any world size; returns `extra`.

        Raises `ValueError` naming the tensors that do not fit.
        """
        source = Path(directory)
        path = source / _ENGINE_FILE
        if not path.is_file():
            raise ValueError(f"{path} is missing: {source} is no checkpoint of FsdpEngine")
        content = json.loads(path.read_text())
        self._follow_average(content)
        load_sharded(source, self.model, self.optimizer, self._averages())
        self._set_counters(content)
        return content["extra"]

    def snapshot(self) -> Snapshot:
        """This rank's own part of all that training changes, in memory: no collective, no disk."""
        return *pack(local_tensors(self.model, self.optimizer)), self._counters()

    def restore(self, snapshot: Snapshot) -> None:
        """Take over what `snapshot` gave on this rank of an equal group."""
        buffer, index, counters = snapshot
        set_local_tensors(self.model, self.optimizer, unpack(buffer, index))
        self._set_counters(counters)

    def _averages(self) -> dict[str, torch.Tensor]:
        return {} if self._average is None else self._average.shadow

    def _follow_average(self, content: Mapping[str, Any]) -> None:
        """Keep an average exactly where the checkpoint did."""
        self._average = None
        if content.get("ema_decay") is not None:
            self.begin_average(content["ema_decay"])

    def _counters(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "skipped_steps": self.skipped_steps,
            "rates": self._rates,
            "warmup_steps": self._warmup_steps,
            "ema_decay": None if self._average is None else self._average.decay,
        }

    def _set_counters(self, content: Mapping[str, Any]) -> None:
        self.step, self.skipped_steps = content["step"], content["skipped_steps"]
        # Before there were rates by kind, checkpoints had two.
        self._rates = content.get("rates") or learning_rates(content["lr"], content["value_lr"], None)
        self._warmup_steps = content.get("warmup_steps", self._warmup_steps)


def _difference(own: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor]) -> str | None:
    """How the names and shapes of two states differ, or None."""
    for what, names in (("misses", set(own) - set(given)), ("has unknown", set(given) - set(own))):
        if names:
            listed = ", ".join(sorted(names)[:5])
            more = " ..." if len(names) > 5 else ""
            return f"the given state {what} {len(names)} tensors (of {len(own)}): {listed}{more}"
    for name, tensor in own.items():
        if tensor.shape != given[name].shape:
            return (
                f"{name} has shape {list(tensor.shape)} here and {list(given[name].shape)} in the given state"
            )
    return None
