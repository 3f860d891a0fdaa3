"""Demonstrations on disk: what is written is read, and what is wrong is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rlinf.data.demonstrations import DatasetError, Demonstrations, read_demonstrations, write_demonstrations


def dataset(
    samples: int = 10, chunk: int = 3, tasks: tuple[str, ...] = ("push", "pick"), first_task: int = 0
) -> Demonstrations:
    rng = np.random.default_rng(samples)
    pad = np.zeros((samples, chunk), bool)
    pad[-1, -1] = True
    return Demonstrations(
        env_type="toy",
        tasks=tasks,
        arrays={
            "main_images": rng.integers(0, 255, (samples, 4, 4, 3), dtype=np.uint8),
            "states": rng.normal(size=(samples, 5)).astype(np.float32),
            "actions": rng.normal(size=(samples, chunk, 2)).astype(np.float32),
            "action_is_pad": pad,
            "task_index": (np.arange(samples) + first_task) % len(tasks),
            "episode_index": np.arange(samples) // 4,
        },
    )


def test_round_trip_in_several_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlinf.data.demonstrations.SHARD_SAMPLES", 4)
    data = dataset()
    write_demonstrations(tmp_path / "set", data)
    assert len(list((tmp_path / "set").glob("*.safetensors"))) == 3
    back = read_demonstrations([tmp_path / "set"], chunk=3, action_dim=2)
    assert back.tasks == data.tasks and back.env_type == "toy"
    for name, array in data.arrays.items():
        assert back.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(back.arrays[name], array)


def test_joined_datasets_share_instructions_and_not_episodes(tmp_path: Path) -> None:
    write_demonstrations(tmp_path / "a", dataset(8))
    write_demonstrations(tmp_path / "b", dataset(4, tasks=("pick", "stack")))
    both = read_demonstrations([tmp_path / "a", tmp_path / "b"])
    assert both.tasks == ("push", "pick", "stack") and len(both) == 12
    assert [both.tasks[i] for i in both.arrays["task_index"][8:]] == ["pick", "stack", "pick", "stack"]
    assert both.arrays["episode_index"].tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_collate_gives_the_batch_of_sft_forward() -> None:
    data = dataset()
    batch = data.collate(np.array([9, 0]))
    assert batch["actions"].shape == (2, 3, 2) and batch["main_images"].dtype == torch.uint8
    assert batch["action_is_pad"].tolist() == [[False, False, True], [False, False, False]]
    assert batch["task_descriptions"] == ["pick", "push"]
    assert "task_index" not in batch and "episode_index" not in batch
    batch["actions"].zero_()
    assert data.arrays["actions"][9].any(), "a batch is a copy"


def test_existing_dataset_is_not_overwritten(tmp_path: Path) -> None:
    write_demonstrations(tmp_path, dataset())
    with pytest.raises(DatasetError, match="already holds a dataset"):
        write_demonstrations(tmp_path, dataset())


@pytest.mark.parametrize(
    ("chunk", "action_dim", "message"),
    [(4, 2, "chunk 3, but model.num_action_chunks is 4"), (3, 7, "action_dim 2, but model.action_dim is 7")],
)
def test_data_of_another_policy_is_refused(tmp_path: Path, chunk: int, action_dim: int, message: str) -> None:
    write_demonstrations(tmp_path, dataset())
    with pytest.raises(DatasetError, match=message):
        read_demonstrations([tmp_path], chunk=chunk, action_dim=action_dim)


def _edit_meta(folder: Path, **changes: object) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    meta.update(changes)
    (folder / "meta.json").write_text(json.dumps({k: v for k, v in meta.items() if v is not None}))


def _truncate_shard(folder: Path) -> None:
    path = folder / "shard_00000.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "meta.json").unlink(), "meta.json: no such file"),
        (lambda f: (f / "meta.json").write_text("{"), "not valid JSON"),
        (lambda f: (f / "meta.json").write_text("[]"), "expected format"),
        (lambda f: _edit_meta(f, version=2), "expected format 'rlinf-demonstrations', version 1"),
        (lambda f: _edit_meta(f, tasks=None), "lacks tasks"),
        (lambda f: _edit_meta(f, tasks=["push"]), "reaches beyond the 1 tasks"),
        (lambda f: _edit_meta(f, samples=11), "says 11 samples"),
        (lambda f: _edit_meta(f, chunk=4), "says chunk 4"),
        (lambda f: _edit_meta(f, shards=[]), "no shard"),
        (lambda f: (f / "shard_00000.safetensors").unlink(), "names this shard"),
        (_truncate_shard, "not a safetensors file"),
        (
            lambda f: _edit_meta(f, shards=[{"file": "shard_00000.safetensors", "samples": 9}]),
            "says 9 samples",
        ),
    ],
)
def test_damage_is_named(tmp_path: Path, damage, message: str) -> None:
    write_demonstrations(tmp_path, dataset())
    damage(tmp_path)
    with pytest.raises(DatasetError, match=message) as caught:
        read_demonstrations([tmp_path])
    assert str(tmp_path) in str(caught.value)


def test_wrong_dtype_in_a_shard_is_named(tmp_path: Path) -> None:
    data = dataset()
    data.arrays["states"] = data.arrays["states"].astype(np.float64)
    write_demonstrations(tmp_path, data)
    with pytest.raises(DatasetError, match="expected states of float32, got float64"):
        read_demonstrations([tmp_path])


def test_datasets_that_do_not_fit_each_other_are_refused(tmp_path: Path) -> None:
    write_demonstrations(tmp_path / "a", dataset())
    other = dataset()
    other.arrays["main_images"] = other.arrays["main_images"][:, :2]
    write_demonstrations(tmp_path / "b", other)
    with pytest.raises(DatasetError, match="main_images has shape"):
        read_demonstrations([tmp_path / "a", tmp_path / "b"])
    with pytest.raises(DatasetError, match="no demonstrations"):
        read_demonstrations([])
