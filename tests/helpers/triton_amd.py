"""Triton kernels built ahead of time for AMD architectures, without a card, and what the machine code is made of.

python tests/helpers/triton_amd.py docs/gpu_amd.md  # writes the table of that page anew
python tests/helpers/triton_amd.py gfx942 body      # prints the machine code of a form
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import triton_compiled

from adabm_kernels.backends import amd

FORMS = (*triton_compiled.CONV2D, *triton_compiled.OTHERS)
LARGE = ("x_q", "residual", "y", "y_q", "x", "partial")  # tensors that may have more than 2^31 bytes, in forms called "wide"


@dataclass(frozen=True)
class Registers:
    """The vector registers of an architecture (LLVM, "User Guide for AMDGPU Backend", and its GCNSubtarget).

    total: the registers of a SIMD, for each of its lanes. granule: the registers by which the share of a wave grows. waves: the
    most waves of a SIMD. shared: the bytes of local data share of the unit that its four SIMDs belong to.
    """

    total: int
    granule: int
    waves: int
    shared: int


SIMDS = 4  # SIMDs of a compute unit of CDNA, and of a workgroup processor of RDNA, which runs a whole workgroup
REGISTERS = {
    "gfx90a": Registers(512, 8, 8, 64 << 10),
    "gfx942": Registers(512, 8, 8, 64 << 10),
    "gfx950": Registers(512, 8, 8, 160 << 10),
    "gfx1030": Registers(1024, 16, 16, 128 << 10),
    "gfx1100": Registers(1536, 24, 16, 128 << 10),
    "gfx1201": Registers(1536, 24, 16, 128 << 10),
}


@dataclass
class Built:
    """A built kernel.

    registers: vector registers of a lane, including those of matrix products. scratch: bytes of a lane. shared: bytes of a
    workgroup. settings: the modes that the kernel asks of the hardware (`.amdhsa_` directives). operations: how often each machine
    instruction occurs. lines: the instructions with their operands. fused: the number of multiply-adds of float32. asked: the
    number of them in the code from which the compiler makes instructions.
    """

    arch: str
    registers: int
    spilled: int
    scratch: int
    shared: int
    warps: int
    settings: dict[str, str]
    operations: Counter
    lines: list[str]
    fused: int
    asked: int

    @property
    def occupancy(self) -> float:
        """The number of waves of a SIMD for which registers and shared memory have room."""
        card = REGISTERS[self.arch]
        waves = min(card.waves, card.total // (-(-max(self.registers, 1) // card.granule) * card.granule))
        groups = min(SIMDS * waves // self.warps, card.shared // self.shared if self.shared else SIMDS * waves)
        return groups * self.warps / SIMDS

    def products(self) -> Counter:
        """How often each instruction occurs that sums several products."""
        return Counter({name: count for name, count in self.operations.items() if PRODUCT.match(name)})

    def wrong_products(self) -> list[str]:
        """The multiplying instructions other than those that this architecture has for int8 by int8 with an int32 sum that
        wraps."""
        right = PRODUCTS[amd.ARCHITECTURES[self.arch].products]
        return [line for line in self.lines if PRODUCT.match(line) and not right.fullmatch(line)]

    def wrong_settings(self) -> list[str]:
        """The modes of floats that differ from those of the reference.

        The reference rounds to nearest even and keeps subnormal numbers. Where an architecture has IEEE mode, it must be on: the
        minimum or maximum of a number and any kind of NaN is then the number, because the compiler has quieted NaN that may signal.
        """
        wanted = {"float_round_mode_32": "0", "float_denorm_mode_32": "3"}
        wanted |= {} if self.arch.startswith("gfx12") else {"ieee_mode": "1"}
        return [f"{name} {self.settings.get(name)}" for name, value in wanted.items() if self.settings.get(name) != value]


PRODUCT = re.compile(r"v_(mfma|smfmac|wmma|swmmac|dot)\w*")
# A product is signed by the name of the instruction, or by flags of its two factors. None may saturate ("clamp").
PRODUCTS = {
    "mfma": re.compile(r"v_mfma_i32_\d+x\d+x\d+_?i8 (?:[av](?:\d+|\[\d+:\d+\]), ){3}(?:[av]\[\d+:\d+\]|0)"),
    "wmma": re.compile(r"v_wmma_i32_16x16x16_iu8 (?:v\[\d+:\d+\], ){3}(?:v\[\d+:\d+\]|0) neg_lo:\[1,1,0\]"),
    "dot4": re.compile(r"v_dot4c?_i32_i8(?:_e\d\d)? (?:v\d+, ){2}v\d+(?:, (?:v\d+|0))?"),
}
FUSED = re.compile(r"v_(pk_|dual_)?(?:fma|fmac|fmaak|fmamk|mad|mac|madak|madmk)(?:_legacy)?_f32")


def compile_kernel(name: str, arch: str, **options: Any) -> Built:
    """Builds a form of CONV2D or OTHERS for an architecture of AMD. options: options of the launch that replace those of the
    form."""
    large = LARGE if "wide" in name else ()
    return triton_compiled.compile_kernel(name, arch, partial(_compile, large=large, changed=options))


def _compile(kernel, types, constants, absent, arch: str, *_, large: tuple[str, ...], changed: dict) -> Built:
    built = build(kernel, types, constants | changed, absent, arch, large)
    pairs = re.findall(r"call .*@llvm\.fma\.(?:v(\d+))?f32\(", built.asm["llir"])
    asked = sum(int(pair or 1) for pair in pairs)
    return read(built.asm["amdgcn"], arch, built.metadata, asked)


def refused(arch: str) -> str:
    """The reason why this release of Triton builds nothing for an architecture; "" where it does."""
    import triton

    found = tuple(int(part) for part in triton.__version__.split(".")[:2])
    return f"Triton {triton.__version__} refuses {arch}" if arch == "gfx1030" and found >= (3, 9) else ""


def build(kernel, types, constants, absent, arch: str, large: tuple[str, ...] = ()) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget

    ranged = [name for name in kernel.arg_names if name not in large]
    source, options = triton_compiled.source_of(kernel, types, constants, absent, ranged)
    return triton.compile(source, target=GPUTarget("hip", arch, amd.ARCHITECTURES[arch].lanes), options=options)


def read(text: str, arch: str, metadata: Any, asked: int) -> Built:
    """The record of a kernel, read from the assembly that the compiler writes."""
    lines = [part.strip() for line in re.findall(r"^\t([a-z]\w+(?:[ \t].*)?)$", text, re.MULTILINE) for part in line.split("::")]
    lines = [line.partition(";")[0].strip() for line in lines]
    operations = Counter(re.sub(r"_e(32|64)(_dpp)?$|_dpp8?$|_sdwa$", "", line.split()[0]) for line in lines)
    facts = {name: int(number) for name, number in re.findall(r"^\s+\.(\w+):\s+(\d+)$", text, re.MULTILINE)}
    fused = sum(count * (2 if match[1] == "pk_" else 1) for name, count in operations.items() if (match := FUSED.fullmatch(name)))
    settings = dict(re.findall(r"^\s*\.amdhsa_(\w+) (.+)$", text, re.MULTILINE))
    return Built(
        arch, facts["vgpr_count"], facts["vgpr_spill_count"] + facts["sgpr_spill_count"], facts["private_segment_fixed_size"],
        metadata.shared, metadata.num_warps, settings, operations, lines, fused, asked,
    )  # fmt: skip


# ---- the table of docs/gpu_amd.md

TABLE = ("body", "residual_int16", "box", "tail", "wide", "depths_residual_int16", "quantize")
BEGIN, END = "<!-- forms: made by tests/helpers/triton_amd.py -->\n", "<!-- end of forms -->\n"


def cell(kernel: Built) -> str:
    """A cell of the table: registers, kilobytes of shared memory, and waves; then bytes of scratch memory where there are any."""
    words = f"{kernel.registers} / {kernel.shared / 1024:.3g} / {kernel.occupancy:g}"
    return words + (f", {kernel.scratch} scratch" if kernel.scratch else "")


def table(built: dict[tuple[str, str], Built]) -> str:
    """The table as Markdown, with a row for each form and a column for each architecture. Before it stand the instructions by which
    each architecture multiplies."""
    lines = []
    for arch, facts in amd.ARCHITECTURES.items():
        names = sorted({name for (_, on), kernel in built.items() if on == arch for name in kernel.products()})
        lines.append(f"- **{arch}** ({facts.family}, {facts.cards}): " + ", ".join(f"`{name}`" for name in names))
    lines += ["", "| form | " + " | ".join(amd.ARCHITECTURES) + " |", "|---" * (1 + len(amd.ARCHITECTURES)) + "|"]
    lines += [f"| {name} | " + " | ".join(cell(built[name, arch]) for arch in amd.ARCHITECTURES) + " |" for name in TABLE]
    return "\n".join(lines) + "\n"


def main(page: Path) -> None:
    built: dict[tuple[str, str], Built] = {}
    for name in TABLE:
        for arch in amd.ARCHITECTURES:
            built[name, arch] = compile_kernel(name, arch)
            print(name, arch, cell(built[name, arch]), file=sys.stderr, flush=True)
    before, _, rest = page.read_text().partition(BEGIN)
    page.write_text(before + BEGIN + table(built) + END + rest.partition(END)[2])


if __name__ == "__main__":
    if len(sys.argv) == 2:
        main(Path(sys.argv[1]))
    else:
        print(*compile_kernel(sys.argv[2], sys.argv[1]).lines, sep="\n")
