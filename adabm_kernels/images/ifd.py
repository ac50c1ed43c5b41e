"""Directories of tags, as TIFF and EXIF have them (TIFF 6.0, 2), copied from one file into another."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable
from typing import BinaryIO, NamedTuple

import numpy as np

DESCRIBING = (270, 271, 272, 305, 306, 315, 33432)  # ImageDescription, Make, Model, Software, DateTime, Artist, Copyright
BELOW = (34665, 34853, 40965)  # tags that refer to a directory: EXIF, GPS, and within EXIF the one of interoperability
ENTRY_BYTES = 12
_LONG = 4
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}  # for each type, the bytes of a value
_WORDS = {3: 2, 4: 4, 5: 4, 8: 2, 9: 4, 10: 4, 11: 4, 12: 8, 13: 4}  # for each type, the bytes of one number in the file's order
_MOST_BYTES = 16 << 20  # the most bytes of all values together


class Value(NamedTuple):
    """The value of a tag. kind: the number of its type. length: how many elements of that type it has. data: its bytes as in a file
    with the low byte first. below: the directory that it refers to, or None."""

    kind: int
    length: int
    data: bytes
    below: dict[int, Value] | None = None


def order_of(header: bytes) -> str | None:
    """The order of bytes, as `struct` writes it, by the first four bytes of a file; None where the file is not a TIFF, and for a
    BigTIFF."""
    return {b"II*\0": "<", b"MM\0*": ">"}.get(header[:4])


def read_tags(file: BinaryIO, start: int, order: str, wanted: Iterable[int] | None = None) -> dict[int, Value]:
    """Reads a directory and the directories below it. wanted: the tags that are read; None for all.

    Values that are cut off are left out, and so are values that would make the total too long: in a hostile file they may overlap.
    """
    return _Tags(file, order).read(start, wanted)


class _Tags:
    """Reads the directories of one file, and counts how many bytes may still be read from it."""

    def __init__(self, file: BinaryIO, order: str):
        self._file, self._order, self._left = file, order, _MOST_BYTES

    def read(self, start: int, wanted: Iterable[int] | None, depth: int = 0) -> dict[int, Value]:
        file, order = self._file, self._order
        file.seek(start)
        (count,) = struct.unpack(f"{order}H", file.read(2))
        table, found = file.read(count * ENTRY_BYTES), {}
        for tag, kind, length, inline in struct.iter_unpack(f"{order}HHI4s", table[: len(table) // ENTRY_BYTES * ENTRY_BYTES]):
            size = _SIZES.get(kind, 0) * length
            if (wanted is not None and tag not in wanted) or not 0 < size <= self._left:
                continue
            if tag in BELOW and size == 4:
                if depth < 2:
                    below = self.read(struct.unpack(f"{order}I", inline)[0], None, depth + 1)
                    found[tag] = Value(_LONG, 1, b"", below)
                continue
            if size > 4:
                file.seek(struct.unpack(f"{order}I", inline)[0])
                inline = file.read(size)
            self._left -= size
            if len(inline) >= size:
                found[tag] = Value(kind, length, _ordered(inline[:size], kind, order))
        return found


def written(tags: dict[int, Value], order: str, start: int) -> bytes:
    """The bytes of a directory, which is the last of its chain, and of everything that it refers to, as they stand in a file from
    the place `start` on."""
    table, rest = struct.pack(f"{order}H", len(tags)), b""
    end = start + 2 + ENTRY_BYTES * len(tags) + 4
    for tag in sorted(tags):
        kind, count, data, below = tags[tag]
        place = end + len(rest)
        if below is not None:
            rest += written(below, order, place)
            inline = struct.pack(f"{order}I", place)
        elif len(data) > 4:
            rest += _ordered(data, kind, order)
            inline = struct.pack(f"{order}I", place)
        else:
            inline = _ordered(data, kind, order).ljust(4, b"\0")
        rest += bytes(len(rest) % 2)
        table += struct.pack(f"{order}HHI", tag, kind, count) + inline
    return table + bytes(4) + rest


def as_exif(tags: dict[int, Value]) -> bytes:
    """Tags as a TIFF structure, which is the form of EXIF."""
    return b"II*\0" + struct.pack("<I", 8) + written(tags, "<", 8)


def of_exif(exif: bytes) -> dict[int, Value]:
    """The values of EXIF that say how a picture came to be. Raises struct.error or ValueError where the bytes are no EXIF."""
    order = order_of(exif)
    if order is None:
        raise ValueError("no EXIF")
    return read_tags(io.BytesIO(exif), struct.unpack_from(f"{order}I", exif, 4)[0], order, {*DESCRIBING, *BELOW})


def _ordered(data: bytes, kind: int, order: str) -> bytes:
    """Converts values between the order with the low byte first and the order of a file; the two directions are the same."""
    word = _WORDS.get(kind, 1)
    return np.frombuffer(data, f">u{word}").astype(f"<u{word}").tobytes() if order == ">" and word > 1 else data
