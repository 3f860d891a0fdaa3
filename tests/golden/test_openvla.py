"""rlinf_openvla's `openvla` against the recorded reference (openvla/openvla, RLinf/RLinf)."""

from __future__ import annotations

import pytest
import torch
from openvla_case import load, statistics, write_checkpoint
from rlinf_openvla.config import OpenvlaConfig
from rlinf_openvla.processing import normalize_images
from torch import Tensor
from torch.testing import assert_close

pytestmark = pytest.mark.golden("openvla")
ATOL = 2e-5


def close(ours: Tensor, recorded: Tensor, atol: float = ATOL) -> None:
    assert_close(ours, recorded, atol=atol, rtol=1e-5)


@pytest.fixture
def policy(case, tmp_path):
    return build(case, tmp_path)[0]


def build(case, tmp_path, **config):
    reference = case.config["reference"]
    folder = write_checkpoint(tmp_path / "checkpoint", case, dict(case.weights))
    stats = statistics(reference, reference["unnorm_key"])
    return load(folder, OpenvlaConfig(tokenizer="words", **config), stats, chunk=1)


def rows(case) -> list[str]:
    return sorted(name for name in case.inputs if name.startswith("input_ids_single."))


def pixels(case) -> Tensor:
    return normalize_images(case.inputs["images"][:, None])


def recorded_inputs(case, tokens: Tensor) -> dict[str, Tensor]:
    return {
        "images": case.inputs["images"][:, None],
        "input_ids": case.inputs["input_ids_padded"],
        "attention_mask": case.inputs["attention_mask_padded"],
        "action_tokens": tokens,
    }


def test_every_tensor_is_taken_or_known_to_be_unused(case, tmp_path):
    _, report = build(case, tmp_path)
    assert set(report.loaded) | set(report.unused) == set(case.weights)
    reference = case.config["reference"]
    last = {
        "featurizer": reference["dino"]["depth"] - 1,
        "fused_featurizer": reference["siglip"]["depth"] - 1,
    }
    assert all(
        any(
            name.startswith(f"vision_backbone.{tower}.{part}")
            for tower, n in last.items()
            for part in parts(n)
        )
        for name in report.unused
    )
    assert not report.new


def parts(last: int) -> list[str]:
    return ["norm.", "attn_pool.", f"blocks.{last}."]


def test_pixel_values(case):
    assert torch.equal(pixels(case)[:1], case.inputs["pixel_values_sample0"])


@torch.no_grad()
def test_vision_and_projector(case, policy):
    pixel_values = pixels(case)
    close(policy.vision_backbone.featurizer(pixel_values[:, :3]), case.outputs["vision.dino"])
    close(policy.vision_backbone.fused_featurizer(pixel_values[:, 3:]), case.outputs["vision.siglip"])
    close(policy.vision(pixel_values), case.outputs["projector"])


def test_bins(case, policy):
    close(torch.from_numpy(policy.tokens.centers).float(), case.outputs["bin_centers"], 1e-7)
    ids = torch.arange(policy.tokens.first_id, policy.tokens.vocab_end)
    again = policy.tokens.encode(policy.tokens.decode(ids))
    assert torch.equal(again[1:], ids[1:]) and again[0] == ids[1]  # the two smallest ids decode alike


@torch.no_grad()
def test_single_unpadded_rows(case, policy):
    """The official implementation's way: one prompt without padding."""
    given = case.inputs["action_tokens_given"]
    for i, name in enumerate(rows(case)):
        ids = case.inputs[name]
        inputs = {
            "images": case.inputs["images"][i : i + 1, None],
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
        }
        hidden = policy.teacher_forced(inputs, given[i : i + 1, :-1])
        close(hidden[0], case.outputs["official.hidden_action_positions"][i])
        close(policy.action_logits(hidden)[0], case.outputs["official.logits_action_bins"][i])
        prompt = policy.prompt(ids, inputs["attention_mask"], policy.pixel_values(inputs))
        tokens, _, _ = policy.generate_actions(prompt, sample=False)
        same_tokens(tokens[0], case.outputs["official.greedy_tokens"][i], case.outputs["greedy_top2_gap"][i])
        normalized = policy.tokens.decode(tokens)[0]
        close(normalized, case.outputs["official.greedy_normalized"][i])
        # The official formula adds nothing to the range.
        close(policy.stats.unnormalize(normalized, eps=0.0), case.outputs["official.greedy_actions"][i])


def same_tokens(ours: Tensor, recorded: Tensor, gap: Tensor) -> None:
    """Equal wherever the reference's margin between the two likeliest tokens is larger than the tolerance."""
    differs = (ours != recorded) & (gap > 2 * ATOL)
    assert not differs.any()


@torch.no_grad()
def test_padded_batch(case, policy):
    inputs = recorded_inputs(case, case.inputs["action_tokens_given"])
    hidden = policy.teacher_forced(inputs, inputs["action_tokens"][:, :-1])
    close(hidden, case.outputs["padded.hidden_action_positions"])
    close(policy.action_logits(hidden), case.outputs["padded.logits_action_bins"])
    close(policy.language_model.lm_head(hidden[0, 0]), case.outputs["padded.logits_full_sample0_first"])
    unpadded = torch.cat([inputs["input_ids"], inputs["attention_mask"]])
    assert unpadded.shape[1] + case.config["plain"]["num_patches"] == case.outputs["multimodal_length"].item()


@torch.no_grad()
def test_every_padding_convention_gives_the_same(case, policy):
    """BOS first, as RLinf pads; padding first, as the official batches do; padding last."""
    ids, mask = case.inputs["input_ids_padded"], case.inputs["attention_mask_padded"]
    order_last = (~mask).int().argsort(dim=1, stable=True)
    order_first = mask.int().argsort(dim=1, stable=True)
    for order in (order_first, order_last):
        inputs = recorded_inputs(case, case.inputs["action_tokens_given"])
        inputs["input_ids"], inputs["attention_mask"] = ids.gather(1, order), mask.gather(1, order)
        hidden = policy.teacher_forced(inputs, inputs["action_tokens"][:, :-1])
        close(hidden, case.outputs["padded.hidden_action_positions"])


@torch.no_grad()
def test_greedy_rollout(case, policy):
    inputs = recorded_inputs(case, case.inputs["action_tokens_given"])
    prompt = policy.prompt(inputs["input_ids"], inputs["attention_mask"], policy.pixel_values(inputs))
    tokens, logprobs, first = policy.generate_actions(prompt, sample=False)
    out = case.outputs
    same_tokens(tokens, out["rl.greedy_tokens"], out["greedy_top2_gap"])
    close(logprobs, out["rl.greedy_prev_logprobs"])
    close(policy.values(first), out["rl.greedy_prev_values"])
    close(policy.tokens.decode(tokens), out["rl.greedy_normalized"])
    close(policy.actions(tokens)[:, 0], out["rl.greedy_actions"])


@torch.no_grad()
@pytest.mark.golden("openvla", each=r"rl\.sampled_T([\d.]+)\.tokens")
def test_sampled_rollout(case, match, tmp_path):
    """Log-probabilities, values and actions of tokens that the reference drew."""
    policy, _ = build(case, tmp_path, temperature=float(match[0]))
    name = f"rl.sampled_T{match[0]}"
    tokens = case.outputs[f"{name}.tokens"]
    out = policy.default_forward(recorded_inputs(case, tokens))
    close(out["logprobs"][:, 0], case.outputs[f"{name}.prev_logprobs"])
    close(out["values"], case.outputs[f"{name}.prev_values"])
    close(policy.actions(tokens)[:, 0], case.outputs[f"{name}.actions"])


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@pytest.mark.golden("openvla", each=r"rl\.train\.(\w+?(?:_T[\d.]+)?)\.T([\d.]+)\.logprobs")
def test_training_forward(case, match, attn_implementation, tmp_path):
    which, temperature = match
    policy, _ = build(case, tmp_path, temperature=float(temperature), attn_implementation=attn_implementation)
    if which == "given":
        tokens = case.inputs["action_tokens_given"]
    else:
        tokens = case.outputs[f"rl.{which}_tokens" if which == "greedy" else f"rl.{which}.tokens"]
    out = policy(forward_inputs=recorded_inputs(case, tokens))
    name = f"rl.train.{which}.T{temperature}"
    close(out["logprobs"][:, 0], case.outputs[f"{name}.logprobs"])
    close(out["entropy"][:, 0], case.outputs[f"{name}.entropy"])
    close(out["values"], case.outputs[f"{name}.values"])
