"""Branches, and how lanes of a warp part and meet."""

from __future__ import annotations

import re

import numpy as np

from .machine import ENDED, FULL, PARKED, Decoding, MachineError, Step, Warp, lanes_of, opcode


@opcode("BRA", suffixes="U ANY DIV CONV", control=True)
def bra(d: Decoding) -> Step:
    """To an address, for the active lanes whose predicate holds; .U: for all of them, as their predicate is one, .ANY: if it
    holds in any. .DIV: where lanes of a mask are missing."""
    active, target = d.active(), d.target(d.operands[-1])
    if "DIV" in d:
        mask = d.source(0)

        def divide(w: Warp) -> int | None:
            if active(w) and w.mask != int(mask(w)[0]) & w.alive:
                return target
            return None

        return divide
    condition = d.condition(d.operands[0]) if len(d.operands) == 2 else None
    if "ANY" in d:
        return lambda w: target if active(w) & (condition(w) if condition else FULL) else None
    if condition is None and not d.instruction.guard:
        return lambda w: target

    def branch(w: Warp) -> int | None:
        taken = active(w)
        if condition:
            taken &= condition(w)
        if taken == w.mask:
            return target
        return w.part(taken, target) if taken else None

    return branch


@opcode("CALL", suffixes="REL NOINC", control=True)
def call(d: Decoding) -> Step:
    """A jump: the address to come back to is a register's, as the code itself puts it there."""
    active, target = d.active(), d.target(d.operands[-1])

    def go(w: Warp) -> int | None:
        taken = active(w)
        return w.part(taken, target) if taken else None

    return go


@opcode("BRX", "BRXU", "RET", suffixes="REL NODEC", control=True)
def brx(d: Decoding) -> Step:
    """To an address that registers hold, counted from the next instruction."""
    found = re.fullmatch(r"(U?R\d+) (-?0x[0-9a-f]+)", d.operands[0])
    if not found or d.instruction.guard:
        raise d.unknown()
    read = d._wide(found[1])
    base = d.instruction.address + 16 + int(found[2], 16) if d.name != "RET" else int(found[2], 16)

    def go(w: Warp) -> int | None:
        places = np.broadcast_to(read(w), 32).astype(np.int64) + base
        rest = w.mask
        first = None
        for place in dict.fromkeys(places[lanes_of(w.mask)].tolist()):
            lanes = sum(1 << i for i in range(32) if places[i] == place) & rest
            index = d.program.at(place)
            if first is None:
                first = (lanes, index)
            else:
                w.part(lanes, index)
        return first[1]

    return go


@opcode("EXIT", suffixes="", control=True)
def leave(d: Decoding) -> Step:
    active = d.active()

    def end(w: Warp) -> int | None:
        lanes = active(w)
        if not lanes:
            return None
        w.end(lanes)
        w.block.ended(w, lanes)
        w.mask &= ~lanes
        return None if w.mask else ENDED

    return end


@opcode("BSSY", suffixes="RECONVERGENT RELIABLE", control=True)
def bssy(d: Decoding) -> Step:
    name, target = d.operands[0], d.target(d.operands[-1])
    if d.instruction.guard:
        raise d.unknown("a guard")
    return lambda w: w.open(name, target)


@opcode("BSYNC", suffixes="RECONVERGENT RELIABLE", control=True)
def bsync(d: Decoding) -> Step:
    """Waits for the other lanes of the barrier."""
    name, active = d.operands[0], d.active()

    def arrive(w: Warp) -> int | None:
        lanes = active(w)
        if lanes != w.mask:
            if not lanes:
                return None
            raise d.unknown("a guard that parts lanes")
        groups = w.convergence.get(name)
        if groups and len(groups) == 1 and groups[0].mask == lanes and not groups[0].arrived:
            return groups.pop().target  # all of them are here
        w.arrive(name)
        return PARKED

    return arrive


@opcode("BREAK", suffixes="RELIABLE", control=True)
def break_(d: Decoding) -> Step:
    """Lanes leave a convergence barrier."""
    active, name = d.active(), d.operands[-1]
    condition = d.condition(d.operands[0]) if len(d.operands) == 2 else None

    def leave_barrier(w: Warp) -> None:
        lanes = active(w)
        if condition:
            lanes &= condition(w)
        if lanes:
            w.leave(name, lanes)

    return leave_barrier


@opcode("WARPSYNC", suffixes="ALL COLLECTIVE EXCLUSIVE", control=True)
def warpsync(d: Decoding) -> Step:
    """Lanes of a mask meet."""
    active, index = d.active(), d.index
    mask = None if "ALL" in d or not d.operands else d.source(0)

    def meet(w: Warp) -> int | None:
        lanes = active(w)
        if not lanes:
            return None
        if lanes != w.mask:
            raise MachineError("WARPSYNC by some of the lanes of a fragment")
        wanted = FULL
        if mask:
            values = mask(w)
            wanted = int(values[0] if len(values) == 1 else values[(w.mask & -w.mask).bit_length() - 1])
        return w.meet(wanted, index, index + 1)

    return meet


@opcode("NOP", "YIELD", "ENDCOLLECTIVE", "CCTL", "CCTLL", "PREEXIT", "ERRBAR", "NANOSLEEP", "PMTRIG", suffixes=None)
def nothing(d: Decoding) -> Step:
    return lambda w: None


@opcode("USETMAXREG", suffixes="TRY_ALLOC DEALLOC CTAPOOL", control=True)
def usetmaxreg(d: Decoding) -> Step:
    """Registers are given and taken at once."""
    out = d.put_predicate(0) if d.is_predicate(0) else None
    return (lambda w: out(w, FULL)) if out else (lambda w: None)
