"""The text of cuobjdump to instructions."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_FUNCTION = re.compile(r"\s*Function : (\S+)")
_FIRST = re.compile(r"\s*/\*([0-9a-f]{4,})\*/\s+(.+?)\s*;?\s*/\* 0x([0-9a-f]{16}) \*/")
_SECOND = re.compile(r"\s*/\* 0x([0-9a-f]{16}) \*/")
_GUARD = re.compile(r"@(!?U?P[0-7T])\s+(.*)")


@dataclass(frozen=True)
class Control:
    """What the compiler tells the scheduler with an instruction.

    stall: clocks until the next one of the warp may issue. write, read: the scoreboard (0..5) that is held until the result is
    there, or until the operands have been read; 7 for none. wait: bit i says that scoreboard i must be free before this one
    issues.
    """

    stall: int = 1
    write: int = 7
    read: int = 7
    wait: int = 0

    @classmethod
    def of(cls, word: int) -> Control:
        """From the upper half of the 128 bits of an instruction."""
        return cls(word >> 41 & 15, word >> 46 & 7, word >> 49 & 7, word >> 52 & 63)


@dataclass(frozen=True)
class Instruction:
    """One instruction. guard: "" or a predicate such as "!P0". opcode: with all its suffixes."""

    address: int
    guard: str
    opcode: str
    operands: tuple[str, ...]
    control: Control = field(default=Control(), compare=False)

    def __str__(self) -> str:
        guard = f"@{self.guard} " if self.guard else ""
        return f"{self.address:#06x} {guard}{self.opcode} {', '.join(self.operands)}".rstrip()


def instruction(text: str, address: int = 0, control: Control = Control()) -> Instruction:  # noqa: B008 - frozen
    """`@!P0 IADD3 R1, R2.reuse, c[0x0][0x10], RZ` as an Instruction."""
    guard = ""
    if found := _GUARD.match(text):
        guard, text = found[1], found[2]
    opcode, _, rest = text.partition(" ")
    operands, depth, begin = [], 0, 0
    for i, letter in enumerate(rest):
        if letter in "[]":
            depth += 1 if letter == "[" else -1
        elif letter == "," and depth == 0:
            operands.append(rest[begin:i])
            begin = i + 1
    operands.append(rest[begin:])
    found = tuple(operand.replace(".reuse", "").strip() for operand in operands)
    return Instruction(address, guard, opcode, found if found != ("",) else (), control)


def kernels(text: str) -> dict[str, list[str]]:
    """What `cuobjdump -sass` prints, by mangled name: the lines of each kernel, to be read by `instructions` where they are
    needed."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if "Function :" in line and (name := _FUNCTION.match(line)):
            lines = found.setdefault(name[1], [])
        else:
            lines.append(line)
    return found


def instructions(lines: list[str]) -> list[Instruction]:
    """The instructions of one kernel, in order of address, 16 bytes apart."""
    found = []
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        if first := _FIRST.match(line):
            second = _SECOND.match(after)
            control = Control.of(int(second[1], 16)) if second else Control()
            found.append(instruction(first[2], int(first[1], 16), control))
    return found
