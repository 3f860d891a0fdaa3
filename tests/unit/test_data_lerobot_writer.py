"""What the writers write is read back, by our reader and as the format prescribes it."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from rlinf.data import DatasetError, Feature
from rlinf.data.formats import open_dataset
from rlinf.data.lerobot import writer as module
from rlinf.data.lerobot.writer import WriterV21, WriterV30

CAMERA = "observation.images.main"
LENGTHS = (6, 9, 4)


def features(kind: str) -> dict[str, Feature]:
    return {
        CAMERA: Feature(shape=(64, 48, 3), dtype="uint8", kind=kind),  # type: ignore[arg-type]
        "observation.state": Feature(shape=(3,), dtype="float32", names=("x", "y", "z")),
        "action": Feature(shape=(2,), dtype="float32"),
        "gripper": Feature(shape=(1,), dtype="float32"),
        "grid": Feature(shape=(2, 3), dtype="int64"),
    }


def episode(number: int) -> dict[str, np.ndarray]:
    """Smooth images, so that the loss of encoding stays small."""
    rng = np.random.default_rng(number)
    n = LENGTHS[number]
    y, x = np.mgrid[:64, :48]
    images = np.stack([np.stack([3 * y, 5 * x, np.full_like(x, 20 * t)], -1) for t in range(n)])
    return {
        CAMERA: (images % 256).astype(np.uint8),
        "observation.state": rng.normal(size=(n, 3)).astype(np.float32),
        "action": rng.normal(size=(n, 2)).astype(np.float32),
        "gripper": rng.normal(size=(n, 1)).astype(np.float32),
        "grid": rng.integers(0, 9, (n, 2, 3)),
    }


def write(root: Path, kind: str, writer: type = WriterV30) -> Path:
    with writer(root, features(kind), fps=10) as out:
        for number in range(3):
            out.add(episode(number), ["push", "pick", "push"][number])
    return root


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("kind", ["video", "image"])
@pytest.mark.parametrize("writer", [WriterV21, WriterV30])
def test_round_trip(writer: type, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Files are full at once: every episode begins a new one.
    monkeypatch.setattr(module, "DATA_BYTES", 1)
    monkeypatch.setattr(module, "VIDEO_BYTES", 1)
    dataset = open_dataset(str(write(tmp_path / "set", kind, writer)))
    assert dataset.lengths.tolist() == list(LENGTHS)
    assert dict(dataset.features) == features(kind)
    for number in range(3):
        dataset.check(number)
        written = episode(number)
        back = dataset.read(number, range(LENGTHS[number]), list(written))
        for key, values in written.items():
            if key == CAMERA and kind == "video":
                assert np.abs(back[key].astype(int) - values).mean() < 4
            else:
                np.testing.assert_array_equal(back[key], values)
        assert set(dataset.tasks(number, [0, 3])) == {["push", "pick", "push"][number]}


def test_v30_is_laid_out_as_prescribed(tmp_path: Path) -> None:
    root = write(tmp_path / "set", "video")
    info = json.loads((root / "meta/info.json").read_text())
    assert (info["codebase_version"], info["total_episodes"], info["total_frames"]) == ("v3.0", 3, 19)
    assert info["features"][CAMERA]["dtype"] == "video" and info["features"]["index"]["dtype"] == "int64"
    files = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    assert files == [
        "data/chunk-000/file-000.parquet",
        "meta/episodes/chunk-000/file-000.parquet",
        "meta/info.json",
        "meta/stats.json",
        "meta/tasks.parquet",
        f"videos/{CAMERA}/chunk-000/file-000.mp4",
    ]
    rows = pq.read_table(root / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [row[f"videos/{CAMERA}/from_timestamp"] for row in rows] == [0.0, 0.6, 1.5]
    assert [(row["dataset_from_index"], row["dataset_to_index"]) for row in rows] == [
        (0, 6),
        (6, 15),
        (15, 19),
    ]
    data = pq.read_table(root / "data/chunk-000/file-000.parquet")
    assert data["index"].to_pylist() == list(range(19)) and CAMERA not in data.column_names
    assert str(data.schema.field("action").type) == "fixed_size_list<element: float>[2]"
    with av.open(str(root / f"videos/{CAMERA}/chunk-000/file-000.mp4")) as container:
        stamps = [(float(f.pts * f.time_base), f.key_frame) for f in container.decode(video=0)]
    assert [t for t, _ in stamps] == pytest.approx(np.arange(19) / 10)
    assert all(stamps[start][1] for start in (0, 6, 15))
    stats = json.loads((root / "meta/stats.json").read_text())
    actions = np.concatenate([episode(number)["action"] for number in range(3)])
    np.testing.assert_allclose(stats["action"]["mean"], actions.mean(0), atol=1e-6)
    np.testing.assert_allclose(stats["action"]["std"], actions.std(0), atol=1e-6)
    assert np.shape(stats[CAMERA]["mean"]) == (3, 1, 1) and stats["action"]["count"] == [19]


def test_v21_is_laid_out_as_prescribed(tmp_path: Path) -> None:
    root = write(tmp_path / "set", "video", WriterV21)
    lines = [json.loads(line) for line in (root / "meta/episodes.jsonl").read_text().splitlines()]
    assert lines[1] == {"episode_index": 1, "tasks": ["pick"], "length": 9}
    assert (root / f"videos/chunk-000/{CAMERA}/episode_000002.mp4").is_file()
    assert len(pq.read_table(root / "data/chunk-000/episode_000002.parquet")) == 4
    stats = json.loads((root / "meta/episodes_stats.jsonl").read_text().splitlines()[2])
    assert stats["episode_index"] == 2 and stats["stats"]["action"]["count"] == [4]


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is not empty"):
        WriterV30(write(tmp_path / "set", "image"), features("image"), fps=10)
    odd = {CAMERA: Feature(shape=(63, 48, 3), dtype="uint8", kind="video")}
    with pytest.raises(DatasetError, match="even sides"):
        WriterV30(tmp_path / "odd", odd, fps=10)
    with WriterV30(tmp_path / "bad", features("image"), fps=10) as writer:
        with pytest.raises(DatasetError, match=r"action: expected \[6, 2\], got \[5, 2\]"):
            writer.add({**episode(0), "action": episode(0)["action"][:5]}, "push")
        with pytest.raises(DatasetError, match="an episode must have"):
            writer.add({"action": episode(0)["action"]}, "push")
    with pytest.raises(RuntimeError), WriterV30(tmp_path / "cut", features("image"), fps=10) as writer:
        writer.add(episode(0), "push")
        raise RuntimeError("interrupted")
    assert not (tmp_path / "cut/meta/info.json").exists()
