"""Integer arithmetic, comparisons and logic, of registers and of uniform registers alike."""

from __future__ import annotations

import numpy as np

from .machine import FULL, WORD, Decoding, Row, Step, Warp, mask_of, opcode

ONE64, ALL64 = np.uint64(1), np.uint64(FULL)
S32, S64, U64 = np.int32, np.int64, np.uint64


def ones(w_lanes: int) -> Row:
    """0 or 1 for each lane of a set."""
    if w_lanes == 0:
        return _NONE
    if w_lanes == FULL:
        return _ALL
    return (np.uint32(w_lanes) >> _SHIFTS & WORD(1)).astype(WORD)


_SHIFTS = np.arange(32, dtype=WORD)
_NONE, _ALL = np.zeros(1, WORD), np.ones(1, WORD)


def _outs(d: Decoding, at: int) -> tuple[list, int]:
    """Writers of the predicates from operand `at` on, and the place of what follows them."""
    outs = []
    while d.is_predicate(at):
        outs.append(d.put_predicate(at))
        at += 1
    return outs, at


@opcode("IADD3", "UIADD3", suffixes="X 64")
def iadd3(d: Decoding) -> Step:
    """a + b + c, with carries out into up to two predicates and, with .X, in from two.

    A negated operand is its complement and one more, so that 0 - 0 carries: a - b carries where a >= b, b = 0 included.
    """
    if "64" in d:
        put, terms = d.wide_destination(), [d.wide(n) for n in (1, 2, 3)]

        def add64(w: Warp) -> None:
            put(w, terms[0](w) + terms[1](w) + terms[2](w))

        return add64
    put = d.destination()
    outs, at = _outs(d, 1)
    sources = [d.source(at + i) for i in range(3)]
    carries = [d.predicate(n) for n in range(at + 3, len(d.operands))] if "X" in d else []
    if not outs:
        if not carries:
            a, b, c = sources
            if d.operands[at + 2] in ("RZ", "URZ"):

                def add2(w: Warp) -> None:
                    put(w, a(w) + b(w))

                return add2

            def add(w: Warp) -> None:
                put(w, a(w) + b(w) + c(w))

            return add

        def add_carries(w: Warp) -> None:
            total = sources[0](w) + sources[1](w) + sources[2](w)
            for carry in carries:
                total = total + ones(carry(w))
            put(w, total)

        return add_carries
    wide = [_carrying(d, at + i) for i in range(3) if d.operands[at + i] not in ("RZ", "URZ")]

    def add_out(w: Warp) -> None:
        total = np.zeros(1, U64)
        for term in wide:
            total = total + term(w)
        for carry in carries:
            total = total + ones(carry(w))
        put(w, (total & ALL64).astype(WORD))
        high = total >> np.uint64(32)
        for n, out in enumerate(outs):
            out(w, mask_of(high > n))

    return add_out


def _carrying(d: Decoding, n: int):
    text = d.operands[n]
    if text.startswith("-") and not text.startswith("-0x"):
        read = d._plain(text[1:], False)
        return lambda w: np.uint64(1 << 32) - read(w).astype(U64)
    read = d.source(n)
    return lambda w: read(w).astype(U64)


def halves(row: Row, signed: bool) -> Row:
    """[32 words] as [32][2] halves."""
    return np.broadcast_to(row, 32).copy().view(np.int16 if signed else np.uint16).reshape(32, 2)


@opcode("VIADD", suffixes="16x2")
def viadd(d: Decoding) -> Step:
    put, a = d.destination(), d.source(1)
    if "16x2" in d:
        subtracts = d.operands[2].startswith("-R")
        b16 = d._plain(d.operands[2].lstrip("-"), False) if subtracts else d.source(2)

        def add16(w: Warp) -> None:
            x, y = halves(a(w), False), halves(b16(w), False)
            put(w, (x - y if subtracts else x + y).view(WORD)[:, 0])

        return add16
    b = d.source(2)

    def add(w: Warp) -> None:
        put(w, a(w) + b(w))

    return add


@opcode("IMAD", "UIMAD", suffixes="MOV U32 IADD SHL X HI WIDE")
def imad(d: Decoding) -> Step:
    """a * b + c: its low 32 bits; .WIDE all 64, c being a pair; .HI the upper 32 of that."""
    signed = "U32" not in d
    if "WIDE" in d or "HI" in d:
        outs, at = _outs(d, 1)
        a, b, c = d.source(at), d.source(at + 1), d.wide(at + 2)
        extra = d.predicate(at + 3) if "X" in d else None
        if outs and extra:
            raise d.unknown("carries both ways")
        high = "HI" in d
        put = d.destination() if high else d.wide_destination()
        none = d.operands[at + 2] in ("RZ", "URZ")

        def wide(w: Warp) -> None:
            if signed:
                product = (a(w).view(S32).astype(S64) * b(w).view(S32).astype(S64)).view(U64)
            else:
                product = a(w).astype(U64) * b(w).astype(U64)
            total = product if none else product + c(w)
            for out in outs:
                out(w, mask_of(total < product))
            if extra:
                total = total + ones(extra(w)).astype(U64)
            put(w, (total >> U64(32)).astype(WORD) if high else total)

        return wide
    put, a, b, c = d.destination(), d.source(1), d.source(2), d.source(3)
    if "X" in d:
        carry = d.predicate(4)

        def with_carry(w: Warp) -> None:
            put(w, a(w) * b(w) + c(w) + ones(carry(w)))

        return with_carry
    none = [operand in ("RZ", "URZ") for operand in d.operands[1:4]]
    if none[0] or none[1]:

        def move(w: Warp) -> None:
            put(w, c(w))

        return move
    if d.operands[2] == "0x1":

        def add(w: Warp) -> None:
            put(w, a(w) + c(w))

        return add
    if none[2]:

        def multiply(w: Warp) -> None:
            put(w, a(w) * b(w))

        return multiply

    def multiply_add(w: Warp) -> None:
        put(w, a(w) * b(w) + c(w))

    return multiply_add


@opcode("IDP", suffixes="4A 2A LO HI U8 S8 U16 S16")
def idp(d: Decoding) -> Step:
    """c plus the products of four pairs of bytes; 2A: of two halves of a with the two low or high bytes of b."""
    kinds = [s for s in d.suffixes if s[0] in "US"]
    two = "2A" in d
    if two == ("4A" in d) or len(kinds) != 2 or kinds[0][1:] != ("16" if two else "8") or kinds[1][1:] != "8":
        raise d.unknown()
    types = [np.dtype(("i" if kind[0] == "S" else "u") + str(int(kind[1:]) // 8)) for kind in kinds]
    put, a, b, c, first = d.destination(), d.source(1), d.source(2), d.source(3), 2 if "HI" in d else 0

    def dot(w: Warp) -> None:
        x, y = (
            np.broadcast_to(read(w), 32).copy().view(kind).reshape(32, -1).astype(S32)
            for read, kind in zip((a, b), types, strict=True)
        )
        y = y[:, first : first + 2] if two else y
        put(w, (x * y).sum(1, dtype=S32).view(WORD) + c(w))

    return dot


@opcode("LEA", "ULEA", suffixes="HI X SX32")
def lea(d: Decoding) -> Step:
    """b + (a << shift); .HI: b + the upper 32 bits of the 64-bit a << shift, its own upper half being an operand or (.SX32)
    the sign."""
    put = d.destination()
    outs, at = _outs(d, 1)
    a, b = d.source(at), d.source(at + 1)
    signed = "SX32" in d
    if "HI" not in d:
        shift = WORD(int(d.operands[at + 2], 16))
        if "X" in d or signed:
            raise d.unknown()
        if not outs:

            def plain(w: Warp) -> None:
                put(w, (a(w) << shift) + b(w))

            return plain
        low_b = _carrying(d, at + 1)

        def low(w: Warp) -> None:
            total = (a(w) << shift).astype(U64) + low_b(w)
            put(w, (total & ALL64).astype(WORD))
            for out in outs:
                out(w, mask_of(total > ALL64))

        return low
    if outs:
        raise d.unknown("carries out of an upper half")
    high = None if signed else d.source(at + 2)
    at += 2 if signed else 3
    shift = int(d.operands[at], 16)
    carry = d.predicate(at + 1) if "X" in d else None

    def upper(w: Warp) -> None:
        if high is None:
            value = (a(w).view(S32).astype(S64) << S64(shift) >> S64(32)).view(U64)
        else:
            value = (high(w).astype(U64) << U64(32) | a(w).astype(U64)) << U64(shift) >> U64(32)
        total = value.astype(WORD) + b(w)
        put(w, total + ones(carry(w)) if carry else total)

    return upper


# ---- logic and shifts


def lut3(table: int, x: Row, y: Row, z: Row) -> Row:
    """Bit by bit, the entry 4x + 2y + z of a table of eight."""
    result = None
    for i in range(8):
        if table >> i & 1:
            term = (x if i & 4 else ~x) & (y if i & 2 else ~y) & (z if i & 1 else ~z)
            result = term if result is None else result | term
    return np.zeros(1, WORD) if result is None else result


_SHORT = {
    0xC0: lambda x, y, z: x & y,
    0xFC: lambda x, y, z: x | y,
    0x3C: lambda x, y, z: x ^ y,
    0x30: lambda x, y, z: x & ~y,
    0x0C: lambda x, y, z: ~x & y,
    0x33: lambda x, y, z: ~y,
    0x0F: lambda x, y, z: ~x,
    0xF8: lambda x, y, z: x & y | z,
    0xEA: lambda x, y, z: x & y | z,
    0xFE: lambda x, y, z: x | y | z,
    0x80: lambda x, y, z: x & y & z,
    0x96: lambda x, y, z: x ^ y ^ z,
    0x78: lambda x, y, z: x ^ y & z,
    0xCA: lambda x, y, z: x & y | ~x & z,
}
for _table, _short in list(_SHORT.items()):
    _x, _y, _z = (np.array([v], WORD) for v in (0xF0, 0xCC, 0xAA))
    if int(_short(_x, _y, _z)[0] & WORD(255)) != _table:
        del _SHORT[_table]  # a short form that is not this table


@opcode("LOP3", "ULOP3", suffixes="LUT PAND")
def lop3(d: Decoding) -> Step:
    """Any function of three bits; the predicate is whether the result is not 0, or (.PAND: and) the predicate that comes last."""
    outs, at = _outs(d, 0)
    put = d.destination(at)
    x, y, z = (d.source(at + 1 + i) for i in range(3))
    table = int(d.operands[at + 4], 16)
    last = d.predicate(at + 5) if len(d.operands) > at + 5 else None
    both = "PAND" in d
    short = _SHORT.get(table) or (lambda a, b, c: lut3(table, a, b, c))

    if not outs:

        def logic(w: Warp) -> None:
            put(w, short(x(w), y(w), z(w)))

        return logic

    def logic_out(w: Warp) -> None:
        value = short(x(w), y(w), z(w))
        lanes = mask_of(value != 0)
        if last:
            lanes = lanes & last(w) if both else lanes | last(w)
        put(w, value)
        for out in outs:
            out(w, lanes)

    return logic_out


@opcode("PLOP3", "UPLOP3", suffixes="LUT")
def plop3(d: Decoding) -> Step:
    outs = [d.put_predicate(n) for n in (0, 1)]
    sources = [d.predicate(n) for n in (2, 3, 4)]
    tables = [int(d.operands[n], 16) for n in (5, 6)]

    def logic(w: Warp) -> None:
        p = [read(w) for read in sources]
        results = []
        for table in tables:
            lanes = 0
            for i in range(8):
                if table >> i & 1:
                    a, b, c = (p[k] if i >> 2 - k & 1 else p[k] ^ FULL for k in range(3))
                    lanes |= a & b & c
            results.append(lanes)
        for out, lanes in zip(outs, results, strict=True):
            out(w, lanes)

    return logic


@opcode("SHF", "USHF", suffixes="L R U32 S32 U64 S64 HI W")
def shf(d: Decoding) -> Step:
    """Shifts the 64 bits c:a by b; .HI gives the upper half of the result. Amounts beyond the width count as the width."""
    put, a, shift, c = d.destination(), d.source(1), d.source(2), d.source(3)
    wide = "U64" in d or "S64" in d
    most = U64(63 if wide else 32)
    signed, high, left, wraps = "S32" in d or "S64" in d, "HI" in d, "L" in d, "W" in d

    def shifted(w: Warp) -> None:
        amount = shift(w).astype(U64)
        amount = amount & U64(63 if wide else 31) if wraps else np.minimum(amount, most)
        both = c(w).astype(U64) << U64(32) | a(w).astype(U64)
        if left:
            both = both << amount
        elif signed:
            both = (both.view(S64) >> amount.view(S64)).view(U64)
        else:
            both = both >> amount
        put(w, ((both >> U64(32)) if high else both & ALL64).astype(WORD))

    if not wide and not wraps:
        # The usual forms, of one word.
        if left and not high and d.operands[3] in ("RZ", "URZ"):

            def left32(w: Warp) -> None:
                amount = shift(w)
                put(w, np.where(amount > 31, WORD(0), a(w) << (amount & WORD(31))))

            return left32
        if not left and high and d.operands[1] in ("RZ", "URZ"):
            if signed:

                def right32s(w: Warp) -> None:
                    put(w, (c(w).view(S32) >> np.minimum(shift(w), WORD(31)).view(S32)).view(WORD))

                return right32s

            def right32(w: Warp) -> None:
                amount = shift(w)
                put(w, np.where(amount > 31, WORD(0), c(w) >> (amount & WORD(31))))

            return right32
    return shifted


@opcode("BMSK", suffixes="C W")
def bmsk(d: Decoding) -> Step:
    """b ones from bit a on."""
    put, a, b = d.destination(), d.source(1), d.source(2)

    def mask(w: Warp) -> None:
        low, count = np.minimum(a(w), WORD(32)).astype(U64), np.minimum(b(w), WORD(32)).astype(U64)
        put(w, ((((ONE64 << count) - ONE64) << low) & ALL64).astype(WORD))

    if "W" in d:
        raise d.unknown("suffix W")
    return mask


@opcode("SGXT", "USGXT", suffixes="U32")
def sgxt(d: Decoding) -> Step:
    """The low b bits of a, extended by their sign or, with .U32, by zeros."""
    put, a, b, signed = d.destination(), d.source(1), d.source(2), "U32" not in d

    def extend(w: Warp) -> None:
        rest = (WORD(32) - np.clip(b(w), WORD(1), WORD(32))).astype(WORD)
        value = a(w) << rest
        put(w, (value.view(S32) >> rest.view(S32)).view(WORD) if signed else value >> rest)

    return extend


@opcode("FLO", "UFLO", suffixes="U32 S32 SH")
def flo(d: Decoding) -> Step:
    """The place of the highest one (.SH: how far it is from bit 31), all ones where there is none."""
    put, a, shift, signed = d.destination(), d.source(1), "SH" in d, "U32" not in d

    def find(w: Warp) -> None:
        value = a(w)
        if signed:
            value = np.where(value.view(S32) < 0, ~value, value)
        top = np.frexp(value.astype(np.float64))[1] - 1  # 32 bits fit a double
        place = 31 - top if shift else top
        put(w, np.where(value == 0, S32(-1), place.astype(S32)).astype(S32).view(WORD))

    return find


@opcode("POPC", "UPOPC", suffixes="")
def popc(d: Decoding) -> Step:
    put, a = d.destination(), d.source(1)

    def count(w: Warp) -> None:
        put(w, np.bitwise_count(a(w)).astype(WORD))

    return count


@opcode("BREV", "UBREV", suffixes="")
def brev(d: Decoding) -> Step:
    put, a = d.destination(), d.source(1)

    def reverse(w: Warp) -> None:
        value = np.ascontiguousarray(a(w))
        bits = np.unpackbits(value.view(np.uint8).reshape(-1, 4), axis=1, bitorder="little")
        put(w, np.ascontiguousarray(np.packbits(bits[:, ::-1], axis=1, bitorder="little")).view(WORD)[:, 0])

    return reverse


# ---- comparisons and choices

_COMPARE = {"EQ": np.equal, "NE": np.not_equal, "LT": np.less, "LE": np.less_equal, "GT": np.greater, "GE": np.greater_equal}
_COMBINE = {"AND": lambda a, b: a & b, "OR": lambda a, b: a | b, "XOR": lambda a, b: a ^ b}


@opcode("ISETP", "UISETP", suffixes="EQ NE LT LE GT GE F T U32 AND OR XOR EX")
def isetp(d: Decoding) -> Step:
    """Compares and joins with a predicate; .EX compares upper halves, the last operand being what the lower ones gave."""
    (name,) = (s for s in d.suffixes if s in _COMPARE) if not {"F", "T"} & set(d.suffixes) else ("F" if "F" in d else "T",)
    combine = _COMBINE[next(s for s in d.suffixes if s in _COMBINE)]
    signed, extended = "U32" not in d, "EX" in d
    first, second = d.put_predicate(0), d.put_predicate(1)
    a, b, joined = d.source(2), d.source(3), d.predicate(4)
    low = d.predicate(5) if extended else None

    def compare(w: Warp) -> None:
        if name in ("F", "T"):
            result = 0 if name == "F" else FULL
        else:
            x, y = a(w), b(w)
            if signed:
                x, y = x.view(S32), y.view(S32)
            if low is None:
                result = mask_of(_COMPARE[name](x, y))
            elif name == "EQ":
                result = mask_of(x == y) & low(w)
            elif name == "NE":
                result = mask_of(x != y) | low(w)
            else:
                result = mask_of(x < y if name[0] == "L" else x > y) | mask_of(x == y) & low(w)
        p = joined(w)
        first(w, combine(result, p))
        second(w, combine(result ^ FULL, p))

    if second is not None and d.operands[1] in ("PT", "UPT") and low is None and name in _COMPARE:
        function = _COMPARE[name]

        def simple(w: Warp) -> None:
            x, y = a(w), b(w)
            result = mask_of(function(x.view(S32), y.view(S32)) if signed else function(x, y))
            first(w, combine(result, joined(w)))

        return simple
    return compare


@opcode("SEL", "USEL", "FSEL", suffixes="")
def sel(d: Decoding) -> Step:
    floats = d.name == "FSEL"
    put, a, b, chosen = d.destination(), d.source(1, floats), d.source(2, floats), d.predicate(3)

    def select(w: Warp) -> None:
        lanes = chosen(w)
        if d.uniform:
            lanes = FULL if lanes else 0
        active = lanes & w.mask
        if active == w.mask:
            put(w, a(w).view(WORD))
        elif not active:
            put(w, b(w).view(WORD))
        else:
            put(w, np.where(_where(lanes), a(w).view(WORD), b(w).view(WORD)))

    return select


def _where(lanes: int) -> Row:
    from .machine import lanes_of

    return lanes_of(lanes)


@opcode("IMNMX", "VIMNMX", "UIMNMX", suffixes="U32 S32 S16x2 U16x2 RELU")
def imnmx(d: Decoding) -> Step:
    """The smaller where the predicate holds, else the larger; of two halves each, where they are named; .RELU: at least 0."""
    put, a, b, smaller, least = d.destination(), d.source(1), d.source(2), d.predicate(3), _least(d)

    def choose(w: Warp) -> None:
        put(w, least(a(w), b(w), smaller(w), w.mask))

    return choose


def _least(d: Decoding):
    """The function of two rows, a predicate and the active lanes that the suffixes name."""
    relu, signed = "RELU" in d, not any(s in d for s in ("U32", "U16x2"))
    if not any(s in d for s in ("S16x2", "U16x2")):

        def of_words(x: Row, y: Row, smaller: int, mask: int) -> Row:
            found = extreme(x, y, smaller, mask, signed)
            return np.maximum(found.view(S32), 0).view(WORD) if relu else found

        return of_words

    def of_halves(x: Row, y: Row, smaller: int, mask: int) -> Row:
        if smaller & mask not in (0, mask):
            raise d.unknown("halves by a predicate that lanes differ in")
        function = np.minimum if smaller & mask else np.maximum
        found = function(halves(x, signed), halves(y, signed))
        return np.ascontiguousarray(np.maximum(found, 0) if relu else found).view(WORD)[:, 0]

    return of_halves


def extreme(x: Row, y: Row, smaller: int, mask: int, signed: bool) -> Row:
    if signed:
        x, y = x.view(S32), y.view(S32)
    if smaller & mask == mask:
        return np.minimum(x, y).view(WORD)
    if not smaller & mask:
        return np.maximum(x, y).view(WORD)
    return np.where(_where(smaller), np.minimum(x, y), np.maximum(x, y)).view(WORD)


@opcode("VIADDMNMX", suffixes="U32 S16x2 U16x2 RELU")
def viaddmnmx(d: Decoding) -> Step:
    put, a, b, c, smaller, least = d.destination(), d.source(1), d.source(2), d.source(3), d.predicate(4), _least(d)
    packed = any(s in d for s in ("S16x2", "U16x2"))
    if packed and d.operands[2].startswith("-"):
        raise d.unknown("a negated pair of halves")

    def choose(w: Warp) -> None:
        total = (halves(a(w), False) + halves(b(w), False)).view(WORD)[:, 0] if packed else a(w) + b(w)
        put(w, least(total, c(w), smaller(w), w.mask))

    return choose


@opcode("VIMNMX3", suffixes="U32 S32")
def vimnmx3(d: Decoding) -> Step:
    put, a, b, c, smaller = d.destination(), d.source(1), d.source(2), d.source(3), d.predicate(4)
    signed = "U32" not in d

    def choose(w: Warp) -> None:
        lanes = smaller(w)
        put(w, extreme(extreme(a(w), b(w), lanes, w.mask, signed), c(w), lanes, w.mask, signed))

    return choose


@opcode("IABS", suffixes="")
def iabs(d: Decoding) -> Step:
    put, a = d.destination(), d.source(1)

    def absolute(w: Warp) -> None:
        put(w, np.abs(a(w).view(S32)).view(WORD))

    return absolute
