"""Samples, loading, statistics: what a model gets of a dataset, with numbers worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import lerobot_fixtures as fixtures
import numpy as np
import pytest
import torch
from rlinf.data import DataLayout, DatasetError, EpisodeError
from rlinf.data.formats import open_dataset
from rlinf.data.loader import iterate
from rlinf.data.samples import EpisodeSamples, Skipped, split_episodes
from rlinf.data.stats import NormStats, RunningStats, compute_stats, read_norm_stats, write_norm_stats

CAMERA = "observation.images.main"
V21_DATA = "data/chunk-000/episode_000001.parquet"


def layout(**changes) -> DataLayout:
    return DataLayout(
        **{"cameras": {"main_images": (CAMERA,)}, "action_horizon": 3, "action_dim": 2, **changes}
    )


def samples(
    root: Path, given: DataLayout | None = None, episodes: tuple[int, ...] = (0, 1, 2)
) -> EpisodeSamples:
    return EpisodeSamples([open_dataset(str(root))], given or layout(), [np.array(episodes, np.int64)])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fixtures.write_v21(tmp_path_factory.mktemp("samples") / "set")


def test_chunks_end_with_their_episode(root: Path) -> None:
    data = samples(root, episodes=(0, 2))
    assert len(data) == 13 and data.sizes == [13]
    got = data.load(np.array([12, 0, 5, 6, 7]))
    # Sample 12 is the last frame of episode 2, 6 that of episode 0; 7 is the first of episode 2.
    places = [(2, 5), (0, 0), (0, 5), (0, 6), (2, 0)]
    for sample, (episode, frame) in zip(got, places):
        last = fixtures.LENGTHS[episode] - 1
        expected = [fixtures.action(episode, min(frame + i, last)) for i in range(3)]
        np.testing.assert_allclose(sample["actions"], expected, rtol=1e-6)
        assert sample["action_is_pad"].tolist() == [frame + i > last for i in range(3)]
        np.testing.assert_allclose(sample["states"], fixtures.state(episode, frame))
        assert abs(sample["main_images"].mean() - fixtures.level(episode, frame)) < 2.5
        assert sample["task_descriptions"] == fixtures.TASKS[fixtures.TASK_OF[episode]]
    batch = data.collate(got)
    assert batch["main_images"].shape == (5, 64, 64, 3) and batch["main_images"].dtype == torch.uint8
    assert batch["actions"].shape == (5, 3, 2) and batch["task_descriptions"][1] == fixtures.TASKS[0]


def test_layout_decides_stride_prompt_keys_and_functions(root: Path) -> None:
    def double(sample):
        assert "main_images" not in sample or sample["main_images"].shape == (64, 64, 3)
        return {**sample, "actions": sample["actions"] * 2}

    mine = layout(
        action_timestamps=(-0.1, 0.0, 0.2),
        prompt="do it",
        state=(("action",), ("observation.state",)),
        transform=double,
        encode=lambda sample: {**sample, "length": sample["actions"].shape[0]},
        collate=lambda rows: {"lengths": [row["length"] for row in rows]},
    )
    data = samples(root, mine)
    (sample,) = data.load(np.array([0]))
    expected = [fixtures.action(0, 0), fixtures.action(0, 0), fixtures.action(0, 2)]
    np.testing.assert_allclose(sample["actions"], 2 * np.array(expected), rtol=1e-6)
    assert sample["action_is_pad"].tolist() == [True, False, False] and sample["task_descriptions"] == "do it"
    np.testing.assert_allclose(sample["states"], fixtures.action(0, 0) + fixtures.state(0, 0))
    assert data.collate([sample]) == {"lengths": [3]}


def test_what_does_not_fit_is_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"its actions have 2 numbers, the model takes 7 \(model.action_dim\)"
    ):
        samples(root, layout(action_dim=7)).load(np.array([0]))
    with pytest.raises(DatasetError, match="no episode to learn from"):
        samples(root, episodes=())
    other = fixtures.write_v30(tmp_path / "png", "image")
    path = other / "meta/info.json"
    info = json.loads(path.read_text())
    info["features"][CAMERA]["shape"] = [32, 32, 3]
    path.write_text(json.dumps(info))
    both = [open_dataset(str(root)), open_dataset(str(other))]
    with pytest.raises(DatasetError, match=r"images of \[32, 32, 3\], those of .* are \[64, 64, 3\]"):
        EpisodeSamples(both, layout(), [np.arange(3), np.arange(3)])


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """Episode 1 of three cannot be read."""
    root = fixtures.write_v21(tmp_path / "damaged")
    (root / V21_DATA).write_bytes(b"PAR1 and then nothing")
    return root


def test_skipped_episodes_are_replaced_and_counted(damaged: Path) -> None:
    numbers = np.array([7, 0, 8, 12])  # two of episode 1, one of episodes 0 and 2
    with pytest.raises(EpisodeError, match=r"episode 1: .*episode_000001.parquet: not a readable parquet"):
        samples(damaged).load(numbers)
    skipped = Skipped()
    got = samples(damaged).load(numbers, skipped)
    assert skipped.count == 2 and "episode_000001.parquet" in skipped.reason
    states = [sample["states"][:2].tolist() for sample in got]
    assert states == [[2, 0], [0, 0], [2, 1], [2, 0]], "the next episode, at the same frame"


def test_a_dataset_that_is_all_damaged_is_given_up(damaged: Path) -> None:
    with pytest.raises(DatasetError, match="in a row cannot be read"):
        samples(damaged, episodes=(1,)).load(np.array([0]), Skipped())


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_ahead_changes_nothing(workers: int, root: Path) -> None:
    parts = [np.array([i, 17 - i]) for i in range(9)]
    loaded = iterate(lambda: samples(root), parts.__getitem__, 2, 9, workers=workers, prefetch=2, skip=False)
    for number, one in zip(range(2, 9), loaded, strict=True):
        expected = samples(root).load(parts[number])
        np.testing.assert_array_equal(one.batch["states"], np.stack([s["states"] for s in expected]))
        np.testing.assert_array_equal(
            one.batch["main_images"], np.stack([s["main_images"] for s in expected])
        )
        assert one.skipped.count == 0


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_loading_processes_arrive_as_text(workers: int, damaged: Path) -> None:
    def run(skip: bool):
        parts = [np.array([0]), np.array([7])]
        return list(
            iterate(lambda: samples(damaged), parts.__getitem__, 0, 2, workers=workers, prefetch=1, skip=skip)
        )

    with pytest.raises(DatasetError, match=r"^episode 1: "):
        run(skip=False)
    assert [one.skipped.count for one in run(skip=True)] == [0, 1]


def test_held_out_episodes_are_apart_and_stay() -> None:
    train, held = split_episodes(20, 0.25, seed=3, dataset=0)
    assert sorted([*train, *held]) == list(range(20)) and len(held) == 5
    np.testing.assert_array_equal(split_episodes(20, 0.25, seed=3, dataset=0)[1], held)
    assert split_episodes(20, 0.25, seed=4, dataset=0)[1].tolist() != held.tolist()
    assert [len(part) for part in split_episodes(3, 0.01, 0, 0)] == [2, 1]
    assert [len(part) for part in split_episodes(3, 0.0, 0, 0)] == [3, 0]


def test_running_statistics_equal_numpys() -> None:
    rng = np.random.default_rng(0)
    # Batches that widen the range again and again; one entry is constant, one is heavy-tailed.
    rows = np.stack([rng.normal(size=30000), np.full(30000, 3.0), rng.standard_t(3, 30000)], 1)
    rows[:, 0] = np.sort(rows[:, 0])
    running = RunningStats()
    for part in np.array_split(rows, 37):
        running.update(part)
    got = running.result()
    np.testing.assert_allclose(got.mean, rows.mean(0), atol=1e-9)
    np.testing.assert_allclose(got.std, rows.std(0), atol=1e-9)
    width = (rows.max(0) - rows.min(0)) / 5000
    for share, values in ((0.01, got.q01), (0.99, got.q99)):
        # Values once counted move to the centre of a bin with every widening.
        assert (np.abs(values - np.quantile(rows, share, axis=0)) <= 12 * width + 1e-3).all()


def test_statistics_are_of_what_the_transform_leaves_and_of_no_padding(root: Path) -> None:
    def delta(sample):
        assert "main_images" not in sample, "no image is decoded for the statistics"
        return {**sample, "actions": sample["actions"] - sample["states"][:2]}

    got = compute_stats(samples(root, layout(transform=delta)))
    deltas, states = [], []
    for episode, length in enumerate(fixtures.LENGTHS):
        for frame in range(length):
            state = np.array(fixtures.state(episode, frame))
            states.append(state)
            deltas += [
                np.array(fixtures.action(episode, frame + i)) - state[:2]
                for i in range(3)
                if frame + i < length
            ]
    np.testing.assert_allclose(got["actions"].mean, np.mean(deltas, 0), atol=1e-6)
    np.testing.assert_allclose(got["actions"].std, np.std(deltas, 0), atol=1e-6)
    np.testing.assert_allclose(got["state"].mean, np.mean(states, 0), atol=1e-6)


def test_statistics_files_are_openpis_and_are_found_in_checkpoints(tmp_path: Path) -> None:
    one = NormStats(mean=np.array([1.0, 2.0]), std=np.ones(2), q01=np.zeros(2), q99=np.array([3.0, 4.0]))
    write_norm_stats(tmp_path / "assets/cubes", {"state": one, "actions": one})
    content = json.loads((tmp_path / "assets/cubes/norm_stats.json").read_text())
    assert content["norm_stats"]["actions"] == {"mean": [1, 2], "std": [1, 1], "q01": [0, 0], "q99": [3, 4]}
    for path in (tmp_path, tmp_path / "assets/cubes", tmp_path / "assets/cubes/norm_stats.json"):
        np.testing.assert_array_equal(read_norm_stats(path)["state"].q99, [3.0, 4.0])
    write_norm_stats(tmp_path / "assets/balls", {"state": one})
    with pytest.raises(DatasetError, match="found 2 of them"):
        read_norm_stats(tmp_path)
    bad = tmp_path / "bad.json"
    bad.write_text('{"norm_stats": {"state": {"mean": [1, 2], "std": [1]}}}')
    with pytest.raises(DatasetError, match="state must have mean and std, vectors of one width"):
        read_norm_stats(bad)
    bad.write_text('{"state": {}}')
    with pytest.raises(DatasetError, match=r"expected .*norm_stats"):
        read_norm_stats(bad)
