"""Issue slots of kernels: what a warp executes for one strip or tile of an image, once it is under way.

Each family is a layer on an architecture. A block of it takes the same tile of two images, so that what it executes from the first
product of one to that of the other is what a tile costs.
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
    """What one warp of a role executes. slots: for a strip, or a tile where it brings tiles in. strips: that it has of a tile.
    clocks: its latency alone (timing.py) for as much. kinds: the slots by kind of instruction."""

    name: str
    slots: float
    clocks: float
    strips: int
    kinds: dict[str, float]


def _counted(block: Block, number: int, begin: int, end: int, share: int) -> tuple[float, float, dict[str, float]]:
    """(slots, clocks, kinds) of a warp between two of its marks, for one of `share` equal parts."""
    w = block.warps[number]
    first, last = w.marks[begin], w.marks[end]
    kinds: Counter = Counter()
    for index in w.trace[first.issued : last.issued]:
        kinds[kind_of(block.program.code[index].opcode)] += 1
    clocks = timing.clocks(block.program.code, w.trace[first.issued : last.issued])
    return (last.slots - first.slots) / share, clocks / share, {kind: n / share for kind, n in kinds.most_common()}


def _steady(block: Block, number: int, what: str, name: str, per_tile: bool) -> Role | None:
    """What a warp executes from a mark in its first tile to the same in its second; None where it has none."""
    w = block.warps[number]
    w.marks = [mark for mark in w.marks if mark.what == what]
    count = len(w.marks) // 2
    if count == 0:
        return None
    slots, clocks, kinds = _counted(block, number, 0, count, 1 if per_tile else count)
    return Role(name, slots, clocks, count, kinds)


def roles(family: Family, block: Block) -> list[Role]:
    """Of a block that has taken the same tile of two images."""
    if not family.on_wgmma:
        w = max(block.warps, key=lambda warp: warp.slots)
        w.marks = []
        kinds = Counter(kind_of(block.program.code[index].opcode) for index in w.trace)
        return [Role("warp", w.slots, timing.clocks(block.program.code, w.trace), 1, dict(kinds.most_common()))]
    names = ("producer", "first convolution", "second convolution") if family.block else ("producer", "consumer", "other consumer")
    found = [
        _steady(block, 0, "stage", names[0], True),
        _steady(block, 4, "products", names[1], False),
        _steady(block, 8, "products", names[2], False),
    ]
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
