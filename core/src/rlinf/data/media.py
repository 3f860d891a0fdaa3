"""Pictures and sounds of rows of text: files named in their columns, or numbers."""

from __future__ import annotations

import wave
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from rlinf.data.errors import DatasetError
from rlinf.models.language.modality import SAMPLE_RATE

if TYPE_CHECKING:
    from PIL import Image

Row = dict[str, Any]

#: Columns of a row's picture and of its sound; a file name is relative to the JSONL file.
IMAGE: Final = "image"
AUDIO: Final = "audio"


def locate(row: Row, folder: Path, where: str) -> None:
    """Complete the names of a row's files, in place. Raises DatasetError, beginning with `where`, if one is
    not there."""
    for column in (IMAGE, AUDIO):
        if isinstance(row.get(column), str):
            file = folder / row[column]
            if not file.is_file():
                raise DatasetError(f"{where}: {column}: there is no file {file}")
            row[column] = str(file)


def size_of(row: Row) -> tuple[int, ...] | None:
    """(H, W) of a row's picture, (samples,) of its sound, None for a row without; of a file only the header
    is read.

    Raises DatasetError for what is no picture and no sound.
    """
    if row.get(IMAGE) is not None:
        if not isinstance(row[IMAGE], str):
            return _pixels(row[IMAGE]).shape[:2]
        with _opened(row[IMAGE]) as picture:
            return picture.size[::-1]
    if row.get(AUDIO) is not None:
        if not isinstance(row[AUDIO], str):
            return _samples(row[AUDIO]).shape
        with _open_wave(row[AUDIO]) as file:
            return (file.getnframes(),)
    return None


def check_media(source: str, rows: Sequence[Row]) -> list[tuple[int, ...] | None]:
    """`size_of` each row.

    Raises DatasetError that names source and row: a file is no picture or no sound, a row has both, some rows
    have what others lack, or pictures differ in size.
    """
    sizes: list[tuple[int, ...] | None] = []
    for number, row in enumerate(rows, start=1):
        try:
            sizes.append(size_of(row))
            have, first = (
                [column for column in (IMAGE, AUDIO) if one.get(column) is not None] for one in (row, rows[0])
            )
            if len(have) > 1:
                raise DatasetError("has a picture and a sound; expected one of them")
            if have != first:
                raise DatasetError(f"has {_listed(have)}, row 1 {_listed(first)}; expected rows alike")
            if have == [IMAGE] and sizes[-1] != sizes[0]:
                raise DatasetError(
                    f"{IMAGE} of {sizes[-1]} pixels, of row 1 {sizes[0]}: pictures of one run have one size"
                )
        except DatasetError as error:
            raise DatasetError(f"{source}: row {number}: {error}") from None
    return sizes


def _listed(columns: Sequence[str]) -> str:
    return " and ".join(columns) or f"no {IMAGE} and no {AUDIO}"


def longest_sound(sizes: Sequence[tuple[int, ...] | None]) -> int:
    """Samples of the longest sound among what `check_media` found; 0 if there is none."""
    return max((size[0] for size in sizes if size is not None and len(size) == 1), default=0)


def media_of(rows: Sequence[Mapping[str, Any]], samples: int = 0) -> dict[str, np.ndarray]:
    """What rows have of pictures or sounds, as observations have it. A row that is there several times, as in
    a group, is read once.

    Args:
        samples: width of `audios`; 0: that of the longest.

    Returns:
        main_images uint8 [B, H, W, 3], or audios float32 [B, samples] at 16 kHz, NaN after a sound's end;
        nothing where no row has any.

    Raises:
        DatasetError: one cannot be read, some rows have none, or pictures differ in size.
    """
    distinct = {id(row): row for row in rows}
    places = {key: place for place, key in enumerate(distinct)}
    index = [places[id(row)] for row in rows]
    if any(row.get(IMAGE) is not None for row in rows):
        pictures = [_pixels(_of(row, IMAGE)) for row in distinct.values()]
        if len({picture.shape for picture in pictures}) > 1:
            raise DatasetError(f"{IMAGE}: of one run have one size, got {pictures[0].shape} and others")
        return {"main_images": np.stack(pictures)[index]}
    if any(row.get(AUDIO) is not None for row in rows):
        sounds = [_samples(_of(row, AUDIO)) for row in distinct.values()]
        padded = np.full((len(sounds), samples or max(map(len, sounds))), np.nan, np.float32)
        for line, sound in zip(padded, sounds, strict=True):
            line[: len(sound)] = sound
        return {"audios": padded[index]}
    return {}


def _of(row: Mapping[str, Any], column: str) -> Any:
    if row.get(column) is None:
        raise DatasetError(f"{column}: the row with the prompt {row.get('prompt')!r} has none, others have")
    return row[column]


@contextmanager
def _opened(name: str) -> Iterator[Image.Image]:
    from PIL import Image

    try:
        with Image.open(name) as picture:
            yield picture
    except OSError as error:
        raise DatasetError(f"{IMAGE}: {name} cannot be read as a picture: {error}") from None


def _pixels(value: Any) -> np.ndarray:
    if isinstance(value, str):
        with _opened(value) as picture:
            value = picture.convert("RGB")
    pixels = np.asarray(value, np.uint8)
    if pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise DatasetError(f"{IMAGE}: expected a picture [H, W, 3], got shape {list(pixels.shape)}")
    return pixels


def _open_wave(name: str) -> wave.Wave_read:
    try:
        file = wave.open(name, "rb")  # noqa: SIM115 - the caller closes it
    except (OSError, EOFError, wave.Error) as error:
        raise DatasetError(f"{AUDIO}: {name} cannot be read as WAV: {error}") from None
    found = file.getframerate(), 8 * file.getsampwidth(), file.getnchannels()
    if found != (SAMPLE_RATE, 16, 1):
        file.close()
        raise DatasetError(
            f"{AUDIO}: {name}: expected {SAMPLE_RATE} Hz, 16 bit, 1 channel; got {found[0]} Hz, {found[1]} "
            f"bit, {found[2]} channels. ffmpeg -i IN -ar {SAMPLE_RATE} -ac 1 -sample_fmt s16 OUT.wav makes it"
        )
    return file


def _samples(value: Any) -> np.ndarray:
    if isinstance(value, str):
        with _open_wave(value) as file:
            return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
    samples = np.asarray(value, np.float32)
    if samples.ndim != 1 or not np.isfinite(samples).all():
        raise DatasetError(f"{AUDIO}: expected samples [N], got shape {list(samples.shape)} or no numbers")
    return samples
