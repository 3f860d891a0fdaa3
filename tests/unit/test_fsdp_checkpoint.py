"""The checkpoint store: visible only when complete, damage is found, the last good one is used."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rlinf.fsdp import CheckpointError, CheckpointStore
from rlinf.fsdp.checkpoint import read_metadata, verify


def write(store: CheckpointStore, step: int, content: bytes = b"weights") -> Path:
    with store.writing(step, {"plan": {"model": "m"}}) as folder:
        (folder / "state").mkdir()
        (folder / "state" / "shard").write_bytes(content)
    return store.directory / f"step_{step}"


def test_a_checkpoint_carries_its_metadata_and_checksums(tmp_path: Path) -> None:
    path = write(CheckpointStore(tmp_path), 7)
    metadata = verify(path)
    assert metadata["step"] == 7 and metadata["plan"] == {"model": "m"}
    assert metadata["files"]["state/shard"]["bytes"] == 7
    assert read_metadata(path) == metadata


def test_the_newest_are_kept_by_number_not_by_name(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for step in (9, 10, 100):
        write(store, step)
    assert [path.name for path in store.complete()] == ["step_100", "step_10"]
    assert store.latest() == store.directory / "step_100"
    with pytest.raises(ValueError, match="keep: expected at least 1"):
        CheckpointStore(tmp_path, keep=0)


def test_a_failing_writer_leaves_nothing(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    write(store, 1)
    with pytest.raises(RuntimeError, match="disk on fire"), store.writing(2, {}) as folder:
        (folder / "half").write_bytes(b"x")
        raise RuntimeError("disk on fire")
    assert sorted(path.name for path in store.directory.iterdir()) == ["step_1"]
    with pytest.raises(ValueError, match=r"\['files'\] are the store's own"), store.writing(2, {"files": {}}):
        pass


def test_a_writer_killed_halfway_leaves_the_previous_one_and_is_cleaned_up(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    write(store, 1)
    code = (
        "import sys, time\n"
        "from rlinf.fsdp.checkpoint import CheckpointStore\n"
        "with CheckpointStore(sys.argv[1]).writing(2, {}) as folder:\n"
        "    (folder / 'half').write_bytes(b'x')\n"
        "    print('writing', flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "writing\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert len(list(store.directory.iterdir())) == 2, "the unfinished folder is still there"
    assert store.latest_good() == store.directory / "step_1"
    write(store, 3)
    assert sorted(path.name for path in store.directory.iterdir()) == ["step_1", "step_3"]


def test_writing_a_step_again_replaces_it(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    write(store, 1, b"old")
    path = write(store, 1, b"new")
    assert (path / "state" / "shard").read_bytes() == b"new" and len(list(store.directory.iterdir())) == 1


def damage(path: Path, how: str) -> str:
    """Damage a checkpoint; returns what the error must say."""
    shard = path / "state" / "shard"
    if how == "truncated":
        os.truncate(shard, 3)
        return r"state/shard has 3 bytes, expected 7"
    if how == "flipped":
        shard.write_bytes(b"weighty")
        return r"state/shard is corrupt: its sha256"
    if how == "missing":
        shard.unlink()
        return r"state/shard is missing"
    if how == "stranger":
        (path / "state" / "extra.safetensors").write_bytes(b"")
        return r"extra.safetensors is not part of the checkpoint"
    if how == "metadata":
        os.truncate(path / "metadata.json", 20)
        return r"metadata.json is not readable JSON"
    assert how == "format"
    (path / "metadata.json").write_text(json.dumps({"format": 99}))
    return r"expected checkpoint format 1, found 99"


@pytest.mark.parametrize("how", ["truncated", "flipped", "missing", "stranger", "metadata", "format"])
def test_damage_is_found_and_the_previous_good_one_used(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(tmp_path)
    good, bad = write(store, 1), write(store, 2)
    message = damage(bad, how)
    with pytest.raises(CheckpointError, match=message):
        verify(bad)
    assert store.latest() == bad, "latest() does not verify"
    with caplog.at_level(logging.WARNING):
        assert store.latest_good() == good
    assert "step_2" in caplog.text and f"falling back to the older checkpoint {good}" in caplog.text
    damage(good, "missing")
    with pytest.raises(CheckpointError, match=r"every checkpoint in .* is damaged: .*step_2.*; .*step_1"):
        store.latest_good()


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "new")
    assert store.latest() is None and store.latest_good() is None
    (tmp_path / "step_1").mkdir()
    with pytest.raises(CheckpointError, match="step_1 is no complete checkpoint"):
        verify(tmp_path / "step_1")


def test_the_store_is_light() -> None:
    code = "import sys; from rlinf.fsdp import CheckpointStore; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
