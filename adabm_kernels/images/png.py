"""Writes the PNG format by rows (ISO/IEC 15948)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from types import ModuleType

import numpy as np

from .formats import Layout

deflate: ModuleType
try:  # this package exists for x86-64 and ARM alone; zlib gives files of the same size in four times the time
    from isal import isal_zlib as deflate
except ImportError:
    deflate = zlib

_LEVEL = 1
_AVERAGE = 3  # the filter type that subtracts from a byte the mean of its left and its upper neighbour
_BLOCK_BYTES = 1 << 20  # bytes of rows that are filtered and compressed at a time
_METRE = 1000 / 25.4  # inches in a metre
_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # for each number of channels


class PngStream:
    """Makes the bytes of a PNG file from the rows of a picture: call `start`, then `rows` until all rows are given, then `end`.

    plain: true for a file that is neither filtered nor compressed, and that contains nothing but pixels.
    """

    def __init__(self, layout: Layout, *, plain: bool = False):
        self._layout, self._plain = layout, plain
        self._deflate = zlib.compressobj(0) if plain else deflate.compressobj(_LEVEL)
        self._above = np.zeros(1, np.uint8)  # the last row, with zeros on its left

    def start(self) -> bytes:
        """The bytes before the pixels."""
        layout = self._layout
        head = struct.pack(">IIBBBBB", layout.width, layout.height, layout.depth, _COLOUR_TYPES[layout.channels], 0, 0, 0)
        parts = [b"\x89PNG\r\n\x1a\n", _chunk(b"IHDR", head)]
        if not self._plain:
            parts += [_chunk(name, data) for name, data in (*_colour_chunks(layout), *_describing_chunks(layout))]
        return b"".join(parts)

    def rows(self, rows: np.ndarray) -> Iterator[bytes]:
        """The bytes of the next rows, one chunk at a time. rows: [n, W, channels] of the layout's type."""
        step = max(_BLOCK_BYTES // self._layout.row_bytes, 1)
        for first in range(0, len(rows), step):
            some = rows[first : first + step]
            some = np.ascontiguousarray(some, ">u2" if self._layout.depth == 16 else np.uint8)
            data = self._deflate.compress(self._lines(some.reshape(len(some), -1).view(np.uint8)).data)
            if data:
                yield _chunk(b"IDAT", data)

    def end(self) -> bytes:
        """The bytes after the pixels."""
        return _chunk(b"IDAT", self._deflate.flush()) + _chunk(b"IEND", b"")

    def _lines(self, rows: np.ndarray) -> np.ndarray:
        """The filtered rows, uint8 [n, 1 + row bytes]: the filter type of each row, and the bytes that the filter gives."""
        lines = np.empty((len(rows), 1 + rows.shape[1]), np.uint8)
        if self._plain:
            lines[:, 0], lines[:, 1:] = 0, rows
            return lines
        pixel = self._layout.channels * self._layout.depth // 8
        around = np.zeros((1 + len(rows), pixel + rows.shape[1]), np.uint8)
        around[0], around[1:, pixel:] = self._above, rows
        left, above = around[1:, :-pixel], around[:-1, pixel:]
        # (left + above) / 2 rounded down, without a ninth bit
        mean = left & above
        np.add(mean, (left ^ above) >> 1, out=mean)
        lines[:, 0] = _AVERAGE
        np.subtract(rows, mean, out=lines[:, 1:])
        self._above = around[-1].copy()
        return lines


def _colour_chunks(layout: Layout) -> Iterator[tuple[bytes, bytes]]:
    """The chunks about colours, in the order of their precedence."""
    if layout.colour is not None and layout.colour.cicp is not None:
        yield b"cICP", layout.colour.cicp
    if layout.icc is not None:
        yield b"iCCP", b"icc\0\0" + zlib.compress(layout.icc)
    if layout.colour is not None:
        yield from layout.colour.chunks(profile=layout.icc is not None)


def _describing_chunks(layout: Layout) -> Iterator[tuple[bytes, bytes]]:
    if layout.dpi is not None:
        yield b"pHYs", struct.pack(">IIB", *(round(dpi * _METRE) for dpi in layout.dpi), 1)
    if layout.metadata is None:
        return
    metadata = layout.metadata.upright(layout.width, layout.height, layout.dpi)
    if metadata.exif is not None:
        yield b"eXIf", metadata.exif
    if metadata.xmp is not None:
        yield b"iTXt", b"XML:com.adobe.xmp" + bytes(5) + metadata.xmp
    yield from metadata.text


def _chunk(kind: bytes, data: bytes) -> bytes:
    return b"".join([struct.pack(">I", len(data)), kind, data, struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))])
