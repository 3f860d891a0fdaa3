"""Checkpoints with random damage: read as they were, or refused with a message, never a crash, never a file
outside."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from fuzzing import fuzz
from json_damage import change_json
from rlinf.cluster.errors import UserError
from rlinf.config import load_config
from rlinf.fsdp.checkpoint import CheckpointError, CheckpointStore, read_metadata, verify
from rlinf.plugins import PluginError
from rlinf.runners.evaluate import evaluate_checkpoint
from rlinf.runners.run_folder import RunState
from rlinf.runners.train import make_plan, saved_plan

VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1.5, 1e400, "", "../../etc/passwd", "/etc/passwd", "a\0b", "ünï", [], [[]], {},
    {"": {}}, {"../x": {"bytes": 1, "sha256": ""}}, {"state": 1}, "9" * 5000, {"bytes": "1"}, [None] * 3,
)  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with everything in it but weights that mean anything."""
    config = load_config("tabletop_ppo")
    metadata = {
        "plan": make_plan(config).to_json(),
        "config": config.model_dump(mode="json"),
        "versions": {},
        "state": RunState(iteration=3, results={"success_after_sft": 0.5}).to_json(),
    }
    store = CheckpointStore(tmp_path_factory.mktemp("run"))
    with store.writing(3, metadata) as folder:
        (folder / "state").mkdir()
        (folder / "state" / "shard.safetensors").write_bytes(bytes(200))
        (folder / "engine.json").write_text("{}")
    return store.path(3)


def read_all(checkpoint: Path) -> None:
    """What a resumed run reads before it starts anything."""
    metadata = verify(checkpoint)
    saved_plan(checkpoint, metadata)
    RunState.from_json(checkpoint, metadata.get("state"))


def test_random_metadata_is_read_or_refused(good: Path, tmp_path: Path) -> None:
    copy = tmp_path / "step_3"
    shutil.copytree(good, copy)
    original = read_metadata(good)
    refused = []

    def check(rng: random.Random) -> None:
        data = json.loads(json.dumps(original))
        for _ in range(rng.randrange(1, 4)):
            data = change_json(rng, data, VALUES)
        text = json.dumps(data)
        if rng.random() < 0.2:
            i = rng.randrange(len(text))
            text = text[:i] + rng.choice(("", "\x00", "{", '"', "\\ud800", "[" * 5000)) + text[i + 1 :]
        (copy / "metadata.json").write_text(text)
        try:
            read_all(copy)
        except (CheckpointError, UserError) as error:
            refused.append(error)
            assert str(copy) in str(error) and len(str(error)) < 2000, error

    fuzz(check, 300)
    assert len(refused) > 30


def test_random_bytes_are_found(good: Path, tmp_path: Path) -> None:
    copy = tmp_path / "step_3"

    def check(rng: random.Random) -> None:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(good, copy)
        file = copy / rng.choice(("engine.json", "state/shard.safetensors"))
        content = bytearray(file.read_bytes())
        how = rng.randrange(3)
        if how == 0:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        elif how == 1:
            del content[rng.randrange(len(content)) :]
        else:
            content += b"x"
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=file.name):
            verify(copy)

    fuzz(check, 60)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "a/../../outside", ""])
def test_names_that_lead_out_of_the_checkpoint(good: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "step_3"
    shutil.copytree(good, copy)
    (tmp_path / "outside").write_text("x")
    metadata = read_metadata(good)
    metadata["files"][name] = {"bytes": 1, "sha256": "0"}
    (copy / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(CheckpointError, match="no name within the checkpoint"):
        verify(copy)


def test_a_link_in_a_checkpoint(good: Path, tmp_path: Path) -> None:
    copy = tmp_path / "step_3"
    shutil.copytree(good, copy)
    (copy / "engine.json").rename(tmp_path / "engine.json")
    (copy / "engine.json").symlink_to(tmp_path / "engine.json")
    with pytest.raises(CheckpointError, match=r"engine.json is a link"):
        verify(copy)


def test_a_configuration_of_another_version_is_refused_by_name(good: Path, tmp_path: Path) -> None:
    copy = tmp_path / "step_3"
    shutil.copytree(good, copy)
    metadata = read_metadata(good)
    metadata["config"]["actor"]["no_such_key"] = 1
    (copy / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises((UserError, PluginError), match=r"not one of this version: actor.no_such_key"):
        evaluate_checkpoint(copy)
