"""The kernels against the integer reference: every accumulator, feature and code equal, on every instruction set."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from drawn import drawn_problems
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import PROBLEMS, ConvProblem, half_units, instantiate, int16_features, runnable_isas

from adabm_kernels import native
from adabm_kernels.backends import cpu, reference
from adabm_kernels.backends.call import Conv, Outputs
from adabm_kernels.quantize import MAX_FRACTION, MIN_FRACTION, to_pixels

ISAS = runnable_isas()
pytestmark = pytest.mark.skipif(not ISAS, reason="the CPU library was not built")
FRACTIONS = (12, 15, 2)  # which hold the problems' results closely, saturate, and round coarsely


def check(problem: ConvProblem, isa: str, seed: int = 0, threads: int = 1, extreme: bool = False) -> None:
    instance = instantiate(problem, seed, extreme)
    assert torch.equal(instance.run("cpu", "acc", isa, threads)[0], instance.run("reference", "acc")[0])
    want_y, want_q = instance.run("reference", "both")
    y, y_q = instance.run("cpu", "both", isa, threads)
    assert torch.equal(y, want_y)
    assert torch.equal(y_q, want_q)
    assert torch.equal(instance.run("cpu", "float", isa, threads)[0], want_y)
    assert torch.equal(instance.run("cpu", "codes", isa, threads)[1], want_q)
    assert torch.equal(instance.pixels("cpu", isa, threads), to_pixels(want_y))
    if problem.shuffle == 1:
        check_int16(int16_features(instance.conv("cpu"), FRACTIONS[seed % len(FRACTIONS)]), isa, threads)


def check_int16(conv: Conv, isa: str, threads: int = 1) -> None:
    """Features of 16 bits beside codes and alone, codes alone, and where the residual was; all but the last over garbage."""
    want_y, want_q = reference.conv2d(conv, "both")
    with native.force_isa(isa):
        for features, codes, in_place in ((1, 1, 0), (1, 0, 0), (0, 1, 0), (1, 1, 1)):
            if in_place and conv.residual is None:
                continue
            y = (conv.residual.clone() if in_place else torch.full_like(want_y, 21846)) if features else None
            y_q = torch.full_like(want_q, 171) if codes else None
            given = replace(conv, residual=y) if in_place else conv
            cpu.conv2d_out(replace(given, threads=threads), Outputs(y, y_q))
            assert y is None or torch.equal(y, want_y)
            assert y_q is None or torch.equal(y_q, want_q)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_kernel_equals_reference(problem: ConvProblem, isa: str) -> None:
    check(problem, isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("weight_bits", [2, 4, 6, 7, 8])
@pytest.mark.parametrize("bits", range(2, 9))
def test_extreme_codes_and_weights_neither_saturate_nor_overflow(isa: str, weight_bits: int, bits: int) -> None:
    check(ConvProblem("extreme", 4, 7, 64, 32, weight_bits=weight_bits, bits=(bits,)), isa, extreme=True)


# 53 outputs are no whole panels, 64 take the forms of whole blocks; with more rows and columns than a tile has.
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("fraction", [MIN_FRACTION, -3, 0, 11, MAX_FRACTION])
@pytest.mark.parametrize("activation", ["none", "relu", "prelu"])
@pytest.mark.parametrize("outputs", [53, 64])
def test_int16_features_round_half_to_even_and_saturate(isa: str, fraction: int, activation: str, outputs: int) -> None:
    conv = int16_features(half_units(outputs, activation, fraction).conv("cpu"), fraction)
    conv.residual[:, ::2] = torch.randint(-32768, 32768, conv.residual[:, ::2].shape, generator=torch.Generator().manual_seed(1))
    check_int16(conv, isa)
    check_int16(replace(conv, residual=None), isa, threads=2)


@pytest.mark.parametrize("threads", [2, 5])
def test_threads_do_not_change_the_result(threads: int) -> None:
    for problem in PROBLEMS[:4]:
        check(problem, ISAS[-1], threads=threads)


@settings(max_examples=60)
@given(problem=drawn_problems(), isa=st.sampled_from(ISAS or ["none"]), seed=st.integers(0, 99))
def test_any_problem_equals_the_reference(problem: ConvProblem, isa: str, seed: int) -> None:
    check(problem, isa, seed, threads=1 + seed % 2)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_every_output_byte_is_written(problem: ConvProblem, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs are poisoned before the call: what the kernel leaves out would show, padding channels included."""
    instance = instantiate(problem)
    want = [instance.run("reference", out) for out in ("both", "acc")]
    plain_empty = torch.empty

    def poisoned(*size: int, dtype: torch.dtype = torch.float32, **options) -> torch.Tensor:
        return plain_empty(*size, dtype=dtype, **options).fill_(171 if dtype == torch.uint8 else -987654)

    instance.run("cpu", "acc", isa)  # packs the weights
    monkeypatch.setattr(torch, "empty", poisoned)
    got, pixels = [instance.run("cpu", out, isa) for out in ("both", "acc")], instance.pixels("cpu", isa)
    assert torch.equal(pixels, to_pixels(want[0][0]))
    for (y, y_q), (want_y, want_q) in zip(got, want, strict=True):
        assert torch.equal(y, want_y)
        assert torch.equal(y_q, want_q)
