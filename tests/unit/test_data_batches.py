"""Seeds, the division of work, and the way from a rollout to training samples."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from rlinf.algorithms import gae
from rlinf.cluster.placement import place
from rlinf.config.schema import AlgorithmConfig, ClusterConfig
from rlinf.data.seeds import (
    TRAINING_BIT,
    SampleOrder,
    Stream,
    demonstration_seed,
    derive,
    episode_seed,
    minibatches,
)
from rlinf.data.trajectory import Trajectory, join
from rlinf.runners.session import threads
from rlinf.workers.batch import make_batch, micro_batches
from rlinf.workers.layout import EnvLayout

T, B, CHUNK, DIM = 3, 4, 2, 5


def trajectory(seed: int = 0, envs: int = B, first: int = 0) -> Trajectory:
    rng = np.random.default_rng(seed)
    valid = np.full((T, envs), CHUNK)
    terminations = np.zeros((T, envs, CHUNK), bool)
    truncations = np.zeros((T, envs, CHUNK), bool)
    terminations[1, 0, 0], valid[1, 0] = True, 1
    truncations[1, 1, 1] = True
    rewards = rng.normal(size=(T, envs, CHUNK)).astype(np.float32)
    rewards[1, 0, 1] = 0
    final_values = np.zeros((T, envs), np.float32)
    final_values[1, 1] = 2.0
    return Trajectory(
        env_index=np.arange(first, first + envs),
        forward_inputs={"states": rng.normal(size=(T, envs, 6)).astype(np.float32)},
        logprobs=rng.normal(size=(T, envs, CHUNK, DIM)).astype(np.float32),
        values=rng.normal(size=(T + 1, envs, 1)).astype(np.float32),
        rewards=rewards,
        terminations=terminations,
        truncations=truncations,
        valid_steps=valid,
        final_values=final_values,
    )


# -- seeds -------------------------------------------------------------------------------------------------


def test_draws_differ_by_stream_and_key_and_repeat() -> None:
    draws = [derive(0, stream, key) for stream in Stream for key in range(50)]
    assert len(set(draws)) == len(draws)
    assert draws == [derive(0, stream, key) for stream in Stream for key in range(50)]
    assert derive(0, Stream.ACTION, 1, 2) != derive(1, Stream.ACTION, 1, 2)


def test_training_never_meets_held_out_seeds() -> None:
    seeds = [episode_seed(0, i, g) for i in range(20) for g in range(20)]
    seeds += [demonstration_seed(0, n) for n in range(200)]
    assert all(TRAINING_BIT <= seed < 2**32 for seed in seeds)


def test_minibatches_are_a_permutation_in_parts_of_about_the_size() -> None:
    samples = np.arange(10, 67)
    parts = minibatches(3, 1, 0, samples, 16)
    assert sorted(np.concatenate(parts)) == samples.tolist()
    assert [len(part) for part in parts] == [15, 14, 14, 14]
    again = minibatches(3, 1, 1, samples, 16)
    assert any((a != b).any() for a, b in zip(parts, again))
    assert len(minibatches(0, 0, 0, np.arange(5), 64)) == 1


def test_sft_batches_lay_epochs_end_to_end() -> None:
    order = SampleOrder(0, [10], 4)
    drawn = np.concatenate([order.batch(step) for step in range(5)])
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert drawn[:10].tolist() != drawn[10:].tolist()
    np.testing.assert_array_equal(SampleOrder(0, [10], 4).batch(3), drawn[12:16])
    assert len(SampleOrder(0, [3], 8).batch(0)) == 8, "a batch may be longer than the data"
    # What runs have been recorded with: permutations of numpy's generator seeded by (seed, stream, epoch).
    recorded = np.random.default_rng([7, 4, 1]).permutation(10)
    np.testing.assert_array_equal(SampleOrder(7, [10], 10).batch(1), recorded)


def test_mixed_datasets_come_as_often_as_they_weigh() -> None:
    order = SampleOrder(3, [10, 30, 0], 5, [1.0, 1.0, 5.0])
    drawn = np.concatenate([order.batch(step) for step in range(32)])  # 4 cycles of 40
    for cycle in np.split(drawn, 4):
        assert (cycle < 10).sum() == 20 and (cycle >= 10).sum() == 20
    first = drawn[drawn < 10]
    for epoch in np.split(first, 8):
        assert sorted(epoch) == list(range(10)), "every dataset is gone through in permutations of its own"
    second = drawn[drawn >= 10]
    assert sorted(second[:30]) == list(range(10, 40)) and second[:30].tolist() != second[30:60].tolist()
    # In an order that is no pattern of blocks, and the same from any step on.
    assert 5 < np.diff(drawn[:40] < 10).sum() < 35
    again = SampleOrder(3, [10, 30, 0], 5, [1.0, 1.0, 5.0])
    np.testing.assert_array_equal(again.batch(17), drawn[85:90])
    everything = np.concatenate([SampleOrder(3, [10, 30], 8).batch(step) for step in range(5)])
    assert sorted(everything) == list(range(40)), "without weights a cycle is all samples once"


# -- layout ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("rollouts", [1, 2, 3])
def test_every_environment_has_one_place_and_one_server(processes: int, stages: int, rollouts: int) -> None:
    layout = EnvLayout(num_envs=12, processes=processes, stages=stages, rollouts=rollouts)
    groups = [layout.indices(s, p).tolist() for s in range(stages) for p in range(processes)]
    assert [index for group in groups for index in group] == list(range(12))
    served = [layout.served_indices(r, s) for s in range(stages) for r in range(rollouts)]
    assert sorted(np.concatenate(served)) == list(range(12))


def test_layout_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="no multiple of 2 env processes x 2 pipeline_stages"):
        EnvLayout(num_envs=6, processes=2, stages=2, rollouts=1)


# -- trajectories ------------------------------------------------------------------------------------------


def test_join_orders_columns_by_environment() -> None:
    whole = trajectory()

    def columns(indices: list[int]) -> Trajectory:
        changes = {
            field.name: getattr(whole, field.name)[:, indices]
            for field in dataclasses.fields(whole)
            if field.name not in ("env_index", "forward_inputs")
        }
        return Trajectory(
            env_index=whole.env_index[indices],
            forward_inputs={name: x[:, indices] for name, x in whole.forward_inputs.items()},
            **changes,
        )

    back = join([columns([1, 3]), columns([0, 2])])
    assert back.env_index.tolist() == [0, 1, 2, 3]
    for (name, mine), (_, theirs) in zip(back.arrays(), whole.arrays()):
        np.testing.assert_array_equal(mine, theirs, err_msg=name)
    assert join([whole]) is whole


def test_join_without_a_critic() -> None:
    whole = dataclasses.replace(trajectory(), values=None, final_values=None)
    other = dataclasses.replace(trajectory(first=B), values=None, final_values=None)
    assert join([other, whole]).values is None


# -- batches -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bootstraps", [True, False])
def test_batch_has_gae_advantages_with_truncations_bootstrapped_or_not(bootstraps: bool) -> None:
    data = trajectory()
    algorithm = AlgorithmConfig(
        gamma=0.9, gae_lambda=0.8, normalize_advantages=False, bootstrap_truncations=bootstraps
    )
    batch = make_batch(data, algorithm)
    # By hand: the chunk is one step; environment 1 was cut in step 1 at a state worth 2.
    rewards = torch.tensor(data.rewards.sum(-1))
    rewards[1, 1] += 0.9 * 2.0 * bootstraps
    dones = torch.zeros(T + 1, B, dtype=torch.bool)
    dones[2, 0] = dones[2, 1] = True
    assert data.values is not None and batch.returns is not None
    advantages, returns = gae(rewards, torch.tensor(data.values[..., 0]), dones, 0.9, 0.8)
    torch.testing.assert_close(batch.advantages, advantages.reshape(-1, 1))
    torch.testing.assert_close(batch.returns, returns.reshape(-1, 1))
    # Sample n is chunk n // B of environment n % B.
    np.testing.assert_array_equal(batch.inputs["states"][1 * B + 2], data.forward_inputs["states"][1, 2])
    assert batch.executed[1 * B + 0].tolist() == [True, False]
    assert len(batch.samples) == T * B


def test_idle_environments_do_not_train() -> None:
    data = trajectory()
    data.valid_steps[2, 0] = 0
    algorithm = AlgorithmConfig(adv_type="reinforce++", loss_type="actor")
    batch = make_batch(dataclasses.replace(data, values=None, final_values=None), algorithm)
    idle = 2 * B + 0
    assert idle not in batch.samples and len(batch.samples) == T * B - 1
    assert batch.advantages[idle] == 0 and not batch.mask[idle].any()


def test_reward_filter_keeps_informative_groups() -> None:
    data = dataclasses.replace(trajectory(), values=None, final_values=None)
    data.rewards[:] = 0
    data.rewards[0, :, 0] = [1, 1, 1, 0]  # the first group agrees, the second does not
    algorithm = AlgorithmConfig(
        adv_type="grpo",
        loss_type="actor",
        group_size=2,
        filter_rewards={"lower": 0.1, "upper": 0.9},  # type: ignore[arg-type]
    )
    batch = make_batch(data, algorithm)
    assert batch.metrics["train/groups_kept"] == 0.5
    assert sorted(set((batch.samples % B).tolist())) == [2, 3]
    first = batch.advantages.reshape(T, B)[0]
    assert first[2] > 0 > first[3] and first[2] == -first[3]


@pytest.mark.parametrize(
    ("count", "world", "size"), [(32, 2, 8), (31, 2, 8), (5, 4, 8), (1, 3, 2), (17, 1, 4)]
)
def test_micro_batches_cover_each_sample_once_and_match_over_ranks(count: int, world: int, size: int) -> None:
    samples = np.arange(100, 100 + count)
    ranks = [list(micro_batches(samples, rank=r, world_size=world, size=size)) for r in range(world)]
    shapes = [[len(indices) for indices, _ in rank] for rank in ranks]
    assert all(shape == shapes[0] for shape in shapes) and max(shapes[0]) <= size
    counted = np.concatenate([indices[counts] for rank in ranks for indices, counts in rank])
    assert counted.tolist() == samples.tolist()


def test_threads_share_the_cores_of_what_runs_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlinf.runners.session._cores", lambda: 8)
    placement = place(ClusterConfig(component_placement={"actor,env": "0-1", "rollout": 0}))
    assert [threads(placement, name, 2) for name in ("actor", "env", "rollout")] == [4, 1, 6]
    assert threads(placement, "rollout", 1) == 8
