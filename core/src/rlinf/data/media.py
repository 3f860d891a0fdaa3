"""Pictures and sounds of rows of text: files named in their columns, or numbers."""

from __future__ import annotations

import wave
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from rlinf.data.errors import DatasetError
from rlinf.models.language.modality import SAMPLE_RATE

if TYPE_CHECKING:
    from PIL import Image

Row = dict[str, Any]

#: Columns of a row's picture, or list of pictures, and of its sound; file names are relative to the JSONL
#: file.
IMAGE: Final = "image"
AUDIO: Final = "audio"


#: Of one row: (H, W) of each picture, or (samples,) of the sound.
Sizes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class MediaShape:
    """What the pictures or sounds of a run, or of a batch, have in common."""

    #: Samples of the longest sound.
    samples: int = 0
    #: Whether pictures differ in size, or a row has several.
    varied: bool = False

    @classmethod
    def of(cls, sizes: Sequence[Sizes]) -> MediaShape:
        """sizes: of all rows, as `check_media` finds them."""
        flat = [size for row in sizes for size in row]
        varied = len({size for size in flat if len(size) == 2}) > 1 or any(len(row) > 1 for row in sizes)
        return cls(samples=max((size[0] for size in flat if len(size) == 1), default=0), varied=varied)


def locate(row: Row, folder: Path, where: str) -> None:
    """Complete the names of a row's files, in place. Raises DatasetError, beginning with `where`, if one is
    not there."""
    for column in (IMAGE, AUDIO):
        value = row.get(column)
        if isinstance(value, str):
            row[column] = _located(value, folder, f"{where}: {column}")
        elif isinstance(value, list):
            row[column] = [
                _located(one, folder, f"{where}: {column}") if isinstance(one, str) else one for one in value
            ]


def _located(name: str, folder: Path, where: str) -> str:
    file = folder / name
    if not file.is_file():
        raise DatasetError(f"{where}: there is no file {file}")
    return str(file)


def sizes_of(row: Row) -> Sizes:
    """Sizes of a row's pictures, or of its sound; () for a row without. Of a file only the header is read.

    Raises DatasetError for what is no picture and no sound.
    """
    if row.get(IMAGE) is not None:
        return tuple(_picture_size(value) for value in _several(row[IMAGE]))
    if row.get(AUDIO) is not None:
        if not isinstance(row[AUDIO], str):
            return (_samples(row[AUDIO]).shape,)
        with _open_wave(row[AUDIO]) as file:
            return ((file.getnframes(),),)
    return ()


def _several(image: Any) -> list[Any]:
    """The pictures of a column: one, or a list of them."""
    if isinstance(image, list | tuple) and image and (isinstance(image[0], str) or np.ndim(image[0]) == 3):
        return list(image)
    return [image]


def _picture_size(value: Any) -> tuple[int, ...]:
    if not isinstance(value, str):
        return _pixels(value).shape[:2]
    with _opened(value) as picture:
        return picture.size[::-1]


def check_media(source: str, rows: Sequence[Row]) -> list[Sizes]:
    """`sizes_of` each row.

    Raises DatasetError that names source and row: a file is no picture or no sound, a row has both, or some
    rows have what others lack.
    """
    sizes: list[Sizes] = []
    for number, row in enumerate(rows, start=1):
        try:
            sizes.append(sizes_of(row))
            have, first = (
                [column for column in (IMAGE, AUDIO) if one.get(column) is not None] for one in (row, rows[0])
            )
            if len(have) > 1:
                raise DatasetError("has a picture and a sound; expected one of them")
            if have != first:
                raise DatasetError(f"has {_listed(have)}, row 1 {_listed(first)}; expected rows alike")
        except DatasetError as error:
            raise DatasetError(f"{source}: row {number}: {error}") from None
    return sizes


def _listed(columns: Sequence[str]) -> str:
    return " and ".join(columns) or f"no {IMAGE} and no {AUDIO}"


def media_of(rows: Sequence[Mapping[str, Any]], shape: MediaShape | None = None) -> dict[str, np.ndarray]:
    """What rows have of pictures or sounds, as observations have it. A row that is there several times, as in
    a group, is read once.

    Args:
        shape: of the run that the rows belong to; None: that of the rows.

    Returns:
        main_images uint8 [B, H, W, 3], or object [B], a list of pictures uint8 [H, W, 3] each, where they
        are varied; or audios float32 [B, samples] at 16 kHz, NaN after a sound's end; nothing where no row
        has any.

    Raises:
        DatasetError: one cannot be read, or some rows have none.
    """
    distinct = {id(row): row for row in rows}
    places = {key: place for place, key in enumerate(distinct)}
    index = [places[id(row)] for row in rows]
    if any(row.get(IMAGE) is not None for row in rows):
        pictures = [[_pixels(one) for one in _several(_of(row, IMAGE))] for row in distinct.values()]
        shape = shape or MediaShape.of([tuple(one.shape[:2] for one in row) for row in pictures])
        if not shape.varied:
            return {"main_images": np.stack([one for (one,) in pictures])[index]}
        lists = np.empty(len(pictures), object)
        for place, row in enumerate(pictures):
            lists[place] = row
        return {"main_images": lists[index]}
    if any(row.get(AUDIO) is not None for row in rows):
        sounds = [_samples(_of(row, AUDIO)) for row in distinct.values()]
        width = max(map(len, sounds)) if shape is None else shape.samples
        padded = np.full((len(sounds), width), np.nan, np.float32)
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
