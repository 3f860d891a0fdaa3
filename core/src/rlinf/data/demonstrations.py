"""Demonstrations on disk: a folder of safetensors shards and a `meta.json`; nothing in it is code.

`meta.json`::

    {"format": "rlinf-demonstrations", "version": 1, "env_type": "tabletop", "chunk": 4, "action_dim": 7,
     "samples": 5000, "episodes": 700, "tasks": ["push the red cube", ...],
     "shards": [{"file": "shard_00000.safetensors", "samples": 4096}, ...]}

Each shard holds, batch first, n samples (a sample is an observation and the chunk of actions that came next):
`main_images` uint8 [n,H,W,3] and, where the environment has them, `wrist_images`, `extra_view_images`;
`states` float32 [n,D]; `actions` float32 [n,chunk,A]; `action_is_pad` bool [n,chunk], true after the end of
the episode; `task_index` int64 [n], into `tasks`; `episode_index` int64 [n].
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from rlinf.data.errors import DatasetError

FORMAT: Final = "rlinf-demonstrations"
VERSION: Final = 1
SHARD_SAMPLES: Final = 4096
_REQUIRED: Final = {
    "main_images": np.uint8,
    "states": np.float32,
    "actions": np.float32,
    "action_is_pad": np.bool_,
    "task_index": np.int64,
    "episode_index": np.int64,
}


@dataclass(frozen=True, kw_only=True)
class Demonstrations:
    """Demonstrations in memory; `arrays` as in the module's list of tensors, `tasks` the instructions."""

    env_type: str
    tasks: tuple[str, ...]
    arrays: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.arrays["actions"])

    @property
    def chunk(self) -> int:
        return int(self.arrays["actions"].shape[1])

    @property
    def action_dim(self) -> int:
        return int(self.arrays["actions"].shape[2])

    def collate(self, indices: np.ndarray) -> dict[str, Any]:
        """The samples `indices` as the batch of `sft_forward`: tensors, and `task_descriptions` list[str]."""
        import torch

        batch: dict[str, Any] = {
            name: torch.from_numpy(array[indices])
            for name, array in self.arrays.items()
            if name not in ("task_index", "episode_index")
        }
        batch["task_descriptions"] = [self.tasks[i] for i in self.arrays["task_index"][indices]]
        return batch


def is_demonstrations(folder: Path) -> bool:
    """Whether a folder has this format's `meta.json`."""
    try:
        return json.loads((folder / "meta.json").read_text(encoding="utf-8")).get("format") == FORMAT
    except (OSError, ValueError, AttributeError):
        return False


def write_demonstrations(folder: Path, data: Demonstrations) -> None:
    """Write `data` as a new dataset; `meta.json` comes last, so a folder that has one is complete."""
    from safetensors.numpy import save_file

    if (folder / "meta.json").exists():
        raise DatasetError(f"{folder} already holds a dataset; name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, Any]] = []
    for start in range(0, len(data), SHARD_SAMPLES):
        rows = slice(start, start + SHARD_SAMPLES)
        part = {name: np.ascontiguousarray(array[rows]) for name, array in data.arrays.items()}
        file = f"shard_{len(shards):05d}.safetensors"
        save_file(part, folder / file)
        shards.append({"file": file, "samples": len(part["actions"])})
    meta = {
        "format": FORMAT,
        "version": VERSION,
        "env_type": data.env_type,
        "chunk": data.chunk,
        "action_dim": data.action_dim,
        "samples": len(data),
        "episodes": len(np.unique(data.arrays["episode_index"])),
        "tasks": list(data.tasks),
        "shards": shards,
    }
    aside = folder / "meta.json.tmp"
    aside.write_text(json.dumps(meta, indent=1), encoding="utf-8")
    os.replace(aside, folder / "meta.json")


def read_demonstrations(
    folders: Sequence[Path], *, chunk: int | None = None, action_dim: int | None = None
) -> Demonstrations:
    """Read and join the datasets in `folders`.

    chunk, action_dim: what the policy produces; a dataset with others is refused.

    Raises:
        DatasetError: a folder or file is missing or malformed, datasets do not fit each other or the policy,
            there is no sample at all.
    """
    if not folders:
        raise DatasetError("no demonstrations: set data.train_data_paths or sft.expert_episodes")
    parts = [_read_folder(Path(folder)) for folder in folders]
    for folder, part in zip(folders, parts):
        for name, have, want in (
            ("chunk", part.chunk, chunk),
            ("action_dim", part.action_dim, action_dim),
        ):
            if want is not None and have != want:
                key = "model.num_action_chunks" if name == "chunk" else "model.action_dim"
                raise DatasetError(f"{folder}: its actions have {name} {have}, but {key} is {want}")
    return join_demonstrations(parts, [str(folder) for folder in folders])


def join_demonstrations(parts: Sequence[Demonstrations], names: Sequence[str]) -> Demonstrations:
    """Several datasets as one; `names` stand for them in errors."""
    first = parts[0]
    tasks: dict[str, int] = {}
    episodes = 0
    columns: dict[str, list[np.ndarray]] = {name: [] for name in first.arrays}
    for part, label in zip(parts, names):
        if part.env_type != first.env_type or part.arrays.keys() != first.arrays.keys():
            raise DatasetError(
                f"{label} ({part.env_type}: {', '.join(part.arrays)}) does not fit "
                f"{names[0]} ({first.env_type}: {', '.join(first.arrays)})"
            )
        renumber = np.array([tasks.setdefault(task, len(tasks)) for task in part.tasks], np.int64)
        for name, array in part.arrays.items():
            if array.shape[1:] != first.arrays[name].shape[1:]:
                raise DatasetError(
                    f"{label}: {name} has shape {array.shape[1:]} per sample, "
                    f"{names[0]} has {first.arrays[name].shape[1:]}"
                )
            if name == "task_index":
                array = renumber[array]
            elif name == "episode_index":
                array = array + episodes
            columns[name].append(array)
        episodes += int(part.arrays["episode_index"].max(initial=-1)) + 1
    arrays = {name: np.concatenate(part) if len(part) > 1 else part[0] for name, part in columns.items()}
    return Demonstrations(env_type=first.env_type, tasks=tuple(tasks), arrays=arrays)


def _read_folder(folder: Path) -> Demonstrations:
    meta = _read_meta(folder)
    parts: dict[str, list[np.ndarray]] = {}
    for shard in meta["shards"]:
        for name, array in _read_shard(folder / shard["file"], shard["samples"]).items():
            parts.setdefault(name, []).append(array)
    if not parts:
        raise DatasetError(f"{folder}: the dataset has no shard, so there is nothing to learn from")
    arrays = {name: np.concatenate(part) for name, part in parts.items()}
    lengths = {name: len(array) for name, array in arrays.items()}
    if set(lengths.values()) != {meta["samples"]}:
        raise DatasetError(f"{folder}/meta.json: says {meta['samples']} samples, the shards hold {lengths}")
    if arrays["task_index"].min() < 0 or arrays["task_index"].max() >= len(meta["tasks"]):
        count = len(meta["tasks"])
        raise DatasetError(f"{folder}: task_index reaches beyond the {count} tasks of meta.json")
    data = Demonstrations(env_type=meta["env_type"], tasks=tuple(meta["tasks"]), arrays=arrays)
    if (data.chunk, data.action_dim) != (meta["chunk"], meta["action_dim"]):
        raise DatasetError(
            f"{folder}/meta.json: says chunk {meta['chunk']}, action_dim {meta['action_dim']}; the shards "
            f"hold actions {list(arrays['actions'].shape)}"
        )
    return data


def _read_meta(folder: Path) -> dict[str, Any]:
    path = folder / "meta.json"
    if not path.is_file():
        raise DatasetError(f"{path}: no such file; a dataset folder holds meta.json and safetensors shards")
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DatasetError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(meta, dict) or meta.get("format") != FORMAT or meta.get("version") != VERSION:
        found = (meta.get("format"), meta.get("version")) if isinstance(meta, dict) else type(meta).__name__
        raise DatasetError(f"{path}: expected format {FORMAT!r}, version {VERSION}; got {found}")
    missing = [
        key for key in ("env_type", "chunk", "action_dim", "samples", "tasks", "shards") if key not in meta
    ]
    if missing:
        raise DatasetError(f"{path}: lacks {', '.join(missing)}")
    return meta


def _read_shard(path: Path, samples: int) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not path.is_file():
        raise DatasetError(f"{path}: meta.json names this shard, but there is no such file")
    try:
        arrays = load_file(path)
    except SafetensorError as error:
        raise DatasetError(f"{path}: not a safetensors file ({error})") from None
    for name, dtype in _REQUIRED.items():
        if name not in arrays or arrays[name].dtype != dtype:
            found = arrays[name].dtype if name in arrays else f"only {', '.join(arrays)}"
            raise DatasetError(f"{path}: expected {name} of {np.dtype(dtype)}, got {found}")
    short = {name: len(array) for name, array in arrays.items() if len(array) != samples}
    if short:
        raise DatasetError(f"{path}: meta.json says {samples} samples, got {short}")
    return arrays
