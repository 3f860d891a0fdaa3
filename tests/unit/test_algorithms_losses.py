"""Laws of the losses: parts add up, levels agree, true means, what is masked has no influence."""

from __future__ import annotations

import math

import pytest
import torch
from rlinf import algorithms as A
from torch import Tensor
from torch.testing import assert_close

M, CHUNK, DIM = 12, 3, 4
LEVELS = [
    ("token_level", "action_level"),
    ("token_level", "chunk_level"),
    ("action_level", "action_level"),
    ("action_level", "chunk_level"),
    ("chunk_level", "chunk_level"),
]
each_level = pytest.mark.parametrize("logprob_type, reward_type", LEVELS)


def batch(
    reward_type: str = "chunk_level", seed: int = 0, rows: int = M, chunk: int = CHUNK, dim: int = DIM
) -> dict:
    g = torch.Generator().manual_seed(seed)
    width = chunk if reward_type == "action_level" else 1

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    old, old_values = -randn(rows, chunk, dim).abs(), randn(rows, width)
    return {
        "logprobs": old + 0.3 * randn(rows, chunk, dim),
        "old_logprobs": old,
        "ref_logprobs": old + 0.3 * randn(rows, chunk, dim),
        "advantages": randn(rows, width),
        "values": old_values + 0.4 * randn(rows, width),
        "old_values": old_values,
        "returns": randn(rows, width),
        "entropy": randn(rows, chunk, dim).abs(),
        "loss_mask": torch.rand(rows, width, generator=g) < 0.7,
        "weights": torch.rand(rows, width, generator=g) + 0.5,
    }


def loss_of(data: dict, logprob_type: str, reward_type: str, **settings) -> tuple[Tensor, dict[str, Tensor]]:
    defaults = {
        "loss_type": "actor_critic",
        "clip_ratio_low": 0.2,
        "clip_ratio_high": 0.28,
        "clip_ratio_c": 1.5,
        "clip_log_ratio": 0.5,
        "value_clip": 0.2,
        "huber_delta": 0.7,
        "value_coef": 0.5,
        "entropy_bonus": 0.01,
        "kl_beta": 0.1,
    }
    return A.ppo_loss(logprob_type=logprob_type, reward_type=reward_type, **defaults | data | settings)


def with_gradients(data: dict, **settings) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor]:
    data = dict(data)
    for name in ("logprobs", "values"):
        data[name] = data[name].clone().requires_grad_()
    loss, metrics = loss_of(data, **settings)
    loss.backward()
    return loss.detach(), metrics, data["logprobs"].grad, data["values"].grad


# -- parts and wholes ---------------------------------------------------------------------------------------


@each_level
def test_micro_batches_with_the_global_count_add_up_to_the_batch(logprob_type: str, reward_type: str):
    data, settings = batch(reward_type), {"logprob_type": logprob_type, "reward_type": reward_type}
    data["loss_mask"][3:5] = False  # one part has nothing to train
    whole = with_gradients(data, **settings)
    normalizer, rows = data["loss_mask"].sum(), [slice(0, 3), slice(3, 5), slice(5, M)]
    parts = [
        with_gradients({k: v[r] for k, v in data.items()}, normalizer=normalizer, **settings) for r in rows
    ]
    assert_close(sum(part[0] for part in parts), whole[0])
    assert_close(torch.cat([part[2] for part in parts]), whole[2])
    assert_close(torch.cat([part[3] for part in parts]), whole[3])
    for name, value in whole[1].items():
        assert_close(sum(part[1][name] for part in parts), value, msg=name)


@each_level
def test_the_order_of_the_samples_does_not_matter(logprob_type: str, reward_type: str):
    data, order = batch(reward_type, seed=1), torch.randperm(M, generator=torch.Generator().manual_seed(0))
    one = loss_of(data, logprob_type, reward_type)
    other = loss_of({k: v[order] for k, v in data.items()}, logprob_type, reward_type)
    assert_close(one, other)


def test_explained_variance_of_the_parts_is_that_of_the_whole():
    data, parts = batch("action_level", seed=2), []
    for rows in (slice(0, 5), slice(5, M)):
        part = {k: v[rows] for k, v in data.items()}
        parts.append(loss_of(part, "action_level", "action_level", normalizer=data["loss_mask"].sum())[1])
    done = A.finish_metrics({name: sum(part[name] for part in parts) for name in parts[0]})
    returns, values = data["returns"][data["loss_mask"]], data["values"][data["loss_mask"]]
    expected = 1 - (returns - values).var(correction=0) / returns.var(correction=0)
    assert_close(done["critic/explained_variance"], expected)
    assert_close(done["critic/returns_mean"], returns.mean())
    assert not {name for name in done if name.endswith("_square") or name == "critic/error_mean"}


@pytest.mark.parametrize("value", [0.0, 0.3, 1e3 + 0.1])
def test_equal_returns_leave_nothing_to_explain(value: float):
    data = batch("chunk_level") | {"returns": torch.full((M, 1), value)}
    done = A.finish_metrics(loss_of(data, "chunk_level", "chunk_level")[1])
    assert float(done["critic/explained_variance"]) == 0
    actor = loss_of(data, "chunk_level", "chunk_level", loss_type="actor")[1]
    assert A.finish_metrics(actor) == actor


# -- levels -------------------------------------------------------------------------------------------------


def test_reductions_are_sums():
    x = batch()["logprobs"]
    assert A.reduce_logprobs(x, "token_level").shape == (M, CHUNK, DIM)
    action, chunk = A.reduce_logprobs(x, "action_level"), A.reduce_logprobs(x, "chunk_level")
    assert action.shape == (M, CHUNK) and chunk.shape == (M, 1)
    assert_close(action[2, 1], x[2, 1].sum())
    assert_close(chunk[:, 0], action.sum(1))
    assert A.reduce_logprobs(x.bfloat16(), "chunk_level").dtype == torch.float32


def test_levels_agree_where_they_mean_the_same():
    one_dim = batch("action_level", dim=1)
    assert_close(
        loss_of(one_dim, "token_level", "action_level"), loss_of(one_dim, "action_level", "action_level")
    )
    one_action = batch("chunk_level", chunk=1)
    reference = loss_of(one_action, "chunk_level", "chunk_level")
    assert_close(loss_of(one_action, "action_level", "chunk_level"), reference)
    assert_close(loss_of(one_action, "action_level", "action_level"), reference)


def test_a_chunk_level_advantage_is_that_of_each_of_its_actions():
    """True means: spelling the broadcast out changes nothing."""
    data = batch("chunk_level")
    spelled = dict(data)
    for name in ("advantages", "loss_mask", "weights", "values", "old_values", "returns"):
        spelled[name] = data[name].expand(M, CHUNK)
    for level in ("token_level", "action_level"):
        assert_close(loss_of(data, level, "chunk_level"), loss_of(spelled, level, "action_level"))


def test_the_policy_loss_is_a_true_mean_over_selected_tokens():
    data = batch("action_level", seed=3)
    loss, metrics = A.policy_loss(
        logprobs=data["logprobs"],
        old_logprobs=data["old_logprobs"],
        advantages=data["advantages"].unsqueeze(-1),
        loss_mask=data["loss_mask"].unsqueeze(-1),
        clip_ratio_low=0.2,
        clip_ratio_high=0.3,
    )
    total = count = clipped = 0.0
    for m in range(M):
        for c in range(CHUNK):
            for d in range(DIM):
                if not data["loss_mask"][m, c]:
                    continue
                adv = float(data["advantages"][m, c])
                r = math.exp(float(data["logprobs"][m, c, d] - data["old_logprobs"][m, c, d]))
                bounded = min(max(r, 0.8), 1.3)
                total, count = total + max(-adv * r, -adv * bounded), count + 1
                clipped += -adv * r < -adv * bounded
    assert float(loss) == pytest.approx(total / count, abs=1e-5)
    assert float(metrics["actor/clip_fraction"]) == pytest.approx(clipped / count, abs=1e-5)


@pytest.mark.parametrize("level", list(A.LOGPROB_TYPES))
def test_entropy_of_a_chunk_is_spread_over_its_parts(level: str):
    per_token = torch.full((M, CHUNK, DIM), 0.25)
    per_chunk = per_token.sum((1, 2)).unsqueeze(-1)
    shape = per_token.shape
    assert_close(A.reduce_entropy(per_chunk, level, shape), A.reduce_entropy(per_token, level, shape))
    with pytest.raises(ValueError, match=r"entropy: expected \(12, 3, 4\)"):
        A.reduce_entropy(per_token[..., 0], level, shape)


# -- PPO ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "advantage, ratio, slope",
    [
        (1.0, 1.0, -1.0),
        (1.0, 1.25, -1.25),
        (1.0, 1.4, 0.0),  # above 1 + high: no more reward for going further
        (1.0, 0.5, -0.5),  # moving back is never clipped
        (-1.0, 0.7, 0.0),  # below 1 - low
        (-1.0, 1.4, 1.4),
        (-1.0, 3.5, 0.0),  # beyond the dual clip
        (1.0, 3.5, 0.0),
    ],
)
def test_gradient_of_the_clipped_surrogate(advantage: float, ratio: float, slope: float):
    logprob = torch.tensor([math.log(ratio)], requires_grad=True)
    loss, metrics = A.policy_loss(
        logprobs=logprob,
        old_logprobs=torch.zeros(1),
        advantages=torch.tensor([advantage]),
        loss_mask=None,
        clip_ratio_low=0.2,
        clip_ratio_high=0.3,
        clip_ratio_c=3.0,
    )
    loss.backward()
    assert float(logprob.grad) == pytest.approx(slope, abs=1e-5)
    assert float(metrics["actor/dual_clip_fraction"]) == (advantage < 0 and ratio > 3)


def test_log_ratio_clamp_bounds_the_ratio_but_not_the_kl_to_stop_on():
    logprobs = torch.tensor([4.0, -4.0, 0.1], requires_grad=True)
    settings = {
        "old_logprobs": torch.zeros(3),
        "advantages": torch.ones(3),
        "loss_mask": None,
        "clip_ratio_low": 0.99,
        "clip_ratio_high": 99.0,
    }
    loss, metrics = A.policy_loss(logprobs=logprobs, clip_log_ratio=1.0, **settings)
    loss.backward()
    assert_close(metrics["actor/ratio"], torch.tensor([math.e, 1 / math.e, math.exp(0.1)]).mean())
    assert logprobs.grad[:2].tolist() == [0, 0] and float(logprobs.grad[2]) != 0
    assert float(metrics["actor/approx_kl_k3"]) > 3
    with pytest.raises(ValueError, match="clip_ratio_c: expected > 1"):
        A.policy_loss(logprobs=logprobs, clip_ratio_c=1.0, **settings)


@pytest.mark.parametrize("advantage", [-1.0, 1.0])
def test_a_ratio_beyond_float32_is_clipped_like_any_other(advantage: float):
    logprobs = torch.tensor([200.0, 0.0], requires_grad=True)
    loss, _ = A.policy_loss(
        logprobs=logprobs,
        old_logprobs=torch.zeros(2),
        advantages=torch.tensor([advantage, 1.0]),
        loss_mask=None,
        clip_ratio_low=0.2,
        clip_ratio_high=0.2,
        clip_ratio_c=3.0,
    )
    loss.backward()
    assert loss.isfinite()
    assert logprobs.grad.tolist() == [0.0, -0.5]


def test_value_clip_and_its_absence():
    values = torch.tensor([2.0, 0.05], requires_grad=True)
    settings = {
        "old_values": torch.zeros(2),
        "returns": torch.tensor([3.0, 1.0]),
        "loss_mask": None,
        "huber_delta": 10.0,
    }
    loss, metrics = A.value_loss(values=values, value_clip=0.2, **settings)
    assert_close(loss.detach(), torch.tensor([2.8**2 / 2, 0.95**2 / 2]).mean())
    assert float(metrics["critic/value_clip_ratio"]) == 0.5
    loss, metrics = A.value_loss(values=values, value_clip=None, **settings)
    assert_close(loss.detach(), torch.tensor([0.5, 0.95**2 / 2]).mean())
    assert float(metrics["critic/value_clip_ratio"]) == 0


def test_episode_weights_make_trajectories_count_alike():
    dones = torch.zeros(9, 3, 1, dtype=torch.bool)
    dones[2, 0] = dones[6, 1] = True  # lengths 2, 6, 8
    mask, total = A.loss_mask_from_dones(dones)
    per_trajectory = torch.tensor([5.0, 7.0, 11.0]).reshape(1, 3, 1).expand(8, 3, 1)
    weights = A.episode_weights(mask, total, max_episode_steps=8)
    assert_close(A.masked_mean(per_trajectory * weights, mask), torch.tensor((5.0 + 7.0 + 11.0) / 3))
    fraction = float(mask.float().mean())
    part = A.episode_weights(mask[:4], total[:4], 8, valid_fraction=fraction)
    assert_close(part, weights[:4])


def test_terms_act():
    """Every coefficient changes the loss by exactly its term."""
    data, levels = batch("chunk_level"), ("action_level", "chunk_level")
    full, metrics = loss_of(data, *levels)
    assert_close(
        full,
        metrics["actor/policy_loss"]
        + 0.5 * metrics["critic/value_loss"]
        - 0.01 * metrics["actor/entropy"]
        + 0.1 * metrics["actor/kl_ref"],
    )
    assert_close(metrics["actor/loss"], full)
    bare, metrics = loss_of(data, *levels, loss_type="actor", entropy_bonus=0.0, kl_beta=0.0)
    assert_close(bare, metrics["actor/policy_loss"])
    assert not any(name.startswith("critic/") for name in metrics)
    for kind in A.KL_ESTIMATORS:
        kl = loss_of(data, *levels, loss_type="actor", entropy_bonus=0.0, kl_type=kind)[1]["actor/kl_ref"]
        tokens = A.kl_divergence(data["logprobs"], data["ref_logprobs"], kind).sum(-1)
        assert_close(kl, tokens[data["loss_mask"][:, 0]].mean())


# -- what does not count ------------------------------------------------------------------------------------


@each_level
def test_masked_entries_have_no_influence_whatever_they_hold(logprob_type: str, reward_type: str):
    data, settings = batch(reward_type, seed=4), {"logprob_type": logprob_type, "reward_type": reward_type}
    data["loss_mask"] = data["loss_mask"].any(1, keepdim=True).expand_as(data["loss_mask"]).clone()
    data["loss_mask"][:3] = False
    poisoned = {k: v.clone() for k, v in data.items()}
    for name in ("logprobs", "ref_logprobs", "advantages", "values", "old_values", "returns", "entropy"):
        poisoned[name][0], poisoned[name][1], poisoned[name][2] = torch.nan, torch.inf, -torch.inf
    clean, dirty = with_gradients(data, **settings), with_gradients(poisoned, **settings)
    assert_close(dirty[0], clean[0])
    assert_close(dirty[1], clean[1])
    assert_close(dirty[2], clean[2])
    assert_close(dirty[3], clean[3])


@each_level
def test_an_empty_mask_gives_zero_loss_and_gradients(logprob_type: str, reward_type: str):
    data = batch(reward_type)
    data["loss_mask"] = torch.zeros_like(data["loss_mask"])
    loss, metrics, *gradients = with_gradients(data, logprob_type=logprob_type, reward_type=reward_type)
    assert float(loss) == 0
    assert all(float(value) == 0 for value in A.finish_metrics(metrics).values())
    assert all((gradient == 0).all() for gradient in gradients)


def test_no_mask_is_a_full_mask():
    data = batch("chunk_level")
    full = loss_of(data | {"loss_mask": torch.ones(M, 1, dtype=torch.bool)}, "token_level", "chunk_level")
    assert_close(loss_of(data | {"loss_mask": None}, "token_level", "chunk_level"), full)


def test_half_precision_inputs_are_computed_in_float32():
    data = {k: v if v.dtype == torch.bool else v.bfloat16() for k, v in batch("chunk_level").items()}
    wide = {k: v if v.dtype == torch.bool else v.float() for k, v in data.items()}
    assert_close(loss_of(data, "chunk_level", "chunk_level"), loss_of(wide, "chunk_level", "chunk_level"))


def test_errors_name_the_key_and_the_remedy():
    data = batch("chunk_level")
    cases = [
        ({"loss_type": "critic"}, "loss_type: expected one of actor, actor_critic; got 'critic'"),
        ({"values": None}, "loss_type actor_critic needs values; the policy gave none"),
        ({"entropy": None}, "entropy_bonus needs entropy"),
        ({"ref_logprobs": None}, "kl_beta needs ref_logprobs"),
        ({"kl_type": "k4"}, "kl_type: expected one of abs, k1, k2, k3"),
        ({"advantages": torch.zeros(M, CHUNK)}, r"advantages: reward_type chunk_level expects .* \(12, 1\)"),
        ({"values": torch.zeros(M)}, r"values: reward_type chunk_level expects .* got \(12,\)"),
        ({"logprobs": torch.zeros(M, CHUNK)}, r"expected \[M, chunk, dim\], got shape \(12, 3\)"),
    ]
    for change, message in cases:
        with pytest.raises(ValueError, match=message):
            loss_of(data | change, "chunk_level", "chunk_level")
    with pytest.raises(ValueError, match="logprob_type: expected one of"):
        loss_of(data, "step_level", "chunk_level")
    with pytest.raises(ValueError, match="logprob_type chunk_level needs reward_type chunk_level"):
        loss_of(batch("action_level"), "chunk_level", "action_level")


# -- element-wise -------------------------------------------------------------------------------------------


def test_kl_estimators_have_the_expectation_they_promise():
    g = torch.Generator().manual_seed(0)
    p, q = (torch.log_softmax(torch.randn(50, generator=g) / 2, -1) for _ in range(2))
    exact = (p.exp() * (p - q)).sum()
    for kind in ("k1", "k3"):
        assert_close((p.exp() * A.kl_divergence(p, q, kind)).sum(), exact)
    for kind in ("abs", "k2", "k3"):
        assert (A.kl_divergence(p, q, kind) >= 0).all()
        assert (A.kl_divergence(p, p, kind) == 0).all()
    assert A.kl_divergence(torch.tensor([-1e9, 0.0]), torch.tensor([0.0, -1e9]), "k3").isfinite().all()


def test_huber_is_quadratic_then_linear_with_bounded_slope():
    x = torch.linspace(-4, 4, 101, requires_grad=True)
    y = A.huber(x, 1.5)
    y.sum().backward()
    inside = x.detach().abs() <= 1.5
    assert_close(y.detach()[inside], x.detach()[inside] ** 2 / 2)
    assert_close(y.detach()[~inside], 1.5 * (x.detach()[~inside].abs() - 0.75))
    assert_close(x.grad, x.detach().clamp(-1.5, 1.5))
    assert A.huber(torch.tensor([1e30]), 1.0).isfinite().all()


def test_entropy_and_logprobs_of_barred_classes():
    logits = torch.tensor([[1.0, -torch.inf, 2.0, -300.0]], requires_grad=True)
    p = torch.softmax(torch.tensor([1.0, 2.0]), -1)
    entropy = A.entropy_from_logits(logits)
    assert_close(entropy.detach(), -(p * p.log()).sum().reshape(1))
    (entropy.sum() + A.logprobs_from_logits(logits, torch.tensor([2])).sum()).backward()
    assert logits.grad.isfinite().all() and float(logits.grad[0, 1]) == 0
    assert A.logprobs_from_logits(logits, torch.tensor([1])).tolist() == [-torch.inf]
    assert_close(A.entropy_from_logits(torch.zeros(2, 8)), torch.full((2,), math.log(8)))


def test_log_probabilities_are_float32_of_half_precision_logits():
    logits = torch.randn(5, 300, generator=torch.Generator().manual_seed(0)).bfloat16() * 10
    targets = torch.arange(5)
    assert_close(A.logprobs_from_logits(logits, targets), A.logprobs_from_logits(logits.float(), targets))
    assert_close(
        A.logprobs_from_logits(logits, targets), logits.float().log_softmax(-1)[torch.arange(5), targets]
    )
    with pytest.raises((IndexError, RuntimeError)):
        A.logprobs_from_logits(logits, torch.full((5,), -100))


@each_level
def test_stale_data_is_weighted_by_what_the_policy_changed(logprob_type: str, reward_type: str) -> None:
    """Decoupled PPO: where the proximal policy is the one that acted nothing changes; elsewhere the policy's
    loss, and it alone, is weighted by exp(proximal - behavior), capped, without a gradient."""
    data = batch(reward_type)
    plain, metrics = loss_of(data, logprob_type, reward_type)
    same, found = loss_of(
        data, logprob_type, reward_type, behavior_logprobs=data["old_logprobs"], behavior_weight_cap=5.0
    )
    assert_close(same, plain)
    assert_close(found.pop("actor/behavior_weight"), torch.tensor(1.0))
    assert found.keys() == metrics.keys()

    shift = math.log(1.5) / {"token_level": 1, "action_level": DIM, "chunk_level": DIM * CHUNK}[logprob_type]
    behavior = data["old_logprobs"] - shift
    for cap, weight in ((5.0, 1.5), (1.2, 1.2)):
        _, stale = loss_of(
            data, logprob_type, reward_type, behavior_logprobs=behavior, behavior_weight_cap=cap
        )
        assert_close(stale["actor/behavior_weight"], torch.tensor(weight))
        assert_close(stale["actor/policy_loss"], weight * metrics["actor/policy_loss"])
        assert_close(stale["critic/value_loss"], metrics["critic/value_loss"])
        assert_close(stale["actor/ratio"], metrics["actor/ratio"])
    leaf = behavior.clone().requires_grad_()
    leaf_data = {**data, "logprobs": data["logprobs"].clone().requires_grad_()}
    loss, _ = loss_of(leaf_data, logprob_type, reward_type, behavior_logprobs=leaf, behavior_weight_cap=5.0)
    loss.backward()
    assert leaf.grad is None


# -- transitions ---------------------------------------------------------------------------------------------


def _over_transitions(new, old, advantages, discounts, clips):
    rest = {"loss_mask": None, "logprob_type": "chunk_level", "reward_type": "chunk_level"}
    return A.loss_over_transitions(
        A.LOSSES["actor"],
        logprobs=new,
        old_logprobs=old,
        discounts=discounts,
        clips=clips,
        advantages=advantages,
        clip_ratio_low=0.2,
        clip_ratio_high=0.2,
        **rest,
    )


def test_each_transition_has_a_ratio_discount_and_clip_of_its_own():
    old = torch.zeros(1, 2, 1, 1)
    new = torch.tensor([0.5, 0.05]).log1p().view(1, 2, 1, 1).requires_grad_()  # ratios 1.5 and 1.05
    loss, metrics = _over_transitions(new, old, torch.tensor([[2.0]]), (0.5, 1.0), (0.1, 1.0))
    # The first is cut at 1 + 0.2 * 0.1 with half the advantage, the second is inside its clip.
    assert_close(loss, torch.tensor(-(1.02 * 1.0 + 1.05 * 2.0) / 2))
    assert float(metrics["actor/clip_fraction"]) == 0.5
    loss.backward()
    assert float(new.grad[0, 0]) == 0 and float(new.grad[0, 1]) < 0


def test_one_transition_is_the_plain_loss():
    torch.manual_seed(0)
    new, old, advantages = torch.randn(3, 1, 2, 4) * 0.1, torch.randn(3, 1, 2, 4) * 0.1, torch.randn(3, 1)
    loss, _ = _over_transitions(new, old, advantages, (1.0,), (1.0,))
    plain, _ = A.LOSSES["actor"](
        logprobs=new[:, 0],
        old_logprobs=old[:, 0],
        advantages=advantages,
        loss_mask=None,
        logprob_type="chunk_level",
        reward_type="chunk_level",
        clip_ratio_low=0.2,
        clip_ratio_high=0.2,
    )
    assert_close(loss, plain)
