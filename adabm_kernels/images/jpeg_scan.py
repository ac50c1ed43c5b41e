"""Checks whether the coded data of a sequential JPEG is what an encoder could have written (ITU-T T.81, F.2).

Decoders accept any data: after a wrong bit they read other codes than were written, put coefficients outside their block, make
blocks brighter than white, and show the result. Here the codes are only counted, and the mean of each block is followed.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np

_SEQUENTIAL = (0xC0, 0xC1)  # the markers of frames with Huffman codes that are not progressive
_OTHER_FRAMES = (0xC2, 0xC3, *range(0xC5, 0xC8), *range(0xC9, 0xD0))
_TABLES, _END, _SCAN, _STEPS, _RESTARTS = 0xC4, 0xD9, 0xDA, 0xDB, 0xDD
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_COEFFICIENTS = 64  # coefficients of a block
# The meaning of a code is one number. Its lowest _BITS bits say how many bits the code takes, with those of its value. The bits
# above say how many coefficients it passes or, for a mean, how many bits its value has. _ENDS and _NO_CODE are more coefficients
# than any block has, so that they end it.
_BITS, _ENDS, _NO_CODE = 8, 1 << 10, 1 << 12
_WINDOW_BITS = 16  # bits of the longest code
_MOST_MEAN = 1024  # the largest mean of a block of 8-bit values less 128, times 8
_MOST_COMPONENTS = 4
_PADDING = (b"", b"\0", b"\xff")  # bytes that some encoders put at the end in any number


class _Block(NamedTuple):
    """What is known of each block of a unit. component: the place of its component in the scan. first: the codes of its first
    coefficient, which is its mean. others: the codes of its other coefficients. most: the largest value of its mean, in
    quantisation steps."""

    component: int
    first: memoryview
    others: memoryview
    most: int


@dataclass
class _Tables:
    """What the segments have said so far. codes: the counts and symbols of each table of codes, by the class and number of the
    table. steps: the step of the mean, by the number of the quantisation table. restarts: the units of blocks between two restarts;
    0 where there are none."""

    codes: dict[int, bytes] = field(default_factory=dict)
    steps: dict[int, int] = field(default_factory=dict)
    restarts: int = 0


class _Frame(NamedTuple):
    """A frame: the size of the picture, and two values for each component by its identifier. factors: its sampling across and down.
    steps: the number of its quantisation table."""

    width: int
    height: int
    factors: dict[int, tuple[int, int]]
    steps: dict[int, int]

    @property
    def most(self) -> tuple[int, int]:
        return max(across for across, _ in self.factors.values()), max(down for _, down in self.factors.values())


def fault(data: bytes | memoryview | mmap.mmap, most_bytes: int | None = None) -> str | None:
    """Describes what is wrong with the coded data of a JPEG file; None where nothing is, and for kinds of data that are not
    checked.

    most_bytes: how many bytes from the start are checked; None for all. A kilobyte takes half a millisecond.
    """
    try:
        return next(_faults(data, most_bytes), None)
    except (struct.error, IndexError, KeyError, ValueError, ArithmeticError):  # the decoder complains about broken headers
        return None


def _faults(data: bytes | memoryview | mmap.mmap, most_bytes: int | None) -> Iterator[str]:
    tables, frame, left, place = _Tables(), None, most_bytes, 2
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
            tables.codes |= _huffman_tables(segment)
        elif marker in _SEQUENTIAL:
            if segment[0] != 8:  # the number of bits
                return
            height, width, count = struct.unpack_from(">HHB", segment, 1)
            parts = [segment[6 + 3 * index : 9 + 3 * index] for index in range(count)]
            factors = {part[0]: (part[1] >> 4, part[1] & 15) for part in parts}
            frame = _Frame(width, height, factors, {part[0]: part[2] for part in parts})
        elif marker == _STEPS:
            tables.steps |= _first_steps(segment)
        elif marker == _RESTARTS:
            (tables.restarts,) = struct.unpack(">H", segment)
        elif marker == _SCAN and frame is not None:
            end = _MARKER.search(data, place)
            stop = len(data) if end is None else end.start()
            if left is not None and stop - place > left:
                yield from _scan_faults(bytes(data[place : place + left]), segment, frame, tables, whole=False)
                return
            yield from _scan_faults(bytes(data[place:stop]), segment, frame, tables, whole=end is not None)
            left = None if left is None else left - (stop - place)
            place = stop


def _huffman_tables(segment: bytes) -> dict[int, bytes]:
    """The counts and symbols of each table, by its class and number."""
    found = {}
    while segment:
        end = 17 + sum(segment[1:17])
        found[segment[0]], segment = segment[1:end], segment[end:]
    return found


def _first_steps(segment: bytes) -> dict[int, int]:
    """For the number of each quantisation table, the step of the mean."""
    found = {}
    while segment:
        wide = segment[0] >> 4
        found[segment[0] & 15] = int.from_bytes(segment[1 : 2 + wide], "big")
        segment = segment[1 + _COEFFICIENTS * (1 + wide) :]
    return found


def _scan_faults(data: bytes, header: bytes, frame: _Frame, tables: _Tables, *, whole: bool) -> Iterator[str]:
    """The faults of one scan. whole: true where `data` is all the data of the scan."""
    chosen = [(header[1 + 2 * index], header[2 + 2 * index]) for index in range(header[0])]
    across, down = frame.most
    if len(chosen) == 1:  # blocks come in their order, and those outside the picture are left out
        factors = frame.factors[chosen[0][0]]
        units = -(-frame.width * factors[0] // (8 * across)) * -(-frame.height * factors[1] // (8 * down))
        blocks = [0]
    else:
        units = -(-frame.width // (8 * across)) * -(-frame.height // (8 * down))
        blocks = [place for place, (name, _) in enumerate(chosen) for _ in range(frame.factors[name][0] * frame.factors[name][1])]
    codes = []
    for place in blocks:
        name, number = chosen[place]
        most = _MOST_MEAN // max(tables.steps[frame.steps[name]], 1) + 1
        codes.append(_Block(place, _codes(tables.codes[number >> 4], True), _codes(tables.codes[16 | number & 15], False), most))
    pieces = _RESTART.split(data)
    for index, piece in enumerate(pieces):
        count = min(tables.restarts, units) if tables.restarts else units
        units -= count
        bits = piece.replace(b"\xff\0", b"\xff")
        found = _piece_fault(bits, codes, count, last=index == len(pieces) - 1, whole=whole)
        if found is not None:
            yield found
            return
    if whole and units:
        yield "its data ends before its picture does"


def _piece_fault(data: bytes, blocks: list[_Block], units: int, *, last: bool, whole: bool) -> str | None:
    """Describes what is wrong with the data between two restarts, which holds `units` units of blocks; None where nothing is."""
    bytes_ = np.frombuffer(data + b"\xff\xff\xff", np.uint8).astype(np.uint32)
    windows = ((bytes_[:-2] << 16) | (bytes_[1:-1] << 8) | bytes_[2:]).data  # 24 bits, beginning at each byte
    place, means = 0, [0] * _MOST_COMPONENTS
    try:
        for _ in range(units):
            for component, first, others, most in blocks:
                code = first[windows[place >> 3] >> (8 - (place & 7)) & 0xFFFF]
                place += code & 0xFF
                size = code >> _BITS
                if size:
                    start = place - size
                    value = (windows[start >> 3] >> (8 - (start & 7)) & 0xFFFF) >> (_WINDOW_BITS - size)
                    means[component] += value if value >> (size - 1) else value - (1 << size) + 1
                    if not -most <= means[component] <= most:
                        return _no_picture(data, place, last and not whole)
                passed = 1
                while passed < _COEFFICIENTS:
                    code = others[windows[place >> 3] >> (8 - (place & 7)) & 0xFFFF]
                    place += code & 0xFF
                    passed += code >> _BITS
                if _COEFFICIENTS < passed < _ENDS or passed >= _NO_CODE:
                    return _no_picture(data, place, last and not whole)
    except (IndexError, ValueError):  # the data is over, or this is no code
        return _no_picture(data, place, last and not whole)
    rest = data[(place + 7) >> 3 :]
    if last and not whole or len(set(rest)) <= 1 and rest[:1] in _PADDING:
        return None
    return f"{len(rest)} bytes of its data are left after its picture"


def _no_picture(data: bytes, place: int, cut: bool) -> str | None:
    """Describes a fault at the bit `place`, from which the data is no picture. cut: true where the data continues after its last
    bytes. The result is None where the fault may be due to that."""
    if cut and place >> 3 >= len(data) - 2:
        return None
    return "its data ends before its picture does" if place >> 3 >= len(data) else "its data holds codes that no encoder writes"


@lru_cache(32)
def _codes(table: bytes, first: bool) -> memoryview:
    """For each value of the next 16 bits, the meaning of the code with which they begin. first: true for the codes of first
    coefficients."""
    found = np.full(1 << _WINDOW_BITS, _NO_CODE << _BITS, np.uint32)
    code, place = 0, 16
    for length, count in enumerate(table[:16], 1):
        for symbol in table[place : place + count]:
            run, size = symbol >> 4, symbol & 15
            if first:
                effect = length + symbol | symbol << _BITS if symbol < 12 else _NO_CODE << _BITS
            elif size:
                effect = length + size | run + 1 << _BITS
            else:
                effect = length | {0: _ENDS, 15: 16}.get(run, _NO_CODE) << _BITS
            shift = _WINDOW_BITS - length
            found[code << shift : code + 1 << shift] = effect
            code += 1
        code <<= 1
        place += count
    return found.data
