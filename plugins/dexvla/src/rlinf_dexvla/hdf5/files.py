"""One episode's file: opening, what it holds, and every way in which it can be wrong."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
from PIL import Image
from rlinf.data.episodes import Feature

ACTION: Final = "action"
QPOS: Final = "observations/qpos"
QVEL: Final = "observations/qvel"
IMAGES: Final = "observations/images"
INSTRUCTION: Final = "language_raw"
#: Reasoning per step, and for a whole episode; the name of either as a feature is the first.
REASONING, EPISODE_REASONING = "substep_reasonings", "reasoning"
#: Frames per second of ALOHA, where a file does not say.
ALOHA_FPS: Final = 50.0
#: What files of one dataset must have in common.
VECTORS: Final = (ACTION, QPOS, QVEL)


class FileProblem(Exception):
    """What is wrong with a file; the message names the path inside it."""


@dataclass(frozen=True)
class Outline:
    """What a file says about itself without its frames being read."""

    length: int
    features: dict[str, Feature]
    is_sim: bool
    fps: float
    instruction: str


def open_file(path: Path) -> h5py.File:
    """Raises FileProblem for a file that is missing, truncated or no HDF5 file."""
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise FileProblem(f"cannot be opened as HDF5 (truncated, or no HDF5 file): {error}") from None


def outline(file: h5py.File) -> Outline:
    """Raises FileProblem where the layout is not ALOHA's."""
    action = _dataset(file, ACTION, ndim=2)
    length = len(action)
    if length == 0:
        raise FileProblem(f"/{ACTION} has no step")
    features: dict[str, Feature] = {}
    for name in (*VECTORS, *_image_names(file)):
        if name == QVEL and name not in file:
            continue
        data = action if name == ACTION else _dataset(file, name)
        if data.ndim == 0 or len(data) != length:
            steps = len(data) if data.ndim else "no"
            raise FileProblem(f"/{name} has {steps} steps, /{ACTION} has {length}")
        features[name] = _image_feature(file, name, data) if name.startswith(IMAGES) else _vector(name, data)
    if REASONING in file and len(_dataset(file, REASONING, ndim=1)) != length:
        raise FileProblem(f"/{REASONING} has {len(file[REASONING])} steps, /{ACTION} has {length}")
    if REASONING in file or EPISODE_REASONING in file:
        features[REASONING] = Feature(shape=(), dtype="str")
    fps, is_sim = _attribute(file, "fps", ALOHA_FPS), _attribute(file, "sim", 0.0)
    if fps <= 0:
        raise FileProblem(f"the attribute fps is {fps}, expected a number above 0")
    return Outline(length, features, bool(is_sim), fps, _instruction(file))


def _attribute(file: h5py.File, name: str, default: float) -> float:
    """A number, or what is absent. Raises FileProblem."""
    value = np.asarray(file.attrs.get(name, default))
    if value.size != 1 or value.dtype.kind not in "biuf" or not np.isfinite(value).all():
        raise FileProblem(f"the attribute {name} is {str(value)[:100]!r}, expected a number")
    return float(value.item())


def read_reasonings(file: h5py.File) -> np.ndarray:
    """Texts str [T], or [1] where there is one for the whole episode."""
    return np.array(_texts(file, REASONING if REASONING in file else EPISODE_REASONING))


def _texts(file: h5py.File, name: str) -> list[str]:
    """The texts of a dataset, at least one. Raises FileProblem."""
    data = _dataset(file, name)
    if data.ndim > 1 or data.size == 0 or data.dtype.kind not in "OSU":
        raise FileProblem(f"/{name}: expected texts, got {data.dtype} {data.shape}")
    return [decode_text(text) for text in np.atleast_1d(data[()])]


def read_images(data: h5py.Dataset | np.ndarray, name: str, frames: np.ndarray) -> np.ndarray:
    """The frames (sorted, no repeats) of a camera, decoded: uint8 [n, H, W, 3]. data: as it is in the file.

    Raises FileProblem where a frame cannot be read.
    """
    try:
        if is_compressed(data):
            return np.stack([decode_image(data[i], f"/{name}[{i}]") for i in frames])
        if len(frames) > 1 and frames[-1] - frames[0] + 1 == len(frames):
            return data[frames[0] : frames[-1] + 1]  # one read; h5py's index lists are slow
        return np.stack([data[i] for i in frames])
    except (OSError, KeyError, ValueError) as error:
        raise FileProblem(f"/{name}: frames {frames[0]}-{frames[-1]} cannot be read: {error}") from None


def _instruction(file: h5py.File) -> str:
    if INSTRUCTION not in file:
        raise FileProblem(f"/{INSTRUCTION} is missing: the file has no instruction")
    return _texts(file, INSTRUCTION)[0]


def check_values(file: h5py.File, outlined: Outline) -> None:
    """Read everything. Raises FileProblem for numbers that are not finite and frames that cannot be read."""
    for name in outlined.features:
        if name in VECTORS:
            data = file[name][()]
            bad = np.flatnonzero(~np.isfinite(data).all(axis=1))
            if len(bad):
                raise FileProblem(f"/{name} has NaN or infinity at step {bad[0]} ({len(bad)} such steps)")
        elif name == REASONING:
            read_reasonings(file)
        else:
            for frame in range(outlined.length):
                read_images(file[name], name, np.array([frame]))


def is_compressed(data: h5py.Dataset | np.ndarray) -> bool:
    """Whether a camera's frames are encoded images."""
    return data.ndim < 4


def decode_image(encoded: Any, where: str) -> np.ndarray:
    """uint8 [H, W, 3] in the order of channels in which the recorder held it.

    The format's recorders encode with OpenCV, which takes the first channel for blue; decoded as RGB, the
    channels are swapped back. Raises FileProblem.
    """
    try:
        image = _open_image(encoded)
        return np.ascontiguousarray(np.asarray(image.convert("RGB"))[..., ::-1])
    except (OSError, ValueError, SyntaxError) as error:
        raise FileProblem(f"{where} is no image: {error}") from None


def _open_image(encoded: Any) -> Image.Image:
    return Image.open(io.BytesIO(np.asarray(encoded, dtype=np.uint8).tobytes()))


def _encoded_shape(encoded: Any, where: str) -> tuple[int, ...]:
    """[H, W, 3] of an image of which only the header is read. Raises FileProblem."""
    try:
        width, height = _open_image(encoded).size
    except (OSError, ValueError, SyntaxError) as error:
        raise FileProblem(f"{where} is no image: {error}") from None
    return height, width, 3


def encode_image(image: np.ndarray, quality: int) -> np.ndarray:
    """JPEG bytes uint8 [N] of an image [H, W, 3]; the inverse of `decode_image` up to JPEG's loss."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image[..., ::-1])).save(buffer, "JPEG", quality=quality)
    return np.frombuffer(buffer.getvalue(), np.uint8)


def decode_text(value: Any) -> str:
    """A text as h5py gives it, bytes or str."""
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)


def _dataset(file: h5py.File, name: str, ndim: int | None = None) -> h5py.Dataset:
    found = file.get(name)
    if not isinstance(found, h5py.Dataset):
        raise FileProblem(f"/{name} is missing; the file has {', '.join(map(str, file)) or 'nothing'}")
    if ndim is not None and found.ndim != ndim:
        raise FileProblem(f"/{name}: expected {ndim} dimensions, got shape {found.shape}")
    return found


def _image_names(file: h5py.File) -> list[str]:
    group = file.get(IMAGES)
    if group is not None and not isinstance(group, h5py.Group):
        raise FileProblem(f"/{IMAGES}: expected a group of cameras, got {group!r}")
    return [] if group is None else [f"{IMAGES}/{camera}" for camera in group]


def _vector(name: str, data: h5py.Dataset) -> Feature:
    if data.ndim != 2 or data.dtype.kind not in "fiu":
        raise FileProblem(f"/{name}: expected numbers [T, D], got {data.dtype} {data.shape}")
    return Feature(shape=data.shape[1:], dtype="float32")


def _image_feature(file: h5py.File, name: str, data: h5py.Dataset) -> Feature:
    if is_compressed(data):
        if data.dtype.kind not in "uO":
            raise FileProblem(f"/{name}: expected images or encoded images, got {data.dtype} {data.shape}")
        shape = _encoded_shape(data[0], f"/{name}[0]")
    else:
        shape = data.shape[1:]
        if data.ndim != 4 or shape[-1] != 3 or data.dtype != np.uint8:
            raise FileProblem(f"/{name}: expected uint8 [T, H, W, 3], got {data.dtype} {data.shape}")
    return Feature(shape=shape, dtype="uint8", kind="image")
