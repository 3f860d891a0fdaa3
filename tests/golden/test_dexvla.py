"""rlinf_dexvla against the recorded reference (juruobenruo/DexVLA)."""

from __future__ import annotations

import json

import pytest
import torch
from rlinf_dexvla.chain import Chain
from rlinf_dexvla.checkpoint import load_backbone, original_state
from rlinf_dexvla.config import DexvlaConfig
from rlinf_dexvla.ddim import Schedule
from rlinf_dexvla.normalizer import Normalizer
from rlinf_dexvla.policy import DexvlaPolicy, action_loss
from rlinf_dexvla.prompt import IGNORED
from rlinf_dexvla.scaledp import timestep_features
from rlinf_dexvla.vlm import (
    Vision,
    _positions,
    encode,
    generate,
    image_embeddings,
    language_loss,
    vlm_config,
)
from torch import Tensor
from torch.testing import assert_close

pytestmark = pytest.mark.golden("dexvla")
ATOL = 3e-5
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
precision = pytest.mark.parametrize("precision", PRECISIONS)


class RecordedIds:
    """The special ids of a case; its texts are ids already."""

    def __init__(self, ids: dict[str, int]) -> None:
        self.ids = ids

    def token_id(self, token: str) -> int:
        names = {"endoftext": "pad", "image_pad": "image", "video_pad": "video"}
        name = token.strip("<|>")
        return self.ids[names.get(name, name)]


def build(case, tmp_path, dtype: torch.dtype, frequencies: str = "bfloat16") -> DexvlaPolicy:
    """The case's weights, loaded from a folder like the original's checkpoints."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(case.config["hf_config"]))
    (folder / "model.safetensors").symlink_to(case.weights.path.resolve())
    head = case.config["reference"]["scaledp"]
    plain = case.config["plain"]
    config = DexvlaConfig(
        state_dim=head["state_dim"],
        tokenizer="words",
        policy_head={"depth": head["depth"], "width": head["n_emb"], "num_heads": head["num_heads"]},
        timestep_frequencies=frequencies,
        using_film=plain["using_film"],
        num_train_timesteps=plain["scheduler"]["num_train_timesteps"],
        num_inference_timesteps=plain["scheduler"]["num_inference_steps"],
    )
    tokenizer = RecordedIds(plain["token_ids"])
    policy = DexvlaPolicy(
        config,
        vlm_config=vlm_config(config.vlm, str(folder), tokenizer),
        tokenizer=tokenizer,
        normalizer=Normalizer(None, state_dim=head["state_dim"], action_dim=head["action_dim"]),
        action_dim=head["action_dim"],
        num_action_chunks=head["prediction_horizon"],
        add_value_head=False,
    )
    load_backbone(policy, str(folder))
    for parameter in policy.parameters():
        parameter.data = parameter.data.to(dtype)
    return policy.eval()


@pytest.fixture
def policy(case, tmp_path, precision):
    return build(case, tmp_path, PRECISIONS[precision])


def tolerance(case, precision: str, name: str) -> float:
    """ATOL in float32; in bfloat16 twice what rounding amounts to in the reference itself."""
    if precision == "fp32":
        return ATOL
    measured = case.config["measured_self_agreement"]
    return 2 * max(measured[f"bf16_vs_fp32.{name}"], measured.get(f"eager_vs_sdpa.bf16.{name}", 0))


def close(case, precision: str, name: str, ours: Tensor, where: Tensor | None = None) -> None:
    recorded = case.outputs[f"{precision}.{name}"]
    ours = ours.float().reshape(recorded.shape)
    if where is not None:
        ours, recorded = ours[where], recorded[where]
    assert_close(ours, recorded, atol=tolerance(case, precision, name), rtol=1e-5)


# -- ScaleDP -------------------------------------------------------------------------------------------------


def schedule(case) -> Schedule:
    recorded = case.config["plain"]["scheduler"]
    return Schedule(
        num_train_timesteps=recorded["num_train_timesteps"],
        num_inference_timesteps=recorded["num_inference_steps"],
    )


def test_schedule(case):
    ours = schedule(case)
    assert_close(ours.alphas_cumprod, case.outputs["scaledp.alphas_cumprod"], atol=1e-7, rtol=1e-6)
    assert list(ours.timesteps) == case.outputs["scaledp.ddim_timesteps"].tolist()


@pytest.mark.parametrize("prefix, bf16", [("fp32", True), ("bf16", True), ("fp32_purefreq", False)])
def test_timestep_features(case, prefix, bf16):
    ours = timestep_features(case.inputs["scaledp.probe_timesteps"], bf16_frequencies=bf16)
    # One unit in the last place where two machines' roundings differ: of bfloat16, and of an angle near 99.
    atol = 2**-8 if bf16 else 1e-5
    assert_close(ours, case.outputs[f"{prefix}.scaledp.timestep_features"], atol=atol, rtol=0)


@pytest.mark.parametrize("prefix", ["fp32", "bf16", "fp32_purefreq"])
def test_scaledp(case, tmp_path, prefix):
    precision = prefix.partition("_")[0]
    frequencies = "float32" if prefix == "fp32_purefreq" else "bfloat16"
    head = build(case, tmp_path, PRECISIONS[precision], frequencies).policy_head
    given = {
        name: case.inputs[f"scaledp.{name}"] for name in ("noisy_actions", "timesteps", "cond", "states")
    }
    cond = given["cond"].squeeze(1)
    chain = Chain(schedule=schedule(case), trained=1, eta=1.0, min_std=0.1)
    with torch.no_grad():
        eps = head(given["noisy_actions"], given["timesteps"], cond, given["states"])
        condition = head.condition(cond, given["states"])
        trajectory = chain.deterministic(head, cond, given["states"], case.inputs["scaledp.init_noise"])
    for name, ours in (
        ("eps", eps),
        ("condition", condition),
        ("sample_trajectory", trajectory),
        ("sample", trajectory[-1]),
    ):
        recorded = case.outputs[f"{prefix}.scaledp.{name}"]
        assert_close(
            ours.float(), recorded, atol=tolerance(case, precision, f"scaledp.{name}"), rtol=1e-5, msg=None
        )


def test_planned_modulations_equal_the_plain_forward(case, tmp_path):
    head = build(case, tmp_path, torch.float32).policy_head
    x, cond, states = (case.inputs[f"scaledp.{name}"] for name in ("noisy_actions", "cond", "states"))
    times = schedule(case).timesteps
    with torch.no_grad():
        for time, modulations in zip(times, head.plan(times, cond.squeeze(1), states)):
            plain = head(x, torch.full((len(x),), time), cond.squeeze(1), states)
            assert_close(head.predict(x, modulations), plain, atol=1e-5, rtol=1e-5)


# -- the whole model -----------------------------------------------------------------------------------------


def vision(case, images: slice = slice(None)) -> Vision:
    grid = case.inputs["image_grid_thw"]
    rows = grid.prod(dim=1).cumsum(0)
    start = 0 if images.start in (None, 0) else int(rows[images.start - 1])
    end = int(rows[-1] if images.stop is None else rows[images.stop - 1])
    return Vision(case.inputs["pixel_values"][start:end].float(), grid[images])


@precision
def test_training_forward(case, policy, precision):
    ids, mask, labels = (case.inputs[name] for name in ("input_ids", "attention_mask", "labels"))
    is_answer = labels != IGNORED
    with torch.no_grad():
        hidden = encode(policy.vlm, ids, mask, vision(case))
        close(case, precision, "image_embeds", image_embeddings(policy.vlm, vision(case)))
        close(case, precision, "hidden_states", hidden, where=mask)
        count = case.outputs[f"{precision}.logits_from_first_label"].shape[1]
        close(case, precision, "logits_from_first_label", policy.vlm.lm_head(hidden[:, -count:]))
        llm_loss = language_loss(policy.vlm, hidden, labels, torch.ones(labels.shape))
        cond = policy.condition(policy._pool(hidden, mask & ~is_answer, is_answer))
        close(case, precision, "film_condition", cond)
        actions, noise, times = (case.inputs[n] for n in ("actions", "train_noise", "train_timesteps"))
        noisy = policy.chain.schedule.add_noise(actions, noise, times)
        close(case, precision, "noisy_actions", noisy)
        predicted = policy.policy_head(noisy, times, cond, case.inputs["states"])
        close(case, precision, "noise_pred", predicted)
        loss = action_loss(predicted, noise, ~case.inputs["is_pad"], padded_in_mean=True)
    close(case, precision, "llm_loss", llm_loss)
    close(case, precision, "action_loss", loss)
    close(case, precision, "loss", loss + case.config["plain"]["llm_loss_weight"] * llm_loss)


@pytest.mark.parametrize("precision", ["fp32"])
def test_positions(case, policy):
    ids, mask = case.inputs["input_ids"], case.inputs["attention_mask"]
    positions, deltas = _positions(policy.vlm, ids, mask, case.inputs["image_grid_thw"])
    assert torch.equal(positions[:, mask], case.outputs["position_ids"][:, mask])
    # The reference counts padding as tokens already seen; here the count is that of the mask.
    padding = (~mask).sum(dim=1, keepdim=True)
    assert torch.equal(deltas - padding, case.outputs["rope_deltas"])


@pytest.mark.parametrize("precision", ["fp32"])
def test_evaluate(case, policy):
    prompt = case.inputs["eval_input_ids"]
    images = len(case.config["reference"]["grids"][0])
    ids = case.config["plain"]["token_ids"]
    expected = case.outputs["fp32.eval.generated_ids"]
    generated = generate(
        policy.vlm,
        prompt,
        torch.ones_like(prompt, dtype=torch.bool),
        vision(case, slice(0, images)),
        max_tokens=case.config["reference"]["eval_new_tokens"],
        end_id=ids["im_end"],
        pad_id=ids["pad"],
        choose=lambda logits: logits.argmax(dim=-1),
    )
    assert torch.equal(generated.answers, expected)
    # As the original's evaluate(): without the hidden state of the last token.
    hidden = torch.cat([generated.prompt, generated.answer[:, :-1]], dim=1)
    close(case, "fp32", "eval.hidden_states", hidden)
    is_prompt = torch.arange(hidden.shape[1])[None] < prompt.shape[1]
    with torch.no_grad():
        cond = policy.condition(policy._pool(hidden, is_prompt, ~is_prompt))
        close(case, "fp32", "eval.film_condition", cond)
        noise, states = case.inputs["eval_init_noise"], case.inputs["states"][:1]
        actions = policy.chain.deterministic(policy.policy_head, cond, states, noise)[-1]
    close(case, "fp32", "eval.actions", actions)


@pytest.mark.parametrize("precision", ["bf16"])
def test_every_weight_is_loaded_and_comes_back_under_its_name(case, policy):
    back = original_state(policy.state_dict())
    assert set(back) == set(case.weights)
    for name in case.weights:
        assert torch.equal(back[name], case.weights[name]), name
