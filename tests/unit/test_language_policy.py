"""Language models as policies and as reward models: tiny ones, as the shipped configurations build them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from rlinf.algorithms import highest
from rlinf.config import Config, ConfigError, load_config
from rlinf.data.errors import DatasetError
from rlinf.data.text import TextDataset, TextSamples, read_rows
from rlinf.models import get_model
from rlinf.models.language.policy import LanguagePolicy
from rlinf.models.reward.policy import ScalarRewardPolicy
from torch.testing import assert_close

PROMPTS = ["12+34=", "9+1=", "00+07="]
VISION = [
    "model.model_type=vision_language",
    "~model.causal_lm",
    "model.vision_language={characters: '0123456789+=', max_prompt_length: 16}",
    "model.vision_language.config={model_type: qwen2_vl}",
    "model.vision_language.config.text_config={hidden_size: 32, intermediate_size: 48, num_hidden_layers: 2, "
    "num_attention_heads: 4, num_key_value_heads: 2}",
    "model.vision_language.config.text_config.rope_parameters={rope_type: default, mrope_section: [1, 1, 2], "
    "rope_theta: 10000.0}",
    "model.vision_language.config.vision_config={depth: 1, embed_dim: 16, num_heads: 2, hidden_size: 32, "
    "mlp_ratio: 2, patch_size: 4, spatial_merge_size: 2, temporal_patch_size: 2}",
]


def policy(*overrides: str) -> LanguagePolicy:
    torch.manual_seed(0)
    model = get_model(load_config("language_grpo", overrides).model)
    assert isinstance(model, LanguagePolicy)
    return model.eval()


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def observation(with_images: bool) -> dict[str, object]:
    obs: dict[str, object] = {"task_descriptions": PROMPTS}
    if with_images:
        obs["main_images"] = np.random.default_rng(0).integers(0, 255, (3, 16, 16, 3), np.uint8)
    return obs


@pytest.mark.parametrize("overrides", [[], VISION], ids=["text", "vision"])
@torch.no_grad()
def test_training_recomputes_what_a_rollout_recorded(overrides: list[str]) -> None:
    model = policy(*overrides, "model.add_value_head=true", "algorithm.adv_type=gae",
                   "algorithm.loss_type=actor_critic")  # fmt: skip
    actions, result = model.predict_action_batch(observation(bool(overrides)), generators=generators(0, 1, 2))
    again = model.default_forward(result["forward_inputs"])
    assert_close(again["logprobs"], result["prev_logprobs"], atol=1e-5, rtol=0)
    assert_close(again["values"], result["prev_values"], atol=1e-5, rtol=0)
    one = {name: x[2:] for name, x in result["forward_inputs"].items()}
    alone = model.default_forward(one)
    assert_close(alone["logprobs"], result["prev_logprobs"][2:], atol=1e-5, rtol=1e-4)
    ended = actions[..., 0] < 0
    assert (result["prev_logprobs"][..., 0][ended] == 0).all()
    assert (result["prev_logprobs"][..., 0][~ended] < 0).all()
    assert (result["prev_values"][ended] == 0).all()


@torch.no_grad()
def test_an_answer_depends_on_its_prompt_and_its_generator_alone() -> None:
    model = policy()
    together, _ = model.predict_action_batch({"task_descriptions": PROMPTS}, generators=generators(0, 1, 2))
    alone, _ = model.predict_action_batch({"task_descriptions": PROMPTS[1:2]}, generators=generators(1))
    assert torch.equal(together[1:2], alone)
    first, _ = model.predict_action_batch({"task_descriptions": PROMPTS}, mode="eval")
    assert torch.equal(first, model.predict_action_batch({"task_descriptions": PROMPTS}, mode="eval")[0])


@torch.no_grad()
def test_a_vision_policy_sees_the_picture() -> None:
    model = policy(*VISION)
    obs = observation(True)
    _, result = model.predict_action_batch(obs, generators=generators(0, 1, 2))
    changed = {**result["forward_inputs"], "pixel_values": -result["forward_inputs"]["pixel_values"]}
    difference = model.default_forward(changed)["logprobs"] - result["prev_logprobs"]
    assert difference.abs().amax(dim=(1, 2)).min() > 1e-6


def test_sft_loss_leaves_out_rows_that_do_not_count() -> None:
    model = policy()
    rows = [{"prompt": "1+1=", "answer": "2"}, {"prompt": "10+10=", "answer": "02"}]
    both = model.sft_forward({"rows": rows, "action_is_pad": torch.tensor([[False], [True]])})
    alone = model.sft_forward({"rows": rows[:1], "action_is_pad": torch.tensor([[False]])})
    assert_close(both["loss"], alone["loss"])
    with pytest.raises(ValueError, match="'x' in '1x=' is not in the alphabet"):
        model.sft_forward(
            {"rows": [{"prompt": "1x=", "answer": "2"}], "action_is_pad": torch.tensor([[False]])}
        )


@torch.no_grad()
def test_a_reward_model_scores_the_answer_whatever_else_is_in_the_batch() -> None:
    torch.manual_seed(0)
    model = get_model(load_config("arithmetic_reward").model).eval()
    assert isinstance(model, ScalarRewardPolicy)
    scores = model.score(["1+1=", "10+10="], ["2", "02"])
    assert_close(model.score(["1+1="], ["2"]), scores[:1], atol=1e-5, rtol=1e-4)
    assert (model.score(["1+1="], ["3"]) - scores[0]).abs() > 1e-4
    row = {"prompt": "1+1=", "chosen": "2", "rejected": "3"}
    pad = torch.tensor([[False], [True]])
    out = model.sft_forward({"rows": [row, {**row, "chosen": "3", "rejected": "2"}], "action_is_pad": pad})
    gap = model.score(["1+1="], ["2"]) - model.score(["1+1="], ["3"])
    assert_close(out["loss"], -torch.nn.functional.logsigmoid(gap).squeeze())
    assert out["accuracy"] == float(gap > 0)
    obs = {"task_descriptions": ["1+1="], "first": np.array(["2"]), "second": np.array(["3"])}
    assert_close(model.predict_action_batch(obs, mode="eval")[0].view(-1), gap)


def test_the_entropy_mask_keeps_the_highest_of_those_that_count() -> None:
    entropy = torch.tensor([[0.1, 0.9, 5.0], [0.5, 0.2, 0.7]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert highest(entropy, mask, 0.4).tolist() == [[False, True, False], [False, False, True]]
    assert not highest(entropy, torch.zeros_like(mask), 0.4).any()


def test_rows_come_from_files_and_functions(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "1+1=", "answer": "2"}\n\n{"prompt": "2+2=", "answer": "4"}\n')
    assert [row["answer"] for row in read_rows(str(file), ("answer",))] == ["2", "4"]
    assert len(read_rows("rlinf.envs.prompts.arithmetic:held_out", ("prompt", "answer"))) == 256
    dataset = TextDataset(str(file), ("prompt",))
    samples = TextSamples([dataset], [np.array([1])])
    assert samples.load(np.array([0])) == [{"prompt": "2+2=", "answer": "4"}]
    before = dataset.fingerprint()
    file.write_text(file.read_text().replace('"4"', '"5"'))
    assert TextDataset(str(file), ()).fingerprint() != before
    with pytest.raises(DatasetError, match="row 1 lacks chosen; it has prompt, answer"):
        read_rows(str(file), ("chosen",))
    file.write_text("[1]\n")
    with pytest.raises(DatasetError, match=r"rows\.jsonl:1: expected a JSON object"):
        read_rows(str(file))
    with pytest.raises(DatasetError, match="cannot be read"):
        read_rows(str(tmp_path / "none.jsonl"))


def test_held_out_problems_are_none_of_those_that_train() -> None:
    from rlinf.envs.prompts import arithmetic

    held_out = {row["prompt"] for row in arithmetic.held_out()}
    for rows in (arithmetic.train(), arithmetic.demonstrations(), arithmetic.preferences()):
        assert held_out.isdisjoint(row["prompt"] for row in rows)
    for row in (*arithmetic.preferences(), *arithmetic.held_out_preferences()):
        a, b = row["prompt"][:-1].split("+")
        assert int(row["chosen"][::-1]) == int(a) + int(b) != int(row["rejected"][::-1])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "env.steps_per_rollout=10",
            "one episode of model.num_action_chunks tokens: expected 5; got 10",
        ),
        ("env.prompts.success=fluency", "'fluency' is none of the rewards"),
        ("env.prompts.rewards=[{type: exact_match}, {type: exact_match}]", "two have the same name"),
        ("env.prompts.rewards=[{type: reward_model, options: {checkpoint: none}}]", "is no checkpoint"),
        ("model.causal_lm.temprature=2", "temperature"),
        ("model.action_dim=2", "an action is a token: expected 1; got 2"),
    ],
)
def test_mistakes_are_named_before_anything_starts(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("language_grpo", [override])


def test_a_language_model_needs_prompts_and_a_simulator_another_model() -> None:
    with pytest.raises(ConfigError, match="tiny_vla plays simulators; got prompts"):
        load_config(
            "language_grpo",
            ["model.model_type=tiny_vla", "~model.causal_lm", "model.tiny_vla={state_dim: 4}"],
        )
    with pytest.raises(ConfigError, match="is for language models; tiny_vla is none"):
        load_config("tabletop_grpo", ["algorithm.kl_beta=0.1"])
    assert isinstance(load_config("arithmetic_reward"), Config)
    with pytest.raises(ConfigError, match=r"learns from pairs \(rlinf sft\): expected 0"):
        load_config("arithmetic_reward", ["runner.max_steps=3"])
