"""Counts what one tile spends, by the machine code of a kernel: instructions along the dearest path through its basic blocks.

Every block of threads of a kernel computes one tile, so a path from the entry to an exit is what a warp executes for it. Loops that
multiply are counted as often as they run, which follows from the number of products of a tile. Of branches whose outcome is unknown
here (the bits of the output, whether the tile touches a border) the dearer one is taken, and every guarded instruction counts. The
result is an upper bound that some tile reaches or nearly reaches.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

LINE = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*);")
LABEL = re.compile(r"^\s*([.$\w]+):\s*$")
TARGET = re.compile(r"`\(([^)]+)\)")
WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}  # bytes of a lane; 4 without such a suffix
WARP = 32


@dataclass(frozen=True)
class Instruction:
    guard: str
    opcode: str
    operands: str

    @property
    def name(self) -> str:
        return self.opcode.partition(".")[0]

    @property
    def suffixes(self) -> list[str]:
        return self.opcode.split(".")[1:]

    @property
    def bytes(self) -> int:
        """The bytes that a lane moves in an instruction that moves data."""
        return next((WIDTHS[suffix] for suffix in self.suffixes if suffix in WIDTHS), 4)

    @property
    def macs(self) -> int:
        """The 8-bit multiply-accumulates of an instruction, or the share of one warp where a warpgroup executes it together."""
        if self.name == "IMMA":
            return {"16832": 16 * 8 * 32, "16816": 16 * 8 * 16}[self.suffixes[0]]
        if self.name == "IGMMA":
            m, n, k = map(int, self.suffixes[0].split("x"))
            return m * n * k // 4
        return 0

    @property
    def shared_bytes(self) -> int:
        """The bytes that a warp moves from and to shared memory, without bank conflicts and as if no lane were masked off."""
        if self.name in ("LDS", "STS", "ATOMS", "LDGSTS"):
            return WARP * self.bytes
        if self.name in ("LDSM", "STSM"):
            return 128 * {"4": 4, "2": 2}.get(self.suffixes[-1], 1)
        if self.name == "IGMMA":  # the warps of a warpgroup share their reads of weights, and of codes that are not in registers
            m, n, k = map(int, self.suffixes[0].split("x"))
            codes_in_registers = re.match(r"R\w+, R", self.operands) is not None
            return (n * k + (0 if codes_in_registers else m * k)) // 4
        return 0


@dataclass
class Block:
    """A basic block. after: indices of the blocks that may follow."""

    instructions: list[Instruction] = field(default_factory=list)
    after: list[int] = field(default_factory=list)

    def total(self, of: Callable[[Instruction], int]) -> int:
        return sum(map(of, self.instructions))


def blocks_of(machine: str) -> list[Block]:
    """Basic blocks of the text of `nvdisasm -c` of one kernel, the first one being the entry."""
    blocks, labels = [Block()], {}
    jumps: list[tuple[int, str]] = []
    for line in machine.splitlines():
        if label := LABEL.match(line):
            if blocks[-1].instructions:
                blocks.append(Block())
                _falls_through(blocks)
            labels[label[1]] = len(blocks) - 1
        elif found := LINE.search(line):
            instruction = Instruction(found[1] or "", found[2], found[3].strip())
            blocks[-1].instructions.append(instruction)
            here, target = len(blocks) - 1, TARGET.search(instruction.operands)
            # ptxas leaves some loops by a CALL of the code behind them, from which nothing returns.
            jump = instruction.name == "BRA" or (instruction.name == "CALL" and target and target[1].startswith(".L"))
            if jump:
                jumps.append((here, target[1]))
            elif instruction.name in ("BRX", "BRXU", "JMX", "JMP", "JMXU"):
                raise ValueError(f"blocks_of: machine must have no computed jump, got {instruction}")
            if jump or instruction.name in ("EXIT", "RET", "BSYNC", "KILL"):
                blocks.append(Block())
                if not _always(instruction):
                    _falls_through(blocks)
    for here, name in jumps:
        blocks[here].after.append(labels[name])
    _meet(blocks, labels)
    return blocks


def _meet(blocks: list[Block], labels: dict[str, int]) -> None:
    """Adds the block that follows one which ends in BSYNC: the place that a BSSY on some way to it has named for the same
    register."""
    places: dict[int, set[tuple[str, int]]] = {0: set()}
    todo = [0]
    while todo:
        here = todo.pop()
        named = set(places[here])
        for one in blocks[here].instructions:
            register = one.operands.partition(",")[0]
            if one.name == "BSSY":
                named = {pair for pair in named if pair[0] != register} | {(register, labels[TARGET.search(one.operands)[1]])}
            elif one.name == "BSYNC":
                blocks[here].after += [to for name, to in sorted(named) if name == register and to not in blocks[here].after]
        for there in blocks[here].after:
            if there not in places or not named <= places[there]:
                places[there] = places.get(there, set()) | named
                todo.append(there)


def _falls_through(blocks: list[Block]) -> None:
    blocks[-2].after.append(len(blocks) - 1)


def _always(instruction: Instruction) -> bool:
    """Tells whether a jump is always taken, so that the code behind it does not follow it."""
    if instruction.guard not in ("", "PT", "UPT"):
        return False
    return instruction.name != "BRA" or instruction.operands.startswith("`")


@dataclass(frozen=True)
class Graph:
    """The reachable blocks of a kernel. order: every block before those that may follow it, backward jumps left aside. loops: the
    blocks of each loop, by its header."""

    blocks: list[Block]
    order: list[int]
    loops: dict[int, frozenset[int]]

    @functools.cached_property
    def place(self) -> dict[int, int]:
        """The index of each block in the order."""
        return {block: i for i, block in enumerate(self.order)}

    @classmethod
    def of(cls, blocks: list[Block]) -> Graph:
        order, open_, backward = [], set(), []
        seen = {0}
        stack = [(0, iter(blocks[0].after))]
        open_.add(0)
        while stack:
            here, rest = stack[-1]
            for there in rest:
                if there in open_:
                    backward.append((here, there))
                elif there not in seen:
                    seen.add(there)
                    open_.add(there)
                    stack.append((there, iter(blocks[there].after)))
                    break
            else:
                stack.pop()
                open_.discard(here)
                order.append(here)
        before: dict[int, set[int]] = {}
        for here in seen:
            for there in blocks[here].after:
                before.setdefault(there, set()).add(here)
        loops: dict[int, frozenset[int]] = {}
        for end, header in backward:
            body, todo = {header}, [end]
            while todo:
                block = todo.pop()
                if block not in body:
                    body.add(block)
                    todo += before.get(block, ())
            loops[header] = loops.get(header, frozenset()) | body
        return cls(blocks, order[::-1], loops)

    def behind(self, start: int) -> set[int]:
        """The blocks that may come after a block, with this block itself."""
        found, todo = {start}, [start]
        while todo:
            for there in self.blocks[todo.pop()].after:
                if there not in found:
                    found.add(there)
                    todo.append(there)
        return found


@dataclass(frozen=True)
class Branch:
    """One of several ways to multiply, of which a tile takes one by the storage of its codes. stored: the bits of this storage.
    rounds: how often each loop that multiplies runs, by its header."""

    stored: int
    blocks: frozenset[int]
    rounds: dict[int, int]


# Constants in the machine code by which instructions take codes apart, by the bits that these are stored in.
MARKS = {8: {"0x80808080", "-0x7f7f7f80"}, 4: {"0xf0f0f0f", "0x0f0f0f0f"}, 2: {"0x3030303", "0x03030303"}}


def branches_of(graph: Graph, macs: Callable[[int], int]) -> list[Branch]:
    """The branches of a convolution. macs: a function from bits of storage to the multiply-accumulates of a warp for a tile."""
    multiply = [i for i in graph.order if graph.blocks[i].total(lambda one: one.macs)]
    groups: list[set[int]] = []
    for block in multiply:
        behind = graph.behind(block)
        joined = [group for group in groups if group & behind or any(block in graph.behind(other) for other in group)]
        groups = [group for group in groups if group not in joined] + [set().union({block}, *joined)]
    found = []
    for group in groups:
        around = set(group)
        for body in graph.loops.values():
            around |= body if body & group else set()
        stored = _stored(graph, around)
        looped = {i for body in graph.loops.values() for i in body}
        inside = sum(graph.blocks[i].total(lambda one: one.macs) for i in group if i in looped)
        outside = sum(graph.blocks[i].total(lambda one: one.macs) for i in group if i not in looped)
        count, rest = divmod(macs(stored) - outside, inside or 1)
        if rest or count < 0 or (count and not inside):
            raise ValueError(
                f"branches_of: a tile must have whole rounds of its loop, got {macs(stored)} multiply-accumulates of codes of"
                f" {stored} bits, {inside} of them in a round and {outside} outside"
            )
        headers = [header for header, body in graph.loops.items() if body & group]
        found.append(Branch(stored, frozenset(around), dict.fromkeys(headers, count)))
    return sorted(found, key=lambda branch: -branch.stored)


def _stored(graph: Graph, blocks: Iterable[int]) -> int:
    found = Counter()
    for i in blocks:
        for one in graph.blocks[i].instructions:
            for operand in re.split(r"[\s,]+", one.operands):
                found.update(stored for stored, marks in MARKS.items() if operand in marks)
    if len(found) != 1:
        raise ValueError(f"_stored: blocks must have constants of one storage of codes, got {dict(found)}")
    return next(iter(found))


def dearest(graph: Graph, of: Callable[[Instruction], int], branch: Branch | None = None, others: Iterable[Branch] = ()) -> int:
    """The largest sum of `of` over the instructions of a path that goes through `branch` and through none of the others."""
    closed = {i for other in others for i in other.blocks}
    rounds = branch.rounds if branch else {}
    best: dict[tuple[int, bool], int] = {(graph.order[0], branch is None): 0}
    most = -1
    inside: set[int] = set()
    for here in graph.order:
        if here in closed or here in inside:
            continue
        body, spent = frozenset({here}), graph.blocks[here].total(of)
        if here in rounds:
            body = graph.loops[here]
            spent = rounds[here] * _round(graph, here, of)
            inside |= body
        for through in (False, True):
            if (here, through) not in best:
                continue
            total, now = best[here, through] + spent, through or (branch is not None and here in branch.blocks)
            for there in {there for block in body for there in graph.blocks[block].after} - body:
                if graph.place[there] > graph.place[here]:
                    best[there, now] = max(best.get((there, now), -1), total)
            if not graph.blocks[here].after and now:
                most = max(most, total)
    if most < 0:
        raise ValueError("dearest: branch must lie on a path from the entry to an exit, got one that does not")
    return most


def _round(graph: Graph, header: int, of: Callable[[Instruction], int]) -> int:
    """The largest sum of `of` over one round of a loop."""
    best = {header: graph.blocks[header].total(of)}
    for here in graph.order:
        for there in graph.blocks[here].after if here in best else ():
            if there in graph.loops[header] and graph.place[there] > graph.place[here]:
                best[there] = max(best.get(there, 0), best[here] + graph.blocks[there].total(of))
    return max(best.values())
