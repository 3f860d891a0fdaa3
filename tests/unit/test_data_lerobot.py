"""Reading LeRobot datasets laid out as v2.1 and v3.0 prescribe, whole and damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import lerobot_fixtures as fixtures
import numpy as np
import pyarrow.parquet as pq
import pytest
from rlinf.data import DatasetError, EpisodeDataset, EpisodeError
from rlinf.data.formats import open_dataset

CAMERA = "observation.images.main"
LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "v2.0 video": lambda root: fixtures.write_v21(root, version="v2.0"),
    "v2.1 video": fixtures.write_v21,
    "v2.1 png": lambda root: fixtures.write_v21(root, "image"),
    "v3.0 video": fixtures.write_v30,
    "v3.0 video, B frames": lambda root: fixtures.write_v30(root, g="9", bf="3"),
    "v3.0 png": lambda root: fixtures.write_v30(root, "image"),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Each layout, written once."""
    roots: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in roots:
            roots[name] = LAYOUTS[name](tmp_path_factory.mktemp("lerobot") / "set")
        return roots[name]

    return get


@pytest.fixture
def damaged(made: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy to damage."""
    return lambda name: shutil.copytree(made(name), tmp_path / "copy")


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_frame_is_the_one_that_was_written(name: str, made: Callable[[str], Path]) -> None:
    dataset = open_dataset(str(made(name)))
    assert isinstance(dataset, EpisodeDataset)
    assert dataset.lengths.tolist() == list(fixtures.LENGTHS) and dataset.fps == fixtures.FPS
    assert set(dataset.features) == {"observation.state", "action", CAMERA}
    assert dataset.features["observation.state"].names == ("x", "y", "grip")
    assert dataset.features[CAMERA].shape == (64, 64, 3)
    rng = np.random.default_rng(0)
    for episode in (2, 0, 1, 0):
        frames = rng.permutation(fixtures.LENGTHS[episode])[:4].tolist() * 2
        got = dataset.read(episode, frames, [CAMERA, "observation.state", "action"])
        assert got[CAMERA].dtype == np.uint8 and got["action"].dtype == np.float32
        levels = [fixtures.level(episode, frame) for frame in frames]
        assert np.abs(got[CAMERA].astype(int).mean((1, 2, 3)) - levels).max() < 2.5
        np.testing.assert_allclose(got["action"], [fixtures.action(episode, f) for f in frames], rtol=1e-6)
        np.testing.assert_allclose(got["observation.state"], [fixtures.state(episode, f) for f in frames])
        task = fixtures.TASKS[fixtures.TASK_OF[episode]]
        assert dataset.tasks(episode, frames) == [task] * len(frames)
    for episode in range(3):
        dataset.check(episode)


def test_fingerprint_tells_data_apart_and_not_places(made: Callable[[str], Path], tmp_path: Path) -> None:
    one = open_dataset(str(made("v2.1 video"))).fingerprint()
    there = shutil.copytree(made("v2.1 video"), tmp_path / "elsewhere")
    assert open_dataset(str(there)).fingerprint() == one
    assert open_dataset(str(made("v2.1 png"))).fingerprint() != one
    path = there / "meta/tasks.jsonl"
    path.write_text(path.read_text().replace("drawer", "door"))
    assert open_dataset(str(there)).fingerprint() != one


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def drop_row(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(table.slice(0, len(table) - 1), path)


def widen_action(path: Path) -> None:
    import pyarrow as pa

    table = pq.read_table(path)
    wide = pa.array([[0.0, 0.0, 0.0]] * len(table), pa.list_(pa.float32()))
    pq.write_table(table.set_column(table.column_names.index("action"), "action", wide), path)


def nan_action(path: Path) -> None:
    import pyarrow as pa

    table = pq.read_table(path)
    bad = pa.array([[0.0, float("nan")]] * len(table), pa.list_(pa.float32()))
    pq.write_table(table.set_column(table.column_names.index("action"), "action", bad), path)


def wrong_task(path: Path) -> None:
    import pyarrow as pa

    table = pq.read_table(path)
    bad = pa.array([9] * len(table), pa.int64())
    pq.write_table(table.set_column(table.column_names.index("task_index"), "task_index", bad), path)


def other_video(path: Path) -> None:
    fixtures.video(path, range(1))


def short_video(path: Path) -> None:
    fixtures.video(path, range(2))


V21_DATA, V21_VIDEO = "data/chunk-000/episode_000001.parquet", f"videos/chunk-000/{CAMERA}/episode_000001.mp4"
V30_DATA, V30_VIDEO = "data/chunk-000/file-001.parquet", f"videos/{CAMERA}/chunk-000/file-000.mp4"


@pytest.mark.parametrize(
    ("name", "file", "damage", "episode", "words"),
    [
        ("v2.1 video", V21_DATA, truncate, 1, "not a readable parquet file"),
        ("v2.1 video", V21_DATA, Path.unlink, 1, "no such file"),
        ("v2.1 video", V21_DATA, drop_row, 1, "holds 4 rows, meta/ says 5"),
        ("v2.1 video", V21_DATA, widen_action, 1, r"action has 3 numbers per row, .* says \[2\]"),
        ("v2.1 video", V21_DATA, nan_action, 1, "action holds NaN or infinity at frame 0"),
        ("v2.1 video", V21_DATA, wrong_task, 1, "task_index 9 is none of the 2 tasks"),
        ("v2.1 video", V21_VIDEO, Path.unlink, 1, "no such file"),
        ("v2.1 video", V21_VIDEO, truncate, 1, "not a readable video"),
        ("v2.1 video", V21_VIDEO, other_video, 1, "holds 7 frames, meta/ says 5"),
        ("v2.1 png", V21_DATA, drop_row, 1, "holds 4 rows, meta/ says 5"),
        ("v3.0 video", V30_DATA, drop_row, 2, "holds 5 rows, meta/ says 6"),
        ("v3.0 video", V30_VIDEO, short_video, 2, "has no frame at 1.2000 s"),
        ("v3.0 video", V30_VIDEO, Path.unlink, 2, "no such file"),
    ],
)  # fmt: skip
def test_damage_names_file_and_episode(name, file, damage, episode, words, damaged) -> None:
    root = damaged(name)
    damage(root / file)
    dataset = open_dataset(str(root))
    with pytest.raises(EpisodeError, match=words) as caught:
        dataset.check(episode)
    assert str(caught.value).startswith(f"episode {episode}: {root / file}")
    assert caught.value.episode == episode
    if name != "v3.0 video" or damage is not Path.unlink:  # there all episodes share the file
        dataset.check(0)


@pytest.mark.parametrize(
    ("name", "file", "content", "words"),
    [
        ("v2.1 video", "meta/info.json", {"codebase_version": "v1.6"}, r"v1.6.*reads v2.0, v2.1, v3.0"),
        ("v2.1 video", "meta/info.json", {"features": None}, "lacks features"),
        ("v2.1 video", "meta/info.json", {"total_episodes": 4}, "total_episodes is 4, meta/ describes 3"),
        ("v2.1 video", "meta/episodes.jsonl", None, "no such file"),
        ("v3.0 video", "meta/tasks.parquet", None, "no such file"),
        ("v3.0 video", "meta/episodes/chunk-000/file-000.parquet", None, "holds no parquet file"),
    ],
)
def test_bad_metadata_is_named_when_the_dataset_is_opened(name, file, content, words, damaged) -> None:
    path = damaged(name) / file
    if content is None:
        path.unlink()
    else:
        changed = {**json.loads(path.read_text()), **content}
        path.write_text(json.dumps({key: value for key, value in changed.items() if value is not None}))
    with pytest.raises(DatasetError, match=words):
        open_dataset(str(path.parents[1] if path.parent.name == "meta" else path.parents[3]))


def test_hub_id_through_the_cache_without_a_network(
    made: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `snapshot_download` leaves: refs and snapshots in huggingface_hub's cache folder."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = tmp_path / "hub" / "datasets--somebody--cubes"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text(commit)
    shutil.copytree(made("v3.0 png"), folder / "snapshots" / commit)
    dataset = open_dataset("somebody/cubes")
    assert dataset.source == "somebody/cubes" and dataset.lengths.tolist() == list(fixtures.LENGTHS)
    dataset.check(0)
    with pytest.raises(
        DatasetError, match=r"somebody/other: there is no such folder, and .* neither in the cache"
    ):
        open_dataset("somebody/other")
