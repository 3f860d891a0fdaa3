"""The laws of DESIGN section 4, for each built-in policy, built through `get_model`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rlinf.models import get_model
from rlinf.models.embodiment.base_policy import BasePolicy, ForwardType

STATE, CHUNK, ACTION = 5, 3, 4
POLICIES = ("mlp_policy", "cnn_policy", "tiny_vla")
WORDS = ["push the red cube", "", "pick up the blue block and hold it , please", "touch it"]


def build(model_type: str, precision: str = "fp32", **subtree) -> BasePolicy:
    torch.manual_seed(0)
    cfg = {
        "model_type": model_type,
        "precision": precision,
        "action_dim": ACTION,
        "num_action_chunks": CHUNK,
        model_type: {"state_dim": STATE, **subtree},
    }
    return get_model(cfg)


def observation(batch: int = 4, seed: int = 0, size: int = 64) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "main_images": rng.integers(0, 256, (batch, size, size, 3), dtype=np.uint8),
        "states": rng.normal(size=(batch, STATE)).astype(np.float32),
        "task_descriptions": [WORDS[i % len(WORDS)] for i in range(batch)],
    }


def generators(batch: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + i) for i in range(batch)]


def row(obs: dict, i: int) -> dict:
    return {key: value[i : i + 1] for key, value in obs.items()}


@pytest.fixture(params=POLICIES)
def policy(request: pytest.FixtureRequest) -> BasePolicy:
    return build(request.param)


def test_shapes_and_dtypes(policy: BasePolicy) -> None:
    actions, result = policy.predict_action_batch(observation())
    assert actions.shape == (4, CHUNK, ACTION) and actions.dtype == torch.float32
    assert result["prev_logprobs"].shape == (4, CHUNK, ACTION)
    assert result["prev_logprobs"].dtype == torch.float32
    assert result["prev_values"].shape == (4, 1) and result["prev_values"].dtype == torch.float32
    assert all(len(tensor) == 4 for tensor in result["forward_inputs"].values())
    assert not any(t.requires_grad for t in (actions, result["prev_logprobs"], result["prev_values"]))
    out = policy(forward_inputs=result["forward_inputs"])
    assert out["entropy"].shape == (4, CHUNK, ACTION) and out["values"].shape == (4, 1)


@pytest.mark.parametrize("model_type", POLICIES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("state_dependent_std", [False, True])
def test_recompute_equals_recorded(model_type: str, precision: str, state_dependent_std: bool) -> None:
    policy = build(model_type, precision, state_dependent_std=state_dependent_std)
    _, result = policy.predict_action_batch(observation())
    out = policy(ForwardType.DEFAULT, forward_inputs=result["forward_inputs"])
    assert out["logprobs"].dtype == out["values"].dtype == out["entropy"].dtype == torch.float32
    torch.testing.assert_close(out["logprobs"], result["prev_logprobs"], atol=1e-5, rtol=0)
    torch.testing.assert_close(out["values"], result["prev_values"], atol=1e-5, rtol=0)


def test_recompute_of_a_shuffled_subset(policy: BasePolicy) -> None:
    _, result = policy.predict_action_batch(observation(8))
    rows = torch.tensor([5, 1, 6])
    out = policy(forward_inputs={key: value[rows] for key, value in result["forward_inputs"].items()})
    torch.testing.assert_close(out["logprobs"], result["prev_logprobs"][rows], atol=1e-5, rtol=0)


def test_batch_equals_singles(policy: BasePolicy) -> None:
    obs = observation(4)
    actions, result = policy.predict_action_batch(obs, generators=generators(4))
    for i in range(4):
        one, alone = policy.predict_action_batch(row(obs, i), generators=generators(1, seed=i))
        torch.testing.assert_close(one[0], actions[i], atol=1e-5, rtol=0)
        torch.testing.assert_close(alone["prev_logprobs"][0], result["prev_logprobs"][i], atol=1e-5, rtol=0)
        torch.testing.assert_close(alone["prev_values"][0], result["prev_values"][i], atol=1e-5, rtol=0)


def test_generators_decide_every_draw(policy: BasePolicy) -> None:
    obs = observation(4)
    torch.manual_seed(1)
    first, _ = policy.predict_action_batch(obs, generators=generators(4))
    torch.manual_seed(2)
    second, _ = policy.predict_action_batch(obs, generators=generators(4))
    other, _ = policy.predict_action_batch(obs, generators=generators(4, seed=7))
    assert torch.equal(first, second)
    assert not torch.isclose(first, other).any()
    with pytest.raises(ValueError, match="one per sample \\(4\\), got 3"):
        policy.predict_action_batch(obs, generators=generators(3))


def test_eval_is_deterministic_and_the_mean(policy: BasePolicy) -> None:
    obs = observation(2)
    first, _ = policy.predict_action_batch(obs, mode="eval")
    second, _ = policy.predict_action_batch(obs, mode="eval", generators=generators(2))
    assert torch.equal(first, second)
    draws = [policy.predict_action_batch(obs, generators=generators(2, 2 * i))[0] for i in range(200)]
    # Standard error of the mean: exp(-1) / sqrt(200) = 0.026.
    torch.testing.assert_close(torch.stack(draws).mean(dim=0), first, atol=0.13, rtol=0)
    spread = torch.stack(draws).std(dim=0).mean()
    torch.testing.assert_close(spread, torch.tensor(np.exp(-1.0)).float(), atol=0.03, rtol=0)
    with pytest.raises(ValueError, match="mode: expected one of train, eval; got 'test'"):
        policy.predict_action_batch(obs, mode="test")


@pytest.mark.parametrize(
    ("model_type", "sensitive"),
    [
        ("mlp_policy", {"states"}),
        ("cnn_policy", {"states", "main_images"}),
        ("tiny_vla", {"states", "main_images", "task_descriptions"}),
    ],
)
def test_sensitivity(model_type: str, sensitive: set[str]) -> None:
    policy, obs = build(model_type), observation(1)
    base, _ = policy.predict_action_batch(obs, mode="eval")
    changes = {
        "states": obs["states"] + 0.5,
        "main_images": 255 - obs["main_images"],
        "task_descriptions": ["push the blue cube"],
    }
    for key, value in changes.items():
        changed, _ = policy.predict_action_batch({**obs, key: value}, mode="eval")
        assert ((changed - base).abs().max().item() > 1e-5) == (key in sensitive), key


def test_tiny_vla_knows_the_order_of_words() -> None:
    policy, obs = build("tiny_vla"), observation(2)
    obs = {key: np.repeat(value[:1], 2, axis=0) for key, value in obs.items() if key != "task_descriptions"}
    obs["task_descriptions"] = ["put the red cube on the blue cube", "put the blue cube on the red cube"]
    actions, _ = policy.predict_action_batch(obs, mode="eval")
    assert (actions[0] - actions[1]).abs().max() > 1e-5


def test_padding_changes_nothing() -> None:
    policy = build("tiny_vla")
    _, result = policy.predict_action_batch({**observation(2), "task_descriptions": ["touch it", "go"]})
    inputs = result["forward_inputs"]
    assert inputs["tokenized_prompt"].shape == (2, 24) and (inputs["tokenized_prompt"][0] != 0).sum() == 3
    full = policy(forward_inputs=inputs)
    # Beside a longer instruction there is more padding; with columns cut there is less.
    obs, words = observation(2), " ".join("abcdefgh")
    long, _ = policy.predict_action_batch({**obs, "task_descriptions": ["touch it", words]}, mode="eval")
    short, _ = policy.predict_action_batch({**obs, "task_descriptions": ["touch it", "go"]}, mode="eval")
    torch.testing.assert_close(long[0], short[0], atol=1e-6, rtol=0)
    cut = policy(forward_inputs={**inputs, "tokenized_prompt": inputs["tokenized_prompt"][:, :5]})
    torch.testing.assert_close(cut["logprobs"], full["logprobs"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [16, 48, 96])
@pytest.mark.parametrize("model_type", ["cnn_policy", "tiny_vla"])
def test_any_image_size(model_type: str, size: int) -> None:
    actions, _ = build(model_type).predict_action_batch(observation(2, size=size))
    assert torch.isfinite(actions).all()


def test_tensors_and_arrays_are_the_same_observation(policy: BasePolicy) -> None:
    obs = observation(2)
    tensors = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in obs.items()}
    torch.testing.assert_close(
        policy.predict_action_batch(obs, mode="eval")[0], policy.predict_action_batch(tensors, mode="eval")[0]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"states": np.zeros((4, STATE + 1), np.float32)}, r"states: expected \[B, 5\].*got \(4, 6\)"),
        ({"states": None}, "needs 'states' in the observation; it has"),
        ({"main_images": np.zeros((4, 64, 64, 3), np.float32)}, "main_images: expected uint8"),
        ({"main_images": np.zeros((4, 3, 64, 64), np.uint8)}, r"main_images: expected uint8 \[B, H, W, 3\]"),
        ({"task_descriptions": None}, "needs 'task_descriptions'"),
        ({"task_descriptions": ["a"] * 3}, "task_descriptions: expected 4, got 3"),
        ({"task_descriptions": [" ".join("w" * 40)] * 4}, "has 40 words.*admits 23, raise it"),
    ],
)
def test_bad_observations_are_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("tiny_vla").predict_action_batch({**observation(4), **change})


def test_without_value_head_there_are_no_values() -> None:
    cfg = {"model_type": "tiny_vla", "add_value_head": False, "tiny_vla": {"state_dim": STATE}}
    policy = get_model(cfg)
    _, result = policy.predict_action_batch(observation())
    assert "prev_values" not in result
    assert "values" not in policy(forward_inputs=result["forward_inputs"])
    assert "prev_values" not in build("tiny_vla").predict_action_batch(observation(), compute_values=False)[1]


@pytest.mark.parametrize("loss", ["l1", "mse", "huber", "nll"])
def test_sft_loss_counts_only_real_steps(loss: str) -> None:
    policy = build("mlp_policy", sft_loss=loss)
    batch = {**observation(), "actions": np.ones((4, CHUNK, ACTION), np.float32)}
    pad = np.zeros((4, CHUNK), bool)
    pad[0, 1:] = True
    clean = policy("sft", batch={**batch, "action_is_pad": pad})["loss"]
    batch["actions"] = np.where(pad[..., None], np.float32(1e6), batch["actions"])
    garbage = policy("sft", batch={**batch, "action_is_pad": pad})["loss"]
    torch.testing.assert_close(garbage, clean)
    mean, log_std = policy.action_head(policy.features(policy.inputs(batch))[0])
    error, keep = (mean - 1).abs()[~pad], torch.from_numpy(~pad)
    expected = {
        "l1": error,
        "mse": error**2,
        "huber": torch.where(error < 0.1, error**2 / 2, 0.1 * (error - 0.05)),
        "nll": -torch.distributions.Normal(mean, log_std.exp()).log_prob(torch.ones(()))[keep],
    }[loss]
    torch.testing.assert_close(clean, expected.mean())


def test_sft_with_every_step_padded_is_zero_not_nan(policy: BasePolicy) -> None:
    batch = {**observation(), "actions": torch.zeros(4, CHUNK, ACTION), "action_is_pad": torch.ones(4, CHUNK)}
    loss = policy("sft", batch=batch)["loss"]
    loss.backward()
    assert loss == 0 and all(torch.isfinite(p.grad).all() for p in policy.parameters() if p.grad is not None)


def test_every_parameter_learns(policy: BasePolicy) -> None:
    _, result = policy.predict_action_batch(observation(16))
    out = policy(forward_inputs=result["forward_inputs"])
    (out["logprobs"].sum() + out["values"].sum()).backward()
    dead = [n for n, p in policy.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert dead == []


def test_tiny_vla_learns_to_find_what_the_instruction_names() -> None:
    """A short version of the learnability measurement: which of two squares to point at is only in the
    words."""
    torch.manual_seed(0)
    policy = build("tiny_vla", dim=32)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=4e-3, weight_decay=0)
    rng = np.random.default_rng(0)
    colours = {"red": (220, 40, 40), "green": (40, 200, 60)}

    def batch(n: int) -> dict:
        images = rng.integers(90, 110, (n, 32, 32, 3), dtype=np.uint8)
        target = np.zeros((n, CHUNK, ACTION), np.float32)
        words = []
        for i in range(n):
            wanted = ("red", "green")[rng.integers(2)]
            left = rng.permutation([3, 19]) + rng.integers(0, 6, 2)
            for (name, rgb), x in zip(colours.items(), left, strict=True):
                y = rng.integers(0, 25)
                images[i, y : y + 6, x : x + 6] = rgb
                if name == wanted:
                    target[i] = (x + 3 - 16) / 16
            words.append(f"touch the {wanted} square")
        return {
            "main_images": images,
            "states": np.zeros((n, STATE), np.float32),
            "task_descriptions": words,
            "actions": target,
            "action_is_pad": np.zeros((n, CHUNK), bool),
        }

    for _ in range(150):
        loss = policy("sft", batch=batch(32))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    test = batch(64)
    error = np.abs(policy.predict_action_batch(test, mode="eval")[0].numpy() - test["actions"]).mean()
    blind = {**test, "task_descriptions": [""] * 64}
    blind_error = np.abs(policy.predict_action_batch(blind, mode="eval")[0].numpy() - test["actions"]).mean()
    assert error < 0.15 < 0.3 < blind_error
