"""Pairs of half-precision numbers in a register, the first of them in its low half."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from .machine import LANES, WORD, Decoding, Row, Step, Warp, lanes_of, opcode

F16, F32, F64 = np.float16, np.float32, np.float64
_PLACES = {"H0_H0": (0, 0), "H1_H1": (1, 1), "H1_H0": (0, 1), "H0_H1": (1, 0)}


def pair_source(d: Decoding, n: int) -> tuple[Callable[[Warp], Row], int]:
    """Reads operand n as float16 [lanes][2], and the place of what follows it: of constants the high half is written first."""
    text = d.operands[n]
    if re.fullmatch(r"[-+]?(\d.*|INF|QNAN)", text) and not text.startswith("0x"):
        words = [float(d.operands[n + i].replace("QNAN", "nan").replace("INF", "inf")) for i in (1, 0)]
        row = np.array([words], F16)
        return lambda w: row, n + 2
    negative, text = text.startswith("-"), text.removeprefix("-")
    absolute, text = text.startswith("|"), text.strip("|")
    found = re.fullmatch(r"(.*?)(?:\.(H[01]_H[01]))?", text)
    places = _PLACES.get(found[2] or "H1_H0")
    read = d._plain(found[1], False)

    def pair(w: Warp) -> Row:
        halves = np.ascontiguousarray(read(w)).view(np.uint16).reshape(-1, 2)[:, places]
        if absolute:
            halves = halves & np.uint16(0x7FFF)
        if negative:
            halves = halves ^ np.uint16(0x8000)
        return np.ascontiguousarray(halves).view(F16)

    return pair, n + 1


def put_pair(d: Decoding) -> Callable[[Warp, Row], None]:
    put = d.destination()

    def write(w: Warp, row: Row) -> None:
        put(w, np.ascontiguousarray(np.broadcast_to(row, (LANES, 2)).astype(F16)).view(WORD)[:, 0])

    return write


@opcode("HADD2", "HMUL2", "HFMA2", suffixes="MMA F32")
def arithmetic(d: Decoding) -> Step:
    """Rounded once, from double: sums and products of two are exact there. .F32 gives the sum of the low halves as a float."""
    sources, at = [], 1
    for _ in range(3 if d.name == "HFMA2" else 2):
        read, at = pair_source(d, at)
        sources.append(read)
    if at != len(d.operands) or ("F32" in d and d.name != "HADD2"):
        raise d.unknown()
    function = {"HADD2": lambda a, b: a + b, "HMUL2": lambda a, b: a * b, "HFMA2": lambda a, b, c: a * b + c}[d.name]
    write, put = put_pair(d), d.destination()

    def compute(w: Warp) -> None:
        with np.errstate(all="ignore"):
            result = function(*(read(w).astype(F64) for read in sources))
            if "F32" in d:
                put(w, np.ascontiguousarray(np.broadcast_to(result, (LANES, 2))[:, 0].astype(F32)).view(WORD))
            else:
                write(w, result)

    return compute


@opcode("HMNMX2", suffixes="NAN")
def hmnmx2(d: Decoding) -> Step:
    """The smaller of each pair where the predicate holds, else the larger; of a number and no number, the number; -0 is below
    +0."""
    a, at = pair_source(d, 1)
    b, at = pair_source(d, at)
    smaller, write, nans = d.predicate(at), put_pair(d), "NAN" in d

    def choose(w: Warp) -> None:
        x, y, lanes = a(w), b(w), smaller(w) & w.mask
        equal, p, q = x == y, x.view(np.uint16), y.view(np.uint16)
        least = np.where(equal, p | q, np.fmin(x, y).view(np.uint16))
        most = np.where(equal, p & q, np.fmax(x, y).view(np.uint16))
        result = least if lanes == w.mask else most if not lanes else np.where(lanes_of(lanes)[:, None], least, most)
        if nans:
            result = np.where(np.isnan(x) | np.isnan(y), np.uint16(0x7FFF), result)
        write(w, result.astype(np.uint16).view(F16))

    return choose


@opcode("F2FP", suffixes="F16 F32 PACK_AB")
def f2fp(d: Decoding) -> Step:
    """Two floats as halves: the first operand in the high one."""
    if "PACK_AB" not in d:
        raise d.unknown()
    put, a, b = d.destination(), d.source(1, floats=True), d.source(2, floats=True)

    def pack(w: Warp) -> None:
        with np.errstate(all="ignore"):
            high, low = (read(w).astype(F16).view(np.uint16).astype(WORD) for read in (a, b))
        put(w, high << WORD(16) | low)

    return pack


@opcode("F2F", suffixes="F16 F32")
def f2f(d: Decoding) -> Step:
    """A float as a half, in the low half of a word."""
    if d.suffixes != ("F16", "F32"):
        raise d.unknown()
    put, a = d.destination(), d.source(1, floats=True)

    def convert(w: Warp) -> None:
        with np.errstate(all="ignore"):
            put(w, a(w).astype(F16).view(np.uint16).astype(WORD))

    return convert
