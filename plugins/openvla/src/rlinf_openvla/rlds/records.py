"""TFRecord's framing and `tf.train.Example`, as bytes.

A record is: length (uint64), masked CRC-32C of it (uint32), the bytes, their masked CRC-32C; little endian
(tensorflow `core/lib/io/record_writer.h`). An Example maps names to lists of bytes, float32 or int64
(`core/example/feature.proto`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

#: length and its checksum before a record, the checksum behind it.
_HEADER, _FOOTER = 12, 4
_MASK_DELTA: Final = 0xA282EAD8
#: Castagnoli's polynomial, reflected.
_POLYNOMIAL: Final = 0x82F63B78
_BYTES, _FLOATS, _INTS = 1, 2, 3
_VARINT, _LENGTH_DELIMITED, _FIXED32 = 0, 2, 5


class RecordError(ValueError):
    """Bytes that are no record or no Example."""


def _table() -> tuple[int, ...]:
    rows = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (_POLYNOMIAL if value & 1 else 0)
        rows.append(value)
    return tuple(rows)


_TABLE: Final = _table()


def crc32c(data: Any) -> int:
    """CRC-32C (RFC 3720, B.4); some megabytes a second."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def masked_crc(data: Any) -> int:
    """As records carry it."""
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def record_places(buffer: Any) -> list[tuple[int, int]]:
    """(start, length) of each record's bytes; checks the lengths' checksums. Raises RecordError."""
    places, at = [], 0
    while at < len(buffer):
        if at + _HEADER > len(buffer):
            raise RecordError(f"the file ends within a record's header, at byte {at}")
        length, crc = struct.unpack_from("<QI", buffer, at)
        if masked_crc(buffer[at : at + 8]) != crc:
            raise RecordError(f"no TFRecord begins at byte {at}: the checksum of its length is wrong")
        start = at + _HEADER
        at = start + length + _FOOTER
        if at > len(buffer):
            raise RecordError(f"the file ends within a record of {length} bytes, at byte {len(buffer)}")
        places.append((start, length))
    return places


def check_record(buffer: Any, start: int, length: int) -> None:
    """Raises RecordError where the bytes do not have their checksum."""
    (crc,) = struct.unpack_from("<I", buffer, start + length)
    if masked_crc(buffer[start : start + length]) != crc:
        raise RecordError(f"the checksum of the record at byte {start} is wrong")


def example_places(buffer: Any, start: int, length: int) -> dict[str, tuple[int, int, int]]:
    """{feature: (kind, start, end) of its list}; walks over the values without reading them."""
    found = {}
    for _, a, b in _fields(buffer, start, start + length):  # Example.features
        for _, entry, entry_end in _fields(buffer, a, b):  # Features.feature, a map
            parts = {number: (x, y) for number, x, y in _fields(buffer, entry, entry_end)}
            if 1 not in parts:
                raise RecordError("an Example's feature has no name")
            name = bytes(buffer[slice(*parts[1])]).decode("utf-8", "replace")
            for kind, x, y in _fields(buffer, *parts[2]) if 2 in parts else ():
                found[name] = (kind, x, y)
    return found


def values(buffer: Any, kind: int, start: int, end: int) -> list[bytes] | np.ndarray:
    """The values of a list: bytes, float32 [n] or int64 [n]."""
    if kind == _BYTES:
        return [bytes(buffer[a:b]) for _, a, b in _fields(buffer, start, end)]
    pieces = [(a, b) for _, a, b in _fields(buffer, start, end)]
    if kind == _FLOATS:
        return np.concatenate(
            [np.frombuffer(bytes(buffer[a:b]), "<f4") for a, b in pieces] or [np.zeros(0, "<f4")]
        )
    if kind != _INTS:
        raise RecordError(f"an Example's feature is of an unknown kind ({kind})")
    numbers = []
    for a, b in pieces:
        while a < b:
            number, a = _varint(buffer, a, b)
            numbers.append(number - (1 << 64) if number >> 63 else number)
    return np.array(numbers, np.int64)


def count(buffer: Any, kind: int, start: int, end: int) -> int:
    """How many values a list has."""
    if kind == _FLOATS:
        return sum(b - a for _, a, b in _fields(buffer, start, end)) // 4
    if kind == _BYTES:
        return sum(1 for _ in _fields(buffer, start, end))
    return len(values(buffer, kind, start, end))


def _fields(buffer: Any, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(number, start, end) of the fields of a protobuf message; numbers are given as their own bytes."""
    while at < end:
        tag, at = _varint(buffer, at, end)
        wire = tag & 7
        if wire == _LENGTH_DELIMITED:
            length, start = _varint(buffer, at, end)
            at = start + length
        elif wire == _FIXED32:
            start, at = at, at + 4
        elif wire == _VARINT:
            start = at
            _, at = _varint(buffer, at, end)
        else:
            raise RecordError(f"a field has the wire type {wire}, which no Example has")
        if at > end:
            raise RecordError("a field reaches over the end of its message")
        yield tag >> 3, start, at


def _varint(buffer: Any, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = buffer[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise RecordError("a number is cut off")
