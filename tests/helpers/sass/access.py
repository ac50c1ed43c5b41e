"""Loads, stores and asynchronous copies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .machine import FULL, LANES, WORD, Decoding, MachineError, Row, Step, Warp, lanes_of, opcode

_SIZES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}
_SIGNED = {"S8": np.int8, "S16": np.int16}
_HINTS = "E CONSTANT SYS GPU CTA STRONG WEAK EF EL LU EU NA BYPASS LTC64B LTC128B LTC256B U8 S8 U16 S16 32 64 128"


def size_of(d: Decoding) -> int:
    return next((_SIZES[suffix] for suffix in d.suffixes if suffix in _SIZES), 4)


def active_addresses(w: Warp, addresses: Row) -> Row:
    """Those of the active lanes."""
    if len(addresses) == 1:
        return np.repeat(addresses, w.mask.bit_count())
    return addresses if w.mask == FULL else addresses[lanes_of(w.mask)]


def active_threads(w: Warp) -> Row:
    numbers = np.arange(w.number * LANES, (w.number + 1) * LANES, dtype=np.int16)
    return numbers if w.mask == FULL else numbers[lanes_of(w.mask)]


def _to_words(d: Decoding, data: Row) -> Row:
    """uint8 [n][size] as words [n][registers]."""
    size = data.shape[1]
    if size >= 4:
        return np.ascontiguousarray(data).view(WORD)
    signed = next((_SIGNED[s] for s in d.suffixes if s in _SIGNED), None)
    dtype = signed or {1: np.uint8, 2: np.uint16}[size]
    return np.ascontiguousarray(data).view(dtype).astype(np.int32).view(WORD)


@opcode("LDG", "LD", suffixes=_HINTS)
def ldg(d: Decoding) -> Step:
    size = size_of(d)
    if len(d.operands) != 2:
        raise d.unknown()
    put, at = d.words_destination(0, max(size // 4, 1)), d.address(1)

    def load(w: Warp) -> None:
        put(w, _to_words(d, w.block.memory.read(active_addresses(w, at(w)), size)))

    return load


@opcode("STG", "ST", suffixes=_HINTS)
def stg(d: Decoding) -> Step:
    size = size_of(d)
    at, value = d.address(0), d.words(1, max(size // 4, 1))

    def store(w: Warp) -> None:
        data = np.ascontiguousarray(value(w)).view(np.uint8)[:, : max(size, 1)]
        w.block.memory.write(active_addresses(w, at(w)), data)

    return store


@opcode("LDS", suffixes="U U8 S8 U16 S16 64 128")
def lds(d: Decoding) -> Step:
    size = size_of(d)
    put, at = d.words_destination(0, max(size // 4, 1)), d.address(1)

    def load(w: Warp) -> None:
        data = w.block.shared.read(active_addresses(w, at(w)), size)
        if data.ndim == 1:
            signed = next((_SIGNED[s] for s in d.suffixes if s in _SIGNED), None)
            data = (data.view(signed).astype(np.int32).view(WORD) if signed else data.astype(WORD))[:, None]
        put(w, data)

    return load


@opcode("STS", suffixes="U8 S8 U16 S16 64 128")
def sts(d: Decoding) -> Step:
    size = size_of(d)
    at, value = d.address(0), d.words(1, max(size // 4, 1))
    dtype = {1: np.uint8, 2: np.uint16}.get(size, WORD)

    def store(w: Warp) -> None:
        data = value(w)
        data = data[:, 0].astype(dtype) if size <= 4 else data
        w.block.wrote(w, w.block.shared.write(active_addresses(w, at(w)), data, active_threads(w)))

    return store


_ROW = np.arange(LANES) // 4
_QUARTER = np.arange(LANES) % 4


def _whole(w: Warp, what: str) -> None:
    if w.mask != FULL:
        raise MachineError(f"{what} by some of a warp's lanes")


@opcode("LDSM", suffixes="16 M88 MT88 2 4 1")
def ldsm(d: Decoding) -> Step:
    """Matrices of 8 by 8 halves: lane i names row i % 8 of matrix i / 8 and gets word i % 4 of row i / 4 of each; MT88:
    transposed."""
    count = int(d.suffixes[-1]) if d.suffixes[-1] in ("2", "4") else 1
    put, at, transposed = d.words_destination(0, count), d.address(1), "MT88" in d

    def load(w: Warp) -> None:
        _whole(w, "LDSM")
        addresses = np.broadcast_to(at(w), LANES)[: 8 * count]
        rows = w.block.shared.read(addresses, 16).reshape(count, 8, 4)
        if transposed:
            halves = np.ascontiguousarray(rows).view(np.uint16).reshape(count, 8, 8).transpose(0, 2, 1)
            rows = np.ascontiguousarray(halves).view(WORD)
        put(w, rows[:, _ROW, _QUARTER].T)

    return load


@opcode("STSM", suffixes="16 M88 MT88 2 4 1")
def stsm(d: Decoding) -> Step:
    """LDSM the other way."""
    count = int(d.suffixes[-1]) if d.suffixes[-1] in ("2", "4") else 1
    at, value, transposed = d.address(0), d.words(1, count), "MT88" in d

    def store(w: Warp) -> None:
        _whole(w, "STSM")
        addresses = np.broadcast_to(at(w), LANES)[: 8 * count]
        rows = np.ascontiguousarray(value(w).T).reshape(count, 8, 4)
        if transposed:
            rows = np.ascontiguousarray(rows.view(np.uint16).reshape(count, 8, 8).transpose(0, 2, 1)).view(WORD)
        words = w.block.shared.write(addresses, np.ascontiguousarray(rows.reshape(-1, 4)), active_threads(w)[: 8 * count])
        w.block.wrote(w, words)

    return store


@opcode("MOVM", suffixes="16 MT88")
def movm(d: Decoding) -> Step:
    """The transpose of a matrix of 8 by 8 halves that lies in one register of a warp."""
    put, a = d.destination(), d.source(1)

    def move(w: Warp) -> None:
        _whole(w, "MOVM")
        halves = np.ascontiguousarray(a(w)).view(np.uint16).reshape(8, 8)
        put(w, np.ascontiguousarray(halves.T).view(WORD).reshape(LANES))

    return move


# ---- asynchronous copies of threads


@dataclass
class Copies:
    """What one instruction started: for each of its lanes where it goes, what, and in which group of its lane."""

    lanes: Row
    to: Row
    data: Row
    group: Row
    threads: Row


@opcode("LDGSTS", suffixes=_HINTS + " ZFILL ACCESS")
def ldgsts(d: Decoding) -> Step:
    """A copy from global to shared memory, of zeros where the predicate does not hold. It lands at the wait for its group."""
    size, to, source = size_of(d), d.address(0), d.address(1)
    if size < 4:
        raise d.unknown()
    live = d.predicate(2) if len(d.operands) > 2 else None

    def copy(w: Warp) -> None:
        targets = active_addresses(w, to(w))
        addresses = active_addresses(w, source(w))
        lanes = lanes_of(w.mask)
        data = np.zeros((len(targets), size), np.uint8)
        here = lanes_of(live(w))[lanes] if live else None
        if here is None:
            data[:] = w.block.memory.read(addresses, size)
        elif here.any():
            data[here] = w.block.memory.read(addresses[here], size)
        w.block.shared.begin_copy(targets, size)
        w.copies.append(Copies(np.nonzero(lanes)[0], targets, data, w.groups[lanes], active_threads(w)))

    return copy


@opcode("LDGDEPBAR", suffixes="")
def ldgdepbar(d: Decoding) -> Step:
    """The copies so far are a group."""

    def commit(w: Warp) -> None:
        w.groups[lanes_of(w.mask)] += 1

    return commit


@opcode("DEPBAR", suffixes="LE")
def depbar(d: Decoding) -> Step:
    """Waits until at most some of the latest groups are under way."""
    if d.operands[0] != "SB0":
        return lambda w: None  # a scoreboard of the hardware: results are there at once here
    pending = int(d.operands[1], 16)

    def wait(w: Warp) -> None:
        land(w, w.mask, w.groups - pending)

    return wait


def land(w: Warp, lanes: int, before: Row) -> None:
    """Copies of these lanes land, of groups before a number for each lane."""
    left = []
    active = lanes_of(lanes)
    for copies in w.copies:
        due = active[copies.lanes] & (copies.group < before[copies.lanes])
        if due.any():
            words = w.block.shared.end_copy(copies.to[due], copies.data[due], copies.threads[due])
            w.block.wrote(w, words)
        if not due.all():
            rest = ~due
            left.append(Copies(copies.lanes[rest], copies.to[rest], copies.data[rest], copies.group[rest], copies.threads[rest]))
    w.copies = left


@opcode("ARRIVES", suffixes="LDGSTSBAR 64 ARVCNT TRANSCNT")
def arrives(d: Decoding) -> Step:
    """An arrival at a barrier in shared memory once the thread's copies so far have landed; TRANSCNT: as a byte that was
    announced."""
    at = d.address(0)
    if "LDGSTSBAR" not in d or ("ARVCNT" in d) == ("TRANSCNT" in d):
        raise d.unknown()

    def arrive(w: Warp) -> None:
        (address,) = set(active_addresses(w, at(w)).tolist())
        w.block.barriers.after_copies(w, address, "TRANSCNT" in d)

    return arrive


# ---- fences


@opcode("FENCE", suffixes="VIEW ASYNC S T")
def fence(d: Decoding) -> Step:
    """What this warp's lanes wrote ordinarily may be read by products and by the copy engine from here on."""

    def clear(w: Warp) -> None:
        shared = w.block.shared
        threads = active_threads(w) + 1
        low, high = w.number * LANES + 1, (w.number + 1) * LANES
        for words in w.unfenced:
            owners = shared.unfenced[words]
            own = (owners >= low) & (owners <= high) if w.mask == FULL else np.isin(owners, threads)
            shared.unfenced[words[own]] = 0
        if w.mask == FULL:
            w.unfenced = []
        # So may what others published before this warp last waited for them.
        w.block.fence_published(w)

    return clear


@opcode("MEMBAR", suffixes="ALL SC CTA GPU SYS")
def membar(d: Decoding) -> Step:
    return lambda w: None
