"""Issue slots of kernels: what a warp executes for one strip or tile of an image, once it is under way.

Each family is a layer on an architecture. A block of it takes the same tile of two images, so that what it executes from the
first product of one to that of the other is what a tile costs.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from dataclasses import dataclass

from problems import ConvProblem

from . import timing
from .block import Block
from .families import Family, prepare

# What of a warp's instructions goes where, by first word.
KINDS = {
    "branch": "BRA BRX BRXU BSSY BSYNC BREAK CALL RET EXIT WARPSYNC YIELD NOP ENDCOLLECTIVE",
    "products": "IGMMA HGMMA IMMA WARPGROUP LDSM",
    "global memory": "LDG STG LDGSTS LDGDEPBAR DEPBAR UBLKCP UTMALDG ARRIVES",
    "shared memory": "LDS STS STSM MOVM SHFL",
    "constants": "LDC ULDC",
    "conversions": "F2I I2F MUFU I2FP F2FP I2I I2IP FRND",
    "floats": "FADD FMUL FFMA FMNMX FSETP FSEL",
    "barriers": "BAR SYNCS FENCE MEMBAR USETMAXREG ELECT",
    "uniform": "R2UR S2UR VOTEU",
}
_KIND = {word: kind for kind, words in KINDS.items() for word in words.split()}


def kind_of(opcode: str) -> str:
    name = opcode.partition(".")[0]
    return _KIND.get(name) or ("uniform" if name.startswith("U") else "integers")


# ---- what one tile costs


@dataclass(frozen=True)
class Role:
    """What one warp of a role executes of one tile, and for how many strips of it: none where it brings tiles in.

    slots: issue slots. clocks: how long it would take alone (timing.py). macs: multiply-accumulates, 4-bit ones as half of that.
    kinds: the slots by kind of instruction.
    """

    name: str
    strips: int
    slots: int
    clocks: int
    macs: int
    kinds: dict[str, int]

    @property
    def share(self) -> int:
        """What figures are given for: a strip, or a tile."""
        return self.strips or 1


def _role(block: Block, number: int, name: str, what: str, strips: int | None) -> Role | None:
    """Of a warp of a block that takes the same tile of two images, from a mark in the first to the same in the second; None
    where it has none. strips: of the tile, None for as many as there are marks."""
    w = block.warps[number]
    marks = [mark for mark in w.marks if mark.what == what]
    count = len(marks) // 2
    if count == 0:
        return None
    first, last = marks[0], marks[count]
    trace = w.trace[first.issued : last.issued]
    return _counted(block, name, trace, last.macs - first.macs, count if strips is None else strips)


def _counted(block: Block, name: str, trace: list[int], macs: int, strips: int) -> Role:
    code = block.program.code
    kinds = Counter(kind_of(code[max(index, ~index)].opcode) for index in trace)
    return Role(name, strips, len(trace), timing.clocks(code, trace), macs, dict(kinds.most_common()))


def roles(family: Family, block: Block) -> list[Role]:
    if not family.on_wgmma:
        w = max(block.warps, key=lambda warp: warp.slots)
        return [_counted(block, "warp", w.trace, w.macs, 1)]
    strips = family.tile[1] // 8 // 2 if family.kind == "staged" else None  # both warpgroups have half of them, all at once
    names = ("first convolution", "second convolution") if family.block else ("consumer", "other consumer")
    found = [_role(block, 0, "producer", "stage", 0)]
    found += [_role(block, number, name, "products", strips) for number, name in zip((4, 8), names, strict=True)]
    return [role for role in found if role]


TRACED = (0, 4, 8)


def executed(family: Family, problem: ConvProblem, row: int, column: int) -> tuple[Role, ...]:
    """The roles of a block for the tile in that row and column of tiles."""
    if not family.on_wgmma:
        return tuple(roles(family, prepare(family, problem).execute(row, column, trace=(0, 1, 2, 3))))
    twice = dataclasses.replace(problem, bits=problem.bits * 2, out_bits=problem.out_bits * 2)
    return tuple(roles(family, prepare(family, twice).execute(row, column, trace=TRACED)))


@functools.cache
def measure(family: Family) -> tuple[Role, ...]:
    """The roles of a block for a tile inside an image."""
    return executed(family, family.problem, 2, 2)


def over_image(family: Family, height: int, width: int) -> dict[str, Role]:
    """The roles over all tiles of an image, by name: nine kinds of tiles, as they lie along a border or inside, each executed
    once on a smaller image with the same remainders."""
    rows, columns = family.tile
    down, across = -(-height // rows), -(-width // columns)
    if down < 3 or across < 3:
        raise ValueError(f"over_image: an image must have 3 tiles each way, got {down} and {across}")
    small = dataclasses.replace(family.problem, height=height - (down - 3) * rows, width=width - (across - 3) * columns)
    total: dict[str, Role] = {}
    for row, many_rows in enumerate((1, down - 2, 1)):
        for column, many_columns in enumerate((1, across - 2, 1)):
            many = many_rows * many_columns
            for role in executed(family, small, row, column):
                zero = Role(role.name, 0, 0, 0, 0, {})
                before = total.get(role.name, zero)
                kinds = Counter(before.kinds) + Counter({kind: many * n for kind, n in role.kinds.items()})
                total[role.name] = Role(
                    role.name,
                    before.strips + many * role.strips,
                    before.slots + many * role.slots,
                    before.clocks + many * role.clocks,
                    before.macs + many * role.macs,
                    dict(kinds.most_common()),
                )
    return total
