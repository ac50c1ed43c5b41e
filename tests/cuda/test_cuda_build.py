"""The built CUDA library, read without a GPU: architectures, instructions, no spills, and what a 4-bit product costs."""

from __future__ import annotations

import functools
import subprocess
from collections import Counter

import pytest

from adabm_kernels import native

sass = pytest.importorskip("sass_statistics", reason="benchmarks are not beside the tests")
LIBRARY = native.LIBRARIES / "libadabm_cuda.so"
pytestmark = [
    pytest.mark.skipif(not LIBRARY.exists(), reason="the CUDA library was not built"),
    pytest.mark.skipif(sass.find_tools() is None, reason="no cuobjdump and nvdisasm, which come with CUDA's toolkit and Triton"),
]


@functools.cache
def kernels(architecture: str) -> dict[str, list[str]]:
    return sass.disassemble(LIBRARY, architecture)


def convolutions(architecture: str) -> dict[int, list[str]]:
    """Instructions of the convolution by outputs of a block."""
    return {sass.outputs(name): lines for name, lines in kernels(architecture).items() if sass.outputs(name)}


def test_newer_cards_find_ptx() -> None:
    folder = sass.find_tools()
    text = subprocess.run([str(folder / "cuobjdump"), "-lptx", str(LIBRARY)], capture_output=True, text=True, check=True).stdout
    assert "sm_90.ptx" in text


@pytest.mark.parametrize("architecture", sass.ARCHITECTURES)
def test_every_kernel_is_there_and_keeps_its_registers(architecture: str) -> None:
    assert sorted(convolutions(architecture)) == [16, 32, 48, 64]
    names = " ".join(kernels(architecture))
    for kernel in ("quantize", "tile_depths", "measure", "decide", "probe"):
        assert kernel in names
    for name, lines in kernels(architecture).items():
        local = [line for line in lines if sass.opcode(line).split(".")[0] in ("LDL", "STL")]
        assert not local, f"{name} spills: {local[0]}"


@pytest.mark.parametrize("architecture", sass.ARCHITECTURES)
def test_4_bit_products_are_one_instruction_or_none(architecture: str) -> None:
    for lines in convolutions(architecture).values():
        matrix = {sass.opcode(line) for line in lines if "MMA" in sass.opcode(line)}
        four = {"IMMA.16864.U4.S4"} if architecture in sass.FOUR_BIT_ARCHITECTURES else set()
        assert matrix == {"IMMA.16832.U8.S8"} | four
        assert not any(sass.opcode(line).startswith("CALL") for line in lines if architecture == "90")


def kinds(loop: sass.Loop) -> Counter:
    found: Counter = Counter()
    for name, count in loop.classes.items():
        found[name if name in ("IMMA", "LDSM", "BRA", "CALL") else "integer"] += count
    return found


@pytest.mark.parametrize("architecture", sass.FOUR_BIT_ARCHITECTURES)
def test_a_4_bit_product_costs_half_of_an_8_bit_one(architecture: str) -> None:
    """A loop of 4 bits multiplies twice as many numbers as one of 8 bits, with as many matrix instructions and reads of shared
    memory and at most 20 % more (or one more) of every other kind. Arithmetic with integers is one kind, as the compiler takes the
    uniform datapath for it or not. Loops are compared that both sum up the codes or both do not."""
    for outputs, lines in convolutions(architecture).items():
        loops = {(loop.steps, loop.bits, loop.box): loop for loop in sass.inner_loops(lines, outputs)}
        # The widest tile has loops of its own for kernels whose rows are threes: those of 8 bits never sum up the codes.
        threes = {(3, 4, 0), (3, 4, 6), (3, 8, 0)} if outputs == 64 else set()
        assert set(loops) == {(1, 4, 2), (1, 8, 2)} | threes
        for steps, box in {(steps, box) for steps, bits, box in loops if bits == 8}:
            four, eight = loops[steps, 4, box], loops[steps, 8, box]
            assert four.macs == 2 * eight.macs
            assert (four.classes["IMMA"] - four.box) / four.macs == (eight.classes["IMMA"] - eight.box) / eight.macs / 2
            assert four.shared_bytes / four.macs == eight.shared_bytes / eight.macs / 2
            for name, count in kinds(four).items():
                usual = kinds(eight)[name]
                assert count <= max(1.2 * usual, usual + 1), f"{name}: {four.classes} against {eight.classes}"
        if outputs == 64:  # to sum up the codes takes two products a step, and at most one move for each
            more = kinds(loops[3, 4, 6]) - kinds(loops[3, 4, 0])
            assert more.pop("IMMA") == 6 and more.total() <= 6, f"{more} more than {loops[3, 4, 0].classes}"


# Products of a strip of 128 or 112 pixels in the kernels of 9.0, by kernel, strips of its tile and form of its epilogues: all
# weights in registers, or one step of the loops for the strips of a warpgroup; where it has two, for both and for the first alone.
GENERAL, CODES, FLOAT32, INT16, _, FOURS = (f"8StraightE{form}E" for form in range(6))
WGMMA = {
    f"conv2d_sm90ILb1ELi{strips}ELNS1_{form}": {"128": 18} for strips in (2, 4, 8) for form in (GENERAL, CODES, FLOAT32, INT16)
}
WGMMA |= {
    f"conv2d_sm90ILb0ELi{strips}ELNS1_{form}": {"128": count} for strips, count in ((2, 1), (4, 3)) for form in (GENERAL, FOURS)
}
WGMMA |= {
    f"resblock_sm90ILi{strips}ELNS1_{form}": {"128": 18, "112": 18} for strips in (2, 4, 6) for form in (GENERAL, FLOAT32, INT16)
}


@pytest.mark.parametrize("name", WGMMA)
def test_wgmma_kernels_multiply_on_warpgroups_and_keep_their_registers(name: str) -> None:
    (lines,) = (lines for kernel, lines in kernels("90a").items() if name in kernel)
    opcodes = Counter(sass.opcode(line) for line in lines)
    products = {code: count for code, count in opcodes.items() if code.startswith(("IGMMA", "IMMA"))}
    assert set(products) == {f"IGMMA.64x{columns}x32.S8.U8" for columns in WGMMA[name]}
    for columns, count in WGMMA[name].items():
        # Loops are unrolled, and none of them serialises what it can keep in flight: one fence and wait for a whole strip.
        assert products[f"IGMMA.64x{columns}x32.S8.U8"] % count == 0
    assert opcodes["WARPGROUP.DEPBAR.LE"] == (2 if name.startswith("resblock") else 1)
    assert opcodes["USETMAXREG.TRY_ALLOC.CTAPOOL"] and opcodes["USETMAXREG.DEALLOC.CTAPOOL"]
    assert not any(code.split(".")[0] in ("LDL", "STL", "CALL") for code in opcodes)
    assert any(code.startswith("UTMALDG.4D") for code in opcodes)  # tensor copies


def test_the_statistics_see_a_loop() -> None:
    matrix = "@P0 IMMA.16832.U8.S8 R4, R8.ROW, R2.COL, R4"
    copies = ["0x10:", "@P2 BRA 0x18", "0x14:", "LDGSTS.E.128 [R3], [R4]"]
    body = ["0x18:", "LDSM.16.M88.4 R4, [R2]", *6 * [matrix], "0x30:", "@P1 BRA 0x10"]
    (loop,) = sass.inner_loops(["0x0:", "MOV R0, R1", *copies, *body, "0x40:", "EXIT"], 16)
    assert loop.classes == {"IMMA": 6, "LDSM": 1, "BRA": 1} and (loop.bits, loop.steps, loop.box) == (8, 1, 2)
    assert loop.macs == 4 * 4096 and loop.shared_bytes == 512
