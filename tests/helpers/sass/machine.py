"""A warp: its registers, predicates and lanes, and the loop that runs them. Instructions register themselves here by opcode.

All 32 lanes execute at once. A register is a row of 32 unsigned words, a uniform register a row of one; predicates and sets of
lanes are integers with a bit for each lane. Lanes that part go on as fragments, each with its own place in the code, and meet
again at convergence barriers (BSSY, BSYNC). Each instruction is decoded once, where it is first reached, to a function of the
warp.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .cubin import Kernel
from .parse import Instruction

if TYPE_CHECKING:
    from .block import Block

LANES, FULL = 32, 0xFFFFFFFF
ENDLESS = 1 << 19  # so many instructions without a wait are a mistake
WORD = np.uint32
# What a step may return besides the index of the next instruction and None for the one that follows.
PARKED, ENDED, AGAIN, LATER = -1, -2, -3, -4

Row = np.ndarray
Step = Callable[["Warp"], "int | None"]


class MachineError(Exception):
    """What the hardware would not do, or would do differently from run to run; or an instruction that is not known here."""


# ---- sets of lanes

_ROWS: dict[int, Row] = {}
_SETS: dict[bytes, int] = {}


def lanes_of(mask: int) -> Row:
    """bool[32] of a set of lanes."""
    row = _ROWS.get(mask)
    if row is None:
        row = np.array([bool(mask >> i & 1) for i in range(LANES)])
        row.setflags(write=False)
        if len(_ROWS) < 1 << 16:
            _ROWS[mask] = row
    return row


def mask_of(row: Row) -> int:
    """The set of lanes of bool[32]; of bool[1], all or none of them."""
    key = row.tobytes()
    mask = _SETS.get(key)
    if mask is None:
        mask = FULL * bool(row[0]) if len(row) == 1 else int.from_bytes(np.packbits(row, bitorder="little").tobytes(), "little")
        if len(_SETS) < 1 << 16:
            _SETS[key] = mask
    return mask


# ---- the table of instructions


@dataclass(frozen=True)
class Entry:
    """How an opcode is decoded. control: it looks at its guard itself, as what parts lanes must."""

    decode: Callable[[Decoding], Step]
    suffixes: frozenset[str] | None
    control: bool


TABLE: dict[str, Entry] = {}


def opcode(*names: str, suffixes: str | None = "", control: bool = False) -> Callable:
    """Registers a decoder under these first words. suffixes: those it knows, any if None."""

    def register(decode: Callable[[Decoding], Step]) -> Callable[[Decoding], Step]:
        known = None if suffixes is None else frozenset(suffixes.split())
        for name in names:
            assert name not in TABLE, name
            TABLE[name] = Entry(decode, known, control)
        return decode

    return register


_REGISTER = re.compile(r"(U?)R(Z|\d+)(?:\.64|\.ROW|\.COL)?")
_BANK = re.compile(r"c\[(0x[0-9a-f]+)\]\[(.*)\]")
_ZERO = np.zeros(LANES, WORD)
_ZERO.setflags(write=False)
_ZERO64 = np.zeros(LANES, np.uint64)
_ZERO64.setflags(write=False)


@dataclass
class Decoding:
    """One instruction on its way to a step, with what decoders ask of it: readers and writers of operands."""

    program: Program
    index: int
    instruction: Instruction
    name: str = ""
    suffixes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.name, *suffixes = self.instruction.opcode.split(".")
        self.suffixes = tuple(suffixes)
        self.operands = self.instruction.operands
        self.uniform = self.name.startswith("U")

    def __contains__(self, suffix: str) -> bool:
        return suffix in self.suffixes

    def unknown(self, why: str = "") -> MachineError:
        return MachineError(f"instruction not known: {self.instruction}{why and ': '}{why}")

    def target(self, text: str) -> int:
        """The index of the instruction at an address."""
        address = int(text.strip("`()"), 16)
        return self.program.at(address)

    # -- predicates

    def is_predicate(self, n: int) -> bool:
        return n < len(self.operands) and bool(re.fullmatch(r"!?U?P[0-7T]", self.operands[n]))

    def condition(self, text: str) -> Callable[[Warp], int]:
        """Reads a predicate such as "!P0" as a set of lanes; a uniform one is all or none of them."""
        inverted, name = text.startswith("!"), text.lstrip("!")
        if name in ("PT", "UPT"):
            constant = 0 if inverted else FULL
            return lambda w: constant
        if name.startswith("UP"):
            k = int(name[2:])
            return (lambda w: 0 if w.UP[k] else FULL) if inverted else (lambda w: FULL if w.UP[k] else 0)
        k = int(name[1:])
        return (lambda w: w.P[k] ^ FULL) if inverted else (lambda w: w.P[k])

    def predicate(self, n: int) -> Callable[[Warp], int]:
        if not self.is_predicate(n):
            raise self.unknown(f"operand {n} must be a predicate")
        return self.condition(self.operands[n])

    def put_predicate(self, n: int) -> Callable[[Warp, int], None]:
        """Writes a set of lanes, of which only those that are active count."""
        name = self.operands[n]
        if name in ("PT", "UPT"):
            return lambda w, lanes: None
        if name.startswith("UP"):
            k = int(name[2:])

            def put_uniform(w: Warp, lanes: int) -> None:
                w.UP[k] = bool(lanes & w.mask)

            return put_uniform
        k = int(name[1:])

        def put(w: Warp, lanes: int) -> None:
            w.P[k] = lanes & w.mask | w.P[k] & ~w.mask

        return put

    # -- sources

    def source(self, n: int, floats: bool = False) -> Callable[[Warp], Row]:
        """Reads a 32-bit operand: 32 words, or one that holds for all lanes. floats: as float32."""
        text, negative, inverted, absolute = self.operands[n], False, False, False
        if re.fullmatch(r"-?0x[0-9a-f]+", text):
            return self._constant(int(text, 16), floats)
        if text.startswith("-") and not re.match(r"-[\d.]|-INF|-QNAN", text):
            negative, text = True, text[1:]
        if text.startswith("~"):
            inverted, text = True, text[1:]
        if text.startswith("|"):
            absolute, text = True, text.strip("|")
        read = self._plain(text, floats)
        if floats:
            sign = WORD(0x80000000)
            if absolute and negative:
                return lambda w: (read(w).view(WORD) | sign).view(np.float32)
            if absolute:
                return lambda w: (read(w).view(WORD) & ~sign).view(np.float32)
            return (lambda w: (read(w).view(WORD) ^ sign).view(np.float32)) if negative else read
        if absolute:
            return lambda w: np.abs(read(w).view(np.int32)).view(WORD) * WORD(FULL if negative else 1)
        if negative:
            return lambda w: np.negative(read(w))
        return (lambda w: np.invert(read(w))) if inverted else read

    @staticmethod
    def _constant(value: int, floats: bool) -> Callable[[Warp], Row]:
        row = np.full(1, value & FULL, WORD)
        row = row.view(np.float32) if floats else row
        row.setflags(write=False)
        return lambda w: row

    def _plain(self, text: str, floats: bool) -> Callable[[Warp], Row]:
        if found := _REGISTER.fullmatch(text):
            if found[2] == "Z":
                zero = _ZERO.view(np.float32) if floats else _ZERO
                zero = zero[:1] if found[1] else zero
                return lambda w: zero
            k = int(found[2])
            if floats:
                return (lambda w: w.U[k].view(np.float32)) if found[1] else (lambda w: w.R[k].view(np.float32))
            return (lambda w: w.U[k]) if found[1] else (lambda w: w.R[k])
        if text.startswith("c["):
            bank, at = self.bank(text)
            if isinstance(at, int):
                k = at >> 2
                if at % 4:
                    raise self.unknown("a constant must lie at a multiple of 4 bytes")
                if floats:
                    return lambda w: w.block.banks32[bank][k : k + 1].view(np.float32)
                return lambda w: w.block.banks32[bank][k : k + 1]

            def indexed(w: Warp) -> Row:
                row = w.block.banks32[bank][at(w) >> 2]
                return row.view(np.float32) if floats else row

            return indexed
        if re.fullmatch(r"0x[0-9a-f]+", text):
            return self._constant(int(text, 16), floats)
        special = {"+INF": "inf", "-INF": "-inf", "INF": "inf", "+QNAN": "nan", "-QNAN": "nan", "QNAN": "nan"}
        try:
            value = np.array([float(special.get(text, text))], np.float32)
        except ValueError:
            raise self.unknown(f"operand {text!r}") from None
        return self._constant(int(value.view(WORD)[0]), floats)

    def bank(self, text: str) -> tuple[int, Any]:
        """(number, offset in bytes) of a constant; the offset is a function of the warp where it is not fixed."""
        found = _BANK.fullmatch(text)
        if not found:
            raise self.unknown(f"operand {text!r}")
        fixed, terms = 0, []
        for term in found[2].split("+"):
            if re.fullmatch(r"-?0x[0-9a-f]+", term):
                fixed += int(term, 16)
            else:
                terms.append(self._plain(term, False))
        if not terms:
            return int(found[1], 16), fixed
        return int(found[1], 16), lambda w: sum(term(w) for term in terms) + WORD(fixed)

    def wide(self, n: int) -> Callable[[Warp], Row]:
        """Reads a 64-bit operand: two registers, two words of a constant, or a number."""
        text = self.operands[n]
        if re.fullmatch(r"-?0x[0-9a-f]+", text):
            row = np.full(1, int(text, 16) & (1 << 64) - 1, np.uint64)
            return lambda w: row
        negative = text.startswith("-")
        text = text.lstrip("-")
        read = self._wide(text)
        return (lambda w: np.negative(read(w))) if negative else read

    def _wide(self, text: str) -> Callable[[Warp], Row]:
        if found := _REGISTER.fullmatch(text):
            if found[2] == "Z":
                zero = _ZERO64[:1] if found[1] else _ZERO64
                return lambda w: zero
            k, uniform = int(found[2]), bool(found[1])

            def pair(w: Warp) -> Row:
                rows = w.U if uniform else w.R
                both = np.empty((len(rows[k]), 2), WORD)
                both[:, 0], both[:, 1] = rows[k], rows[k + 1]
                return both.view(np.uint64)[:, 0]

            return pair
        if text.startswith("c["):
            bank, at = self.bank(text)

            def constant(w: Warp) -> Row:
                start = np.asarray(at(w) if callable(at) else [at]) >> 2
                words = w.block.banks32[bank]
                return words[start].astype(np.uint64) | words[start + 1].astype(np.uint64) << np.uint64(32)

            return constant
        raise self.unknown(f"operand {text!r}")

    def address(self, n: int) -> Callable[[Warp], Row]:
        """Reads `[R2.64+0x10]` or `desc[UR4][R2.64]` as int64 byte addresses, 32 or one for all lanes."""
        found = re.search(r"\[([^\[\]]+)\]$", self.operands[n])
        if not found:
            raise self.unknown(f"operand {self.operands[n]!r} must be an address")
        fixed, terms = 0, []
        extended = ".U32" in found[1] or ".64" in found[1]
        for term in found[1].split("+"):
            if re.fullmatch(r"-?0x[0-9a-f]+", term):
                fixed += int(term, 16)
            elif term in ("RZ", "URZ"):
                continue
            elif match := re.fullmatch(r"(U?R\d+)(\.64|\.U32|\.X4|\.X8|\.X16)?", term):
                if match[2] == ".64" or (match[1].startswith("U") and extended):
                    terms.append((self._wide(match[1]), 1))
                else:
                    scale = int(match[2][2:]) if match[2] and match[2].startswith(".X") else 1
                    terms.append((self._plain(match[1], False), scale))
            else:
                raise self.unknown(f"address {found[1]!r}")
        if not terms:
            row = np.full(1, fixed, np.int64)
            return lambda w: row
        if len(terms) == 1 and terms[0][1] == 1:
            read = terms[0][0]
            return lambda w: read(w).astype(np.int64) + fixed
        return lambda w: sum(read(w).astype(np.int64) * scale for read, scale in terms) + fixed

    # -- destinations

    def register_number(self, n: int) -> int | None:
        """Of a vector register, None for RZ."""
        found = _REGISTER.fullmatch(self.operands[n])
        if not found or found[1]:
            raise self.unknown(f"operand {n} must be a register")
        return None if found[2] == "Z" else int(found[2])

    def destination(self, n: int = 0) -> Callable[[Warp, Row], None]:
        """Writes 32 words, or one for all lanes, to a register; only the active lanes' count."""
        found = _REGISTER.fullmatch(self.operands[n])
        if not found:
            raise self.unknown(f"operand {n} must be a register")
        if found[2] == "Z":
            return lambda w, row: None
        k = int(found[2])
        if found[1]:

            def put_uniform(w: Warp, row: Row) -> None:
                w.U[k][:] = row

            return put_uniform

        def put(w: Warp, row: Row) -> None:
            if w.mask == FULL:
                w.R[k][:] = row
            else:
                np.copyto(w.R[k], row, where=lanes_of(w.mask))

        return put

    def wide_destination(self, n: int = 0) -> Callable[[Warp, Row], None]:
        """Writes 64-bit numbers to two registers."""
        found = _REGISTER.fullmatch(self.operands[n])
        if not found:
            raise self.unknown(f"operand {n} must be a register")
        if found[2] == "Z":
            return lambda w, row: None
        k, uniform = int(found[2]), bool(found[1])

        def put(w: Warp, row: Row) -> None:
            words = np.ascontiguousarray(row).view(WORD)
            rows = w.U if uniform else w.R
            if uniform or w.mask == FULL:
                rows[k][:], rows[k + 1][:] = words[0::2], words[1::2]
            else:
                where = lanes_of(w.mask)
                np.copyto(rows[k], words[0::2], where=where)
                np.copyto(rows[k + 1], words[1::2], where=where)

        return put

    def words_destination(self, n: int, count: int) -> Callable[[Warp, Row], None]:
        """Writes words [lanes that are active][count] to neighbouring registers."""
        k = self.register_number(n)
        if k is None:
            return lambda w, words: None

        def put(w: Warp, words: Row) -> None:
            rows = w.values[k : k + count]
            if w.mask == FULL:
                rows[:] = words.T
            else:
                rows[:, lanes_of(w.mask)] = words.T

        return put

    def words(self, n: int, count: int) -> Callable[[Warp], Row]:
        """Reads neighbouring registers as [lanes that are active][count]; zeros from RZ."""
        k = self.register_number(n)

        def read(w: Warp) -> Row:
            if k is None:
                return np.zeros((w.mask.bit_count(), count), WORD)
            rows = w.values[k : k + count]
            return rows.T if w.mask == FULL else rows[:, lanes_of(w.mask)].T

        return read

    # -- guards

    def active(self) -> Callable[[Warp], int]:
        """The lanes that execute it: for what looks at its guard itself."""
        if not self.instruction.guard:
            return lambda w: w.mask
        condition = self.condition(self.instruction.guard)
        return lambda w: condition(w) & w.mask


def guarded(body: Step, condition: Callable[[Warp], int]) -> Step:
    def step(w: Warp) -> int | None:
        mask = w.mask
        some = condition(w) & mask
        if some == mask:
            return body(w)
        if some:
            w.mask = some
            body(w)
            w.mask = mask
        else:
            w.skipped = True
        return None

    return step


def registers_of(instruction: Instruction) -> tuple[int, int]:
    """(all vector registers that are named, those of the first operand), a bit for each; of wide operands all of them."""
    width = {"64": 2, "128": 4, "WIDE": 2}
    extent = max([width.get(suffix, 1) for suffix in instruction.opcode.split(".")])
    if instruction.opcode.startswith("LDSM"):
        extent = 4
    bits, first = 0, 0
    for n, operand in enumerate(instruction.operands):
        for found in re.finditer(r"(?<![U\w])R(\d+)(\.64)?", operand):
            inside = "[" in operand
            count = (2 if found[2] else 1) if inside else extent if n == 0 or instruction.opcode.startswith("ST") else 1
            here = ((1 << count) - 1) << int(found[1])
            bits |= here
            if n == 0 and not inside:
                first |= here
    return bits, first


class Program:
    """The code of a kernel, decoded as it is reached. Warps of many blocks may share it."""

    def __init__(self, kernel: Kernel):
        self.kernel = kernel
        self.code = list(kernel.code)
        self.steps: list[Step | None] = [None] * len(self.code)
        self._index = {instruction.address: i for i, instruction in enumerate(self.code)}
        self._registers: dict[int, tuple[int, int]] = {}

    def at(self, address: int) -> int:
        """The index of the instruction at an address."""
        if address not in self._index:
            raise MachineError(f"a jump to {address:#x}, where the kernel has no instruction")
        return self._index[address]

    def registers(self, index: int) -> tuple[int, int]:
        found = self._registers.get(index)
        if found is None:
            found = self._registers[index] = registers_of(self.code[index])
        return found

    def decode(self, index: int) -> Step:
        decoding = Decoding(self, index, self.code[index])
        entry = TABLE.get(decoding.name)
        if entry is None:
            raise decoding.unknown()
        if entry.suffixes is not None and (odd := [s for s in decoding.suffixes if s not in entry.suffixes]):
            raise decoding.unknown(f"suffix {odd[0]}")
        step = entry.decode(decoding)
        if decoding.instruction.guard and not entry.control:
            step = guarded(step, decoding.condition(decoding.instruction.guard))
        self.steps[index] = step
        return step


# ---- warps


@dataclass
class Fragment:
    """Lanes of a warp that are at one place. ready: what they wait for, None where they can go on."""

    mask: int
    index: int
    ready: Callable[[], bool] | None = None
    what: str = ""


@dataclass
class Convergence:
    """A convergence barrier of some lanes of a warp, and those that have come to it."""

    mask: int
    target: int
    arrived: int = 0


@dataclass
class Flight:
    """Registers of products under way: sums, and operands that must not change."""

    sums: int = 0
    inputs: int = 0


@dataclass
class Mark:
    """Where in a warp's count of issue slots something happened: "products" waited for, a "stage" waited for."""

    what: str
    slots: int
    issued: int  # length of the trace, where one is kept
    macs: int  # multiply-accumulates of the warp's products, 4-bit ones as half of that


class Warp:
    """32 threads of a block."""

    def __init__(self, block: Block, number: int):
        self.block, self.number = block, number
        self.values = np.full((256, LANES), 0xDEADBEEF, WORD)
        self.values[255] = 0
        self.R = list(self.values)
        self._uniform = np.zeros((64, 1), WORD)
        self.U = list(self._uniform)
        self.P, self.UP = [0] * 7 + [FULL], [False] * 7 + [True]
        self.alive, self.mask, self.index = FULL, FULL, 0
        self.fragments = [Fragment(FULL, 0)]
        self.convergence: dict[str, list[Convergence]] = {}
        self.meetings: dict[int, Convergence] = {}
        self.flight = Flight()
        self.skipped = False
        self.counts = [0] * len(block.program.code)
        self.slots = self.macs = 0
        self.marks: list[Mark] = []
        self.trace: list[int] | None = None  # the index of each instruction, its complement where the guard left it out
        self.unfenced: list[Row] = []  # words of shared memory that it wrote ordinarily since its last fence
        self.unpublished: list[Row] = []  # and since it last arrived at a barrier
        self.acquired = self.fenced = 0  # of what others had published: how much was there when it last waited, and fenced
        self.copies: list[Any] = []
        self.groups = np.zeros(LANES, np.int64)  # of asynchronous copies that each lane has committed
        self.products: Any = None
        self.waiting = Fragment(0, 0)

    @property
    def threads(self) -> Iterable[int]:
        return range(self.number * LANES, (self.number + 1) * LANES)

    def mark(self, what: str) -> None:
        issued = len(self.trace) if self.trace is not None else 0
        self.marks.append(Mark(what, self.slots, issued, self.macs))

    # -- lanes that part and meet

    def part(self, taken: int, target: int) -> int | None:
        """Lanes `taken` go to a place and the others of this fragment to the next instruction; the step's answer."""
        rest = self.mask & ~taken
        if not rest:
            return target
        if taken:
            self.fragments.append(Fragment(taken, target))
            self.mask = rest
        return None

    def arrive(self, name: str) -> int:
        """The fragment comes to convergence barrier `name`; the step's answer."""
        for barrier in self.convergence.get(name, ()):
            if barrier.mask & self.mask:
                break
        else:
            raise MachineError(f"warp {self.number}: BSYNC {name} without BSSY")
        barrier.arrived |= self.mask
        self.release(name)
        return PARKED

    def release(self, name: str) -> None:
        """Lets those go on whose barrier is complete."""
        for barrier in list(self.convergence.get(name, ())):
            if barrier.arrived == barrier.mask and barrier.mask:
                self.fragments.append(Fragment(barrier.mask, barrier.target))
            if barrier.arrived == barrier.mask:
                self.convergence[name].remove(barrier)

    def leave(self, name: str, lanes: int) -> None:
        """Lanes no longer belong to a convergence barrier."""
        for barrier in self.convergence.get(name, ()):
            barrier.mask &= ~lanes
        self.release(name)

    def open(self, name: str, target: int) -> None:
        groups = self.convergence.setdefault(name, [])
        for barrier in groups:
            barrier.mask &= ~self.mask
        self.convergence[name] = [barrier for barrier in groups if barrier.mask]
        self.convergence[name].append(Convergence(self.mask, target))

    def meet(self, wanted: int, index: int, after: int) -> int | None:
        """The fragment waits at instruction `index` for lanes `wanted`, which go on at `after`; the step's answer."""
        wanted &= self.alive
        if self.mask & wanted == wanted and index not in self.meetings:
            return after
        place = self.meetings.setdefault(index, Convergence(wanted, after))
        place.arrived |= self.mask
        if place.arrived & wanted == wanted:
            del self.meetings[index]
            self.fragments.append(Fragment(place.arrived, after))
        return PARKED

    def end(self, lanes: int) -> None:
        self.alive &= ~lanes
        for name in list(self.convergence):
            self.leave(name, lanes)
        for index, place in list(self.meetings.items()):
            place.mask &= ~lanes
            if place.arrived & place.mask == place.mask:
                del self.meetings[index]
                self.fragments.append(Fragment(place.arrived, place.target))

    # -- running

    def run(self) -> bool:
        """Runs until all fragments wait. Returns whether any has gone on."""
        gone_on = False
        while True:
            for n, fragment in enumerate(self.fragments):  # noqa: B007
                if fragment.ready is None or fragment.ready():
                    break
            else:
                return gone_on
            del self.fragments[n]
            gone_on |= self._run(fragment)

    def _run(self, fragment: Fragment) -> bool:
        program, counts, trace = self.block.program, self.counts, self.trace
        steps, index = program.steps, fragment.index
        self.mask = fragment.mask
        flight = self.flight
        executed = 0
        try:
            for executed in range(ENDLESS):
                step = steps[index] or program.decode(index)
                counts[index] += 1
                self.slots += 1
                if trace is not None:
                    trace.append(index)
                self.index = index
                if flight.sums:
                    self._check_flight(index)
                after = step(self)
                if trace is not None and self.skipped:
                    self.skipped, trace[-1] = False, ~index
                if after is None:
                    index += 1
                elif after >= 0:
                    index = after
                elif after == AGAIN:  # not ready: neither counted nor over
                    counts[index] -= 1
                    self.slots -= 1
                    if trace is not None:
                        trace.pop()
                    self.waiting.index = index
                    self.waiting.mask = self.mask
                    self.fragments.append(self.waiting)
                    return executed > 0
                elif after == LATER:  # done, but what follows must wait
                    self.waiting.index = index + 1
                    self.waiting.mask = self.mask
                    self.fragments.append(self.waiting)
                    return True
                else:
                    return True
            raise MachineError(f"{ENDLESS} instructions without a wait: a loop without end")
        except MachineError as error:
            where = f"block {self.block.index} warp {self.number}"
            if where in str(error):
                raise
            raise MachineError(f"{where} at {program.code[index]}: {error}") from error
        except IndexError as error:
            if index < len(program.code):
                raise
            raise MachineError(f"block {self.block.index} warp {self.number} runs past the end of its code") from error

    def wait(self, ready: Callable[[], bool], what: str, again: bool = False) -> int:
        """The step's answer where the fragment must wait; again: and then execute the instruction once more."""
        self.waiting = Fragment(self.mask, 0, ready, what)
        return AGAIN if again else LATER

    def _check_flight(self, index: int) -> None:
        instruction = self.block.program.code[index]
        if instruction.opcode.startswith(("IGMMA", "HGMMA", "WARPGROUP")):
            return
        named, first = self.block.program.registers(index)
        bad = named & self.flight.sums
        if not instruction.opcode.startswith(("ST", "BAR")):  # those whose first operand is a source
            bad |= first & self.flight.inputs
        if bad and not (instruction.guard and self._never(instruction.guard)):
            raise MachineError(f"register R{bad.bit_length() - 1} belongs to a product under way")

    def _never(self, guard: str) -> bool:
        inverted, name = guard.startswith("!"), guard.lstrip("!")
        lanes = {"PT": FULL, "UPT": FULL}.get(name)
        if lanes is None:
            lanes = (FULL if self.UP[int(name[2:])] else 0) if name.startswith("U") else self.P[int(name[1:])]
        return not ((lanes ^ FULL if inverted else lanes) & self.mask)
