"""Floating-point arithmetic and conversions. Rounding is to nearest even; other roundings are known only where they are named."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from .integer import _COMBINE, _where
from .machine import FULL, WORD, Decoding, Row, Step, Warp, mask_of, opcode

F32, F64 = np.float32, np.float64
_TIE, _LOW = np.uint64(1 << 28), np.uint64((1 << 29) - 1)
_TINY = F64(2.0**-126)


def _sum(product: Row, addend: Row) -> tuple[Row, Row]:
    """The sum of two float64 and what its rounding lost (Knuth's two-sum)."""
    total = product + addend
    part = total - product
    return total, (product - (total - part)) + (addend - part)


def fused(a: Row, b: Row, c: Row) -> Row:
    """a * b + c of float32, rounded once.

    The product is exact in double. Its sum with c is rounded there and again to float32, which is wrong only where the first
    lands on a tie of the second: then the first is rounded to odd instead.
    """
    product = a.astype(F64) * b.astype(F64)
    addend = c.astype(F64)
    total = product + addend
    bits = total.view(np.uint64)
    if ((bits & _LOW) == _TIE).any() or (np.abs(total) < _TINY).any():
        lost = _sum(product, addend)[1]
        odd = (lost != 0) & (bits & np.uint64(1) == 0) & np.isfinite(total)
        away = (lost > 0) == (total > 0)
        total = np.where(odd, (bits + np.where(away, np.uint64(1), np.uint64(2**64 - 1))).view(F64), total)
    return total.astype(F32)


def directed(a: Row, b: Row, c: Row, how: str) -> Row:
    """a * b + c of float32, rounded once: "RZ" towards 0, "RP" up, "RM" down."""
    total, lost = _sum(a.astype(F64) * b.astype(F64), c.astype(F64))
    nearest = total.astype(F32)
    rest = total - nearest.astype(F64)
    above = np.where(rest != 0, rest, lost)  # whether the exact result lies above the nearest, or below
    up, down = np.nextafter(nearest, F32(np.inf)), np.nextafter(nearest, F32(-np.inf))
    if how == "RP":
        return np.where(above > 0, up, nearest)
    if how == "RM":
        return np.where(above < 0, down, nearest)
    positive = (total > 0) | ((total == 0) & (lost > 0))
    return np.where(positive & (above < 0), down, np.where(~positive & (above > 0), up, nearest))


_ARITHMETIC: dict[str, Callable[..., Row]] = {"FADD": np.add, "FMUL": np.multiply, "FFMA": fused}


def _flushed(row: Row) -> Row:
    """Numbers below the normal ones as 0 of their sign."""
    return np.where(np.abs(row) < F32(2.0**-126), np.copysign(F32(0), row), row)


@opcode("FADD", "FMUL", "FFMA", suffixes="FTZ SAT RZ RP RM")
def arithmetic(d: Decoding) -> Step:
    function, how = _ARITHMETIC[d.name], next((s for s in d.suffixes if s in ("RZ", "RP", "RM")), "")
    if how:
        one, nothing = np.ones(1, F32), -np.zeros(1, F32)
        shape = {"FADD": lambda x, y: (x, one, y), "FMUL": lambda x, y: (x, y, nothing), "FFMA": lambda x, y, z: (x, y, z)}[d.name]

        def function(*values: Row) -> Row:
            return directed(*shape(*values), how)

    put, flush, clamp = d.destination(), "FTZ" in d, "SAT" in d
    sources = [d.source(n, floats=True) for n in range(1, len(d.operands))]

    def compute(w: Warp) -> None:
        values = [read(w) for read in sources]
        if flush:
            values = [_flushed(value) for value in values]
        with np.errstate(all="ignore"):
            result = function(*values)
            if flush:
                result = _flushed(result)
            if clamp:
                result = np.where(np.isnan(result), F32(0), np.clip(result, F32(0), F32(1)))
        put(w, result.view(WORD))

    if flush or clamp or how:
        return compute
    if len(sources) == 2:
        a, b = sources

        def two(w: Warp) -> None:
            put(w, function(a(w), b(w)).view(WORD))

        return two
    a, b, c = sources

    def three(w: Warp) -> None:
        put(w, fused(a(w), b(w), c(w)).view(WORD))

    return three


@opcode("FMNMX", suffixes="FTZ NAN")
def fmnmx(d: Decoding) -> Step:
    """The smaller where the predicate holds, else the larger; of a number and no number, the number; -0 is below +0."""
    put, a, b, smaller, nans = d.destination(), d.source(1, floats=True), d.source(2, floats=True), d.predicate(3), "NAN" in d

    def choose(w: Warp) -> None:
        x, y, lanes = a(w), b(w), smaller(w) & w.mask
        equal, p, q = x == y, x.view(WORD), y.view(WORD)

        def least() -> Row:
            return np.where(equal, p | q, np.fmin(x, y).view(WORD))

        def most() -> Row:
            return np.where(equal, p & q, np.fmax(x, y).view(WORD))

        result = least() if lanes == w.mask else most() if not lanes else np.where(_where(lanes), least(), most())
        if nans:
            result = np.where(np.isnan(x) | np.isnan(y), WORD(0x7FFFFFFF), result)
        put(w, result)

    return choose


_ORDERED = {"LT": np.less, "EQ": np.equal, "LE": np.less_equal, "GT": np.greater, "NE": np.not_equal, "GE": np.greater_equal}


def _float_compare(name: str) -> Callable[[Row, Row], Row]:
    if name == "NUM":
        return lambda x, y: ~(np.isnan(x) | np.isnan(y))
    if name == "NAN":
        return lambda x, y: np.isnan(x) | np.isnan(y)
    plain = _ORDERED[name[:2]]
    if name.endswith("U") and len(name) == 3:
        return lambda x, y: plain(x, y) | np.isnan(x) | np.isnan(y)
    return (lambda x, y: plain(x, y) & ~(np.isnan(x) | np.isnan(y))) if name == "NE" else plain


@opcode("FSETP", suffixes="LT EQ LE GT NE GE LTU EQU LEU GTU NEU GEU NUM NAN AND OR XOR FTZ")
def fsetp(d: Decoding) -> Step:
    function, combine = _float_compare(d.suffixes[0]), _COMBINE[next(s for s in d.suffixes if s in _COMBINE)]
    first, second = d.put_predicate(0), d.put_predicate(1)
    a, b, joined = d.source(2, floats=True), d.source(3, floats=True), d.predicate(4)

    def compare(w: Warp) -> None:
        result, p = mask_of(function(a(w), b(w))), joined(w)
        first(w, combine(result, p))
        second(w, combine(result ^ FULL, p))

    return compare


@opcode("MUFU", suffixes="RCP RSQ SQRT EX2 LG2")
def mufu(d: Decoding) -> Step:
    """Rounded correctly here; the hardware may be off by one unit in the last place, which code must not notice."""
    functions = {
        "RCP": lambda x: F64(1) / x,
        "RSQ": lambda x: F64(1) / np.sqrt(x),
        "SQRT": np.sqrt,
        "EX2": np.exp2,
        "LG2": np.log2,
    }
    put, a, function = d.destination(), d.source(1, floats=True), functions[d.suffixes[0]]

    def compute(w: Warp) -> None:
        with np.errstate(all="ignore"):
            put(w, function(a(w).astype(F64)).astype(F32).view(WORD))

    return compute


# ---- conversions

_PART = re.compile(r"(.*?)\.(B[0-3]|H0|H1|H0_H0|H1_H1)")


def integer_source(d: Decoding, n: int, kind: str) -> Callable[[Warp], Row]:
    """An integer operand of a type such as "U8" as int64, of a byte or half of a register where one is named (".B1")."""
    text, place = d.operands[n], 0
    if found := _PART.fullmatch(text):
        text, place = found[1], int(found[2][1]) * (8 if found[2].startswith("B") else 16)
    read = d._plain(text.lstrip("-"), False)
    width, signed, negative = int(kind[1:]), kind[0] == "S", text.startswith("-")

    def convert(w: Warp) -> Row:
        value = (read(w) >> WORD(place)).astype(np.int64) & (1 << width) - 1
        if signed:
            value = value - ((value >> width - 1) << width)
        return -value if negative else value

    return convert


def rounded(value: Row, how: str) -> Row:
    """int64 as float32: "" to nearest even, "RP" up, "RM" down, "RZ" to 0."""
    result = value.astype(F32)
    if how == "":
        return result
    exact, found = value.astype(F64), result.astype(F64)  # 32 bits fit a double
    up, down = np.nextafter(result, F32(np.inf)), np.nextafter(result, F32(-np.inf))
    if how == "RZ":
        return np.where(np.abs(found) > np.abs(exact), np.where(exact > 0, down, up), result)
    return np.where(found < exact, up, result) if how == "RP" else np.where(found > exact, down, result)


@opcode("I2F", "I2FP", suffixes="F32 U8 S8 U16 S16 U32 S32 RP RM RZ")
def i2f(d: Decoding) -> Step:
    kind = next((s for s in d.suffixes if re.fullmatch(r"[US]\d+", s)), "S32")
    how = next((s for s in d.suffixes if s in ("RP", "RM", "RZ")), "")
    put, a = d.destination(), integer_source(d, 1, kind)

    def convert(w: Warp) -> None:
        put(w, rounded(a(w), how).view(WORD))

    return convert


@opcode("F2I", suffixes="FTZ U8 S8 U16 S16 U32 S32 F32 TRUNC FLOOR CEIL NTZ")
def f2i(d: Decoding) -> Step:
    """To the nearest integer unless told otherwise, at the ends of the type's range where it lies beyond, 0 for what is no
    number."""
    kind = next((s for s in d.suffixes if re.fullmatch(r"[US]\d+", s)), "S32")
    bits, signed = int(kind[1:]), kind[0] == "S"
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    how = {"TRUNC": np.trunc, "FLOOR": np.floor, "CEIL": np.ceil}.get(
        next((s for s in d.suffixes if s in ("TRUNC", "FLOOR", "CEIL")), ""), np.rint
    )
    put, a = d.destination(), d.source(1, floats=True)

    def convert(w: Warp) -> None:
        value = a(w).astype(F64)
        value = how(np.where(np.isnan(value), 0.0, value))
        put(w, (np.clip(value, low, high).astype(np.int64) & FULL).astype(WORD))

    return convert


@opcode("FRND", suffixes="FTZ TRUNC FLOOR CEIL")
def frnd(d: Decoding) -> Step:
    how = {"TRUNC": np.trunc, "FLOOR": np.floor, "CEIL": np.ceil}.get(next((s for s in d.suffixes if s != "FTZ"), ""), np.rint)
    put, a = d.destination(), d.source(1, floats=True)

    def convert(w: Warp) -> None:
        put(w, how(a(w)).astype(F32).view(WORD))

    return convert


@opcode("I2I", suffixes="U8 S8 U16 S16 U32 S32 SAT")
def i2i(d: Decoding) -> Step:
    to, source = [s for s in d.suffixes if s != "SAT"]
    bits, signed = int(to[1:]), to[0] == "S"
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    put, a = d.destination(), integer_source(d, 1, source)
    if "SAT" not in d:
        raise d.unknown("without .SAT")

    def convert(w: Warp) -> None:
        put(w, (np.clip(a(w), low, high) & FULL).astype(WORD))

    return convert


@opcode("I2IP", suffixes="U8 S8 U16 S16 S32 SAT")
def i2ip(d: Decoding) -> Step:
    """cvt.pack: b and a, clamped, in the lowest places, the low bits of c above them."""
    to, source = (s for s in d.suffixes if s != "SAT")
    bits, signed = int(to[1:]), to[0] == "S"
    if "SAT" not in d or source != "S32":
        raise d.unknown()
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    put, a, b = d.destination(), d.source(1), d.source(2)
    c = d.source(3) if bits == 8 else None

    def pack(w: Warp) -> None:
        x, y = (np.clip(read(w).view(np.int32), low, high).view(WORD) & WORD((1 << bits) - 1) for read in (a, b))
        result = x << WORD(bits) | y
        put(w, result | c(w) << WORD(16) if c else result)

    return pack
