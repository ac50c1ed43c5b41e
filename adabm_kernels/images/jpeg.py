"""JPEG files: whether their data is complete and undamaged, and the segments that libvips would not write as they were."""

from __future__ import annotations

import mmap
import struct

from . import jpeg_scan

try:  # this package exists for common machines alone; without it only a file that ends too early is noticed
    import simplejpeg
except ImportError:
    simplejpeg = None

_START, _END = b"\xff\xd8", b"\xff\xd9"  # the markers SOI and EOI
_SMALLEST = 1  # this decodes the picture at an eighth of its size, for which all data must be read
TOO_SHORT = "Premature end of JPEG file"
_SPOILS = ("Corrupt JPEG data", TOO_SHORT, "Inconsistent progression")  # the messages of libjpeg that tell of damage
_BEFORE_END = "extraneous bytes before marker 0xd9"
_CLOSELY_BYTES = 16 << 10  # files up to this size take 10 ms at most
_MOST_SEGMENT_BYTES = 65533
_WHOLE_DPI = 0.02  # how far a resolution may lie from a whole number that was converted to pixels a metre
_APP0, _APP1 = 0xE0, 0xE1


def damage(data: bytes | memoryview | mmap.mmap, thorough: bool = False) -> str | None:
    """Describes the damage in the data of a JPEG file that can be read nevertheless; None where none is seen.

    All data is checked as libjpeg checks it. The beginning is also checked more closely (jpeg_scan.py), or all of it where
    `thorough` is true. JPEG has no checksums: damage is not seen where the changed bits are valid too.
    """
    return _words_of_libjpeg(data) or jpeg_scan.fault(data, None if thorough else _CLOSELY_BYTES)


def lacks_only_end(data: bytes | memoryview | mmap.mmap) -> bool:
    """Returns whether a file without an end marker still has all of its picture."""
    words = _words_of_libjpeg(bytes(data) + _END)
    return words is None or words.endswith(_BEFORE_END)


def _words_of_libjpeg(data: bytes | memoryview | mmap.mmap) -> str | None:
    if simplejpeg is None:
        return None
    for space in ("GRAY", "CMYK"):
        try:
            simplejpeg.decode_jpeg(data, space, min_height=_SMALLEST, min_width=_SMALLEST, strict=True)
            return None
        except ValueError as error:
            words = str(error)
        if words.startswith(_SPOILS):
            return words
    return None  # the decoder cannot judge some pictures, such as those of 12 bits


def segments(exif: bytes | None, dpi: tuple[float, float] | None) -> bytes | None:
    """The segments that state the resolution and hold the EXIF. None where there is neither, where the EXIF is larger than a
    segment, and where the resolution is not a whole number and there is no EXIF to state it."""
    body = b"" if exif is None else b"Exif\0\0" + exif
    whole = dpi is None or max(abs(value - round(value)) for value in dpi) < _WHOLE_DPI
    if len(body) > _MOST_SEGMENT_BYTES or (exif is None and (dpi is None or not whole)):
        return None
    unit, across, down = (0, 1, 1) if dpi is None else (1, *(min(max(round(value), 1), 65535) for value in dpi))
    found = _segment(_APP0, b"JFIF\0" + struct.pack(">BBBHHBB", 1, 2, unit, across, down, 0, 0))
    return found + (_segment(_APP1, body) if body else b"")


def _segment(kind: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, kind, 2 + len(data)) + data


class Inserting:
    """Takes a JPEG file piece by piece, and gives each back with segments inserted after the first marker of the file."""

    def __init__(self, segments: bytes):
        self._segments = segments
        self._held: bytes | None = b""  # what came before the marker was whole; None once the segments are inserted

    def __call__(self, piece: bytes) -> bytes:
        if self._held is None:
            return piece
        self._held += piece
        if len(self._held) < len(_START):
            return b""
        whole, self._held = self._held, None
        return whole[: len(_START)] + self._segments + whole[len(_START) :]
