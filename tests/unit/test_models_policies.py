"""What is particular to the built-in policies. The laws of every policy are tried in
tests/plugins/test_kit_on_builtins.py, by the conformance kit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rlinf.models import get_model
from rlinf.models.embodiment.base_policy import BasePolicy

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


@pytest.fixture(params=POLICIES)
def policy(request: pytest.FixtureRequest) -> BasePolicy:
    return build(request.param)


def test_eval_is_the_mean(policy: BasePolicy) -> None:
    obs = observation(2)
    first, _ = policy.predict_action_batch(obs, mode="eval")
    draws = [policy.predict_action_batch(obs, generators=generators(2, 2 * i))[0] for i in range(200)]
    # Standard error of the mean: exp(-1) / sqrt(200) = 0.026.
    torch.testing.assert_close(torch.stack(draws).mean(dim=0), first, atol=0.13, rtol=0)
    spread = torch.stack(draws).std(dim=0).mean()
    torch.testing.assert_close(spread, torch.tensor(np.exp(-1.0)).float(), atol=0.03, rtol=0)
    with pytest.raises(ValueError, match="mode: expected one of train, eval; got 'test'"):
        policy.predict_action_batch(obs, mode="test")


def test_tiny_vla_knows_the_order_of_words() -> None:
    policy, obs = build("tiny_vla"), observation(2)
    obs = {key: np.repeat(value[:1], 2, axis=0) for key, value in obs.items() if key != "task_descriptions"}
    obs["task_descriptions"] = ["put the red cube on the blue cube", "put the blue cube on the red cube"]
    actions, _ = policy.predict_action_batch(obs, mode="eval")
    assert (actions[0] - actions[1]).abs().max() > 1e-5


def test_columns_of_padding_can_be_cut() -> None:
    policy = build("tiny_vla")
    _, result = policy.predict_action_batch({**observation(2), "task_descriptions": ["touch it", "go"]})
    inputs = result["forward_inputs"]
    assert inputs["tokenized_prompt"].shape == (2, 24) and (inputs["tokenized_prompt"][0] != 0).sum() == 3
    full = policy(forward_inputs=inputs)
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
def test_sft_loss_is_the_one_that_is_configured(loss: str) -> None:
    policy = build("mlp_policy", sft_loss=loss)
    batch = {**observation(), "actions": np.ones((4, CHUNK, ACTION), np.float32)}
    pad = np.zeros((4, CHUNK), bool)
    pad[0, 1:] = True
    loss_value = policy("sft", batch={**batch, "action_is_pad": pad})["loss"]
    mean, log_std = policy.action_head(policy.features(policy.inputs(batch))[0])
    error, keep = (mean - 1).abs()[~pad], torch.from_numpy(~pad)
    expected = {
        "l1": error,
        "mse": error**2,
        "huber": torch.where(error < 0.1, error**2 / 2, 0.1 * (error - 0.05)),
        "nll": -torch.distributions.Normal(mean, log_std.exp()).log_prob(torch.ones(()))[keep],
    }[loss]
    torch.testing.assert_close(loss_value, expected.mean())


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
