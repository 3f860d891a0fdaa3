"""Estimated bytes per rank against two real ranks (gloo) that take an optimizer step, and the parts of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from rlinf.config.schema import FsdpConfig, MixedPrecisionConfig, ModelConfig, OptimConfig
from rlinf.fsdp.engine import FsdpEngine
from rlinf.fsdp.estimate import estimate, shard_numel
from rlinf.fsdp.folding import fold
from rlinf.fsdp.meta import build_on_meta
from rlinf.fsdp.optim import local
from rlinf.fsdp.report_text import count, size
from rlinf.fsdp.wrap import get_fsdp_wrap_policy
from rlinf.models import get_model
from rlinf.models.weights import is_pretrained
from rlinf.testing.ranks import RankPool
from safetensors.torch import save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

DIM = 255  # odd: shards are padded
CASES = {
    "float32": (FsdpConfig(), False),
    "bf16": (FsdpConfig(mixed_precision=MixedPrecisionConfig(param_dtype="bf16")), False),
    "frozen blocks": (FsdpConfig(), True),
}
TOLERANCE = 0.10


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(DIM, 4 * DIM + 1), nn.Linear(4 * DIM + 1, DIM)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.tanh(self.up(x)))


class Model(nn.Module):
    """2.3 million parameters, 9 MB."""

    _no_split_modules = ("Block",)

    def __init__(self, frozen: bool = False) -> None:
        super().__init__()
        self.embed = nn.Linear(33, DIM)
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.out = nn.Linear(DIM, 3)
        self.register_buffer("scale", torch.ones(3))
        if frozen:
            self.blocks.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.out(x) * self.scale


class Gathers(TorchDispatchMode):
    """Notes the bytes that each all-gather fills."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.c10d._allgather_base_.default:
            self.sizes.append(args[0].numel() * args[0].element_size())
        return func(*args, **(kwargs or {}))


def storages(tensors: list[torch.Tensor]) -> int:
    """Bytes of the memory behind local shards, padding included, each memory once."""
    found = {}
    for tensor in tensors:
        storage = local(tensor).untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def measure(folder: Path) -> None:
    for name, (config, frozen) in CASES.items():
        engine = FsdpEngine(Model(frozen), config, OptimConfig())
        with Gathers() as gathers:
            loss = engine.model(torch.randn(2, 33)).float().square().mean()
        engine.backward(loss)
        parameters = list(engine.model.parameters())
        gradients = storages([p.grad for p in parameters if p.grad is not None])
        engine.optimizer_step()
        state = [v for entry in engine.optimizer.state.values() for v in entry.values()]
        engine.model.zero_grad(set_to_none=True)
        measured = {
            "parameters": storages(parameters),
            "gradients": gradients,
            "optimizer": storages(state),
            "buffers": storages(list(engine.model.buffers())),
            "largest_all_gather": max(gathers.sizes),
        }
        (folder / f"{name}.{dist.get_rank()}.json").write_text(json.dumps(measured))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("estimate")
    pool = RankPool(2)
    try:
        pool(measure, folder)
    finally:
        pool.close()
    return folder


@pytest.mark.parametrize("name", CASES)
def test_the_estimate_is_what_two_ranks_take(measured: Path, name: str) -> None:
    config, frozen = CASES[name]
    with torch.device("meta"):
        model = Model(frozen)
    plan = get_fsdp_wrap_policy(config, model)
    estimated = estimate(model, plan, config, world_size=2)
    ranks = [json.loads((measured / f"{name}.{rank}.json").read_text()) for rank in range(2)]
    for key in ranks[0]:
        most = max(rank[key] for rank in ranks)
        assert getattr(estimated, key) == pytest.approx(most, rel=TOLERANCE), key
    assert ranks[0]["parameters"] > 4e6


def test_shards_are_padded_to_whole_rows() -> None:
    assert [shard_numel((5, 3), ranks) for ranks in (1, 2, 4, 8)] == [15, 9, 6, 3]
    assert shard_numel((7,), 2) == 4 and shard_numel((0, 4), 2) == 0


def test_what_is_gathered_at_once() -> None:
    """The root for the whole step and the largest unit with those around it; all units if none is freed."""
    model = nn.Sequential(Model(), nn.Linear(3, 2))
    freed, kept = FsdpConfig(), FsdpConfig(reshard_after_forward=False)
    plan = get_fsdp_wrap_policy(freed, model)
    block = 4 * sum(p.numel() for p in Block().parameters())
    root = plan.remainder_bytes
    assert estimate(model, plan, freed, 1).gathered == root + block
    assert estimate(model, plan, kept, 1).gathered == root + 4 * block
    outer = FsdpConfig.model_validate(
        {"wrap_policy": {"module_classes_to_wrap": ["Model"], "transformer_layer_cls_to_wrap": ["Block"]}}
    )
    plan = get_fsdp_wrap_policy(outer, model)
    assert [unit.name for unit in plan.units][:2] == ["0", "0.blocks.0"]
    assert estimate(model, plan, outer, 1).gathered == plan.remainder_bytes + plan.units[0].nbytes + block
    assert [match.paths[0] for match in plan.matches] == ["0.blocks.0", "0"]


def test_folding_stands_for_exactly_its_names() -> None:
    paths = [
        "stem",
        *(f"layers.{i}.experts.{j}" for i in range(2) for j in (0, 1, 2, 5)),
        "layers.4.experts.0",
    ]
    assert [group.label for group in fold((path, None) for path in paths)] == [
        "stem",
        "layers.0-1.experts.0-2,5",
        "layers.4.experts.0",
    ]
    assert [group.label for group in fold([("a.0", 1), ("a.1", 2), ("a.2", 1)])] == ["a.0,2", "a.1"]


def test_sizes_for_people() -> None:
    assert [size(n) for n in (0, 1023, 1024, 386 * 2**20)] == ["0 B", "1023 B", "1.0 KiB", "386.0 MiB"]
    assert [count(n) for n in (999, 4096, 202_383_360, 6_738_415_616)] == ["999", "4.1 K", "202.4 M", "6.7 B"]


@pytest.mark.parametrize(
    ("model_type", "lora"),
    [("tiny_vla", False), ("tiny_vla", True), ("cnn_policy", False), ("mlp_policy", False)],
)
def test_the_built_in_models_build_on_meta(model_type: str, lora: bool) -> None:
    config = ModelConfig.model_validate(
        {"model_type": model_type, "is_lora": lora, model_type: {"state_dim": 5}}
    )
    model, remarks = build_on_meta(config)
    assert remarks == () and all(p.is_meta for p in model.parameters())


def test_a_checkpoint_on_meta_is_compared_and_not_read(tmp_path: Path) -> None:
    described = {"model_type": "mlp_policy", "mlp_policy": {"state_dim": 5}}
    state = get_model(described).state_dict()
    save_file(state, tmp_path / "model.safetensors")
    config = ModelConfig.model_validate({**described, "model_path": str(tmp_path)})
    model, remarks = build_on_meta(config)
    assert remarks == () and all(p.is_meta and is_pretrained(p) for p in model.parameters())
    save_file({**state, "stray": torch.zeros(1)}, tmp_path / "model.safetensors")
    _, [remark] = build_on_meta(config)
    assert "planned without model.model_path" in remark and "unknown stray" in remark
