"""rlinf_openvla's `openvla_oft` against the recorded reference (moojink/openvla-oft, RLinf/RLinf)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from openvla_case import load, statistics, write_checkpoint
from rlinf_openvla.codec import select_statistics
from rlinf_openvla.config import OpenvlaOftConfig
from torch import Tensor
from torch.testing import assert_close

pytestmark = pytest.mark.golden("openvla_oft")
ATOL = 3e-5
VALUE = "value_head."


def close(ours: Tensor, recorded: Tensor, atol: float = ATOL) -> None:
    assert_close(ours, recorded, atol=atol, rtol=1e-5)


@pytest.fixture
def base(case, golden_case):
    return golden_case(case.config["plain"]["base_weights"].split()[0].split("/")[1])


def build(case, base, tmp_path, variant: str, **config: Any):
    """The policy of a variant; l1's head comes from separate files like a released checkpoint's."""
    plain = case.config["plain"]
    weights = {name: base.weights[name] for name in base.weights if not name.startswith(VALUE)}
    own = {name: case.weights[name] for name in case.weights}
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    settings: dict[str, Any] = {"tokenizer": "words", **config}
    if variant == "rlinf":
        sizes, key = plain["rlinf"], plain["unnorm_key_rlinf"]
        settings |= {"head": "tokens", "stop_token": False}
    else:
        sizes, key = plain["l1"], plain["unnorm_key_l1"]
        settings |= {"proprio_dim": sizes["proprio_dim"], "normalization": sizes["normalization"]}
        settings |= {"head": "tokens"} if variant == "official" else {"head_hidden": sizes["head_hidden"]}
        part(folder / "proprio_projector--7_checkpoint.pt", own, "proprio_projector.")
    if variant == "l1":
        part(folder / "action_head--7_checkpoint.pt", own, "action_head.")
    else:
        prefix = f"{variant}.{VALUE}"
        weights |= {n.removeprefix(f"{variant}."): x for n, x in own.items() if n.startswith(prefix)}
    write_checkpoint(folder, base, weights)
    stats = statistics(case.config["reference"], key)
    chunk = sizes.get("chunk", sizes.get("num_action_chunks"))
    assert stats.dim == sizes["action_dim"]
    config = OpenvlaOftConfig(**settings)
    policy, _ = load(folder, config, stats, chunk=chunk, value_head=variant != "l1")
    return policy


def part(file, tensors: dict[str, Tensor], prefix: str) -> None:
    own = {n.removeprefix(prefix): x for n, x in tensors.items() if n.startswith(prefix)}
    torch.save({f"module.{name}": x for name, x in own.items()}, file)


def views(case, count: int) -> Tensor:
    return torch.stack([case.inputs[f"images.{i}"] for i in range(count)], dim=1)


def batch(case, variant: str) -> dict[str, Tensor]:
    plain = case.config["plain"]
    return {
        "images": views(case, plain["views_rlinf" if variant == "rlinf" else "views_l1_and_official"]),
        "input_ids": case.inputs[f"{variant}_input_ids"],
        "attention_mask": case.inputs[f"{variant}_attention_mask"],
        "proprio": case.inputs["proprio"],
    }


@torch.no_grad()
def test_l1_head_row_by_row(case, base, tmp_path):
    policy = build(case, base, tmp_path, "l1")
    out = case.outputs
    for i, name in enumerate(sorted(n for n in case.inputs if n.startswith("input_ids_single."))):
        ids = case.inputs[name]
        inputs = batch(case, "official")
        inputs = {key: x[i : i + 1] for key, x in inputs.items()} | {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
        }
        close(policy.proprio_projector(inputs["proprio"])[0, 0], out["l1.proprio_token"][i])
        hidden = policy.hidden_of_slots(prompt := policy.prompt_of(inputs))
        length = prompt.x.shape[1] + policy.action_tokens + policy.config.stop_token
        assert length == out["l1.sequence_length"][i]
        hidden = hidden[:, : policy.action_tokens]
        close(hidden[0], out["l1.hidden"][i])
        normalized = policy.action_head(hidden)[0]
        close(normalized[0], out["l1.normalized"][i])
        close(policy.stats.unnormalize(normalized)[0], out["l1.actions"][i])
        close(decoded(policy, policy.logp(hidden).argmax(-1))[0], out["l1.discrete_actions"][i])


def decoded(policy, bins: Tensor) -> Tensor:
    shape = (-1, policy.chunk, policy.action_dim)
    return policy.stats.unnormalize(policy.tokens.decode(bins + policy.tokens.first_id).view(shape))


@torch.no_grad()
def test_l1_head_on_the_padded_batch(case, base, tmp_path):
    policy = build(case, base, tmp_path, "l1")
    hidden = policy.slots(batch(case, "official"))
    close(hidden, case.outputs["l1.hidden"])


@torch.no_grad()
@pytest.mark.golden("openvla_oft", each=r"rlinf\.(bidirectional|causal)\.greedy_tokens")
def test_tokens_of_rlinf(case, match, base, tmp_path):
    policy = build(case, base, tmp_path, "rlinf", attention=match[0])
    out, name = case.outputs, f"rlinf.{match[0]}"
    hidden = policy.slots(batch(case, "rlinf"))
    close(hidden, out[f"{name}.hidden_action_positions"])
    close(policy.action_logits(hidden), out[f"{name}.logits_action_bins"])
    logp = policy.logp(hidden)
    tokens = logp.argmax(-1) + policy.tokens.first_id
    sure = out[f"{name}.greedy_top2_gap"] > 2 * ATOL
    recorded = out[f"{name}.greedy_tokens"]
    assert torch.equal(tokens[sure], recorded[sure])
    close(logp.amax(-1), out[f"{name}.greedy_prev_logprobs"])
    close(policy.values(hidden[:, 0]), out[f"{name}.greedy_prev_values"])
    close(decoded(policy, recorded - policy.tokens.first_id), shaped(policy, out[f"{name}.greedy_actions"]))


def shaped(policy, actions: Tensor) -> Tensor:
    return actions.view(-1, policy.chunk, policy.action_dim)


@pytest.mark.golden("openvla_oft", each=r"rlinf\.(bidirectional|causal)\.train\.T([\d.]+)\.logprobs")
def test_training_forward_of_rlinf(case, match, base, tmp_path):
    attention, temperature = match
    policy = build(case, base, tmp_path, "rlinf", attention=attention, temperature=float(temperature))
    inputs = batch(case, "rlinf") | {"action_tokens": case.inputs["rlinf_action_tokens_given"]}
    out = policy(forward_inputs=inputs)
    name = f"rlinf.{attention}.train.T{temperature}"
    close(out["logprobs"].flatten(1), case.outputs[f"{name}.logprobs"])
    close(out["entropy"].flatten(1), case.outputs[f"{name}.entropy"])
    close(out["values"], case.outputs[f"{name}.values"])


@torch.no_grad()
def test_tokens_of_the_official_wrapper(case, base, tmp_path):
    policy = build(case, base, tmp_path, "official")
    out, inputs = case.outputs, batch(case, "official")
    hidden = policy.hidden_of_slots(policy.prompt_of(inputs))
    logp = policy.logp(hidden[:, : policy.action_tokens])
    assert torch.equal(logp.argmax(-1), out["official.greedy_bins"])
    close(logp.amax(-1), out["official.greedy_prev_logprobs"])
    close(decoded(policy, logp.argmax(-1)), shaped(policy, out["official.greedy_actions"]))
    close(misread_values(policy, inputs, hidden), out["official.greedy_prev_values"])


@pytest.mark.golden("openvla_oft", each=r"official\.train\.T([\d.]+)\.logprobs")
def test_training_forward_of_the_official_wrapper(case, match, base, tmp_path):
    policy = build(case, base, tmp_path, "official", temperature=float(match[0]))
    inputs = batch(case, "official")
    bins = case.inputs["official_action_bins_given"]
    inputs["action_tokens"] = policy.tokens.first_id + bins
    out, name = policy(forward_inputs=inputs), f"official.train.T{match[0]}"
    close(out["logprobs"].flatten(1), case.outputs[f"{name}.logprobs"])
    close(out["entropy"].flatten(1), case.outputs[f"{name}.entropy"])
    with torch.no_grad():
        hidden = policy.hidden_of_slots(policy.prompt_of(inputs))
        close(misread_values(policy, inputs, hidden), case.outputs[f"{name}.values"])


def misread_values(policy, inputs: dict[str, Tensor], hidden: Tensor) -> Tensor:
    """What the wrapper calls the value: counted from the end, behind which it had put the padding, it is read
    as many slots after the prompt's last token as there is padding, and one for the stop token."""
    padding = (~inputs["attention_mask"]).sum(1)
    return policy.values(hidden[torch.arange(len(hidden)), padding + 1])


def test_statistics_may_be_bounds(case):
    stats = case.config["reference"]["norm_stats"]
    key = case.config["plain"]["unnorm_key_l1"]
    action = stats[key]["action"]
    chosen = select_statistics(stats, key, normalization="bounds")
    assert chosen.low.tolist() == action["min"] and chosen.high.tolist() == action["max"]
