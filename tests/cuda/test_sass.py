"""The machine code of the convolutions, executed on the CPU: equal to the reference, within what it may spend, and broken code is
found.

Tiles inside an image and at its lower right corner, where a tile is cut off both ways. Nothing here needs a GPU.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import pytest
import torch
from problems import ConvProblem
from sass import bounds, cubin, launches, parse, slots
from sass.families import DEEP, FAMILIES, FRACTION, TAIL, Family, Prepared, body, prepare
from sass.machine import MachineError, Program
from small import one_thread  # noqa: F401

from adabm_kernels.backends import counted

pytestmark = pytest.mark.skipif(bool(cubin.why_unavailable()), reason=cubin.why_unavailable())
INSIDE, CORNER = (1, 1), (-1, -1)
RELU = {"activation": "relu"}
ODD = ConvProblem("odd", 0, 0, 37, 53, bits=(7,), out_bits=(3,), activation="prelu", residual=True)
# Two of these architectures have the code of a third but for some moves.
FIRST = [family for family in FAMILIES if family.code in ("90", "80")]
LATER = [family for family in FAMILIES if family.code not in ("90", "80")]
OTHERS = [
    *(Family(f"resident, configuration {n}", "90", body(**RELU), config=n) for n in (2, 3, 4)),
    *(Family(f"block, configuration {n}", "90", body(**RELU), "yq", block=True, config=n) for n in (2, 3, 4)),
    Family("staged, tensor copies", "90", dataclasses.replace(body(**RELU), channels=128), config=3),
    Family("staged, 16-bit features", "90", dataclasses.replace(DEEP, residual=True), "yq", config=2, fraction=FRACTION),
    Family("staged, 4-bit codes", "90", dataclasses.replace(body(4, 4, **RELU), channels=128), packed=True, config=1),
    Family("staged, sums beside results", "90", dataclasses.replace(TAIL, activation="relu"), "ya", config=1),
    Family("odd channels", "90", ODD, "yq", config=1),
    Family("2-bit codes", "90", body(2, 2, **RELU), packed=True, config=1),
    Family("sums beside results", "90", body(residual=True), "yqa", config=1),
    Family("sum of the codes", "90", ConvProblem("box", 0, 0, 64, 64, weight_bits=8, bits=(8,), out_bits=(8,)), config=1),
    *(
        Family(f"sm_80 {name}", "80", problem, outputs, packed)
        for name, problem, outputs, packed in [
            ("head", ConvProblem("head", 0, 0, 3, 64, weight_bits=8, bits=(8,), out_bits=(4,)), "q", True),
            ("2-bit codes", body(2, 2, **RELU), "q", True),
            ("a grid below 0 behind a ReLU", body(**RELU), "q", False),
            ("odd channels", ODD, "yqa", False),
            ("upsampler", dataclasses.replace(body(), outputs=256, shuffle=2), "q", False),
            ("256 channels", dataclasses.replace(body(), channels=256), "q", False),
            ("colours", dataclasses.replace(body(), outputs=3), "y", False),
        ]
    ),
]  # fmt: skip


@functools.cache
def prepared(family: Family) -> Prepared:
    """On an image with a tile inside, and another that is cut off both ways."""
    wide = family.on_wgmma and family.tile[1] > 40
    return prepare(family, dataclasses.replace(family.problem, height=50, width=150 if wide else 99))


def check(family: Family, place: tuple[int, int], **settings) -> None:
    case = prepared(family)
    case.execute(*place, **settings)
    differences = case.differences(*place)
    assert differences == dict.fromkeys(differences, 0)


@pytest.mark.parametrize("place", [INSIDE, CORNER], ids=["inside", "corner"])
@pytest.mark.parametrize("family", FIRST, ids=str)
def test_a_tile_equals_the_reference(family: Family, place: tuple[int, int]) -> None:
    check(family, place)


@pytest.mark.slow
@pytest.mark.parametrize("place", [INSIDE, CORNER, (0, 0), (1, -1)], ids=["inside", "corner", "first", "right"])
@pytest.mark.parametrize("family", LATER + OTHERS, ids=str)
def test_a_tile_of_other_layers_equals_the_reference(family: Family, place: tuple[int, int]) -> None:
    check(family, place, order="descending")


@pytest.mark.parametrize("family", FIRST, ids=str)
def test_issue_slots_stay_within_their_bounds(family: Family) -> None:
    """Of a tile inside the image, by role; where it matters, how long a warp would take alone."""
    spend(family)


@pytest.mark.slow
@pytest.mark.parametrize("family", LATER, ids=str)
def test_issue_slots_of_other_architectures_stay_within_their_bounds(family: Family) -> None:
    spend(family)


@pytest.mark.slow
@pytest.mark.parametrize("family", [family for family in FAMILIES if family.name in bounds.OVER_IMAGE], ids=str)
def test_issue_slots_over_an_image_stay_within_their_bounds(family: Family) -> None:
    """Of a strip in the mean, tiles along the borders and strips that are cut off included."""
    found = slots.over_image(family, 512, 512)
    for name, bound in bounds.OVER_IMAGE[family.name].items():
        assert found[name].slots <= bound.slots * found[name].share, f"{name}: {found[name].slots / found[name].share} issue slots"


def spend(family: Family) -> None:
    roles = {role.name: role for role in slots.measure(family)}
    assert roles.keys() >= bounds.BOUNDS[family.name].keys()
    for name, bound in bounds.BOUNDS[family.name].items():
        role = roles[name]
        assert role.slots <= bound.slots * role.share, f"{name}: {role.slots / role.share} issue slots: {role.kinds}"
        assert not bound.clocks or role.clocks <= bound.clocks * role.share, f"{name}: {role.clocks} clocks of latency"


def test_every_aim_is_kept_or_named_a_miss() -> None:
    every = {(f, role): b for f, roles in bounds.BOUNDS.items() for role, b in roles.items()}
    assert bounds.BOUNDS.keys() == {family.name for family in FAMILIES}
    assert {place for place, bound in every.items() if bound.aim and bound.slots > bound.aim} == bounds.MISSED
    over = {(f, role): b for f, roles in bounds.OVER_IMAGE.items() for role, b in roles.items()}
    assert {place for place, bound in over.items() if bound.aim and bound.slots > bound.aim} == bounds.MISSED & over.keys()


@pytest.mark.parametrize("family", [f for f in FIRST if f.name.endswith("codes to codes") and not f.packed], ids=str)
def test_the_choice_of_a_backend_counts_what_is_executed(family: Family) -> None:
    """Issue slots of backends/counted.py, to 10 %."""
    shape = prepared(family).instance.layer.shape
    capability = 80 if family.card else int(family.code)
    work = counted.cuda_work(capability, shape, family.problem.bits[0])
    found = {role.name: role for role in slots.measure(family)}
    if "warp" in found:
        clocks = found["warp"].slots / 128
    else:
        clocks = (found["consumer"].slots / found["consumer"].share + found["producer"].slots / 4) / 128
    assert abs(work.issued / clocks - 1) < 0.1, (work.issued, clocks)


# ---- code that is broken on purpose

CODES, BLOCK = FAMILIES[0], next(family for family in FAMILIES if family.block)
SM80 = next(family for family in FAMILIES if family.code == "80")


def mutant(case: Prepared, change: Callable[[int, parse.Instruction], str | None]) -> Program:
    """The kernel with other text for some instructions; None leaves one as it is."""
    program, changed = Program(case.started.kernel), 0
    for i, instruction in enumerate(program.code):
        text = change(i, instruction)
        if text is not None:
            program.code[i] = parse.instruction(text, instruction.address, instruction.control)
            changed += 1
    assert changed
    return program


def without(*names: str) -> Callable[[int, parse.Instruction], str | None]:
    return lambda i, instruction: "NOP" if instruction.opcode.startswith(names) else None


def never_waits(i: int, instruction: parse.Instruction) -> str | None:
    """Whoever asks whether a phase is over is told that it is."""
    return f"PLOP3.LUT {instruction.operands[0]}, PT, PT, PT, PT, 0x80, 0x0" if "PHASECHK" in instruction.opcode else None


def other_counts(i: int, instruction: parse.Instruction) -> str | None:
    """Barriers that are made for one arrival more than come: the word that is written into a barrier holds 0x100000 less them."""
    if instruction.opcode != "UIADD3" or "0x100000" not in instruction.operands:
        return None
    guard = f"@{instruction.guard} " if instruction.guard else ""
    operands = ", ".join("0xfffff" if operand == "0x100000" else operand for operand in instruction.operands)
    return f"{guard}{instruction.opcode} {operands}"


def fewer_threads(i: int, instruction: parse.Instruction) -> str | None:
    """Named barriers for two warps in place of four."""
    if not instruction.opcode.startswith("BAR") or instruction.operands[-1] != "0x80":
        return None
    return f"{instruction.opcode} {instruction.operands[0]}, 0x40"


BROKEN = {
    "no fence": (CODES, without("FENCE"), "has not fenced"),
    "no wait for products": (CODES, without("WARPGROUP.DEPBAR"), "belongs to a product under way"),
    "no fence before products": (CODES, without("WARPGROUP.ARRIVE"), "without WARPGROUP.ARRIVE"),
    "no wait for copies": (CODES, without("DEPBAR"), "a copy under way is writing|ends with asynchronous copies under way"),
    "no wait for a stage": (CODES, never_waits, "nothing has written|a copy under way is writing"),
    "no arrival": (CODES, without("ARRIVES"), "deadlock"),
    "barriers made for others": (CODES, other_counts, "deadlock"),
    "no barrier between threads": (CODES, without("BAR.SYNC"), "there is no barrier|nothing has written|has not fenced"),
    "half of a barrier's threads": (CODES, fewer_threads, "at barrier|nothing has written|which is for"),
    "block: no fence": (BLOCK, without("FENCE"), "has not fenced"),
    "block: no wait for a stage": (BLOCK, never_waits, "nothing has written|a copy under way is writing"),
    "sm_80: no wait for copies": (SM80, without("DEPBAR"), "a copy under way is writing"),
    "sm_80: no barrier": (SM80, without("BAR.SYNC"), "nothing has written|a copy under way is writing"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_code_is_found(name: str) -> None:
    family, change, message = BROKEN[name]
    case = prepared(family)
    with pytest.raises(MachineError, match=message):
        case.execute(*INSIDE, program=mutant(case, change))


@pytest.mark.parametrize("family", [CODES, BLOCK, SM80], ids=str)
def test_a_wrong_constant_of_tiles_inside_is_found(family: Family) -> None:
    """Every result of a tile inside goes through sums of floats: without one of the instructions some codes differ."""
    case = prepared(family)
    inside = case.execute(*INSIDE)
    counts = [sum(w.counts[i] for w in inside.warps) for i in range(len(inside.program.code))]
    chosen = next(i for i, code in enumerate(inside.program.code) if counts[i] and code.opcode == "FFMA")
    case.execute(*INSIDE, program=mutant(case, lambda i, instruction: "NOP" if i == chosen else None))
    assert sum(case.differences(*INSIDE).values()) > 0


def test_writes_beyond_an_output_are_found() -> None:
    case = prepared(CODES)
    part = case.call.y_q.view(-1)[: 20 * 99 * 64]
    with pytest.raises(MachineError, match=r"bytes at byte \d+ of written uint8 \[126720\], which has 126720"):
        launches.run(case.started, (case.index(*INSIDE), 0), case.read, [part])


def test_results_do_not_depend_on_the_order_of_warps() -> None:
    check(CODES, INSIDE, order="descending")
    check(BLOCK, CORNER, order="descending")


def test_what_was_captured_is_what_the_host_runtime_runs() -> None:
    """A launch that is captured is not run, and one that is not captured is."""
    case = prepared(SM80)
    assert "conv2d_sm80ILi8E" in case.started.kernel.name
    assert case.started.threads == 128 and case.started.grid == (
        case.family.tiles(case.problem)[0] * case.family.tiles(case.problem)[1],
        1,
    )
    case.call.run()
    assert torch.equal(case.call.y_q, case.instance.run("reference", "codes")[1])


@pytest.mark.skipif(not cubin.LIBRARY.exists(), reason="the CUDA library was not built")
@pytest.mark.parametrize("family", [CODES, BLOCK, SM80], ids=str)
def test_kernels_are_found_in_the_built_library(family: Family) -> None:
    """Where there is no nvcc: with the constants and the place of the parameters that the compiled file has."""
    kernel = prepared(family).started.kernel
    architecture = family.code + "a" * family.on_wgmma
    found = cubin.Cubin(cubin._extracted(cubin.LIBRARY, kernel.name, architecture)).kernel(kernel.name)
    assert (found.parameters, found.parameter_bytes) == (kernel.parameters, kernel.parameter_bytes)
    assert found.banks.keys() == kernel.banks.keys() and found.code
