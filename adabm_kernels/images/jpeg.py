"""JPEG files: whether their data is whole, and segments that libvips does not write as they were."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable

from . import jpeg_scan

try:  # this package exists for common machines alone; without it only a file that ends too early is noticed
    import simplejpeg
except ImportError:
    simplejpeg = None

_START, _END = b"\xff\xd8", b"\xff\xd9"  # the markers SOI and EOI
_SMALLEST = 1  # this decodes an eighth of the size, for which all data must be read
TOO_SHORT = "Premature end of JPEG file"
_SPOILS = ("Corrupt JPEG data", TOO_SHORT, "Inconsistent progression")  # messages of libjpeg about damage
_BEFORE_END = "extraneous bytes before marker 0xd9"
_CLOSELY_BYTES = 16 << 10  # files up to this size take 10 ms at most
_MOST_SEGMENT_BYTES = 65533
_WHOLE_DPI = 0.02  # how far a resolution may lie from a whole number that was converted to pixels a metre
_APP0, _APP1 = 0xE0, 0xE1


def damage(data: bytes | memoryview | mmap.mmap, thorough: bool = False) -> str | None:
    """What is wrong with the data of a JPEG file that can be read nevertheless, None where nothing is seen.

    All of it is seen as libjpeg sees it, and its beginning more closely (jpeg_scan.py), or all of it where thorough. JPEG has no
    checksums: damage whose bits are a picture too is not seen.
    """
    return _words_of_libjpeg(data) or jpeg_scan.fault(data, None if thorough else _CLOSELY_BYTES)


def lacks_only_end(data: bytes | memoryview | mmap.mmap) -> bool:
    """Whether a file without an end marker has all of its picture."""
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
    return None  # for some pictures it cannot tell, such as those of 12 bits


def segments(exif: bytes | None, dpi: tuple[float, float] | None) -> bytes | None:
    """The segments that say the resolution and hold EXIF; None where there is nothing to say, where EXIF is larger than a segment,
    and where the resolution is no whole number and there is no EXIF that would say it."""
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
    """Takes a JPEG file piece by piece and hands it on with segments after its first marker.

    Called with a piece it returns how many bytes it took, -1 where `write` failed: `error` is then what it failed with.
    """

    def __init__(self, write: Callable[[bytes], int], segments: bytes):
        self._write, self._segments = write, segments
        self._held: bytes | None = b""
        self.error: OSError | None = None

    def __call__(self, piece: bytes) -> int:
        try:
            if self._held is None:
                self._write(piece)
            elif len(self._held) + len(piece) < len(_START):
                self._held += piece
            else:
                whole = self._held + bytes(piece)
                self._write(whole[: len(_START)] + self._segments + whole[len(_START) :])
                self._held = None
        except OSError as error:
            self.error = error
            return -1
        return len(piece)
