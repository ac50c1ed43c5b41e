"""Matrix products: those of a warp (IMMA), and those of a warpgroup (IGMMA), whose sums land at the wait for them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

from .machine import FULL, LANES, WORD, Decoding, MachineError, Row, Step, Warp, opcode

_LANE = np.arange(LANES)
_GROUP, _QUARTER = _LANE // 4, _LANE % 4


def _whole(w: Warp) -> None:
    if w.mask != FULL:
        raise MachineError("a matrix product by some of a warp's lanes")


def _codes(words: Row, kind: str) -> Row:
    """The 8- or 4-bit numbers of words [...], as float32 [..., 4 or 8]."""
    data = np.ascontiguousarray(words)[..., None].view(np.uint8)
    if kind.endswith("8"):
        return data.view(np.int8 if kind == "S8" else np.uint8).astype(np.float32)
    nibbles = np.stack([data & 15, data >> 4], axis=-1).reshape(*data.shape[:-1], 8).astype(np.int8)
    return (nibbles - ((nibbles & 8) << 1) if kind == "S4" else nibbles).astype(np.float32)


def left(registers: Row, kind: str) -> Row:
    """A [16][K] of four registers of each lane: register r has row lane / 4 + 8 (r % 2), from word lane % 4 + 4 (r / 2) of its
    row."""
    codes = _codes(registers, kind)  # [4][32][codes]
    n = codes.shape[-1]
    by = codes.reshape(2, 2, 8, 4, n)  # [word half][row half][group][quarter][code]
    return by.transpose(1, 2, 0, 3, 4).reshape(16, 8 * n)


def right(registers: Row, kind: str) -> Row:
    """B as [8 columns][K] of two registers of each lane."""
    codes = _codes(registers, kind)
    n = codes.shape[-1]
    return codes.reshape(2, 8, 4, n).transpose(1, 0, 2, 3).reshape(8, 8 * n)


def sums(products: Row) -> Row:
    """[16][columns] as the registers of a warp: 4 j + r has row lane / 4 + 8 (r / 2), column 8 j + 2 (lane % 4) + r % 2."""
    columns = products.shape[1]
    return products.reshape(2, 8, columns // 8, 4, 2).transpose(2, 0, 4, 1, 3).reshape(columns // 2, LANES)


@opcode("IMMA", suffixes="16832 16864 16816 U8 S8 U4 S4 ROW COL")
def imma(d: Decoding) -> Step:
    """d = a b + c for 16x8 sums, of 32 bytes of each row and column: products and sums are exact in float32 before c is added."""
    kinds = [s for s in d.suffixes if s in ("U8", "S8", "U4", "S4")]
    if d.suffixes[0] not in ("16832", "16864") or len(kinds) != 2 or d.operands[1][-4:] != ".ROW" or d.operands[2][-4:] != ".COL":
        raise d.unknown()
    if kinds[0][1] != {"16832": "8", "16864": "4"}[d.suffixes[0]]:
        raise d.unknown()
    to, a, b, c = (d.register_number(n) for n in range(4))
    if to is None or a is None or b is None:
        raise d.unknown("RZ")

    def multiply(w: Warp) -> None:
        _whole(w)
        w.macs += 16 * 8 * 32  # of 64 4-bit codes too: as long as 32 of 8 bits
        values = w.values
        found = sums(left(values[a : a + 4], kinds[0]) @ right(values[b : b + 2], kinds[1]).T).astype(np.int32).view(WORD)
        values[to : to + 4] = found if c is None else found + values[c : c + 4]

    return multiply


# ---- of a warpgroup


@dataclass
class Product:
    """One product under way: where its operands lie in shared memory, and what they were when it was issued."""

    places: list[tuple[Row, Row]]
    first: int  # register of its sums
    count: int


@dataclass
class Products:
    """Those of a warp: in groups, oldest first; `open`: issued since the last group was closed. sums: by first register."""

    groups: list[list[Product]] = field(default_factory=list)
    open: list[Product] = field(default_factory=list)
    sums: dict[int, Row] = field(default_factory=dict)
    arrived: bool = False


def products_of(w: Warp) -> Products:
    if w.products is None:
        w.products = Products()
    return w.products


_ROWS: dict[tuple[int, int, int], Row] = {}


def core_matrices(start: int, along: int, across: int, rows: int) -> Row:
    """Places of the bytes [rows][32] of an operand without swizzle: eight rows are 128 bytes, 16 each; `across` bytes on are
    the next 16 of the depth, `along` bytes on the next eight rows."""
    key = (along, across, rows)
    if key not in _ROWS:
        row, byte = np.arange(rows)[:, None], np.arange(32)[None, :]
        _ROWS[key] = row // 8 * along + row % 8 * 16 + byte // 16 * across + byte % 16
    return _ROWS[key] + start


def described(descriptor: int) -> tuple[int, int, int]:
    """(start, bytes to the next eight rows, bytes to the next 16 of the depth) of a matrix descriptor."""
    if descriptor >> 62 or descriptor >> 49 & 7 or descriptor >> 14 & 3 or descriptor >> 30 & 3 or descriptor >> 46 & 7:
        raise MachineError(f"a matrix descriptor {descriptor:#018x} with a swizzle, an offset or bits that have no meaning")
    return (descriptor & 0x3FFF) << 4, (descriptor >> 32 & 0x3FFF) << 4, (descriptor >> 16 & 0x3FFF) << 4


def _descriptor(w: Warp, k: int) -> int:
    return int(w.U[k][0]) | int(w.U[k + 1][0]) << 32


@opcode("IGMMA", suffixes=None)
def igmma(d: Decoding) -> Step:
    """64 rows by some columns by 32 codes, of which this warp has 16 rows. a: four registers, or described beside b."""
    shape = re.fullmatch(r"64x(\d+)x32", d.suffixes[0])
    if not shape or d.suffixes[1:] != ("S8", "U8"):
        raise d.unknown()
    columns, operands = int(shape[1]), list(d.operands)
    closes = operands[-1] == "gsb0"
    operands = operands[:-1] if closes else operands
    to = d.register_number(0)
    from_registers = not operands[1].startswith("gdesc")
    a = d.register_number(1) if from_registers else None
    place = 2 if from_registers else 1
    uniform = re.fullmatch(r"gdesc\[UR(\d+)\]", operands[place])
    if to is None or not uniform or len(operands) not in (place + 2, place + 3):
        raise d.unknown()
    c = d.register_number(place + 1)
    adds = d.condition(operands[place + 2]) if len(operands) == place + 3 else (lambda w: FULL)
    if c not in (None, to):
        raise d.unknown("sums that are added to others")
    k, count = int(uniform[1]), columns // 2
    own = ((1 << count) - 1) << to
    inputs = 15 << a if a is not None else 0

    def issue(w: Warp) -> None:
        _whole(w)
        products = products_of(w)
        if not products.arrived:
            raise MachineError("a product without WARPGROUP.ARRIVE since registers were touched")
        shared = w.block.shared
        places = []
        if a is None:
            descriptor = _descriptor(w, k)
            index = core_matrices(*described(descriptor), 64)[w.number % 4 * 16 :][:16]
            data = shared.product_bytes(index, w.number)
            places.append((index, data))
            rows = data.view(np.int8).astype(np.float32)
        else:
            descriptor = 0
            rows = left(w.values[a : a + 4], "S8")
        b = _descriptor(w, k + 2)
        index = core_matrices(*described(b), columns)
        data = shared.product_bytes(index, w.number)
        places.append((index, data))
        w.macs += 16 * columns * 32
        w.block.count_reads(w, b, columns)
        found = sums(rows @ data.astype(np.float32).T).astype(np.int32).view(WORD)
        if adds(w) and c is not None:
            found = found + (products.sums[to] if to in products.sums else w.values[to : to + count])
        w.block.same_for_group(w, (d.instruction.address, descriptor, b))
        products.sums[to] = found
        products.open.append(Product(places, to, count))
        w.flight.sums |= own
        w.flight.inputs |= inputs
        if closes:
            products.groups.append(products.open)
            products.open = []

    return issue


@opcode("HGMMA", suffixes=None)
def hgmma(d: Decoding) -> Step:
    """Only as the compiler uses it to close a group: without operands."""
    if d.operands[0] != "RZ" or d.operands[1] != "gdesc[URZ]" or d.operands[-1] != "gsb0":
        raise d.unknown()

    def close(w: Warp) -> None:
        products = products_of(w)
        products.groups.append(products.open)
        products.open = []

    return close


@opcode("WARPGROUP", suffixes="ARRIVE DEPBAR LE")
def warpgroup(d: Decoding) -> Step:
    """ARRIVE: registers are ready for products. DEPBAR.LE: waits until at most some of the latest groups are under way."""
    if "ARRIVE" in d:

        def arrive(w: Warp) -> None:
            _whole(w)
            products_of(w).arrived = True

        return arrive
    if d.suffixes != ("DEPBAR", "LE") or d.operands[0] != "gsb0":
        raise d.unknown()
    pending = int(d.operands[1], 16)

    def wait(w: Warp) -> None:
        _whole(w)
        products = products_of(w)
        shared = w.block.shared
        while len(products.groups) > pending:
            for product in products.groups.pop(0):
                for index, data in product.places:
                    if not np.array_equal(shared.product_bytes(index, w.number), data):
                        raise MachineError("shared memory that a product read has changed before the wait for it")
        left_over = [product for group in products.groups for product in group] + products.open
        still = {product.first for product in left_over}
        landed = False
        for first in [first for first in products.sums if first not in still]:
            found = products.sums.pop(first)
            w.values[first : first + len(found)] = found
            landed = True
        w.flight.sums = sum(((1 << product.count) - 1) << product.first for product in {p.first: p for p in left_over}.values())
        if not left_over:
            w.flight.inputs = 0
            products.arrived = False
        if landed:
            w.mark("products")

    return wait
