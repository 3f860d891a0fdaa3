"""Two ranks (real processes, gloo) against one: the same losses, gradient norms and weights after five steps.

One process group per world size runs all cases, since a process costs seconds to import torch. The group of
one runs in the test process, before and after the group of two, so that checkpoints cross both ways.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from rlinf.config.schema import FsdpConfig, MixedPrecisionConfig, OptimConfig
from rlinf.fsdp.engine import FsdpEngine
from rlinf.fsdp.export import export_safetensors, load_safetensors
from rlinf.models import get_model
from rlinf.models.embodiment.base_policy import ForwardType
from rlinf.plugins import get_host
from rlinf.testing.ranks import RankPool
from torch import nn
from torch.distributed.tensor.debug import CommDebugMode

STEPS, BATCH, SAVED_AT = 5, 12, 3
RESUMED = ("plain", "lora", "tiny_vla")
# The epsilon keeps Adam from scaling rounding up to whole steps where a gradient is rounding alone: the bias
# of attention keys, which softmax does not see, or channels behind a closed ReLU.
OPTIM = OptimConfig(lr=1e-3, value_lr=3e-3, weight_decay=0.05, clip_grad=2.0, lr_warmup_steps=2, eps=1e-5)


class Block(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, 3 * dim + 1)  # odd: shards of unequal size
        self.down = nn.Linear(3 * dim + 1, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.down(torch.tanh(self.up(self.norm(x))))
        x += 1.0  # in place, as models do; must not disturb the hooks
        return x


class Head(nn.Module):
    _is_policy_head = True

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


class LowRank(nn.Module):
    """A frozen linear layer with a trainable low-rank update: what LoRA puts into a block."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.lora_B(self.lora_A(x))


class Policy(nn.Module):
    """Dispatches through `forward` as `BasePolicy` does; has root parameters, a buffer, a head, odd sizes."""

    _no_split_modules = ("Block",)

    def __init__(self, lora: bool = False, blocks: int = 2) -> None:
        super().__init__()
        dim = 8
        self.embed = nn.Linear(5, dim)
        self.blocks = nn.ModuleList(Block(dim) for _ in range(blocks))
        self.out = nn.Linear(dim, 3)
        self.log_std = nn.Parameter(torch.zeros(1))  # one row for two ranks
        self.value_head = Head(dim)
        self.register_buffer("scale", torch.full((3,), 0.5))
        if lora:
            for block in self.blocks:
                block.up = LowRank(block.up)  # type: ignore[arg-type]
                block.norm.requires_grad_(False)
                block.down.requires_grad_(False)
            for module in (self.embed, self.out):
                module.requires_grad_(False)
            self.log_std.requires_grad_(False)

    def forward(self, branch: str, **kwargs: Any) -> dict[str, torch.Tensor]:
        return getattr(self, f"{branch}_forward")(**kwargs)

    def default_forward(
        self, inputs: dict[str, torch.Tensor], with_values: bool = True
    ) -> dict[str, torch.Tensor]:
        hidden = self.embed(inputs["states"])
        for block in self.blocks:
            hidden = block(hidden)
        mean = self.out(hidden).float() * self.scale
        error = (inputs["actions"] - mean) / self.log_std.float().exp()
        result = {"logprobs": -0.5 * error.square() - self.log_std.float()}
        if with_values:
            result["values"] = self.value_head(hidden).float()
        return result


@dataclass(frozen=True, kw_only=True)
class Case:
    fsdp: FsdpConfig = field(default_factory=FsdpConfig)
    lora: bool = False
    tiny_vla: bool = False
    micro_batches: int = 1
    with_values: bool = True
    #: Of losses, relative gradient norms and weights. bf16 rounds the partial gradients of each rank before
    #: they meet.
    tolerance: float = 1e-6
    #: bf16: learning rate times steps bounds what Adam makes of a rounded gradient.
    weight_tolerance: float = 2e-6


BF16 = MixedPrecisionConfig(param_dtype="bf16", reduce_dtype="fp32")
CASES = {
    "plain": Case(),
    "no_reshard": Case(fsdp=FsdpConfig(reshard_after_forward=False)),
    "one_unit": Case(fsdp=FsdpConfig(min_num_params=10**6)),
    "bf16": Case(fsdp=FsdpConfig(mixed_precision=BF16), tolerance=2e-2, weight_tolerance=5e-3),
    "lora": Case(lora=True),
    "lora_bf16": Case(
        lora=True, fsdp=FsdpConfig(mixed_precision=BF16), tolerance=2e-2, weight_tolerance=5e-3
    ),
    "accumulation": Case(micro_batches=3),
    "recompute": Case(fsdp=FsdpConfig(gradient_checkpointing=True)),
    "recompute_accumulation_lora": Case(
        fsdp=FsdpConfig(gradient_checkpointing=True), micro_batches=2, lora=True
    ),
    "head_unused": Case(with_values=False),
    "tiny_vla": Case(tiny_vla=True, micro_batches=2),
    "tiny_vla_lora_bf16": Case(
        tiny_vla=True,
        lora=True,
        fsdp=FsdpConfig(mixed_precision=BF16, gradient_checkpointing=True),
        tolerance=2e-2,
        weight_tolerance=5e-3,
    ),
}
TINY_VLA = {
    "model_type": "tiny_vla",
    "action_dim": 3,
    "num_action_chunks": 4,
    "lora_rank": 2,
    "tiny_vla": {"state_dim": 5, "dim": 16, "num_heads": 2, "stem_channels": [4, 4], "hash_rows": 16},
}


def batch(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return {
        "states": torch.randn(BATCH, 4, 5, generator=generator),
        "actions": torch.randn(BATCH, 4, 3, generator=generator),
        "returns": torch.randn(BATCH, 4, 1, generator=generator),
    }


def loss_of(engine: FsdpEngine, part: dict[str, torch.Tensor], case: Case) -> torch.Tensor:
    """This part's share of the mean over the whole batch: local sum / global count."""
    if case.tiny_vla:
        images = (part["states"].repeat(1, 1, 16 * 16 * 3 // 5 + 1)[..., : 16 * 16 * 3] * 50 + 128).byte()
        inputs = {
            "main_images": images[:, 0].view(-1, 16, 16, 3),
            "states": part["states"][:, 0],
            "tokenized_prompt": (part["states"].flatten(1)[:, :6].abs() * 100).long(),
            "action": part["actions"],
        }
        out = engine.model(forward_type=ForwardType.DEFAULT, forward_inputs=inputs)
        # Entropy trains the log standard deviation, which the head returns as a view of its parameter.
        policy = -(out["logprobs"] + 0.1 * out["entropy"]).sum((1, 2))
        return (policy + (out["values"][:, 0] - part["returns"][:, 0, 0]).square()).sum() / BATCH
    inputs = {"states": part["states"], "actions": part["actions"]}
    out = engine.model("default", inputs=inputs, with_values=case.with_values)
    loss = -out["logprobs"].sum(-1, keepdim=True)
    if case.with_values:
        loss = loss + (out["values"] - part["returns"]).square()
    return loss.sum() / (BATCH * 4)


def train_step(engine: FsdpEngine, case: Case, step: int) -> dict[str, float]:
    rank, world = dist.get_rank(), dist.get_world_size()
    mine = {name: tensor.chunk(world)[rank] for name, tensor in batch(step).items()}
    total = torch.zeros(())
    for i in range(case.micro_batches):
        engine.no_sync(i + 1 < case.micro_batches)
        part = {name: tensor.chunk(case.micro_batches)[i] for name, tensor in mine.items()}
        loss = loss_of(engine, part, case)
        engine.backward(loss)
        total += loss.detach()
    dist.all_reduce(total)
    return {"loss": total.item(), **engine.optimizer_step()}


def make_engine(case: Case) -> FsdpEngine:
    torch.manual_seed(dist.get_rank())  # rank 0's weights must win
    if case.tiny_vla:
        model = get_model({**TINY_VLA, "is_lora": case.lora})
        return FsdpEngine(model, case.fsdp, OPTIM, get_host().model_spec("tiny_vla").wrap_policy)
    return FsdpEngine(Policy(lora=case.lora), case.fsdp, OPTIM)


def run_case(name: str, folder: Path) -> None:
    case = CASES[name]
    engine = make_engine(case)
    metrics = []
    for step in range(STEPS):
        if step == SAVED_AT:
            engine.save(folder / f"{name}.checkpoint", {"case": name})
        metrics.append(train_step(engine, case, step))
    state = engine.full_state()
    if dist.get_rank() == 0:
        export_safetensors(folder / name, state)
        (folder / f"{name}.json").write_text(json.dumps(metrics))
    else:
        assert state == {}


def resume_case(name: str, source: Path, folder: Path) -> None:
    """Continue from a checkpoint that another world size may have written, into a fresh engine."""
    case = CASES[name]
    engine = make_engine(case)
    assert engine.load(source / f"{name}.checkpoint") == {"case": name}
    assert engine.step == SAVED_AT
    metrics = [train_step(engine, case, step) for step in range(SAVED_AT, STEPS)]
    state = engine.full_state()
    if dist.get_rank() == 0:
        export_safetensors(folder / f"{name}.resumed", state)
        (folder / f"{name}.resumed.json").write_text(json.dumps(metrics))


def communication(folder: Path) -> None:
    """Count collectives: accumulation must not reduce, LoRA must not gather more, one rank alone collects."""
    case = CASES["lora"]
    engine = make_engine(case)
    counts: dict[str, dict[str, int]] = {}

    def counted(name: str, action: Any) -> None:
        with CommDebugMode() as mode:
            action()
        counts[name] = {str(op): n for op, n in mode.get_comm_counts().items()}

    part = {name: tensor[:4] for name, tensor in batch(0).items()}
    losses: list[torch.Tensor] = []
    engine.no_sync(True)
    counted("forward", lambda: losses.append(loss_of(engine, part, case)))
    counted("backward, no sync", lambda: engine.backward(losses[-1]))
    with pytest.raises(RuntimeError, match=r"ran under no_sync\(True\)"):
        engine.optimizer_step()
    engine.no_sync(False)
    losses.append(loss_of(engine, part, case))
    counted("backward", lambda: engine.backward(losses[-1]))
    counted("step", engine.optimizer_step)
    counted("full state", engine.full_state)
    (folder / f"counts.{dist.get_rank()}.json").write_text(json.dumps(counts))


def disagreement(folder: Path) -> None:
    """Rank 1 builds another model: both ranks must say so instead of hanging."""
    torch.manual_seed(0)
    try:
        FsdpEngine(Policy(blocks=2 + dist.get_rank()), FsdpConfig(), OPTIM)
    except ValueError as error:
        (folder / f"disagreement.{dist.get_rank()}").write_text(str(error))


def non_finite(folder: Path) -> None:
    """Rank 1 alone sees an infinite loss: both skip the step, count it, and go on."""
    engine = make_engine(CASES["plain"])
    before = engine.full_state()
    part = {name: tensor[:4] for name, tensor in batch(0).items()}
    engine.backward(loss_of(engine, part, CASES["plain"]) * (float("inf") if dist.get_rank() == 1 else 1.0))
    first = engine.optimizer_step()
    after = engine.full_state()
    second = train_step(engine, CASES["plain"], 0)
    unchanged = all(torch.equal(before[name], after[name]) for name in before)
    result = {"first": first, "second": second, "unchanged": unchanged, "step": engine.step}
    (folder / f"non_finite.{dist.get_rank()}.json").write_text(json.dumps(result))


def two_ranks(one: Path, two: Path) -> None:
    """What a rank of the group of two does."""
    disagreement(two)
    communication(two)
    non_finite(two)
    for name in CASES:
        run_case(name, two)
    for name in RESUMED:
        resume_case(name, one, two)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """Folders of what one rank and two ranks produced. The group of one stays open for the tests."""
    root = tmp_path_factory.mktemp("fsdp")
    one, two = root / "one", root / "two"
    one.mkdir(), two.mkdir()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{root / 'store1'}", rank=0, world_size=1)
    pool = RankPool(2, timeout=600)
    try:
        for name in CASES:
            run_case(name, one)
        pool(two_ranks, one, two)
        yield one, two
    finally:
        pool.close()
        dist.destroy_process_group()
        torch.set_num_threads(threads)


def difference(a: Path, b: Path) -> float:
    """Largest absolute difference of two exports."""
    left, right = load_safetensors(a), load_safetensors(b)
    assert set(left) == set(right)
    return max(float((left[n] - right[n]).abs().max()) for n in left)


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_train_as_one(results: tuple[Path, Path], name: str) -> None:
    one, two = results
    case = CASES[name]
    metrics = [json.loads((folder / f"{name}.json").read_text()) for folder in results]
    assert len(metrics[0]) == STEPS and not metrics[0][-1]["skipped_steps"]
    for single, double in zip(*metrics, strict=True):
        assert double["loss"] == pytest.approx(single["loss"], rel=case.tolerance)
        # The norm would be off by the world size if gradients were averaged: Adam alone would hide that.
        assert double["grad_norm"] == pytest.approx(single["grad_norm"], rel=max(case.tolerance, 1e-5))
        assert double["lr"] == single["lr"]
    assert [row["lr"] for row in metrics[0][:3]] == [0.5e-3, 1e-3, 1e-3]
    assert difference(one / name, two / name) <= case.weight_tolerance


@pytest.mark.parametrize("name", ["accumulation", "recompute", "no_reshard", "one_unit"])
def test_what_saves_memory_or_time_changes_no_number(results: tuple[Path, Path], name: str) -> None:
    one, _ = results
    assert difference(one / name, one / "plain") <= 2e-6


def test_bf16_computes_in_bf16_and_keeps_float32_weights(results: tuple[Path, Path]) -> None:
    one, _ = results
    states = load_safetensors(one / "bf16")
    assert {tensor.dtype for tensor in states.values()} == {torch.float32}
    rows = [json.loads((one / f"{name}.json").read_text())[0]["loss"] for name in ("plain", "bf16")]
    assert rows[0] != rows[1] and rows[0] == pytest.approx(rows[1], rel=1e-2)


class Recording(Policy):
    """Notes the dtypes that the policy and its first block compute with."""

    def default_forward(self, inputs: dict[str, torch.Tensor], **kwargs: Any) -> dict[str, torch.Tensor]:
        self.dtypes = [inputs["actions"].dtype]
        self.blocks[0].up.register_forward_hook(lambda _m, _i, out: self.dtypes.append(out.dtype))
        return super().default_forward(inputs, **kwargs)


def test_bf16_leaves_the_recorded_actions_unrounded(results: tuple[Path, Path]) -> None:
    model = Recording()
    engine = FsdpEngine(model, CASES["bf16"].fsdp, OPTIM)
    loss = loss_of(engine, batch(0), CASES["bf16"])
    assert model.dtypes == [torch.float32, torch.bfloat16] and loss.dtype == torch.float32


def test_lora_trains_adapters_and_heads_only(results: tuple[Path, Path]) -> None:
    _, two = results
    start = make_engine(CASES["lora"]).full_state()
    end = load_safetensors(two / "lora")
    moved = {name for name in start if not torch.equal(start[name], end[name])}
    assert moved == {name for name in start if "lora_" in name or name.startswith("value_head")}


@pytest.mark.parametrize("name", RESUMED)
def test_a_checkpoint_continues_exactly_at_either_world_size(results: tuple[Path, Path], name: str) -> None:
    one, two = results
    resume_case(name, two, one)  # written by two ranks, continued by one
    for folder in (one, two):
        assert difference(folder / f"{name}.resumed", two / name) <= 2e-6
        resumed = json.loads((folder / f"{name}.resumed.json").read_text())
        unbroken = json.loads((two / f"{name}.json").read_text())[SAVED_AT:]
        for left, right in zip(resumed, unbroken, strict=True):
            assert left["loss"] == pytest.approx(right["loss"], rel=1e-6)
            assert left["lr"] == right["lr"]


def test_ranks_with_other_models_are_refused_on_every_rank(results: tuple[Path, Path]) -> None:
    _, two = results
    for rank in range(2):
        message = (two / f"disagreement.{rank}").read_text()
        assert (
            "parameter blocks.2.down.bias is absent on rank 0 and torch.float32 [8] trainable on rank 1"
            in message
        )


def test_an_infinite_gradient_on_one_rank_skips_the_step_on_all(results: tuple[Path, Path]) -> None:
    _, two = results
    rows = [json.loads((two / f"non_finite.{rank}.json").read_text()) for rank in range(2)]
    for row in rows:
        assert row["unchanged"] and row["step"] == 1
        assert row["first"]["skipped_steps"] == row["second"]["skipped_steps"] == 1
        assert not row["first"]["grad_norm"] < float("inf")
    assert rows[0]["second"] == rows[1]["second"]


def test_collectives_are_as_few_as_the_plan(results: tuple[Path, Path]) -> None:
    _, two = results
    units = 3 + 1  # two blocks, the head, the root; the adapters ride in their blocks
    for rank in range(2):
        counts = json.loads((two / f"counts.{rank}.json").read_text())
        gathers = [
            sum(n for op, n in row.items() if "all_gather" in op or "allgather" in op)
            for row in counts.values()
        ]
        reduces = [sum(n for op, n in row.items() if "reduce_scatter" in op) for row in counts.values()]
        #         forward  no sync    backward   step  full state
        assert gathers == [units, units - 1, units - 1, 0, 0]
        assert reduces == [0, 0, units - 1, 0, 0]


# One rank, in the test process --------------------------------------------------------------------------


def test_weights_go_in_and_out(results: tuple[Path, Path]) -> None:
    engine = make_engine(CASES["lora"])
    state = {name: tensor + 1 for name, tensor in engine.full_state().items()}
    engine.load_full_state(state)
    loaded = engine.full_state()
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    trainable = engine.full_state(trainable_only=True)
    assert set(trainable) == {n for n in state if "lora_" in n or n.startswith("value_head") or n == "scale"}
    with pytest.raises(ValueError, match=r"misses 1 tensors \(of \d+\): out\.bias"):
        engine.load_full_state({name: tensor for name, tensor in state.items() if name != "out.bias"})
    with pytest.raises(ValueError, match=r"out\.bias has shape \[3\] here and \[4\]"):
        engine.load_full_state({**state, "out.bias": torch.zeros(4)})


@pytest.mark.parametrize("name", ["plain", "no_reshard", "lora"])
def test_weights_change_places_with_others(results: tuple[Path, Path], name: str) -> None:
    """What a KL term measures from takes no engine of its own, and only what trains is kept twice."""
    engine = make_engine(CASES[name])
    own = engine.full_state()
    others = engine.local_weights()
    assert set(others) < set(own) if name == "lora" else set(others) == set(own)
    for tensor in others.values():
        tensor += 1
    engine.exchange(others)
    changed = engine.full_state()
    for key, tensor in own.items():
        assert torch.equal(changed[key], tensor + (key in others)), key
    assert all(torch.equal(tensor, own[key]) for key, tensor in others.items())
    engine.exchange(others)
    assert all(torch.equal(tensor, own[key]) for key, tensor in engine.full_state().items())


@pytest.mark.parametrize("name", ["plain", "no_reshard"])
def test_a_forward_without_backward_leaves_nothing_stale(results: tuple[Path, Path], name: str) -> None:
    case, losses = CASES[name], []
    for evaluates in (False, True):
        engine = make_engine(case)
        engine.backward(loss_of(engine, batch(0), case))
        if evaluates:
            with torch.no_grad():
                loss_of(engine, batch(0), case)
        engine.optimizer_step()
        with torch.no_grad():
            losses.append(loss_of(engine, batch(0), case).item())
    assert losses[0] == losses[1]


def test_parameter_groups(results: tuple[Path, Path]) -> None:
    groups = {group["name"]: group for group in make_engine(CASES["plain"]).optimizer.param_groups}
    assert set(groups) == {"policy/decay", "policy/no_decay", "value/decay", "value/no_decay"}
    assert groups["policy/decay"]["weight_decay"] == 0.05 and groups["policy/no_decay"]["weight_decay"] == 0.0
    assert groups["value/decay"]["param_names"] == ["value_head.linear.weight"]
    assert {"log_std", "embed.bias", "blocks.0.norm.weight"} <= set(groups["policy/no_decay"]["param_names"])
    assert groups["value/decay"]["lr"] == 3e-3 and groups["policy/decay"]["lr"] == 1e-3


def test_a_new_phase_has_its_own_rates_and_may_forget_the_moments(results: tuple[Path, Path]) -> None:
    engine = make_engine(CASES["plain"])
    for step in range(3):
        train_step(engine, CASES["plain"], step)
    engine.set_lr(5e-4)
    assert train_step(engine, CASES["plain"], 3)["lr"] == 5e-4
    assert {group["lr"] for group in engine.optimizer.param_groups} == {5e-4}
    engine.begin_phase(warmup_steps=4)
    engine.set_lr(4e-4, value_lr=8e-4)
    assert not engine.optimizer.state
    assert train_step(engine, CASES["plain"], 4)["lr"] == 1e-4, "a warm-up of its own"


def test_a_checkpoint_of_another_model_is_refused_by_name(results: tuple[Path, Path]) -> None:
    one, _ = results
    with pytest.raises(ValueError, match=r"lacks \d+ tensors: model\.blocks\.0\.up\.base.*is_lora"):
        make_engine(CASES["lora"]).load(one / "plain.checkpoint")
    with pytest.raises(ValueError, match=r"engine\.json is missing"):
        make_engine(CASES["plain"]).load(one)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("exploded"),))


def test_no_pickle_is_read_from_a_checkpoint(
    results: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    engine = make_engine(CASES["plain"])
    engine.save(tmp_path / "ck")
    for path in (tmp_path / "ck").rglob("*"):
        assert path.is_dir() or path.suffix in (".safetensors", ".json"), path
    # What torch's default reader would unpickle:
    (tmp_path / "ck" / "state" / ".metadata").write_bytes(pickle.dumps(Bomb()))
    engine.load(tmp_path / "ck")
    assert not (tmp_path / "exploded").exists()


def test_fp16_is_refused(results: tuple[Path, Path]) -> None:
    config = FsdpConfig(mixed_precision=MixedPrecisionConfig(param_dtype="fp16"))
    with pytest.raises(ValueError, match=r"mixed_precision\.param_dtype: 'fp16' needs loss scaling"):
        FsdpEngine(Policy(), config, OPTIM)
