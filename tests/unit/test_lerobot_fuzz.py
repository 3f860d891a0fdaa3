"""LeRobot datasets with random damage: read as they were written, or refused with a DatasetError that names a
file; never another error."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lerobot_fixtures as fixtures
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzzing import fuzz
from json_damage import change_json
from rlinf.data import DatasetError
from rlinf.data.formats import open_dataset

#: What may stand where a number, text, list or mapping is expected.
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 3, 1.5, 1e400, 10**12, "", "text", "../../etc/passwd", "{", "{x}", "{0}", "a\0b",
    "{video_key.x}", [], [[]], [1, None], {}, {"": {}}, {"dtype": 1}, "9" * 400, [-1, 64, 3], "float32",
    "image", "video", "no",
)  # fmt: skip
CELLS: tuple[Any, ...] = (
    None, -1, 10**12, 0.5, float("nan"), "text", b"x", [], [1.0], [[1.0], [2.0]],
    {"bytes": None, "path": "x"},
)  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("lerobot")
    return [
        fixtures.write_v21(folder / "v21"),
        fixtures.write_v21(folder / "png", "image"),
        fixtures.write_v30(folder / "v30"),
    ]


def read_all(root: Path) -> dict[str, np.ndarray]:
    """Everything that a run reads: each episode whole, its instructions, the digest."""
    dataset = open_dataset(str(root), "lerobot")
    found: dict[str, np.ndarray] = {}
    for episode, length in enumerate(dataset.lengths.tolist()):
        dataset.check(episode)
        for key, values in dataset.read(episode, range(length), list(dataset.features)).items():
            found[f"{episode} {key}"] = values
        found[f"{episode} tasks"] = np.array(dataset.tasks(episode, range(length)))
    dataset.fingerprint()
    return found


def attempt(root: Path) -> bool:
    """Whether it is refused; a refusal is checked for what it must say."""
    try:
        read_all(root)
    except DatasetError as error:
        text = str(error)
        assert str(root) in text and len(text) < 3000, text
        return True
    return False


def damage_json(rng: random.Random, path: Path) -> None:
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    i = rng.randrange(len(lines))
    if rng.random() < 0.8:
        lines[i] = json.dumps(change_json(rng, json.loads(lines[i]), VALUES))
    else:
        at = rng.randrange(len(lines[i]))
        lines[i] = lines[i][:at] + rng.choice(("", "\x00", "{", "\udc80", "[" * 100_000)) + lines[i][at + 1 :]
    path.write_text("\n".join(lines), errors="surrogateescape")


def damage_parquet(rng: random.Random, path: Path) -> None:
    """A column dropped, or of another type, or with other values, or with nulls; a row dropped or doubled."""
    table = pq.read_table(path)
    i = rng.randrange(table.num_columns)
    name, rows = table.column_names[i], len(table)
    if rng.random() < 0.2:
        table = table.drop_columns([name])
    elif rng.random() < 0.2:
        table = pa.concat_tables([table, table.slice(0, 1)]) if rng.random() < 0.5 else table.slice(1)
    else:
        table = table.set_column(i, name, pa.array([rng.choice(CELLS)] * rows))
    pq.write_table(table, path)


def damage_bytes(rng: random.Random, path: Path) -> None:
    content = bytearray(path.read_bytes())
    if rng.random() < 0.3:
        del content[rng.randrange(len(content)) :]
    else:
        for _ in range(rng.choice((1, 1, 8))):
            # Half of them where headers and footers are.
            at = rng.randrange(len(content))
            content[at if rng.random() < 0.5 else -1 - at % min(400, len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "suffixes", "rounds"),
    [
        (damage_json, (".json", ".jsonl"), 120),
        (damage_parquet, (".parquet",), 60),
        (damage_bytes, (".parquet", ".mp4", ".json", ".jsonl"), 100),
    ],
)
def test_random_damage_is_read_or_refused(
    damage: Callable[[random.Random, Path], None],
    suffixes: tuple[str, ...],
    rounds: int,
    originals: list[Path],
    tmp_path: Path,
) -> None:
    copy, outcomes = tmp_path / "copy", []

    def check(rng: random.Random) -> None:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(rng.choice(originals), copy)
        files = sorted(path for path in copy.rglob("*") if path.suffix in suffixes)
        damage(rng, rng.choice(files))
        outcomes.append(attempt(copy))

    fuzz(check, rounds)
    assert rounds // 4 < sum(outcomes) < rounds
