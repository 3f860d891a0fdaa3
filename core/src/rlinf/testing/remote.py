"""What the building laws run in other processes. Only names, numbers and arrays travel there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from rlinf.config.schema import FsdpConfig, OptimConfig
from rlinf.testing.law import difference
from rlinf.testing.material import act, build, rows

#: The epsilon keeps Adam from scaling rounding up to whole steps where a gradient is rounding alone.
OPTIM: Final = OptimConfig(lr=1e-3, eps=1e-5, clip_grad=1.0)


def digests(policy: nn.Module) -> dict[str, str]:
    """SHA-256 of every tensor's bytes."""
    state = policy.state_dict().items()
    return {
        n: hashlib.sha256(t.contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()
        for n, t in state
    }


def build_and_act(config: str, obs: dict[str, Any]) -> tuple[dict[str, str], np.ndarray]:
    """Build from JSON with seed 0: digests of the weights, and the deterministic actions."""
    policy = _build(config)
    return digests(policy), act(policy, obs)[0].numpy()


def train_one_step(config: str, branch: str, batch: Mapping[str, Any]) -> dict[str, Any]:
    """One optimizer step on all ranks together, and the same by plain torch on rank 0.

    Returns (on rank 0) {"one": metrics, "two": metrics, "weights": (name, largest difference)}; {} elsewhere.
    """
    from rlinf.fsdp.engine import FsdpEngine
    from rlinf.plugins import get_host

    batch = {key: torch.from_numpy(x) if isinstance(x, np.ndarray) else x for key, x in batch.items()}
    rank, world = dist.get_rank(), dist.get_world_size()
    count = len(next(iter(batch.values())))
    share = count // world
    # All parts on every rank: a batch that cannot be dealt out fails on all, and none waits for another.
    parts = [rows(batch, range(r * share, (r + 1) * share)) for r in range(world)]
    plain = _build(config)
    one = _plain_step(plain, branch, batch) if rank == 0 else {}
    spec = get_host().model_spec(json.loads(config)["model_type"])
    engine = FsdpEngine(_build(config), FsdpConfig(), OPTIM, spec.wrap_policy)
    loss = _loss(engine.model, branch, parts[rank]) * share / count
    engine.backward(loss)
    total = loss.detach().clone()
    dist.all_reduce(total)
    two = {"loss": float(total), "grad_norm": engine.optimizer_step()["grad_norm"]}
    state = engine.full_state()
    if rank > 0:
        return {}
    own = plain.state_dict()
    gaps = {name: difference(own[name], tensor) for name, tensor in state.items()}
    worst = max(gaps, key=lambda name: gaps[name])
    return {"one": one, "two": two, "weights": (worst, gaps[worst])}


def _build(config: str) -> nn.Module:
    from rlinf.plugins import load_ext_module

    load_ext_module()
    return build(json.loads(config), seed=0)


def _plain_step(policy: nn.Module, branch: str, batch: dict[str, Any]) -> dict[str, float]:
    from rlinf.fsdp.optim import parameter_groups

    groups = parameter_groups(policy, OPTIM)
    optimizer = torch.optim.AdamW(groups, lr=OPTIM.lr, betas=OPTIM.betas, eps=OPTIM.eps)
    loss = _loss(policy, branch, batch)
    loss.backward()
    trained = [p for group in groups for p in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(trained, OPTIM.clip_grad)
    optimizer.step()
    return {"loss": float(loss.detach()), "grad_norm": float(norm)}


def _loss(policy: nn.Module, branch: str, batch: dict[str, Any]) -> Tensor:
    """A mean over the samples."""
    if branch == "sft":
        return policy(forward_type="sft", batch=batch)["loss"]
    out = policy(forward_inputs=batch)
    loss = -out["logprobs"].mean()
    if "values" in out:
        loss = loss + out["values"].square().mean()
    if "entropy" in out:
        loss = loss - 0.1 * out["entropy"].mean()
    return loss
