"""Laws of the advantage estimators and masks, against definitions written as slow loops."""

from __future__ import annotations

import threading
from typing import get_args

import pytest
import torch
from rlinf import algorithms as A
from rlinf.config import schema
from torch import Tensor
from torch.testing import assert_close


def rollout(
    seed: int, steps: int = 7, batch: int = 6, chunk: int = 3, p_done: float = 0.1
) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "rewards": torch.randn(steps, batch, chunk, generator=g),
        "dones": torch.rand(steps + 1, batch, chunk, generator=g) < p_done,
        "values": torch.randn(steps + 1, batch, chunk, generator=g),
    }


def flat(seed: int, steps: int = 9, batch: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    data = rollout(seed, steps, batch, chunk=1, p_done=0.25)
    return data["rewards"][..., 0], data["values"][..., 0], data["dones"][..., 0]


def compute(adv_type: str, data: dict[str, Tensor], **settings) -> A.AdvantageResult:
    defaults = {
        "values": None,
        "loss_mask": None,
        "gamma": 0.9,
        "gae_lambda": 0.8,
        "group_size": 3,
        "reward_type": "action_level",
        "normalize_advantages": True,
    }
    return A.compute_advantages(adv_type=adv_type, **defaults | data | settings)


# -- GAE ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma, gae_lambda", [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0), (0.0, 0.5)])
def test_gae_is_the_discounted_sum_of_its_definition(gamma: float, gae_lambda: float):
    rewards, values, dones = flat(0)
    advantages, returns = A.gae(rewards, values, dones, gamma, gae_lambda)
    for b in range(rewards.shape[1]):
        for t in range(len(rewards)):
            expected, weight = 0.0, 1.0
            for k in range(t, len(rewards)):
                over = bool(dones[k + 1, b])
                bootstrap = 0.0 if over else gamma * float(values[k + 1, b])
                expected += weight * (float(rewards[k, b]) + bootstrap - float(values[k, b]))
                weight *= gamma * gae_lambda
                if over:
                    break
            assert float(advantages[t, b]) == pytest.approx(expected, abs=1e-5)
    assert_close(returns, advantages + values[:-1])


def test_gae_of_an_episode_does_not_see_its_neighbours_in_the_column():
    rewards, values, dones = flat(1)
    dones[4] = True
    whole, _ = A.gae(rewards, values, dones, 0.9, 0.8)
    first, _ = A.gae(rewards[:4], values[:5], dones[:5], 0.9, 0.8)
    second, _ = A.gae(rewards[4:], values[4:], dones[4:], 0.9, 0.8)
    assert_close(whole, torch.cat([first, second]))


def test_gae_of_the_true_values_of_a_constant_reward_is_zero_also_across_truncations():
    """Worth r / (1 - gamma) for ever; a time limit must not change that once it is bootstrapped."""
    gamma, reward = 0.9, 0.5
    data = rollout(2, p_done=0.0)
    worth = reward / (1 - gamma)
    truncations = torch.zeros_like(data["dones"][1:])
    truncations[2, 1, 2] = truncations[4, 0, 2] = True
    data["dones"][1:] |= truncations
    rewards = A.bootstrap_truncations(
        torch.full_like(data["rewards"], reward), truncations, torch.full((7, 6), worth), gamma
    )
    data |= {"rewards": rewards, "values": torch.full_like(data["values"], worth)}
    result = compute("gae", data, gamma=gamma, normalize_advantages=False)
    assert_close(result.advantages, torch.zeros_like(rewards), atol=1e-5, rtol=0)


def test_bootstrap_counts_a_truncation_once_and_only_where_it_happened():
    truncations = torch.tensor([[[False, True, True], [False, False, False]]])
    rewards = A.bootstrap_truncations(torch.ones(1, 2, 3), truncations, torch.tensor([[2.0, 7.0]]), 0.5)
    assert_close(rewards, torch.tensor([[[1.0, 2.0, 1.0], [1.0, 1.0, 1.0]]]))


def test_without_values_gae_refuses():
    with pytest.raises(ValueError, match="needs the critic's values"):
        compute("gae", rollout(3) | {"values": None})


# -- chunks -------------------------------------------------------------------------------------------------


def test_action_level_is_the_flat_estimate_of_the_steps_in_order():
    data = rollout(4)
    result = compute("gae", data, normalize_advantages=False)

    def in_order(x: Tensor) -> Tensor:
        return torch.stack([x[t, :, c] for t in range(x.shape[0]) for c in range(x.shape[2])])

    steps = data["rewards"].shape[0] * data["rewards"].shape[2]
    dones = in_order(data["dones"])[-(steps + 1) :]
    advantages, returns = A.gae(
        in_order(data["rewards"]), in_order(data["values"])[: steps + 1], dones, 0.9, 0.8
    )
    assert_close(in_order(result.advantages), advantages)
    assert_close(in_order(result.returns), returns)


def test_chunk_level_equals_action_level_when_a_chunk_is_one_action():
    data = rollout(5, chunk=1)
    for adv_type in A.ADVANTAGES:
        one, other = (compute(adv_type, data, reward_type=level) for level in A.REWARD_TYPES)
        assert_close(one.advantages, other.advantages)


def test_chunk_level_sums_rewards_and_takes_any_done_and_any_mask():
    data = rollout(6)
    mask = torch.rand(7, 6, 3, generator=torch.Generator().manual_seed(0)) < 0.3
    reduced = A.chunk_rewards(data["rewards"], data["dones"], mask, "chunk_level")
    for t in range(7):
        for b in range(6):
            assert float(reduced.rewards[t, b, 0]) == pytest.approx(
                sum(data["rewards"][t, b].tolist()), abs=1e-6
            )
            assert bool(reduced.dones[t + 1, b, 0]) == any(data["dones"][t + 1, b].tolist())
            assert bool(reduced.loss_mask[t, b, 0]) == any(mask[t, b].tolist())


# -- groups -------------------------------------------------------------------------------------------------


def test_grpo_compares_only_within_the_group():
    scores = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    advantages = A.grpo_advantages(scores)
    assert_close(advantages.mean(1), torch.zeros(5), atol=1e-6, rtol=0)
    assert_close(advantages.std(1), torch.ones(5), atol=1e-4, rtol=0)
    assert_close(A.grpo_advantages(scores + torch.arange(5.0)[:, None]), advantages, atol=1e-5, rtol=0)
    assert_close(A.grpo_advantages(scores, scale=False), scores - scores.mean(1, keepdim=True))
    order = torch.tensor([2, 0, 3, 1])
    assert_close(A.grpo_advantages(scores[:, order]), advantages[:, order])


@pytest.mark.parametrize("score", [0.1, 1 / 3, -0.7, 1e4 + 0.1])
def test_grpo_gives_exactly_zero_where_all_scores_are_equal(score: float):
    assert torch.equal(A.grpo_advantages(torch.full((1, 7), score)), torch.zeros(1, 7))


def test_the_best_of_a_group_is_what_bradley_terry_says_of_two():
    scores = 4 * torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    assert_close(A.best_of_group(scores[:, :2])[:, 0], (scores[:, 0] - scores[:, 1]).sigmoid())
    best = A.best_of_group(scores)
    assert_close(A.best_of_group(scores + torch.arange(5.0)[:, None]), best, atol=1e-5, rtol=0)
    # Rules have two scores: for them nothing changes.
    rule = torch.tensor([[0.0, 1, 1, 0, 1], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]])
    advantages = [A.grpo_advantages(each) for each in (A.best_of_group(rule), rule)]
    assert_close(*advantages, atol=1e-4, rtol=0)


def test_near_misses_are_not_praised_for_nonsense():
    scores = torch.tensor([[25.0, 25, 25, 4, 3, -12, -48, -48]])
    assert (A.grpo_advantages(scores)[0, 3:5] > 0).all()
    advantages = A.grpo_advantages(A.best_of_group(scores))
    assert_close(advantages, A.grpo_advantages((scores == 25).float()), atol=1e-4, rtol=0)


def test_grpo_needs_groups():
    with pytest.raises(ValueError, match="group_size must be >= 2"):
        compute("grpo", rollout(7), group_size=1)
    with pytest.raises(ValueError, match="group_size 4 does not divide the 6 trajectories"):
        compute("grpo", rollout(7), group_size=4)


def test_score_is_the_return_of_the_first_episode():
    rewards, _, dones = flat(8)
    scores = A.episode_scores(rewards, dones)
    for b in range(rewards.shape[1]):
        expected = 0.0
        for t in range(len(rewards)):
            expected += float(rewards[t, b])
            if dones[t + 1, b]:
                break
        assert float(scores[b]) == pytest.approx(expected, abs=1e-5)


def test_reinforce_pp_of_an_outcome_is_the_whitened_outcome():
    """With one reward at the end and gamma 1, every step of a trajectory gets its (centred) outcome."""
    rewards = torch.zeros(5, 4)
    rewards[-1] = torch.tensor([1.0, 0.0, 3.0, 4.0])
    dones = torch.zeros(6, 4, dtype=torch.bool)
    raw = A.reinforce_pp_advantages(rewards, dones, group_size=2, normalize=False)
    assert_close(raw, torch.tensor([0.5, -0.5, -0.5, 0.5]).expand(5, 4))
    whitened = A.reinforce_pp_advantages(rewards, dones)
    assert_close(whitened.mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
    assert_close(whitened.std(), torch.tensor(1.0), atol=1e-4, rtol=0)


def test_reinforce_pp_discounts():
    rewards, _, dones = flat(9)
    returns = A.reinforce_pp_advantages(rewards, dones, gamma=0.9, normalize=False)
    zero = torch.zeros(len(rewards) + 1, rewards.shape[1])
    assert_close(returns, A.gae(rewards, zero, dones, 0.9, 1.0)[0])


def test_reward_filter_keeps_the_groups_with_something_to_learn():
    scores = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    assert A.group_reward_filter(scores, 0.1, 0.9).tolist() == [False, True, False]
    assert A.group_reward_filter(scores, 0.0, 0.5).tolist() == [True, True, False]
    mask = torch.ones(2, 6, 3, dtype=torch.bool)
    kept = A.filter_groups(mask, scores.flatten(), 2, 0.1, 0.9)
    assert torch.equal(kept, torch.tensor([0, 0, 1, 1, 0, 0]).bool()[None, :, None].expand(2, 6, 3))
    assert torch.equal(A.filter_groups(mask[..., 0], scores.flatten(), 2, 0.1, 0.9), kept[..., 0])
    with pytest.raises(ValueError, match=r"lower bound 0\.9 is above"):
        A.group_reward_filter(scores, 0.9, 0.1)


# -- masks --------------------------------------------------------------------------------------------------


def test_loss_mask_ends_with_the_step_that_ends_the_episode():
    dones = rollout(10, steps=6, batch=8, p_done=0.05)["dones"]
    dones[0, :, :-1] = True  # not read
    mask, total = A.loss_mask_from_dones(dones)
    for b in range(8):
        over, count = bool(dones[0, b, -1]), 0
        for t in range(6):
            for c in range(3):
                assert bool(mask[t, b, c]) == (not over)
                count += not over
                over = over or bool(dones[t + 1, b, c])
        assert (total[:, b] == count).all()


def test_executed_steps():
    mask = A.loss_mask_from_valid_steps(torch.tensor([[0, 1], [3, 2]]), 3)
    assert mask.int().tolist() == [[[0, 0, 0], [1, 0, 0]], [[1, 1, 1], [1, 1, 0]]]


@pytest.mark.parametrize("adv_type", list(A.ADVANTAGES))
@pytest.mark.parametrize("reward_type", list(A.REWARD_TYPES))
def test_masked_entries_are_zero_and_inputs_are_left_alone(adv_type: str, reward_type: str):
    data = rollout(11)
    if reward_type == "chunk_level":
        data["values"] = data["values"][..., :1]
    mask = A.loss_mask_from_dones(data["dones"])[0]
    before = {name: tensor.clone() for name, tensor in data.items()}
    result = compute(adv_type, data, loss_mask=mask, reward_type=reward_type)
    counts = A.chunk_rewards(data["rewards"], data["dones"], mask, reward_type).loss_mask
    assert (~counts).any() and counts.any()
    assert torch.equal(result.loss_mask, counts)
    assert (result.advantages[~counts] == 0).all()
    assert (result.returns is None) == (adv_type != "gae")
    for name, tensor in before.items():
        assert torch.equal(data[name], tensor)


@pytest.mark.parametrize("adv_type", list(A.ADVANTAGES))
def test_permuting_trajectories_permutes_advantages(adv_type: str):
    data, order = rollout(12), torch.tensor([3, 5, 4, 0, 2, 1])  # groups of three stay together
    result = compute(adv_type, data)
    permuted = compute(adv_type, {name: tensor[:, order] for name, tensor in data.items()})
    assert_close(permuted.advantages, result.advantages[:, order], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("adv_type", list(A.ADVANTAGES))
def test_an_empty_mask_gives_zeros(adv_type: str):
    data = rollout(13)
    result = compute(adv_type, data, loss_mask=torch.zeros(7, 6, 3, dtype=torch.bool))
    assert (result.advantages == 0).all()


def test_normalising_none_one_and_many_entries():
    x = torch.tensor([1.0, 2.0, 4.0, torch.nan])
    mask = torch.tensor([True, True, True, False])
    out = A.normalize_masked(x, mask, eps=0.0)
    assert_close(out[:3], (x[:3] - x[:3].mean()) / x[:3].std())
    assert float(out[3]) == 0
    assert A.normalize_masked(x, torch.tensor([False, True, False, False])).tolist() == [0, 0, 0, 0]
    assert A.normalize_masked(x, torch.zeros(4, dtype=torch.bool)).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("adv_type", list(A.ADVANTAGES))
def test_two_ranks_whiten_as_one(adv_type: str):
    data, barrier, slots = rollout(14), threading.Barrier(2), [None, None]
    whole = compute(adv_type, data)
    parts: list[Tensor | None] = [None, None]

    def rank(index: int) -> None:
        def all_reduce(partial: Tensor) -> Tensor:
            slots[index] = partial
            barrier.wait(10)
            total = slots[0] + slots[1]
            barrier.wait(10)
            return total

        part = {name: tensor[:, 3 * index : 3 * index + 3] for name, tensor in data.items()}
        parts[index] = compute(adv_type, part, all_reduce=all_reduce).advantages

    threads = [threading.Thread(target=rank, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_close(torch.cat(parts, dim=1), whole.advantages, atol=1e-6, rtol=1e-5)


# -- names and shapes ---------------------------------------------------------------------------------------


def test_registries_are_what_the_configuration_allows():
    assert set(A.ADVANTAGES) == set(get_args(schema.AdvType))
    assert set(A.LOSSES) == set(get_args(schema.LossType))
    assert set(A.LOGPROB_TYPES) == set(get_args(schema.LogprobType))
    assert set(A.REWARD_TYPES) == set(get_args(schema.RewardType))


def test_errors_name_the_key_and_the_choice():
    data = rollout(15)
    with pytest.raises(ValueError, match=r"adv_type: expected one of gae, grpo, reinforce\+\+; got 'gea'"):
        compute("gea", data)
    with pytest.raises(ValueError, match="reward_type: expected one of action_level, chunk_level"):
        compute("gae", data, reward_type="token_level")
    with pytest.raises(
        ValueError, match=r"values: reward_type chunk_level expects .* \(8, 6, 1\), got \(8, 6, 3\)"
    ):
        compute("gae", data, reward_type="chunk_level")
    with pytest.raises(ValueError, match=r"dones: expected \[T\+1, B, chunk\]"):
        compute("gae", data | {"dones": data["dones"][:-1]})
    with pytest.raises(ValueError, match="loss_mask: expected the shape of rewards"):
        compute("gae", data, loss_mask=torch.ones(7, 6, 1, dtype=torch.bool))
