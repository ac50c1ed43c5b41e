"""Barriers of a block: named ones, and those that lie in shared memory (mbarrier) with the bulk and tensor copies that they
count."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from .access import active_addresses, land
from .machine import FULL, Decoding, MachineError, Row, Step, Warp, opcode

if TYPE_CHECKING:
    from .block import Block


@dataclass
class Barrier:
    """An mbarrier. pending: arrivals that its phase still needs; bytes: of copies that it still waits for."""

    count: int
    pending: int
    bytes: int = 0
    phase: int = 0
    landing: list[Callable[[], int]] = field(default_factory=list)  # copies under way: each returns its bytes
    after_copies: list[Callable[[], None]] = field(default_factory=list)


class Barriers:
    """Those of a block, in shared memory by address and named ones by number."""

    def __init__(self, block: Block):
        self.block = block
        self.shared: dict[int, Barrier] = {}
        self._named: dict[int, tuple[int, int]] = {}  # number -> (threads that have come, phase)
        self._sizes: dict[int, int] = {}

    def at(self, address: int) -> Barrier:
        if address not in self.shared:
            raise MachineError(f"there is no barrier at byte {address:#x} of shared memory")
        return self.shared[address]

    def make(self, address: int, count: int) -> None:
        if address % 8 or address < self.block.shared.base or address + 8 > self.block.shared.end:
            raise MachineError(f"a barrier at byte {address:#x} of shared memory, outside it or at no multiple of 8")
        if count < 1:
            raise MachineError(f"a barrier for {count} arrivals")
        self.shared[address] = Barrier(count, count)

    def arrive(self, address: int, arrivals: int, bytes_: int = 0) -> None:
        barrier = self.at(address)
        barrier.bytes += bytes_
        if arrivals > barrier.pending:
            raise MachineError(f"{arrivals} arrivals at the barrier at {address:#x}, which waits for {barrier.pending}")
        barrier.pending -= arrivals
        self._turn(barrier)

    @staticmethod
    def _turn(barrier: Barrier) -> None:
        if barrier.pending == 0 and barrier.bytes == 0:
            barrier.pending, barrier.phase = barrier.count, barrier.phase + 1

    def passed(self, address: int, parity: int) -> bool:
        """Whether the phase of this parity is over. What copies have under way for it lands where somebody waits for it."""
        barrier = self.at(address)
        if barrier.phase % 2 == parity:
            waiting, barrier.after_copies = barrier.after_copies, []
            for arrive in waiting:
                arrive()
        if barrier.phase % 2 == parity and barrier.pending == 0:
            landing, barrier.landing = barrier.landing, []
            for copy in landing:
                barrier.bytes -= copy()
            if barrier.bytes < 0:
                raise MachineError(f"more bytes come to the barrier at {address:#x} than were announced")
            self._turn(barrier)
        return barrier.phase % 2 != parity

    def after_copies(self, w: Warp, address: int, counted_as_bytes: bool) -> None:
        """Arrivals of the active lanes once their copies so far have landed; or, where they were announced as such, so many
        bytes."""
        barrier, lanes, groups = self.at(address), w.mask, w.groups + 1

        def arrive() -> None:
            land(w, lanes, groups)
            w.block.publish(w)
            if counted_as_bytes:
                barrier.bytes -= lanes.bit_count()
                self._turn(barrier)
            else:
                self.arrive(address, lanes.bit_count())

        barrier.after_copies.append(arrive)

    # -- named ones

    def come(self, w: Warp, number: int, threads: int, waits: bool) -> Callable[[], bool] | None:
        """Lanes come to a named barrier; what they wait for, None where the barrier opens or they only arrive."""
        if not 0 <= number < 16 or threads % 32 or not 0 < threads <= self.block.threads:
            raise MachineError(f"barrier {number} of {threads} threads")
        if self._named.get(number, (0, 0))[0] and self._sizes[number] != threads:
            raise MachineError(f"barrier {number} of {threads} threads, which is being waited at by {self._sizes[number]}")
        self._sizes[number] = threads
        come, phase = self._named.get(number, (0, 0))
        come += w.mask.bit_count()
        if come > threads:
            raise MachineError(f"{come} threads at barrier {number}, which is for {threads}")
        self._named[number] = (0, phase + 1) if come == threads else (come, phase)
        if not waits or come == threads:
            return None
        return lambda: self._named[number][1] != phase

    def check_end(self) -> None:
        for number, (come, _) in self._named.items():
            if come:
                raise MachineError(f"the block ends with {come} threads at barrier {number}")
        for address, barrier in self.shared.items():
            if barrier.landing or barrier.bytes or barrier.after_copies:
                raise MachineError(f"the block ends with copies under way for the barrier at {address:#x}")


def _one(w: Warp, row: Row) -> int:
    values = active_addresses(w, row)
    if (values != values[0]).any():
        raise MachineError("lanes that differ in what must be the same for all")
    return int(values[0])


@opcode("BAR", suffixes="SYNC ARV DEFER_BLOCKING")
def bar(d: Decoding) -> Step:
    number = d.source(0)
    threads = d.source(1) if len(d.operands) > 1 else None
    waits = "ARV" not in d

    def come(w: Warp) -> int | None:
        w.block.publish(w)
        count = _one(w, threads(w)) if threads else w.block.threads
        which = _one(w, number(w))
        ready = w.block.barriers.come(w, which, count, waits)
        if ready is None:
            if waits:
                w.block.acquire(w)
            return None
        return w.wait(lambda: ready() and w.block.acquire(w), f"barrier {which}")

    if d.instruction.guard:
        raise d.unknown("a guard")
    return come


@opcode("SYNCS", suffixes="EXCH 64 ARRIVE TRANS64 A1T0 ART0 A1TR A0TR A0T1 RED PHASECHK TRYWAIT CCTL")
def syncs(d: Decoding) -> Step:
    """mbarrier: made (EXCH), arrived at, with bytes announced where the last operand holds them, and waited for (PHASECHK)."""
    if "PHASECHK" in d:
        out, at, parity = d.put_predicate(0), d.address(1), d.source(2)
        if d.instruction.guard:
            raise d.unknown("a guard")

        def wait(w: Warp) -> int | None:
            address, odd = _one(w, at(w)), _one(w, parity(w)) >> 31 & 1
            if not w.block.barriers.passed(address, odd):
                ready = w.block.barriers.passed
                return w.wait(lambda: ready(address, odd), f"the barrier at {address:#x}", again=True)
            w.block.acquire(w)
            w.mark("stage")
            out(w, FULL)
            return None

        return wait
    if "EXCH" in d:
        at, value = d.address(1), d.wide(2)

        def make(w: Warp) -> None:
            low = _one(w, value(w)) & FULL
            w.block.barriers.make(_one(w, at(w)), 0x100000 - (low >> 1))

        return make
    if "ARRIVE" not in d:
        raise d.unknown()
    at, value = d.address(1), d.source(2)
    # How many arrivals and how many bytes (A.T.): none, one, or what the last operand says. Plain: one and as many bytes.
    form = next((s for s in d.suffixes if re.fullmatch(r"A[01R]T[01R]", s)), "A1TR")

    def arrive(w: Warp) -> None:
        w.block.publish(w)
        addresses = active_addresses(w, at(w))
        numbers = active_addresses(w, value(w))
        for address in dict.fromkeys(addresses.tolist()):
            here = numbers[addresses == address]
            amounts = {"0": 0, "1": len(here), "R": int(here.astype(np.int64).sum())}
            w.block.barriers.arrive(address, amounts[form[1]], amounts[form[3]])

    return arrive


# ---- bulk and tensor copies


def _start(w: Warp, to: int, data: Row, barrier: int) -> None:
    shared = w.block.shared
    shared.begin_bulk(to, len(data))

    def land_bulk() -> int:
        shared.end_bulk(to, data)
        return len(data)

    w.block.barriers.at(barrier).landing.append(land_bulk)


@opcode("UBLKCP", suffixes="S G")
def ublkcp(d: Decoding) -> Step:
    """Consecutive bytes from global to shared memory: registers hold the place and its barrier, the source, and units of 16
    bytes."""
    if d.suffixes != ("S", "G"):
        raise d.unknown()
    to, source = (int(d.operands[n].strip("[]")[2:]) for n in (0, 1))
    count = d.source(2)

    def copy(w: Warp) -> None:
        size = (int(count(w)[0]) & 0xFFFF) * 16
        address = int(w.U[source][0]) | int(w.U[source + 1][0]) << 32
        if address % 16 or int(w.U[to][0]) % 16:
            raise MachineError(f"a bulk copy from {address:#x} to {int(w.U[to][0]):#x}, which must be multiples of 16")
        _start(w, int(w.U[to][0]), w.block.memory.bulk(address, size), int(w.U[to + 1][0]))

    return copy


@opcode("UTMALDG", suffixes="4D")
def utmaldg(d: Decoding) -> Step:
    """A box of a tensor, zeros where the tensor has nothing. Registers hold the place, its barrier and the four coordinates,
    innermost first; and where the map lies, which is one of the host runtime's (cuda_host.h)."""
    to, source = (int(operand.strip("[]")[2:]) for operand in d.operands)

    def copy(w: Warp) -> None:
        place, barrier = int(w.U[to][0]), int(w.U[to + 1][0])
        at = [int(w.U[to + 2 + i].view(np.int32)[0]) for i in range(4)]
        address = int(w.U[source][0]) | int(w.U[source + 1][0]) << 32
        base, sizes, strides, box = w.block.tensor_map(address)
        if place % 128:
            raise MachineError(f"a tensor copy to byte {place:#x} of shared memory, which must be a multiple of 128")
        data = np.zeros(box[::-1], np.uint8)
        ranges = [range(max(0, -a), min(b, s - a)) for a, b, s in zip(at, box, sizes, strict=True)]
        if all(len(r) for r in ranges):
            for n in ranges[3]:
                for h in ranges[2]:
                    for x in ranges[1]:
                        begin = (
                            base
                            + (at[3] + n) * strides[2]
                            + (at[2] + h) * strides[1]
                            + (at[1] + x) * strides[0]
                            + at[0]
                            + ranges[0][0]
                        )
                        data[n, h, x, ranges[0][0] : ranges[0][-1] + 1] = w.block.memory.bulk(begin, len(ranges[0]))
        _start(w, place, data.ravel(), barrier)

    return copy


@opcode("UTMACCTL", "UTMACMDFLUSH", "UCGABAR_ARV", "UCGABAR_WAIT", suffixes=None)
def unsupported(d: Decoding) -> Step:
    raise d.unknown()
