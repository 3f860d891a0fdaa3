"""Reward models on transformers' own models with tiny random weights."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from rlinf.models import GenerativeRewardModelVL, ScalarRewardModelAL, ScalarRewardModelVL
from rlinf.models.language.generation import GenerationConfig
from rlinf.models.language.lora import in_tower
from rlinf.models.reward.generative import parse_verdict
from rlinf.models.reward.scalar import AttentionPooling, ScalarRewardModel, preference_loss
from test_language_actor import AUDIO, llama, qwen2_audio, qwen2_vl, rows, vision_batch
from torch.testing import assert_close


@pytest.mark.parametrize("pooling", ["last_token", "attention"])
@pytest.mark.parametrize("layer", [-1, 1])
def test_padding_on_either_side_changes_no_score(pooling: Any, layer: int) -> None:
    torch.manual_seed(0)
    model = ScalarRewardModel(llama(), pooling=pooling, probing_layer=layer, heads=("help", "harm")).eval()
    ids, mask = rows()
    with torch.no_grad():
        together = model(ids, mask)
        for row in range(3):
            valid = ids[row][mask[row].bool()][None]
            alone = model(valid, torch.ones_like(valid))
            for head in ("help", "harm"):
                assert_close(together[head][row : row + 1], alone[head], atol=1e-5, rtol=1e-4)
        assert not torch.allclose(together["help"], together["harm"])


def test_a_row_without_tokens_pools_to_zeros() -> None:
    pooled = AttentionPooling(4)(torch.ones(1, 3, 4), torch.zeros(1, 3, dtype=torch.bool))
    assert (pooled == 0).all()


def test_the_last_layer_is_the_last() -> None:
    model = llama()
    torch.manual_seed(1)
    last = ScalarRewardModel(model, probing_layer=-1).eval()
    torch.manual_seed(1)
    second = ScalarRewardModel(model, probing_layer=2).eval()  # of two layers
    torch.manual_seed(1)
    before = ScalarRewardModel(model, probing_layer=-2).eval()
    ids, mask = rows()
    with torch.no_grad():
        assert_close(last(ids, mask)["reward"], second(ids, mask)["reward"])
        assert not torch.allclose(last(ids, mask)["reward"], before(ids, mask)["reward"])


def test_preference_loss_is_bradley_terry_with_a_margin() -> None:
    chosen, rejected = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.5])
    out = preference_loss({"r": chosen}, {"r": rejected}, torch.tensor([0.5, 0.0]))
    want = -(torch.tensor([0.5, -0.5]).sigmoid().log()).mean()
    assert_close(out["loss"], want)
    assert out["accuracy"] == 0.5 and "accuracy_r" not in out
    two = preference_loss({"a": chosen, "b": chosen}, {"a": rejected, "b": chosen - 1})
    assert two["accuracy_a"] == 0.5 and two["accuracy_b"] == 1 and two["accuracy"] == 0.75


def pairs(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The chosen row has more tokens 7, anywhere, than the rejected one."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(10, 20, (2, count, 6), generator=generator)
    ids[0, torch.arange(count), torch.randint(0, 6, (count,), generator=generator)] = 7
    return ids[0], ids[1]


def test_training_on_pairs_orders_held_out_pairs() -> None:
    torch.manual_seed(0)
    model = ScalarRewardModel(llama(), pooling="attention")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def outcome(count: int, seed: int) -> dict[str, torch.Tensor]:
        chosen, rejected = pairs(count, seed)
        mask = torch.ones_like(chosen)
        return preference_loss(model(chosen, mask), model(rejected, mask))

    with torch.no_grad():
        before = float(outcome(200, 10_000)["accuracy"])
    for step in range(60):
        optimizer.zero_grad()
        outcome(32, step)["loss"].backward()
        optimizer.step()
    with torch.no_grad():
        after = float(outcome(200, 10_000)["accuracy"])
    assert after > 0.95 and before < 0.8, (before, after)


def test_images_and_sounds_change_the_score() -> None:
    torch.manual_seed(0)
    seeing, batch = ScalarRewardModelVL(qwen2_vl()).eval(), vision_batch()
    with torch.no_grad():
        first = seeing(**batch)["reward"]
        batch["pixel_values"] = batch["pixel_values"].flip(0)
        assert (seeing(**batch)["reward"] - first).abs().max() > 1e-4
        hearing = ScalarRewardModelAL(qwen2_audio()).eval()
        ids = torch.tensor([[AUDIO, AUDIO, AUDIO, AUDIO, 5, 6, 7]])
        sound = torch.randn(1, 8, 16)
        inputs = {"feature_attention_mask": torch.ones(1, 16, dtype=torch.long)}
        one = hearing(ids, torch.ones_like(ids), input_features=sound, **inputs)["reward"]
        other = hearing(ids, torch.ones_like(ids), input_features=sound.flip(2), **inputs)["reward"]
    assert (one - other).abs().max() > 1e-5


def test_heads_train_under_lora_and_towers_stay_frozen() -> None:
    model = ScalarRewardModelVL(qwen2_vl(), lora_rank=2, pooling="attention")
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {"heads.linear.weight", "heads.linear.bias", "pooling.query.weight"} <= trained
    assert any("lora_A" in name for name in trained)
    assert not any(in_tower(name) for name in trained)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="heads: expected one or more different names"):
        ScalarRewardModel(llama(), heads=("a", "a"))
    with pytest.raises(ValueError, match="pooling: expected last_token or attention, got 'mean'"):
        ScalarRewardModel(llama(), pooling="mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="packing_samples"):
        ScalarRewardModel(llama(), packing_samples=True)
    with pytest.raises(TypeError, match="takes no pixel_values"):
        ScalarRewardModel(llama())(*rows(), pixel_values=torch.zeros(1))
    with pytest.raises(ValueError, match="low < high"):
        GenerativeRewardModelVL(qwen2_vl(), low=1, high=1)
    with pytest.raises(ValueError, match="no group"):
        GenerativeRewardModelVL(qwen2_vl(), pattern="score")


@pytest.mark.parametrize(
    ("text", "score", "problem"),
    [
        ("It is sharp.\nScore: 7", 0.7, ""),
        ("A score: 2 at first, but on reflection score = 9.5", 0.95, ""),
        ("<score>10</score>", 1.0, ""),
        ("**Score:** 3", 0.3, ""),
        ("fine", None, "no score"),
        ("Score: 11", None, r"11 is not in \[0, 10\]"),
    ],
)
def test_a_judgement_without_a_score_says_so(text: str, score: float | None, problem: str) -> None:
    verdict = parse_verdict(text, low=0, high=10)
    assert verdict.text == text and re.search(problem, verdict.problem)
    assert verdict.score == (pytest.approx(score) if score is not None else None)
    assert bool(verdict.problem) == (score is None)


def test_a_judge_writes_and_is_read() -> None:
    batch = vision_batch()
    ids, mask = batch.pop("sequences"), batch.pop("attention_mask")
    seen: list[list[int]] = []

    def decode(tokens: Any) -> str:
        seen.append(list(tokens))
        return f"Score: {len(tokens)}" if len(seen) == 1 else "no idea"

    config = GenerationConfig(max_new_tokens=3, eos_token_ids=(), pad_token_id=0)
    verdicts = GenerativeRewardModelVL(qwen2_vl()).judge(ids, mask, decode, config=config, **batch)
    assert [verdict.score for verdict in verdicts] == [pytest.approx(0.3), None]
    assert [len(tokens) for tokens in seen] == [3, 3]
