"""Counts the machine instructions of the convolution's inner loops, 4-bit against 8-bit, in the built CUDA library. Needs no GPU.

    python benchmarks/gpu/sass_statistics.py [libadabm_cuda.so]

Needs cuobjdump and nvdisasm: from CUDA's toolkit on PATH, or those that come with Triton.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ARCHITECTURES = ("80", "86", "89", "90")
FOUR_BIT_ARCHITECTURES = ("80", "86", "89")
# By instruction: the multiply-accumulates of one matrix instruction of a warp, and the bytes that one instruction of a warp takes
# from shared memory.
MACS = {"IMMA.16832.U8.S8": 16 * 8 * 32, "IMMA.16864.U4.S4": 16 * 8 * 64}
SHARED_BYTES = {"LDSM.16.M88.4": 512}
WIDTH = {"IMMA.16832.U8.S8": 8, "IMMA.16864.U4.S4": 4}


def find_tools() -> Path | None:
    """The folder with cuobjdump and nvdisasm, None where neither CUDA's toolkit nor Triton has them."""
    folders = [Path(found).parent for tool in ("cuobjdump", "nvcc") if (found := shutil.which(tool))]
    folders += [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin"]
    triton = importlib.util.find_spec("triton")
    if triton and triton.submodule_search_locations:
        folders.append(Path(triton.submodule_search_locations[0]) / "backends" / "nvidia" / "bin")
    return next((f for f in folders if all((f / tool).exists() for tool in ("cuobjdump", "nvdisasm"))), None)


def disassemble(library: Path, architecture: str) -> dict[str, list[str]]:
    """The instructions of every kernel by its mangled name. Jump targets are lines `LABEL:`."""
    folder = find_tools()
    if folder is None:
        raise RuntimeError("sass_statistics: needs cuobjdump and nvdisasm, from CUDA's toolkit or Triton, and found neither")
    environment = os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    command = [str(folder / "cuobjdump"), "-sass", "-arch", f"sm_{architecture}", str(library)]
    text = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    kernels: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if found := re.match(r"\s*Function : (\S+)", line):
            lines = kernels.setdefault(found[1], [])
        elif found := re.match(r"\s*(\.L\w+):", line):
            lines.append(f"{found[1]}:")
        elif found := re.match(r"\s*/\*([0-9a-f]{4,})\*/\s+(.+?)\s*;", line):
            lines += [f"{int(found[1], 16):#x}:", found[2]]
    return kernels


def opcode(instruction: str) -> str:
    """The name of an instruction: IMMA.16832.U8.S8 for "@P0 IMMA.16832.U8.S8 R4, ..."."""
    return re.sub(r"^@!?U?P\w+\s+", "", instruction).split()[0]


@dataclass(frozen=True)
class Loop:
    """An innermost loop with matrix instructions.

    opcodes: how often each instruction occurs. classes: the same counts by the first word of the name. steps: how many times the
    part that multiplies takes 32 bytes of every pixel and output. box: the number of matrix instructions that sum the codes.
    """

    opcodes: Counter
    bits: int
    steps: int
    box: int
    macs: int  # those of the convolution
    shared_bytes: int

    @property
    def classes(self) -> Counter:
        classes: Counter = Counter()
        for name, count in self.opcodes.items():
            classes[name.split(".")[0]] += count
        return classes


def inner_loops(lines: list[str], outputs: int) -> list[Loop]:
    """The innermost loops with matrix instructions of a kernel for so many outputs.

    Products are those of a warp's 32 pixels with the outputs. In loops that also sum the codes, products as for 8 more outputs are
    added.
    """
    place: dict[str, int] = {}
    instructions: list[str] = []
    for line in lines:
        if line.endswith(":"):
            place[line[:-1]] = len(instructions)
        else:
            instructions.append(line)
    spans, targets = [], set[int | None]()
    for end, instruction in enumerate(instructions):
        target = re.search(r"\bBRA\S*\s.*?(0x[0-9a-f]+|\.L\w+)\W*$", instruction)
        begin = place.get(target[1]) if target else None
        targets.add(begin)
        if begin is not None and begin <= end and any(opcode(i) in MACS for i in instructions[begin : end + 1]):
            spans.append((begin, end))
    loops = []
    for begin, end in spans:
        if any(begin <= b and e <= end and (b, e) != (begin, end) for b, e in spans):
            continue
        products = 2 * (outputs // 8)
        for opcodes in _rounds(instructions, begin, end, targets, products):
            (matrix,) = (name for name in opcodes if name in MACS)
            each = products if opcodes[matrix] % products == 0 else products + 2
            steps, rest = divmod(opcodes[matrix], each)
            assert rest == 0, f"{opcodes[matrix]} matrix instructions for {outputs} outputs"
            loops.append(
                Loop(
                    opcodes,
                    WIDTH[matrix],
                    steps,
                    steps * (each - products),
                    steps * products * MACS[matrix],
                    sum(count * SHARED_BYTES.get(name, 0) for name, count in opcodes.items()),
                )
            )
    return loops


def _rounds(instructions: list[str], begin: int, end: int, targets: set[int | None], products: int) -> list[Counter]:
    """Counts the instructions in the part of a loop that multiplies, which begins with the first basic block that has products, or
    reads their operands from shared memory.

    Before this part, a loop may bring in the next codes and weights, behind branches that most rounds skip. Where several blocks
    have the `products` of a step, a round takes one of them, together with the blocks that have fewer of the same kind, which sum
    the codes. targets: the targets of all branches.
    """
    behind = {i + 1 for i in range(begin, end) if opcode(instructions[i]).startswith("BRA")}
    starts = sorted({begin, end + 1} | behind | {i for i in targets if i is not None and begin < i <= end})
    blocks = [Counter(map(opcode, instructions[first:last])) for first, last in zip(starts, starts[1:], strict=False)]
    first = next(i for i, block in enumerate(blocks) if block.keys() & (MACS.keys() | SHARED_BYTES.keys()))
    matrices = [sum(block[name] for name in MACS) for block in blocks]
    whole = [i for i in range(first, len(blocks)) if matrices[i] >= products]

    def belongs(i: int, to: int) -> bool:
        return i not in whole and (not matrices[i] or blocks[i].keys() & MACS.keys() == blocks[to].keys() & MACS.keys())

    return [sum((blocks[i] for i in range(first, len(blocks)) if belongs(i, to)), blocks[to]) for to in whole]


def outputs(kernel: str) -> int | None:
    """The outputs that a block of this kernel computes, None for kernels of another kind."""
    found = re.search(r"conv2d_sm80ILi(\d+)E", kernel)
    return int(found[1]) * 8 if found else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).resolve().parents[2] / "adabm_kernels" / "_lib" / "libadabm_cuda.so"
    parser.add_argument("library", nargs="?", type=Path, default=default)
    library = parser.parse_args().library
    print("| architecture | outputs | bits | steps | matrix | ldmatrix | others | per 4096 MAC | shared bytes per 1000 MAC |")
    print("|---|---|---|---|---|---|---|---|---|")
    for architecture in ARCHITECTURES:
        kernels = disassemble(library, architecture)
        for name in sorted(filter(outputs, kernels), key=outputs):
            for loop in sorted(inner_loops(kernels[name], outputs(name)), key=lambda loop: (-loop.steps, -loop.bits)):
                matrix, ldmatrix, total = loop.classes["IMMA"], loop.classes["LDSM"], sum(loop.opcodes.values())
                others = total - matrix - ldmatrix
                rates = f"{total * 4096 / loop.macs:.2f} | {loop.shared_bytes * 1000 / loop.macs:.1f}"
                shape = f"sm_{architecture} | {outputs(name)} | {loop.bits} | {loop.steps}"
                print(f"| {shape} | {matrix} | {ldmatrix} | {others} | {rates} |")


if __name__ == "__main__":
    main()
