"""The contents of a picture file beside its pixels and colours: EXIF, XMP, IPTC and the texts of a PNG."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from .ifd import order_of

_ORIENTATION, _WIDTH, _HEIGHT = 0x0112, 0x0100, 0x0101
_EXIF_IFD, _EXIF_WIDTH, _EXIF_HEIGHT = 0x8769, 0xA002, 0xA003
_THUMBNAIL_START, _THUMBNAIL_BYTES = 0x0201, 0x0202
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT, _INCH = 0x011A, 0x011B, 0x0128, 2
_RESOLUTION_PARTS = 1000  # parts of a dot per inch in which a resolution is written
_SHORT, _LONG = 3, 4
_ENTRY = 12  # the bytes of an entry of a directory
_PREFIX = b"Exif\0\0"
_XMP_ORIENTATION = re.compile(rb"""(tiff:Orientation(?:\s*=\s*["']|>)\s*)[2-8]""")
# XMP with one of these names describes further pictures or a film behind the picture, which are not carried over.
_XMP_OF_ATTACHMENTS = (b"http://ns.google.com/photos/1.0/container/", b"http://ns.adobe.com/hdr-gain-map/1.0/")


@dataclass(frozen=True)
class Metadata:
    """exif: a TIFF structure, without the six bytes before it in a JPEG. xmp: a packet of XML. iptc: the IPTC data of a JPEG.

    text: the chunks tEXt, zTXt and iTXt of a PNG, each as a name and contents. A field is None, or empty, where the file lacks the
    data.
    """

    exif: bytes | None = None
    xmp: bytes | None = None
    iptc: bytes | None = None
    text: tuple[tuple[bytes, bytes], ...] = ()

    def upright(self, width: int, height: int, dpi: tuple[float, float] | None = None) -> Metadata:
        """The metadata for an output of this size and, where it has one, this resolution. The output is upright, and the thumbnail
        is left out because it would show the input."""
        exif = None if self.exif is None else _upright_exif(self.exif, width, height, dpi)
        xmp = None if self.xmp is None else _upright_xmp(self.xmp)
        return Metadata(exif, xmp, self.iptc, self.text)


def metadata_of(
    exif: bytes | None = None, xmp: bytes | None = None, iptc: bytes | None = None, text: tuple[tuple[bytes, bytes], ...] = ()
) -> Metadata | None:
    """The metadata of a picture; None where there is none."""
    exif = exif.removeprefix(_PREFIX) if exif else None
    found = Metadata(exif or None, xmp or None, iptc or None, text)
    return None if found == Metadata() else found


def orientation_of(exif: bytes | None) -> int:
    """The orientation of a picture according to its EXIF: 1 (upright) to 8."""
    order = None if exif is None else order_of(exif)
    if exif is None or order is None:
        return 1
    try:
        entries = _entries(exif, struct.unpack_from(f"{order}I", exif, 4)[0], order)
        (found,) = struct.unpack_from(f"{order}H", exif, entries.get(_ORIENTATION, len(exif)) + 8)
    except struct.error:
        return 1
    return found if 1 <= found <= 8 else 1


def _upright_exif(exif: bytes, width: int, height: int, dpi: tuple[float, float] | None) -> bytes | None:
    """The EXIF, changed without moving its parts, because the maker of a camera finds its own data by their places; None where the
    bytes are no EXIF."""
    data = bytearray(exif)
    order = order_of(exif)
    if order is None:
        return None
    try:
        first = struct.unpack_from(f"{order}I", data, 4)[0]
        entries = _entries(data, first, order)
        _set(data, entries.get(_ORIENTATION), order, _SHORT, 1)
        _set(data, entries.get(_WIDTH), order, _LONG, width)
        _set(data, entries.get(_HEIGHT), order, _LONG, height)
        if dpi is not None and entries.keys() >= {_X_RESOLUTION, _Y_RESOLUTION}:
            for tag, value in zip((_X_RESOLUTION, _Y_RESOLUTION), dpi, strict=True):
                place = struct.unpack_from(f"{order}I", data, entries[tag] + 8)[0]
                struct.pack_into(f"{order}II", data, place, round(value * _RESOLUTION_PARTS), _RESOLUTION_PARTS)
            _set(data, entries.get(_RESOLUTION_UNIT), order, _SHORT, _INCH)
        if _EXIF_IFD in entries:
            inner = _entries(data, struct.unpack_from(f"{order}I", data, entries[_EXIF_IFD] + 8)[0], order)
            _set(data, inner.get(_EXIF_WIDTH), order, _LONG, width)
            _set(data, inner.get(_EXIF_HEIGHT), order, _LONG, height)
        link = first + 2 + _ENTRY * struct.unpack_from(f"{order}H", data, first)[0]
        return _without_thumbnail(data, link, order) if link + 4 <= len(data) else bytes(data)
    except struct.error:
        return None


def _entries(data: bytes | bytearray, start: int, order: str) -> dict[int, int]:
    """For each tag of a directory, the place where its entry begins."""
    count = struct.unpack_from(f"{order}H", data, start)[0]
    places = range(start + 2, start + 2 + _ENTRY * count, _ENTRY)
    return {struct.unpack_from(f"{order}H", data, place)[0]: place for place in places if place + _ENTRY <= len(data)}


def _set(data: bytearray, place: int | None, order: str, kind: int, value: int) -> None:
    if place is not None:
        packed = struct.pack(f"{order}HH", value, 0) if kind == _SHORT else struct.pack(f"{order}I", value)
        struct.pack_into(f"{order}HI", data, place + 2, kind, 1)
        data[place + 8 : place + 12] = packed


def _without_thumbnail(data: bytearray, link: int, order: str) -> bytes:
    """The EXIF without its thumbnail. link: the place where the first directory refers to the second, which belongs to the
    thumbnail."""
    second = struct.unpack_from(f"{order}I", data, link)[0]
    struct.pack_into(f"{order}I", data, link, 0)
    if not second:
        return bytes(data)
    entries = _entries(data, second, order)
    if _THUMBNAIL_START in entries and _THUMBNAIL_BYTES in entries:
        start, size = (struct.unpack_from(f"{order}I", data, entries[tag] + 8)[0] for tag in (_THUMBNAIL_START, _THUMBNAIL_BYTES))
        if start >= 8 and start + size >= len(data) - 1:
            return bytes(data[:start])
        if start >= 8:
            data[start : start + size] = bytes(size)
    return bytes(data)


def _upright_xmp(xmp: bytes) -> bytes | None:
    if any(name in xmp for name in _XMP_OF_ATTACHMENTS):
        return None
    return _XMP_ORIENTATION.sub(rb"\g<1>1", xmp)
