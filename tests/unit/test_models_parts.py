"""Parts of the built-in models: base policy, heads, sampling, tokenizer, pretrained weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rlinf.config import ConfigError
from rlinf.models import get_model
from rlinf.models.embodiment.base_policy import BasePolicy, ForwardType
from rlinf.models.embodiment.heads import GaussianHead
from rlinf.models.embodiment.modules.spatial import soft_argmax
from rlinf.models.embodiment.modules.value_head import ACTIVATIONS, ValueHead
from rlinf.models.embodiment.sampling import (
    categorical_per_sample,
    filter_logits,
    gaussian_entropy,
    gaussian_logprobs,
    generators_of,
    rand_per_sample,
    randn_per_sample,
)
from rlinf.models.embodiment.tiny_vla.modules import TextEncoder
from rlinf.models.embodiment.tiny_vla.tokenizer import tokenize
from rlinf.plugins import PluginError
from safetensors.torch import save_file
from torch import nn

TINY = {"model_type": "tiny_vla", "tiny_vla": {"state_dim": 3, "dim": 32, "depth": 1}}


class OnlySac(BasePolicy):
    def sac_forward(self, x: int) -> dict:
        return {"x": x + 1}


def test_forward_dispatches_and_names_what_is_missing() -> None:
    policy = OnlySac()
    assert policy(ForwardType.SAC, x=1) == policy("sac", x=1) == {"x": 2}
    with pytest.raises(NotImplementedError, match=r"OnlySac does not implement nft_forward.*branches sac$"):
        policy(ForwardType.NFT)
    for call in (
        lambda: policy(forward_inputs={}),
        lambda: policy("sft", batch={}),
        lambda: policy.predict_action_batch({}),
    ):
        with pytest.raises(NotImplementedError, match="OnlySac does not implement"):
            call()
    with pytest.raises(ValueError, match="nonsense"):
        policy("nonsense")


def test_a_policy_may_have_another_base_class() -> None:
    class Backbone(nn.Module):
        pass

    class Both(Backbone, BasePolicy):
        def default_forward(self, forward_inputs: dict, **kwargs: object) -> dict:
            return forward_inputs

    assert Both()(forward_inputs={"a": 1}) == {"a": 1}


@pytest.mark.parametrize("activation", [*ACTIVATIONS, "GELU"])
def test_value_head(activation: str) -> None:
    head = ValueHead(16, (8, 4), activation=activation)
    keys = ["mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias", "mlp.4.weight"]
    assert list(head.state_dict()) == keys
    assert "mlp.4.bias" in ValueHead(16, (8, 4), bias_last=True).state_dict()
    values = head.to(torch.bfloat16)(torch.randn(3, 5, 16))
    assert values.shape == (3, 5, 1) and values.dtype == torch.float32


def test_value_head_keeps_the_scale_of_its_features() -> None:
    torch.manual_seed(0)
    head = ValueHead(256, (256,), activation="relu")
    hidden = head.mlp[0](torch.randn(512, 256))
    assert hidden.square().mean().item() == pytest.approx(2.0, rel=0.1)
    with pytest.raises(ValueError, match=r"activation: expected one of gelu.*got 'swish'"):
        ValueHead(4, activation="swish")


def test_gaussian_head_lays_out_time_then_dimension() -> None:
    """One feature for three actions, or three features for one each: the same layout."""
    one = GaussianHead(8, 2, steps=3)
    x = torch.randn(5, 1, 8)
    mean, log_std = one(x)
    assert mean.shape == log_std.shape == (5, 3, 2)
    torch.testing.assert_close(mean.reshape(5, 6), one.mean(x[:, 0]))
    each, _ = GaussianHead(8, 2)(x.expand(5, 3, 8))
    assert each.shape == (5, 3, 2) and torch.equal(each[:, 0], each[:, 2])


def test_gaussian_head_clamps_and_checks() -> None:
    head = GaussianHead(8, 2, init_log_std=-1.0, state_dependent_std=True)
    assert torch.all(head(torch.randn(3, 1, 8))[1] == -1.0)
    with torch.no_grad():
        head.log_std_layer.bias.fill_(50.0)
    assert torch.all(head(torch.randn(3, 1, 8))[1] == 2.0)
    with pytest.raises(ValueError, match="init_log_std"):
        GaussianHead(8, 2, init_log_std=3.0)


def test_gaussian_against_torch() -> None:
    mean, log_std, x = torch.randn(3, 4, 5), torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    normal = torch.distributions.Normal(mean, log_std.exp())
    torch.testing.assert_close(gaussian_logprobs(x, mean, log_std), normal.log_prob(x))
    torch.testing.assert_close(gaussian_entropy(log_std), normal.entropy())
    assert gaussian_logprobs(x, mean.bfloat16(), log_std.bfloat16()).dtype == torch.float32


def test_draws_are_per_sample() -> None:
    def gens(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    for draw in (randn_per_sample, rand_per_sample):
        both = draw((2, 3), gens(1, 2), "cpu")
        assert torch.equal(draw((1, 3), gens(2), "cpu")[0], both[1])
        with pytest.raises(ValueError, match=r"one per sample \(2\), got 3"):
            draw((2, 3), gens(1, 2, 3), "cpu")
        torch.manual_seed(0)
        first = draw((2, 3), None, "cpu")
        torch.manual_seed(0)
        assert torch.equal(first, draw((2, 3), None, "cpu"))


def test_what_a_sample_sees_determines_its_noise() -> None:
    images, states = torch.arange(24, dtype=torch.uint8).view(3, 2, 4), torch.tensor([[0.0], [1.0], [1.0]])
    images[2] = images[1]
    noise = randn_per_sample((3, 4), generators_of(images, states), "cpu")
    assert torch.equal(noise[1], noise[2]) and not torch.equal(noise[0], noise[1])
    alone = randn_per_sample((1, 4), generators_of(images[1:2], states[1:2]), "cpu")
    assert torch.equal(alone[0], noise[1])
    other = randn_per_sample((3, 4), generators_of(images, states + 1), "cpu")
    assert not (other == noise).any()


def test_top_k_comes_after_the_mask() -> None:
    logits = torch.tensor([[9.0, 8.0, 1.0, 0.5, 0.0]])
    mask = torch.tensor([False, False, True, True, True])
    logp = filter_logits(logits, top_k=2, mask=mask, temperature=0.5)
    assert torch.isfinite(logp[0, 2:4]).all() and torch.isinf(logp[0, [0, 1, 4]]).all()
    torch.testing.assert_close(logp[0, 2:4], torch.log_softmax(torch.tensor([2.0, 1.0]), dim=0))
    assert torch.equal(filter_logits(logits, top_k=99), torch.log_softmax(logits, dim=-1))
    assert filter_logits(logits.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"temperature": 0.0}, "temperature: expected > 0"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": 0}, "top_k: expected >= 1 or None, got 0"),
        ({"mask": torch.zeros(3, dtype=torch.bool)}, "a row permits no class"),
    ],
)
def test_bad_filters(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        filter_logits(torch.randn(2, 3), **kwargs)


def test_categorical_follows_its_probabilities_and_never_draws_a_barred_class() -> None:
    p = torch.tensor([0.0, 0.5, 0.3, 0.2])
    gens = [torch.Generator().manual_seed(seed) for seed in range(20)]
    draws = categorical_per_sample(p.log().expand(20, 1000, 4), gens)
    share = torch.bincount(draws.flatten(), minlength=4) / 20000
    torch.testing.assert_close(share, p, atol=0.012, rtol=0)
    assert share[0] == 0
    again = categorical_per_sample(p.log().expand(1, 1000, 4), [torch.Generator().manual_seed(5)])
    assert torch.equal(again[0], draws[5])


def test_soft_argmax_points_at_the_peak() -> None:
    maps = torch.zeros(1, 2, 8, 8)
    maps[0, 0, 1, 6] = maps[0, 1, 7, 0] = 50.0
    points = soft_argmax(maps, torch.ones(2, 1))
    torch.testing.assert_close(points[0], torch.tensor([[0.625, -0.625], [-0.875, 0.875]]))


def test_tokens_are_stable_over_processes() -> None:
    text = "Push the red cube, left."
    code = (
        "from rlinf.models.embodiment.tiny_vla.tokenizer import tokenize;"
        f"print(tokenize([{text!r}], 12)[0].tolist())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = tokenize([text], 12)[0].tolist()
    assert json.loads(other.stdout) == here
    assert here[0] == 1 and here[8:] == [0] * 4 and min(here[1:8]) > 1
    assert tokenize(["push THE red   cube , left ."], 12)[0].tolist() == here
    assert tokenize([""], 4)[0].tolist() == [1, 0, 0, 0]
    assert len(set(tokenize(["红 方块 été"], 6)[0].tolist()[:4])) == 4


def test_two_rows_make_words_distinct() -> None:
    """Of 5000 words in a table of 2 x 512 rows a single row would make nearly all collide."""
    tokens = tokenize([f"word{i}" for i in range(5000)], 2)[:, 1].long()
    pairs = {(int(t) % 512, int(t) // 512 % 512) for t in tokens}
    assert len({int(t) % 512 for t in tokens}) <= 512
    assert len(pairs) > 5000 - 60  # expected collisions: 5000^2 / 2 / 512^2 = 48
    encoder = TextEncoder(8, 512, 4)
    words, _ = encoder(tokenize(["left right"], 4), torch.ones(1, 4, dtype=torch.bool))
    assert (words[0, 1] - words[0, 2]).abs().max() > 0.01


@pytest.mark.parametrize("sharded", [False, True])
def test_weights_come_back(tmp_path: Path, sharded: bool) -> None:
    torch.manual_seed(1)
    source = get_model(TINY).state_dict()
    if sharded:
        names = list(source)
        parts = {"a.safetensors": names[: len(names) // 2], "b.safetensors": names[len(names) // 2 :]}
        for file, keys in parts.items():
            save_file({key: source[key] for key in keys}, tmp_path / file)
        index = {"weight_map": {key: file for file, keys in parts.items() for key in keys}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        save_file(source, tmp_path / "model.safetensors")
    model = get_model({**TINY, "model_path": str(tmp_path)})
    assert all(torch.equal(tensor, source[name]) for name, tensor in model.state_dict().items())


def test_a_new_value_head_is_allowed_any_other_difference_is_not(tmp_path: Path) -> None:
    source = get_model({**TINY, "add_value_head": False}).state_dict()
    file = tmp_path / "weights.safetensors"
    save_file(source, file)
    assert get_model({**TINY, "model_path": str(file)}).value_head is not None
    cases = {
        "lacks queries": {k: v for k, v in source.items() if k != "queries"},
        "has unknown extra": {**source, "extra": torch.zeros(2)},
        r"other shapes: queries is \(9, 9\) there": {**source, "queries": torch.zeros(9, 9)},
    }
    for message, state in cases.items():
        save_file(state, file)
        with pytest.raises(ValueError, match=f"weights.safetensors: does not fit TinyVla: it .*{message}"):
            get_model({**TINY, "model_path": str(file)})
    with pytest.raises(ValueError, match="does not exist"):
        get_model({**TINY, "model_path": str(tmp_path / "nowhere.safetensors")})


def test_get_model_takes_every_kind_of_configuration() -> None:
    from omegaconf import OmegaConf
    from rlinf.config.schema import ModelConfig

    for cfg in (TINY, OmegaConf.create(TINY), ModelConfig.model_validate(TINY)):
        model = get_model({**TINY, "precision": "bf16"} if cfg is TINY else cfg)
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16 if cfg is TINY else torch.float32}
    assert next(get_model(TINY, torch.bfloat16).parameters()).dtype == torch.bfloat16
    with pytest.raises(TypeError, match="got int"):
        get_model(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model_type": "tiny_vlb"}, PluginError, "unknown model_type 'tiny_vlb'.*tiny_vla"),
        ({"precision": "int3"}, ConfigError, "model.precision"),
        (
            {"tiny_vla": {"state_dim": 3, "dmi": 8}},
            ConfigError,
            "model.tiny_vla.dmi\n.*\n.*model.tiny_vla.dim",
        ),
        ({"tiny_vla": {}}, ConfigError, "model.tiny_vla.state_dim\n  is missing"),
        ({"tiny_vla": {"state_dim": 3, "dim": 30}}, ConfigError, "not a multiple of num_heads 4"),
    ],
)
def test_bad_configurations_are_named(change: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        get_model({**TINY, **change})


def test_importing_the_package_imports_no_torch() -> None:
    code = (
        "import sys, rlinf.models, rlinf.models.builtin_plugin as b;"
        "[b.rlinf_model_spec(model_type=t) for t in ('tiny_vla', 'mlp_policy')];"
        "rlinf.models.get_model; import rlinf.models.embodiment.tiny_vla.config;"
        "print([m for m in ('torch', 'ray', 'transformers', 'peft', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
