"""Reads the contents of a PNG file around its pixels (ISO/IEC 15948), without decoding the pixels."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO

from .colour import Colour

_READ = (b"eXIf", b"gAMA", b"cHRM", b"sRGB", b"cICP", b"iCCP", b"pHYs", b"acTL", b"tEXt", b"zTXt", b"iTXt")
_TEXT = (b"tEXt", b"zTXt", b"iTXt")
_LENGTHS = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"cICP": 4, b"pHYs": 9, b"acTL": 8}
_MOST_TEXT_BYTES = 16 << 20  # the most bytes of all texts together
_MOST_UNPACKED_BYTES = 1 << 20  # the most bytes of an uncompressed text, which is Pillow's limit
_MOST_UNPACKED_TEXTS = 64  # the most texts of that size
_MOST_FAULTS = 16  # the most faults that are named
_MOST_PROFILE_BYTES = 16 << 20
_PIECE = 1 << 20
_XMP = b"XML:com.adobe.xmp\0"
_HEAD_BYTES = 8
_IHDR_START, _IHDR_END = 16, 33  # where the contents of the chunk IHDR begin, and where the chunk ends
_BY_PALETTE = b"\3"


@dataclass
class Facts:
    """What the chunks of a PNG say. bits: the bits of an index into the palette; 0 where there is no palette. palette: the number
    of its colours. frames: the number of frames of an animated PNG, or 1. resolution: true where the file states one. faults:
    faults that leave all rows intact, as clauses."""

    bits: int = 0
    palette: int = 0
    colour: Colour | None = None
    icc: bytes | None = None
    exif: bytes | None = None
    frames: int = 1
    resolution: bool = False
    text: list[tuple[bytes, bytes]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def facts(file: BinaryIO) -> Facts:
    """Reads a PNG file chunk by chunk. Its signature must have been checked."""
    found, text_bytes, unpacked = Facts(), 0, 0
    colours: dict[bytes, bytes] = {}
    file.seek(8)
    while True:
        head = file.read(_HEAD_BYTES)
        if len(head) < _HEAD_BYTES:
            found.faults.append("it ends without its end chunk (IEND)")
            break
        size, name = struct.unpack(">I4s", head)
        if name == b"IEND":
            break
        if not name[0] & 0x20:  # the decoder checks the chunks that the pixels need
            if name == b"IHDR":
                header = file.read(min(size, _HEAD_BYTES + 2))
                found.bits = header[8] if header[9:] == _BY_PALETTE else 0
                size -= len(header)
            elif name == b"PLTE":
                found.palette = size // 3
            file.seek(size + 4, os.SEEK_CUR)
            continue
        data, good = _contents(file, name, size)
        if not good:
            if len(found.faults) < _MOST_FAULTS:
                found.faults.append(f"the checksum of its chunk {name.decode('latin-1')} is wrong, which is left out")
            continue
        if len(data) < _LENGTHS.get(name, 0):
            continue
        if name in _TEXT:
            text_bytes += len(data)
            if (
                text_bytes <= _MOST_TEXT_BYTES
                and unpacked < _MOST_UNPACKED_TEXTS * _MOST_UNPACKED_BYTES
                and not data.startswith(_XMP)
            ):
                readable, size = _readable(name, data)
                unpacked += size
                found.text += [(name, data)] if readable else []
        elif name == b"eXIf":
            found.exif = data.removeprefix(b"Exif\0\0")
        elif name == b"iCCP":
            found.icc = _profile(data)
        elif name == b"pHYs":
            found.resolution = data[8] == 1
        elif name == b"acTL":
            found.frames = max(int.from_bytes(data[:4], "big"), 1)
        elif name in _READ:
            colours.setdefault(name, data)
    found.colour = _colour(colours)
    return found


def as_grey(file: BinaryIO) -> Callable[[int], bytes]:
    """Gives a function like `read` that yields a PNG with a palette as a grey PNG, whose values are the indices. file: a file at
    its start."""
    head = file.read(_IHDR_END)
    kind = _IHDR_START + 9
    changed = head[_IHDR_START:kind] + b"\0" + head[kind + 1 : _IHDR_END - 4]
    held = head[:_IHDR_START] + changed + struct.pack(">I", zlib.crc32(changed, zlib.crc32(b"IHDR")))

    def read(size: int) -> bytes:
        nonlocal held
        part, held = held[:size], held[size:]
        return part or file.read(size)

    return read


def _contents(file: BinaryIO, name: bytes, size: int) -> tuple[bytes, bool]:
    """The contents of a chunk, as far as they are read here; and true where its checksum is right."""
    checksum, parts, left = zlib.crc32(name), [], size
    while left > 0 and (part := file.read(min(left, _PIECE))):
        checksum, left = zlib.crc32(part, checksum), left - len(part)
        if name in _READ and size <= _MOST_TEXT_BYTES:
            parts.append(part)
    return b"".join(parts), file.read(4) == struct.pack(">I", checksum)


def _readable(name: bytes, data: bytes) -> tuple[bool, int]:
    """Returns whether an uncompressed text is at most as large as other readers accept, and how many bytes were uncompressed to
    find out."""
    keyword, _, rest = data.partition(b"\0")
    if name == b"zTXt":
        packed = rest[1:]
    elif name == b"iTXt" and rest[:1] == b"\1":
        packed = rest[2:].split(b"\0", 2)[-1]
    else:
        return bool(keyword), 0
    unpack = zlib.decompressobj()
    try:
        size = len(unpack.decompress(packed, _MOST_UNPACKED_BYTES))
    except zlib.error:
        return False, _MOST_UNPACKED_BYTES
    return bool(keyword) and unpack.eof, size


def _profile(data: bytes) -> bytes | None:
    name_end = data.find(b"\0")
    if name_end < 0:
        return None
    unpack = zlib.decompressobj()
    try:
        return unpack.decompress(data[name_end + 2 :], _MOST_PROFILE_BYTES)
    except zlib.error:
        return None


def _colour(chunks: dict[bytes, bytes]) -> Colour | None:
    gamma = chunks.get(b"gAMA")
    chromaticities = chunks.get(b"cHRM")
    srgb, cicp = chunks.get(b"sRGB"), chunks.get(b"cICP")
    values = None if chromaticities is None else tuple(value / 1e5 for value in struct.unpack_from(">8I", chromaticities))
    if values is not None and not _makes_colours(values):
        values = None
    exponent = None if gamma is None else int.from_bytes(gamma[:4], "big") / 1e5
    found = Colour(
        exponent if exponent and 0.01 <= exponent <= 10 else None,
        values,
        srgb[0] if srgb is not None and srgb[0] < 4 else None,
        cicp[:4] if cicp is not None else None,
    )
    return None if found == Colour() else found


def _makes_colours(values: tuple[float, ...]) -> bool:
    """Returns whether white has a brightness and the primaries span a triangle."""
    _, white_y, rx, ry, gx, gy, bx, by = values
    return min(white_y, ry, gy, by) > 0 and abs((gx - rx) * (by - ry) - (bx - rx) * (gy - ry)) > 1e-4
