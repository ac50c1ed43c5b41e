"""Reads the directories of a TIFF file (TIFF 6.0 and BigTIFF), which tell which of its pictures is the main one and what its
channels are."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NoReturn

from . import ifd
from .formats import RAW

_SUBFILE, _OLD_SUBFILE, _WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC = 254, 255, 256, 257, 258, 262
_SAMPLES, _SUB_DIRECTORIES, _EXTRA = 277, 330, 338
_DESCRIPTION, _DNG_VERSION = 270, 50706
# descriptions that begin like this are for programs, and describe an array that the output is not
_OF_PIXELS = (b'{"shape', b"ImageJ=", b"<?xml", b"<OME")
_NUMBERS = frozenset({_SUBFILE, _OLD_SUBFILE, _WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _SAMPLES, _SUB_DIRECTORIES, _EXTRA})
_TYPES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}  # for each type of numbers, the letter that `struct` uses
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, CIELAB, _SENSOR, _LINEAR_RAW = 0, 1, 2, 8, 32803, 34892  # photometric interpretations
_REDUCED, _MASK = 1, 4  # bits of NewSubfileType
_MOST_DIRECTORIES = 4096
_MOST_VALUES = 4096
_MOST_BYTES = 16 << 20  # the most bytes of all directories, which may overlap in a hostile file
PREMULTIPLIED, ALPHA = 1, 2  # meanings of an extra channel; 0 is any other


@dataclass(frozen=True)
class Directory:
    """One picture in a TIFF file. page: its place in the chain. sub: its place among the pictures below that page; -1 for the page
    itself.

    reduced: true for a smaller form of another picture. mask: true for a picture that says where another is transparent. extra: the
    meanings of the channels after the colours; None where the file does not say them. tags: all tags of the directory.
    """

    page: int
    sub: int
    width: int
    height: int
    reduced: bool
    mask: bool
    photometric: int
    bits: int
    samples: int
    extra: tuple[int, ...] | None
    tags: frozenset[int]

    @property
    def channels(self) -> tuple[tuple[int, ...], int]:
        """The numbers of the channels for colours and alpha, and how many other channels there are."""
        every = tuple(range(self.samples))
        if self.extra is None or self.photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB):
            return every, 0
        colours = self.samples - len(self.extra)
        alpha = [colours + place for place, kind in enumerate(self.extra) if kind in (PREMULTIPLIED, ALPHA)][:1]
        if colours != (3 if self.photometric == _RGB else 1):
            return every, 0
        return (*every[:colours], *alpha), len(self.extra) - len(alpha)


def directories(file: BinaryIO) -> list[Directory]:
    """All directories of a TIFF file; those below a page follow the page. The list ends where a directory cannot be read, and the
    decoder reports the fault."""
    found: list[Directory] = []
    try:
        reader = _Reader(file)
        for page, (values, tags) in enumerate(reader.chain()):
            found.append(_directory(page, -1, values, tags))
            for sub, start in enumerate(values.get(_SUB_DIRECTORIES, ())[: _MOST_DIRECTORIES - len(found)]):
                values_below, tags_below, _ = reader.directory(start)
                found.append(_directory(page, sub, values_below, tags_below))
    except (struct.error, ValueError, OSError, OverflowError):
        pass
    return found


def full_picture(found: list[Directory]) -> Directory | None:
    """The first picture that is not a smaller form of another; None where no directory was found. Raises ValueError for a raw
    picture that must be developed first."""
    if not found:
        return None
    raw = any(directory.photometric in (_SENSOR, _LINEAR_RAW) for directory in found)
    if raw or _DNG_VERSION in found[0].tags:
        refuse_raw()
    full = [directory for directory in found if not (directory.reduced or directory.mask)]
    return full[0] if full else found[0]


def pages(found: list[Directory]) -> int:
    """The number of pictures that lie beside each other in the file, at least 1."""
    return max(sum(directory.sub < 0 and not (directory.reduced or directory.mask) for directory in found), 1)


def refuse_raw() -> NoReturn:
    raise ValueError(f"it is {RAW}, of which only a preview could be read; develop it into a TIFF, PNG or JPEG file first")


def is_camera_raw(start: bytes) -> bool:
    """Returns whether a file with the signature of a TIFF is a raw picture of one of Canon's older cameras, whose first page is a
    preview."""
    return start[8:10] == b"CR"


def exif_of(file: BinaryIO, page: int) -> bytes | None:
    """The tags of a page that say how the picture came to be, as EXIF. None where there are none, and for a BigTIFF."""
    try:
        file.seek(0)
        order = ifd.order_of(file.read(4))
        _, tags, start = _Reader(file).page(page)
        wanted = {*ifd.DESCRIBING, *ifd.BELOW}
        if order is None or not tags & wanted:
            return None
        found = ifd.read_tags(file, start, order, wanted)
        if _DESCRIPTION in found and found[_DESCRIPTION].data.lstrip().startswith(_OF_PIXELS):
            del found[_DESCRIPTION]
        return ifd.as_exif(found) if found else None
    except (struct.error, ValueError, OSError, OverflowError):
        return None


def add_exif(file: BinaryIO, exif: bytes) -> None:
    """Adds the contents of EXIF to the only page of a finished TIFF file, which must not be a BigTIFF. The page's directory is
    written anew at the end of the file.

    EXIF that cannot be understood is left out.
    """
    try:
        added = ifd.of_exif(exif)
    except (struct.error, ValueError):
        return
    file.seek(0)
    header = file.read(8)
    order = ifd.order_of(header)
    assert order is not None, "the writer makes no BigTIFF of a picture with EXIF"
    there = ifd.read_tags(file, struct.unpack(f"{order}I", header[4:])[0], order)
    end = file.seek(0, os.SEEK_END)
    start = end + end % 2
    file.write(bytes(start - end) + ifd.written({**there, **added}, order, start))
    file.seek(4)
    file.write(struct.pack(f"{order}I", start))
    file.seek(0, os.SEEK_END)


def _directory(page: int, sub: int, values: dict[int, tuple[int, ...]], tags: frozenset[int]) -> Directory:
    def one(tag: int, otherwise: int) -> int:
        return values.get(tag, (otherwise,))[0]

    kind = one(_SUBFILE, 0)
    reduced = bool(kind & _REDUCED) or one(_OLD_SUBFILE, 1) == 2
    return Directory(
        page,
        sub,
        one(_WIDTH, 0),
        one(_HEIGHT, 0),
        reduced,
        bool(kind & _MASK),
        one(_PHOTOMETRIC, -1),
        one(_BITS, 1),
        one(_SAMPLES, 1),
        values.get(_EXTRA),
        tags,
    )


class _Reader:
    """Reads the directories of an open file. Raises ValueError where it is not a TIFF, or where its chain of directories has no
    end."""

    def __init__(self, file: BinaryIO):
        self._file, self._left = file, _MOST_BYTES
        file.seek(0)
        header = file.read(16)
        order = {b"II": "<", b"MM": ">"}.get(header[:2])
        if order is None:
            raise ValueError("no TIFF")
        self._order = order
        self._big = struct.unpack_from(f"{self._order}H", header, 2)[0] == 43
        self._first = struct.unpack_from(f"{self._order}{'Q' if self._big else 'I'}", header, 8 if self._big else 4)[0]

    def chain(self) -> Iterator[tuple[dict[int, tuple[int, ...]], frozenset[int]]]:
        start = self._first
        seen: set[int] = set()
        while start and start not in seen and len(seen) < _MOST_DIRECTORIES:
            seen.add(start)
            values, tags, start = self.directory(start)
            yield values, tags

    def page(self, page: int) -> tuple[dict[int, tuple[int, ...]], frozenset[int], int]:
        """The values and tags of a page, and the place where its directory begins."""
        start = self._first
        for _ in range(page):
            start = self.directory(start)[2]
        return *self.directory(start)[:2], start

    def directory(self, start: int) -> tuple[dict[int, tuple[int, ...]], frozenset[int], int]:
        """The numbers by tag, all tags, and the place where the next directory begins, which is 0 after the last."""
        count = self._number(start, "Q" if self._big else "H")
        place, step = start + (8 if self._big else 2), 20 if self._big else 12
        if count > _MOST_VALUES:
            raise ValueError("no directory")
        table = self._read(place, count * step)
        values: dict[int, tuple[int, ...]] = {}
        tags = set()
        for entry in range(0, count * step, step):
            tag, kind, length = struct.unpack_from(f"{self._order}HH{'Q' if self._big else 'I'}", table, entry)
            tags.add(tag)
            if tag in _NUMBERS and kind in _TYPES and 0 < length <= _MOST_VALUES:
                values[tag] = self._values(table[entry + (12 if self._big else 8) : entry + step], _TYPES[kind], length)
        return values, frozenset(tags), self._number(place + count * step, "Q" if self._big else "I")

    def _values(self, inline: bytes, code: str, length: int) -> tuple[int, ...]:
        size = struct.calcsize(f"<{length}{code}")
        if size > len(inline):
            inline = self._read(struct.unpack(f"{self._order}{'Q' if self._big else 'I'}", inline)[0], size)
        return struct.unpack_from(f"{self._order}{length}{code}", inline)

    def _number(self, place: int, code: str) -> int:
        return struct.unpack(f"{self._order}{code}", self._read(place, struct.calcsize(f"<{code}")))[0]

    def _read(self, place: int, size: int) -> bytes:
        self._left -= size
        if self._left < 0:
            raise ValueError("directories without end")
        self._file.seek(place)
        return self._file.read(size)
