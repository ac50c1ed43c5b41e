"""Issue slots of kernels: what a warp executes for one strip or tile of an image, once it is under way.

Each family is a layer on an architecture. A block of it takes the same tile of two images, so that what it executes from the first
product of one to that of the other is what a tile costs.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from dataclasses import dataclass

import torch
from cuda_calls import CudaCall, conv2d_call
from cuda_library import host_library
from problems import ConvInstance, ConvProblem, instantiate

from . import launches, timing
from .block import Block, Launch

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


@dataclass(frozen=True)
class Family:
    """A layer, or a residual block, whose machine code is counted.

    code: the architecture that it was compiled for. card: that of the pretended card, where another one's kernels are to be taken.
    outputs: as conv2d_call. config: adabm_conv2d_args.config. pixels, values: of one strip, and its outputs.
    """

    name: str
    code: str
    problem: ConvProblem
    outputs: str = "q"
    packed: bool = False
    block: bool = False
    config: int = 0
    card: str = ""

    def __str__(self) -> str:
        return self.name

    @property
    def on_wgmma(self) -> bool:
        return self.code == "90" and not self.card


def body(bits: int = 8, out_bits: int = 8, **settings) -> ConvProblem:
    """The layer that counts: 64 to 64 channels, 3x3."""
    return ConvProblem("body", 512, 512, 64, 64, bits=(bits,), out_bits=(out_bits,), **settings)


RELU = {"activation": "relu"}
FAMILIES = [
    Family("sm_90 codes to codes", "90", body(**RELU), config=1),
    Family("sm_90 packed 4-bit codes to codes", "90", body(4, 4, **RELU), packed=True, config=1),
    Family("sm_90 residual, floats and codes", "90", body(residual=True), "yq", config=1),
    Family("sm_90 residual, floats and packed 4-bit codes", "90", body(4, 4, residual=True), "yq", packed=True, config=1),
    Family("sm_90 staged, 128 to 64 channels", "90", dataclasses.replace(body(**RELU), channels=128), config=1),
    Family("sm_90 staged, 5x5 to the image", "90", dataclasses.replace(body(), outputs=48, kernel=5, shuffle=4), "y", config=1),
    Family("sm_90 residual block", "90", body(**RELU), "yq", block=True, config=1),
    Family("sm_90 residual block, packed 4-bit codes", "90", body(4, 4, **RELU), "yq", packed=True, block=True, config=1),
    Family("sm_80 code on 9.0, codes to codes", "90", body(**RELU), card="80"),
]
for _code in ("80", "86", "89"):
    FAMILIES += [
        Family(f"sm_{_code} 8-bit products, codes to codes", _code, body(**RELU)),
        Family(f"sm_{_code} 4-bit products, codes to codes", _code, body(4, 4, **RELU), packed=True),
        Family(f"sm_{_code} 8-bit products, residual, floats and codes", _code, body(residual=True), "yq"),
        Family(f"sm_{_code} 4-bit products, residual, floats and codes", _code, body(4, 4, residual=True), "yq", packed=True),
    ]


@dataclass
class Prepared:
    """A family's call on some images, and its launch. read, written: what its kernel may touch."""

    family: Family
    instance: ConvInstance
    call: CudaCall
    read: list[torch.Tensor]
    written: list[torch.Tensor]
    started: Launch

    def block(self, index: tuple[int, int], **settings) -> Block:
        return launches.run(self.started, index, self.read, self.written, **settings)


def prepare(family: Family, problem: ConvProblem, multiprocessors: int) -> Prepared:
    """The family's layer on a problem's images."""
    answers = {"multiprocessors": multiprocessors}
    first = instantiate(problem)
    if family.block:
        follows = dataclasses.replace(
            problem, channels=problem.outputs, bits=first.out_bits.tolist(), activation="none", residual=True
        )
        second = instantiate(follows, seed=1)
        second.x_q = first.x_q  # of its size; never read
        a, b = (
            conv2d_call(first, packed_x=family.packed, outputs="q"),
            conv2d_call(second, packed_y=family.packed, outputs=family.outputs),
        )
        a.args.y_q, b.args.x_q, b.args.x_bits = None, None, a.args.out_bits
        a.args.config = family.config

        def run() -> None:
            host_library().call("adabm_resblock_cuda", a.args, b.args, 0, None)

        b.read = [t for t in b.read if t is not second.x_q]
        read, call, instance = [*a.read, a.packed, *b.read, b.packed], b, second
    else:
        call = conv2d_call(first, packed_x=family.packed, packed_y=family.packed, outputs=family.outputs)
        call.args.config = family.config
        read, instance = [*call.read, call.packed], first

        def run() -> None:
            host_library().call("adabm_conv2d_cuda", call.args, 0, None)

    started = launches.launch(run, family.card or family.code, **answers)
    if family.card:
        started = dataclasses.replace(
            started, kernel=launches.kernel_of(started.kernel.name, family.code), major=int(family.code[0])
        )
    written = [t for t in (call.y, call.y_q, call.y_acc) if t is not None]
    return Prepared(family, instance, call, read, written, started)


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


@functools.cache
def measure(family: Family, row: int = 8, column: int = 5) -> tuple[Role, ...]:
    """The roles of a block for the tile in that row and column of tiles, inside a 512x512 image."""
    if not family.on_wgmma:
        prepared = prepare(family, family.problem, launches.CARDS[family.card or family.code]["multiprocessors"])
        across = _across(family)
        block = prepared.block((row * across + column, 0), trace=(0, 1, 2, 3))
        return tuple(roles(family, block))
    across, down = _across(family), -(-family.problem.height // (14 if family.block else 16))
    twice = dataclasses.replace(family.problem, bits=family.problem.bits * 2, out_bits=family.problem.out_bits * 2)
    prepared = prepare(family, twice, across * down)
    if prepared.started.grid[0] != across * down:
        raise ValueError(f"measure: {family} must have {across * down} tiles, got a grid of {prepared.started.grid}")
    return tuple(roles(family, prepared.block((row * across + column, 0), trace=TRACED)))


def _across(family: Family) -> int:
    """Tiles of a row of the image."""
    return -(-family.problem.width // ((30 if family.block else 32) if family.on_wgmma else 16))
