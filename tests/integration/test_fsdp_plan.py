"""`rlinf fsdp-plan` as a user runs it, with really installed plugins, one of them of 7B parameters."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from plugin_kit import Source, build, install_to_folder

PLUGIN = """
from rlinf.plugins import ModelSpec, hookimpl

@hookimpl
def rlinf_model_spec(model_type):
    return ModelSpec(model_type=model_type, builder=f"plan_models:build_{model_type}")
"""
MODELS = """
from pathlib import Path

import torch
from torch import nn


def build_llama_7b(cfg, torch_dtype):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        vocab_size=32000,
    )
    return LlamaForCausalLM(config).to(torch_dtype)


def build_asks_values(cfg, torch_dtype):
    model = nn.Linear(4, 4)
    model.scale = model.weight.abs().max().item()
    return model


class Experts(nn.Module):
    _no_split_modules = ["Expert", "Layer"]

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(3))
        self.odd = Layer(width=6)

    def forward(self, x):
        return x


class Expert(nn.Linear):
    pass


class Layer(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.gate = nn.Linear(4, 2)
        self.experts = nn.ModuleList(Expert(4, width) for _ in range(2))

    def forward(self, x):
        return x


def build_experts(cfg, torch_dtype):
    if cfg.model_path is not None:
        torch.load(Path(cfg.model_path) / "weights.pt")
    return Experts().to(torch_dtype)
"""
NAMES = ("llama_7b", "asks_values", "experts")
SOURCE = Source(
    name="rlinf-plugin-plans",
    version="1.2",
    modules={"plan_plugin": PLUGIN, "plan_models": MODELS},
    models=dict.fromkeys(NAMES, "plan_plugin"),
)
BF16 = ("model.precision=bf16", "fsdp_config.mixed_precision.param_dtype=bf16")


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str
    #: Processor time, and largest resident size in bytes.
    seconds: float
    memory: int


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    return install_to_folder(folder / "site", SOURCE.wheel(build(folder, [SOURCE])))


def fsdp_plan(installed: Path, *arguments: str) -> Done:
    """Run the command and measure this one process."""
    out, err = installed / "out", installed / "err"
    with out.open("w") as stdout, err.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "rlinf.cli.main", "fsdp-plan", "--config", "tabletop_ppo", *arguments],
            env={**os.environ, "PYTHONPATH": str(installed), "COLUMNS": "80"},
            stdout=stdout,
            stderr=stderr,
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return Done(
        status=process.returncode,
        out=out.read_text(),
        err=err.read_text(),
        seconds=usage.ru_utime + usage.ru_stime,
        memory=usage.ru_maxrss * 1024,
    )


def test_a_7b_model_in_seconds_without_its_memory(installed: Path) -> None:
    done = fsdp_plan(installed, "model.model_type=llama_7b", *BF16, "--world-size", "2,8")
    assert done.status == 0, done.err
    # Processor time: other work on the machine does not change it; start-up waits for nothing.
    assert done.seconds < 10 and done.memory < 2 * 2**30, done
    assert max(map(len, done.out.splitlines())) <= 80
    assert len(done.out.splitlines()) <= 40, "one page"
    assert "6.7 B, 12.6 GiB in bfloat16\ntrainable   all\n" in done.out
    rows = [line.split() for line in done.out.splitlines()]
    assert ["└─", "model.layers.0-31", "32", "LlamaDecoderLayer", "202.4", "M", "386.0", "MiB"] in rows
    assert ["parameters", "6.3", "GiB", "1.6", "GiB"] in rows
    assert "LlamaForCausalLM._no_split_modules: 'LlamaDecoderLayer'" in done.out


def test_the_same_as_json(installed: Path) -> None:
    freed = "fsdp_config.reshard_after_forward=true"
    done = fsdp_plan(installed, "model.model_type=llama_7b", *BF16, freed, "--world-size", "8,3", "--json")
    plan = json.loads(done.out)
    assert plan["model"] == {
        "model_type": "llama_7b",
        "plugin": "rlinf-plugin-plans 1.2",
        "class": "LlamaForCausalLM",
    }
    numel = 6_738_415_616  # of Llama 2 7B
    expected = {"numel": numel, "bytes": 2 * numel, "trainable": numel, "dtypes": ["bfloat16"]}
    assert plan["parameters"] == expected
    assert [unit["name"] for unit in plan["units"]] == [f"model.layers.{i}" for i in range(32)]
    assert {unit["numel"] for unit in plan["units"]} == {202_383_360}
    root = {row["name"]: row["shape"] for row in plan["root"]["parameters"]}
    assert root == {
        "model.embed_tokens.weight": [32000, 4096],
        "model.norm.weight": [4096],
        "lm_head.weight": [32000, 4096],
    }
    [rule] = plan["rules"]
    assert len(rule["paths"]) == 32 and "LlamaDecoderLayer" in rule["rule"]
    three, eight = plan["ranks"]
    assert (three["world_size"], eight["world_size"]) == (3, 8)
    assert eight["parameters"] == eight["gradients"] == 2 * numel // 8
    assert three["parameters"] > 2 * numel / 3, "4096 rows do not divide by 3: the shards are padded"
    assert eight["largest_unit"] == "" and eight["largest_all_gather"] == 2 * (2 * 32000 * 4096 + 4096)
    assert eight["gathered"] == eight["largest_all_gather"] + 2 * 202_383_360


def test_lora_has_gradients_and_moments_of_the_adapters_only(installed: Path) -> None:
    arguments = ("model.model_type=llama_7b", "model.is_lora=true", "model.lora_rank=8", *BF16)
    plan = json.loads(fsdp_plan(installed, *arguments, "--world-size", "8", "--json").out)
    # q, k, v, o: 4096 + 4096; gate, up, down: 4096 + 11008; both times the rank, in 32 layers.
    adapters = 32 * 8 * (4 * 8192 + 3 * 15104)
    assert plan["parameters"]["trainable"] == adapters
    [row] = plan["ranks"]
    assert row["gradients"] == 4 * adapters // 8, "peft keeps adapters in float32"
    assert row["optimizer"] == 2 * row["gradients"] + 4 * 32 * 14
    text = fsdp_plan(installed, *arguments).out
    assert "trainable   20.0 M (LoRA)\n" in text and " 2 ranks\n" in text, "the configuration's"


def test_units_within_units_and_alike_ones_on_one_line(installed: Path) -> None:
    done = fsdp_plan(installed, "model.model_type=experts", "actor.fsdp_config.min_num_params=0")
    assert done.status == 0, done.err
    names = [re.match(r"[ │]*[├└]─ [^ ]+ +\d+", line) for line in done.out.splitlines()]
    assert [re.sub(" +(?=[0-9]+$)", " x ", name[0]) for name in names if name] == [
        "├─ layers.0-2 x 3",
        "│  └─ layers.0-2.experts.0-1 x 6",
        "└─ odd x 1",
        "   └─ odd.experts.0-1 x 2",
    ]
    assert (
        "Experts._no_split_modules: 'Expert'\n    8 modules: layers.0-2.experts.0-1, odd.experts.0-1"
        in done.out
    )
    assert "The root keeps nothing: every parameter is in a unit." in done.out


def test_a_rule_that_matches_nothing_is_no_traceback(installed: Path) -> None:
    rule = "fsdp_config.wrap_policy.transformer_layer_cls_to_wrap=[LlamaDecoderLayr]"
    for output in ((), ("--json",)):
        done = fsdp_plan(installed, "model.model_type=llama_7b", rule, *output)
        assert (done.status, done.out) == (2, "")
        assert "transformer_layer_cls_to_wrap: 'LlamaDecoderLayr' matches no module" in done.err
        assert "Did you mean 'LlamaDecoderLayer'?" in done.err and "Traceback" not in done.err


def test_a_builder_that_needs_values_is_named(installed: Path) -> None:
    done = fsdp_plan(installed, "model.model_type=asks_values")
    assert done.status == 2 and done.out == ""
    first, *_ = done.err.splitlines()
    assert "building model_type 'asks_values' on the meta device failed: RuntimeError: Tensor.item()" in first
    assert "rlinf-plugin-plans 1.2" in done.err and "in build_asks_values" in done.err


def test_weights_are_not_needed(installed: Path, tmp_path: Path) -> None:
    absent = fsdp_plan(installed, "model.model_type=experts", "model.model_path=not/here")
    assert absent.status == 0, absent.err
    assert "model.model_path not/here is not on this machine" in absent.out
    (tmp_path / "weights.pt").write_text("no such thing")
    unread = fsdp_plan(installed, "model.model_type=experts", f"model.model_path={tmp_path}", "--json")
    assert unread.status == 0, unread.err
    [remark] = json.loads(unread.out)["remarks"]
    assert f"planned without model.model_path {tmp_path}" in remark


@pytest.mark.parametrize("text", ["0", "2,x", ""])
def test_world_sizes_are_numbers(installed: Path, text: str) -> None:
    done = fsdp_plan(installed, "--world-size", text)
    assert done.status == 2 and "expected numbers of ranks such as 2,8" in done.err


def test_fp16_is_refused_as_the_trainer_does(installed: Path) -> None:
    done = fsdp_plan(installed, "fsdp_config.mixed_precision.param_dtype=fp16")
    assert done.status == 2 and "needs loss scaling" in done.err and "Traceback" not in done.err
