"""How long one warp takes for what it executed, were it alone on its scheduler: an estimate from what the compiler tells the
hardware.

Each instruction says how many clocks later the next one may issue, which scoreboards it waits for and which one it holds until
its result is there (parse.Control). An instruction of a fixed time needs nothing else; those of a variable one take what
LATENCIES says. Left out: other warps (that is what issue slots are for), bank conflicts, misses of the instruction cache, queues.
"""

from __future__ import annotations

from collections.abc import Sequence

from .parse import Instruction

# Clocks from issue to result. Measured by others, none by this project: "Benchmarking and Dissecting the Nvidia Hopper GPU
# Architecture via Microbenchmarking" (arXiv 2402.13499), memory latencies of an H100: shared memory 29, L2 263. Codes and
# tables are taken to be in L2. The others are taken to be about as long as a load from shared memory, which no source states.
SHARED, L2, OTHER = 29, 263, 29
LATENCIES = {
    "LDG": L2,
    "LDGSTS": L2,
    "STG": OTHER,
    "LDS": SHARED,
    "LDSM": SHARED,
    "STS": OTHER,
    "SHFL": SHARED,
    "MUFU": OTHER,
    "F2I": OTHER,
    "I2F": OTHER,
    "S2R": OTHER,
    "S2UR": OTHER,
    "R2UR": OTHER,
    "LDC": OTHER,
    "SYNCS": OTHER,
    "MEMBAR": OTHER,
    "IMMA": OTHER,
}


def clocks(code: Sequence[Instruction], executed: Sequence[int], latencies: dict[str, int] = LATENCIES) -> int:
    """From the issue of the first to that of the last of some executed instructions, given by their index in the code, or by its
    complement where the guard left them out.

    Barriers, products and other warps are taken to be ready. A wait for asynchronous copies (DEPBAR) lasts until the copies of its
    groups have come.
    """
    now = 0
    scoreboards = [0] * 6
    reads = [0] * 6
    copies: list[int] = []  # when each committed group is there
    group = 0
    for place in executed:
        instruction, done = code[max(place, ~place)], place >= 0
        control = instruction.control
        for board in range(6):
            if control.wait >> board & 1:
                now = max(now, scoreboards[board], reads[board])
        name = instruction.opcode.partition(".")[0]
        if not done:
            now += max(control.stall, 1)
            continue
        if name == "LDGSTS":
            group = max(group, now + latencies["LDGSTS"])
        elif name == "LDGDEPBAR":
            copies.append(group)
        elif name == "DEPBAR" and instruction.operands[0] == "SB0":
            pending = int(instruction.operands[1], 16)
            due = copies[: len(copies) - pending] if pending else copies
            now = max([now, *due])
        taken = latencies.get(name, OTHER)
        if control.write < 6:
            scoreboards[control.write] = max(scoreboards[control.write], now + taken)
        if control.read < 6:
            reads[control.read] = max(reads[control.read], now + min(taken, OTHER))
        now += max(control.stall, 1)
    return now
