"""Supervised fine-tuning on the trainer's ranks: batches in, optimizer steps and validation losses out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from rlinf.config import Config
from rlinf.config.schema import SftConfig
from rlinf.data.demonstrations import Demonstrations
from rlinf.data.errors import DatasetError
from rlinf.data.loader import Loaded, iterate
from rlinf.data.samples import EpisodeSamples
from rlinf.data.seeds import SampleOrder, Stream, derive
from rlinf.data.text import TextSamples
from rlinf.data.training import open_demonstrations, open_rows_or_samples
from rlinf.fsdp.engine import FsdpEngine
from rlinf.fsdp.optim import schedule_factor
from rlinf.models.embodiment.base_policy import ForwardType
from rlinf.workers.batch import micro_batches

#: A micro-batch: sample numbers and which of them count.
Part = tuple[np.ndarray, np.ndarray]


class SftTrainer:
    """One rank's part of SFT. All ranks make every call.

    What a step does depends on the seed and its number alone: which samples, in which order, and every draw
    of the model's loss. So a resumed run goes on as if it had not stopped.

    Raises:
        DatasetError: the data cannot be read or does not fit the model.
    """

    def __init__(
        self,
        engine: FsdpEngine,
        config: Config,
        folders: Sequence[Path],
        first_step: int,
        *,
        rank: int,
        world_size: int,
    ) -> None:
        """folders: the configuration's datasets and what was recorded for this run. first_step: of the steps
        that are still to be done."""
        assert config.sft is not None
        self._engine, self._config, self._sft = engine, config, config.sft
        self._rank, self._world_size = rank, world_size
        data = config.data
        self._demonstrations = open_demonstrations(config, folders)
        source = self._demonstrations or open_rows_or_samples(config)
        self._source: Demonstrations | EpisodeSamples | TextSamples = source
        sizes = [len(source)] if isinstance(source, Demonstrations) else source.sizes
        self._order = SampleOrder(config.runner.seed, sizes, self._sft.batch_size, data.weights)
        self._validation = open_rows_or_samples(config, held_out=True) if data.val_fraction else None
        self._next = first_step
        self._batches = self._load(first_step)
        self._last: dict[str, Any] = {}
        self.skipped = 0

    def __len__(self) -> int:
        return len(self._source)

    def step(self, step: int) -> dict[str, float]:
        """Optimizer step number `step`, which must be the one after the last. Returns metrics `sft/...`; the
        number of samples that were skipped so far (`sft/skipped_samples`) only where there are any."""
        assert step == self._next, f"expected step {self._next}, got {step}"
        self._next += 1
        lr, factor = self._sft.lr, schedule_factor_of(self._sft, step)
        self._engine.set_lr(lr * factor, non_lora_lr=(self._sft.non_lora_lr or lr) * factor)
        parts = self._parts(self._order.batch(step))
        loaded = list(islice(self._batches, len(parts)))
        # Not before: a loader draws from the global generator when it begins.
        torch.manual_seed(derive(self._config.runner.seed, Stream.NOISE, step, self._rank))
        batches = [self._prepare(one.batch, counts) for one, (_, counts) in zip(loaded, parts, strict=True)]
        self._last = batches[-1]
        total = self._total(batches)
        sums: dict[str, Tensor] = {"skipped": torch.tensor(sum(one.skipped.count for one in loaded))}
        for number, batch in enumerate(batches):
            self._engine.no_sync(number < len(batches) - 1)
            metrics, share = self._forward(batch, total)
            self._engine.backward(metrics["loss"] * share)
            add(sums, {name: metric.detach() * share for name, metric in metrics.items()})
        step_metrics = self._engine.optimizer_step()
        means = sum_over_ranks(sums)
        self.skipped += int(means.pop("skipped"))
        skipped = {"sft/skipped_samples": float(self.skipped)} if self.skipped else {}
        return {
            **{f"sft/{name}": value for name, value in means.items()},
            "sft/grad_norm": step_metrics["grad_norm"],
            "sft/lr": step_metrics["lr"],
            **skipped,
        }

    def last_batch(self) -> dict[str, Any]:
        """This rank's last micro-batch of the last step."""
        return self._last

    def validate(self) -> dict[str, float]:
        """Losses on `sft.val_samples` samples of held-out episodes, evenly spaced, the same at every call:
        {"sft/val_loss": ..., ...}. With an average of weights it is the average that is validated."""
        assert self._validation is not None
        source = self._validation
        count = min(self._sft.val_samples, len(source))
        samples = np.linspace(0, len(source) - 1, count).astype(np.int64)
        batches = [
            self._prepare(source.collate(source.load(indices)), counts)
            for indices, counts in self._parts(samples)
        ]
        total = self._total(batches)
        sums: dict[str, Tensor] = {}
        seed = derive(self._config.runner.seed, Stream.VALIDATION, self._rank)
        with self._engine.evaluating(), torch.random.fork_rng():
            torch.manual_seed(seed)
            for batch in batches:
                metrics, share = self._forward(batch, total)
                add(sums, {name: metric.detach() * share for name, metric in metrics.items()})
        return {f"sft/val_{name}": value for name, value in sum_over_ranks(sums).items()}

    def _parts(self, samples: np.ndarray) -> list[Part]:
        size = self._config.actor.micro_batch_size
        return list(micro_batches(samples, rank=self._rank, world_size=self._world_size, size=size))

    def _load(self, first_step: int) -> Iterator[Loaded]:
        """This rank's micro-batches of all steps from `first_step` on."""
        if isinstance(self._source, Demonstrations):
            return self._collate_demonstrations(self._source, first_step)
        per_step = len(self._parts(self._order.batch(0)))
        data = self._config.data

        def part(number: int) -> np.ndarray:
            step, within = divmod(number, per_step)
            return self._parts(self._order.batch(step))[within][0]

        return iterate(
            partial(open_rows_or_samples, self._config),
            part,
            first_step * per_step,
            self._sft.max_steps * per_step,
            workers=data.workers,
            prefetch=data.prefetch,
            skip=data.on_error == "skip",
        )

    def _collate_demonstrations(self, data: Demonstrations, first_step: int) -> Iterator[Loaded]:
        for step in range(first_step, self._sft.max_steps):
            for indices, _ in self._parts(self._order.batch(step)):
                yield Loaded(batch=data.collate(indices))

    def _prepare(self, batch: Mapping[str, Any], counts: np.ndarray) -> dict[str, Any]:
        """The batch with the samples that do not count padded out."""
        pad = batch.get("action_is_pad")
        if not isinstance(pad, Tensor):
            raise DatasetError(
                f"the data_layout of {self._config.model.model_type!r} must keep action_is_pad in the batch, "
                f"which has {', '.join(batch)}"
            )
        return {**batch, "action_is_pad": pad | torch.from_numpy(~counts).unsqueeze(-1)}

    def _total(self, batches: Sequence[dict[str, Any]]) -> int:
        """How many actions count in all batches of all ranks; a collective."""
        count = torch.tensor(sum(_counted(batch) for batch in batches))
        dist.all_reduce(count)
        return max(int(count), 1)

    def _forward(self, batch: dict[str, Any], total: int) -> tuple[dict[str, Tensor], float]:
        """Loss and metrics of a batch, and its share: `sft_forward` gives the mean over what counts in the
        batch, which times the share is a term of the mean over all batches of all ranks."""
        device = self._engine.device
        placed = {
            k: x.to(device, non_blocking=True) if isinstance(x, Tensor) else x for k, x in batch.items()
        }
        return self._engine.model(forward_type=ForwardType.SFT, batch=placed), _counted(batch) / total


def _counted(batch: Mapping[str, Any]) -> int:
    return int((~batch["action_is_pad"]).sum())


def schedule_factor_of(sft: SftConfig, step: int) -> float:
    """Factor of the learning rate at `step`, without the warm-up that the engine does."""
    return schedule_factor(
        sft.lr_schedule, step, sft.max_steps, sft.lr_warmup_steps, smallest=sft.lr_min_ratio
    )


def add(sums: dict[str, Tensor], terms: Mapping[str, Tensor]) -> None:
    """Add the terms to the sums of their names, in place."""
    for name, term in terms.items():
        sums[name] = sums[name] + term if name in sums else term


def sum_over_ranks(metrics: Mapping[str, Tensor]) -> dict[str, float]:
    """The sums over all ranks, float64; a collective."""
    names = sorted(metrics)
    stacked = torch.stack([metrics[name].double().cpu() for name in names])
    dist.all_reduce(stacked)
    return dict(zip(names, stacked.tolist()))
