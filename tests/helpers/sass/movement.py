"""Moves: between registers, lanes, predicates and the uniform registers of a warp."""

from __future__ import annotations

import re

import numpy as np

from .machine import FULL, LANES, WORD, Decoding, MachineError, Row, Step, Warp, lanes_of, mask_of, opcode


@opcode("MOV", "UMOV", suffixes="")
def mov(d: Decoding) -> Step:
    put, a = d.destination(), d.source(1)

    def move(w: Warp) -> None:
        put(w, a(w))

    return move


@opcode("R2UR", suffixes="")
def r2ur(d: Decoding) -> Step:
    """A word that must be the same in all active lanes."""
    put, a = d.destination(), d.source(1)

    def move(w: Warp) -> None:
        values = a(w)
        if w.mask != FULL and len(values) > 1:
            values = values[lanes_of(w.mask)]
        if (values != values[0]).any():
            raise MachineError(f"lanes that differ become one uniform register: {values.tolist()}")
        put(w, values[:1])

    return move


_SPECIAL = re.compile(r"SR_(TID|CTAID|NTID|NCTAID)\.([XYZ])")


@opcode("S2R", "S2UR", suffixes="")
def s2r(d: Decoding) -> Step:
    put, name = d.destination(), d.operands[1]
    if found := _SPECIAL.fullmatch(name):
        kind, axis = found[1], "XYZ".index(found[2])

        def read(w: Warp) -> None:
            if kind == "TID":
                if axis:
                    put(w, np.zeros(1, WORD))
                elif d.name == "S2UR":
                    raise d.unknown("a thread's number is no uniform one")
                else:
                    put(w, np.arange(w.number * LANES, (w.number + 1) * LANES, dtype=WORD))
            else:
                place = {"CTAID": (*w.block.index, 0), "NTID": (w.block.threads, 1, 1), "NCTAID": (*w.block.grid, 1)}[kind]
                put(w, np.full(1, place[axis], WORD))

        return read
    if name == "SR_LANEID":
        return lambda w: put(w, np.arange(LANES, dtype=WORD))
    if name == "SR_CgaCtaId":
        return lambda w: put(w, np.zeros(1, WORD))
    raise d.unknown(f"special register {name}")


@opcode("CS2R", suffixes="32")
def cs2r(d: Decoding) -> Step:
    if d.operands[1] != "SRZ":
        raise d.unknown(f"special register {d.operands[1]}")
    if "32" in d:
        put = d.destination()
        return lambda w: put(w, np.zeros(1, WORD))
    put_wide = d.wide_destination()

    def clear(w: Warp) -> None:
        put_wide(w, np.zeros(LANES, np.uint64))

    return clear


@opcode("LDC", "ULDC", suffixes="64 U8 S8 U16 S16 32")
def ldc(d: Decoding) -> Step:
    bank, at = d.bank(d.operands[1])
    if "64" in d:
        put_wide, read = d.wide_destination(), d.wide(1)

        def load_wide(w: Warp) -> None:
            row = read(w)
            put_wide(w, row if d.uniform else np.broadcast_to(row, LANES))

        return load_wide
    put = d.destination()
    kind = next((s for s in d.suffixes if s[0] in "US"), "")
    if not kind:
        read = d.source(1)

        def load(w: Warp) -> None:
            put(w, read(w))

        return load
    dtype = np.dtype(("u" if kind[0] == "U" else "i") + str(int(kind[1:]) // 8))

    def load_part(w: Warp) -> None:
        start = np.asarray(at(w) if callable(at) else [at]).astype(np.int64)
        data = w.block.banks[bank]
        bytes_ = data[start[:, None] + np.arange(dtype.itemsize)]
        put(w, np.ascontiguousarray(bytes_).view(dtype)[:, 0].astype(np.int64).astype(WORD))

    return load_part


_MODES = {"F4E": None, "B4E": None, "RC8": None, "ECL": None, "ECR": None, "RC16": None}


@opcode("PRMT", "UPRMT", suffixes="F4E B4E RC8 ECL ECR RC16")
def prmt(d: Decoding) -> Step:
    """Four bytes of the eight in c:a. Plain: each nibble of b names one, and bit 3 takes its sign for all eight bits. The
    modes name all four by the lowest two bits of b."""
    put, a, b, c = d.destination(), d.source(1), d.source(2), d.source(3)
    mode = d.suffixes[0] if d.suffixes else ""
    size = 1 if d.uniform else LANES

    def selectors(value: int) -> list[int]:
        k = value & 3
        tables = {
            "F4E": [k, k + 1, k + 2, k + 3],
            "B4E": [k, (k - 1) % 8, (k - 2) % 8, (k - 3) % 8],
            "RC8": [k] * 4,
            "ECL": [max(i, k) for i in range(4)],
            "ECR": [min(i, k) for i in range(4)],
            "RC16": [0, 1, 0, 1] if not k & 1 else [2, 3, 2, 3],
        }
        return tables[mode] if mode else [value >> 4 * i & 15 for i in range(4)]

    def permute(w: Warp) -> None:
        both = np.empty((size, 2), WORD)
        both[:, 0], both[:, 1] = a(w), c(w)
        data, selector = both.view(np.uint8), b(w)
        if len(selector) == 1:
            chosen = selectors(int(selector[0]))
            result = data[:, [k & 7 for k in chosen]]
            for i, k in enumerate(chosen):
                if k & 8:
                    result[:, i] = np.where(result[:, i] & 0x80, 255, 0)
        else:
            chosen = np.array([selectors(int(v)) for v in selector])
            result = np.take_along_axis(data, chosen & 7, axis=1)
            result = np.where(chosen & 8, np.where(result & 0x80, 255, 0), result).astype(np.uint8)
        put(w, np.ascontiguousarray(result).view(WORD)[:, 0])

    return permute


# ---- lanes


@opcode("SHFL", suffixes="IDX UP DOWN BFLY")
def shfl(d: Decoding) -> Step:
    """Another lane's word. The last operand holds the bound of the source lane and, from bit 8 on, which bits of a lane's
    number keep it within its part of the warp."""
    mode, found, put = d.suffixes[0], d.put_predicate(0), d.destination(1)
    a, b, c = d.source(2), d.source(3), d.source(4)
    lane = np.arange(LANES)

    def exchange(w: Warp) -> None:
        value = np.broadcast_to(a(w), LANES)
        shift, bounds = (np.broadcast_to(read(w), LANES).astype(np.int64) for read in (b, c))
        segment, bound = bounds >> 8 & 31, bounds & 31
        most = (lane & segment) | (bound & ~segment)
        shift = shift & 31
        if mode == "IDX":
            source = (lane & segment) | (shift & ~segment)
            inside = source <= most
        elif mode == "UP":
            source = lane - shift
            inside = source >= most
        elif mode == "DOWN":
            source = lane + shift
            inside = source <= most
        else:
            source = lane ^ shift
            inside = source <= most
        source = np.where(inside, source, lane)
        asked = source[lanes_of(w.mask)]
        if not lanes_of(w.mask)[asked].all():
            raise MachineError("a shuffle from a lane that is not there")
        put(w, value[source])
        found(w, mask_of(np.ascontiguousarray(inside)))

    return exchange


@opcode("VOTE", "VOTEU", suffixes="ANY ALL EQ")
def vote(d: Decoding) -> Step:
    """Whether a predicate holds in any or all active lanes, and, into a register, in which."""
    ballot = None if d.is_predicate(0) else d.destination(0)
    out = d.put_predicate(1 if ballot else 0)
    condition = d.condition(d.operands[-1])
    how = d.suffixes[0]

    def decide(w: Warp) -> None:
        lanes = condition(w) & w.mask
        answer = lanes != 0 if how == "ANY" else lanes == w.mask if how == "ALL" else lanes in (0, w.mask)
        if ballot:
            ballot(w, np.full(1, lanes, WORD))
        out(w, FULL if answer else 0)

    return decide


@opcode("ELECT", suffixes="")
def elect(d: Decoding) -> Step:
    """The first active lane."""
    out, put = d.put_predicate(0), d.destination(1)

    def choose(w: Warp) -> None:
        lane = w.mask & -w.mask
        put(w, np.full(1, lane.bit_length() - 1, WORD))
        out(w, lane)

    return choose


@opcode("REDUX", suffixes="SUM MIN MAX OR AND XOR S32 U32")
def redux(d: Decoding) -> Step:
    put, a = d.destination(), d.source(1)
    name = next((s for s in d.suffixes if s not in ("S32", "U32")), "AND")
    functions = {
        "SUM": np.add,
        "MIN": np.minimum,
        "MAX": np.maximum,
        "OR": np.bitwise_or,
        "AND": np.bitwise_and,
        "XOR": np.bitwise_xor,
    }
    signed = "S32" in d

    def reduce(w: Warp) -> None:
        values = np.broadcast_to(a(w), LANES)[lanes_of(w.mask)]
        values = values.view(np.int32) if signed else values
        put(w, np.full(1, int(functions[name].reduce(values, dtype=values.dtype)) & FULL, WORD))

    return reduce


# ---- predicates as words


def _word(w: Warp) -> Row:
    """The predicates P0 to P6 of each lane, a bit each."""
    result = np.zeros(LANES, WORD)
    for k in range(7):
        lanes = w.P[k]
        if lanes:
            result |= lanes_of(lanes).astype(WORD) << WORD(k)
    return result


def _part(d: Decoding, n: int) -> tuple[str, int]:
    found = re.fullmatch(r"(U?R(?:Z|\d+))(?:\.B([0-3]))?", d.operands[n])
    if not found:
        raise d.unknown(f"operand {d.operands[n]!r}")
    return found[1], 8 * int(found[2] or 0)


@opcode("P2R", suffixes="B0 B1 B2 B3")
def p2r(d: Decoding) -> Step:
    """The predicates under a mask, the other bits from a register; with a byte named (.B1), in that byte."""
    if d.operands[1] != "PR":
        raise d.unknown()
    put, rest = d.destination(), d.source(2)
    which = int(d.operands[3], 16)
    shift = 8 * int(d.suffixes[0][1]) if d.suffixes else 0

    def move(w: Warp) -> None:
        if d.suffixes:
            keep = rest(w) & WORD(FULL & ~(255 << shift))
            put(w, keep | (_word(w) & WORD(which)) << WORD(shift))
        else:
            put(w, _word(w) & WORD(which) | rest(w) & WORD(FULL & ~which))

    return move


@opcode("R2P", suffixes="")
def r2p(d: Decoding) -> Step:
    """Predicates from the bits of a register under a mask."""
    text, shift = _part(d, 1)
    read, which = d._plain(text, False), int(d.operands[2], 16)

    def move(w: Warp) -> None:
        value = np.broadcast_to(read(w), LANES) >> WORD(shift)
        for k in range(7):
            if which >> k & 1:
                lanes = mask_of(np.ascontiguousarray(value >> WORD(k) & WORD(1)).astype(bool))
                w.P[k] = lanes & w.mask | w.P[k] & ~w.mask

    return move


@opcode("UP2UR", suffixes="")
def up2ur(d: Decoding) -> Step:
    """The uniform predicates under a mask, the other bits from a register."""
    if d.operands[1] != "UPR":
        raise d.unknown()
    put, rest, which = d.destination(), d.source(2), int(d.operands[3], 16)

    def move(w: Warp) -> None:
        word = sum(1 << k for k in range(7) if w.UP[k]) & which
        put(w, rest(w) & WORD(FULL & ~which) | WORD(word))

    return move


@opcode("UR2UP", "R2UP", suffixes="")
def ur2up(d: Decoding) -> Step:
    """Uniform predicates from the bits of a register under a mask."""
    if d.operands[0] != "UPR":
        raise d.unknown()
    read, which = d.source(1), int(d.operands[2], 16)

    def move(w: Warp) -> None:
        word = int(read(w)[0])
        for k in range(7):
            if which >> k & 1:
                w.UP[k] = bool(word >> k & 1)

    return move
