"""Whether the coded data of a sequential JPEG is what an encoder could have written (ITU-T T.81, F.2).

Decoders take what comes: after a wrong bit they read other codes than were written, put coefficients outside their block, and show
what results. Codes are only counted here, no coefficient is computed.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

_SEQUENTIAL = (0xC0, 0xC1)  # markers of frames in Huffman codes and in one go
_OTHER_FRAMES = (0xC2, 0xC3, *range(0xC5, 0xC8), *range(0xC9, 0xD0))
_TABLES, _END, _SCAN, _RESTARTS = 0xC4, 0xD9, 0xDA, 0xDD
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_COEFFICIENTS = 64  # of a block
# What a code does: bits that it takes, its value among them, and above them coefficients that it passes. These are more than any
# block has, so that one of them ends it.
_BITS, _ENDS, _NO_CODE = 8, 1 << 10, 1 << 12
_WINDOW_BITS = 16  # the longest code
_PADDING = (b"", b"\0", b"\xff")  # bytes of which some encoders put any number at the end


class _Frame(NamedTuple):
    """factors: sampling of each component, across and down, by its identifier."""

    width: int
    height: int
    factors: dict[int, tuple[int, int]]

    @property
    def most(self) -> tuple[int, int]:
        return max(across for across, _ in self.factors.values()), max(down for _, down in self.factors.values())


def fault(data: bytes | memoryview, most_bytes: int | None = None) -> str | None:
    """What is wrong with the coded data of a JPEG file, None where it is right or of a kind that is not looked at.

    most_bytes: of it that are looked at from the start, None for all. It takes half a millisecond a kilobyte.
    """
    try:
        return next(_faults(data, most_bytes), None)
    except (struct.error, IndexError, KeyError, ValueError):  # headers, of which the decoder complains
        return None


def _faults(data: bytes | memoryview, most_bytes: int | None) -> Iterator[str]:
    tables: dict[int, bytes] = {}
    frame, restarts, left, place = None, 0, most_bytes, 2
    while True:
        while data[place] != 0xFF:
            place += 1
        while data[place] == 0xFF:
            place += 1
        marker = data[place]
        if marker == _END or marker in _OTHER_FRAMES:
            return
        (size,) = struct.unpack_from(">H", data, place + 1)
        segment, place = bytes(data[place + 3 : place + 1 + size]), place + 1 + size
        if marker == _TABLES:
            tables |= _huffman_tables(segment)
        elif marker in _SEQUENTIAL:
            if segment[0] != 8:  # bits
                return
            height, width, count = struct.unpack_from(">HHB", segment, 1)
            parts = (segment[6 + 3 * index : 8 + 3 * index] for index in range(count))
            frame = _Frame(width, height, {part[0]: (part[1] >> 4, part[1] & 15) for part in parts})
        elif marker == _RESTARTS:
            (restarts,) = struct.unpack(">H", segment)
        elif marker == _SCAN and frame is not None:
            end = _MARKER.search(data, place)
            stop = len(data) if end is None else end.start()
            if left is not None and stop - place > left:
                yield from _scan_faults(bytes(data[place : place + left]), segment, frame, tables, restarts, whole=False)
                return
            yield from _scan_faults(bytes(data[place:stop]), segment, frame, tables, restarts, whole=end is not None)
            left = None if left is None else left - (stop - place)
            place = stop


def _huffman_tables(segment: bytes) -> dict[int, bytes]:
    """Counts and symbols of each table by its class and number."""
    found = {}
    while segment:
        end = 17 + sum(segment[1:17])
        found[segment[0]], segment = segment[1:end], segment[end:]
    return found


def _scan_faults(
    data: bytes, header: bytes, frame: _Frame, tables: dict[int, bytes], restarts: int, *, whole: bool
) -> Iterator[str]:
    """whole: whether the data is all of the scan's."""
    chosen = [(header[1 + 2 * index], header[2 + 2 * index]) for index in range(header[0])]
    across, down = frame.most
    if len(chosen) == 1:  # blocks as they come, those left out that lie outside the picture
        factors = frame.factors[chosen[0][0]]
        units = -(-frame.width * factors[0] // (8 * across)) * -(-frame.height * factors[1] // (8 * down))
        blocks = [chosen[0][1]]
    else:
        units = -(-frame.width // (8 * across)) * -(-frame.height // (8 * down))
        blocks = [number for name, number in chosen for _ in range(frame.factors[name][0] * frame.factors[name][1])]
    codes = [(_codes(tables[number >> 4], True), _codes(tables[16 | number & 15], False)) for number in blocks]
    pieces = _RESTART.split(data)
    for index, piece in enumerate(pieces):
        count = min(restarts, units) if restarts else units
        units -= count
        bits = piece.replace(b"\xff\0", b"\xff")
        found = _piece_fault(bits, codes, count, last=index == len(pieces) - 1, whole=whole)
        if found is not None:
            yield found
            return
    if whole and units:
        yield "its data ends before its picture does"


def _piece_fault(data: bytes, codes: list[tuple[memoryview, memoryview]], units: int, *, last: bool, whole: bool) -> str | None:
    """Of the data between two restarts, which has so many units of blocks."""
    bytes_ = np.frombuffer(data + b"\xff\xff\xff", np.uint8).astype(np.uint32)
    windows = memoryview((bytes_[:-2] << 16) | (bytes_[1:-1] << 8) | bytes_[2:])  # 24 bits from each byte on
    place = 0
    try:
        for _ in range(units):
            for first, others in codes:
                place += first[windows[place >> 3] >> (8 - (place & 7)) & 0xFFFF]
                passed = 1
                while passed < _COEFFICIENTS:
                    code = others[windows[place >> 3] >> (8 - (place & 7)) & 0xFFFF]
                    place += code & 0xFF
                    passed += code >> _BITS
                if _COEFFICIENTS < passed < _ENDS or passed >= _NO_CODE:
                    cut = last and not whole and place >> 3 >= len(data) - 2
                    return None if cut else "its data holds codes that no encoder writes"
    except IndexError:  # beyond the end
        return None if last and not whole else "its data ends before its picture does"
    rest = data[(place + 7) >> 3 :]
    if last and not whole or len(set(rest)) <= 1 and rest[:1] in _PADDING:
        return None
    return f"{len(rest)} bytes of its data are left after its picture"


@lru_cache(32)
def _codes(table: bytes, first: bool) -> memoryview:
    """What the code does that the next 16 bits begin with, by these bits. first: whether codes are for the first coefficient."""
    found = np.full(1 << _WINDOW_BITS, 1 << 30 if first else _NO_CODE << _BITS, np.uint32)
    code, place = 0, 16
    for length, count in enumerate(table[:16], 1):
        for symbol in table[place : place + count]:
            run, size = symbol >> 4, symbol & 15
            if first:
                effect = length + symbol if symbol < 12 else 1 << 30
            elif size:
                effect = length + size | run + 1 << _BITS
            else:
                effect = length | {0: _ENDS, 15: 16}.get(run, _NO_CODE) << _BITS
            shift = _WINDOW_BITS - length
            found[code << shift : code + 1 << shift] = effect
            code += 1
        code <<= 1
        place += count
    return memoryview(found)
