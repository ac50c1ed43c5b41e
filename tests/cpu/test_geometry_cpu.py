"""Strides, dilation, groups, even kernels and padding on every instruction set, against the integer reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from drawn import drawn_geometries
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import GEOMETRIES, ConvProblem, instantiate, int16_features, runnable_isas

from adabm_kernels import native
from adabm_kernels.backends import cpu, reference
from adabm_kernels.backends.call import Outputs
from adabm_kernels.quantize import Geometry, to_pixels

ISAS = runnable_isas()
pytestmark = pytest.mark.skipif(not ISAS, reason="the CPU library was not built")


def check(problem: ConvProblem, isas: list[str], seed: int = 0, threads: int = 1, extreme: bool = False) -> None:
    """Accumulators, floats, codes, pixels and features of 16 bits, each over what is no result."""
    instance = instantiate(problem, seed, extreme)
    acc, (want_y, want_q) = instance.run("reference", "acc")[0], instance.run("reference", "both")
    int16 = int16_features(instance.conv("cpu"), 12) if problem.shuffle == 1 else None
    want_int16 = reference.conv2d(int16, "both") if int16 else None
    for isa in isas:
        assert torch.equal(instance.run("cpu", "acc", isa, threads)[0], acc)
        conv = replace(instance.conv("cpu"), threads=threads)
        with native.force_isa(isa):
            y, y_q = torch.full(want_y.shape, -1e9), torch.full(want_q.shape, 171, dtype=torch.uint8)
            cpu.conv2d_out(conv, Outputs(y, y_q))
            assert torch.equal(y, want_y) and torch.equal(y_q, want_q)
            y_q.fill_(171)
            cpu.conv2d_out(conv, Outputs(None, y_q))
            assert torch.equal(y_q, want_q)
            if int16 and want_int16:
                y, y_q = torch.full(want_y.shape, 21846, dtype=torch.int16), torch.full(want_q.shape, 171, dtype=torch.uint8)
                cpu.conv2d_out(replace(int16, threads=threads), Outputs(y, y_q))
                assert torch.equal(y, want_int16[0]) and torch.equal(y_q, want_int16[1])
        assert torch.equal(instance.pixels("cpu", isa, threads), to_pixels(want_y))


@pytest.mark.parametrize("problem", GEOMETRIES, ids=str)
def test_kernels_equal_the_reference(problem: ConvProblem) -> None:
    check(problem, ISAS)


@pytest.mark.parametrize("weight_bits", [2, 4, 6, 7, 8])
@pytest.mark.parametrize("groups", [1, 4, 32], ids=["strided", "grouped", "depthwise"])
def test_extreme_codes_and_weights_neither_saturate_nor_overflow(weight_bits: int, groups: int) -> None:
    for bits in range(2, 9):
        geometry = Geometry((2, 1) if groups == 1 else (1, 1), groups=groups)
        problem = ConvProblem("extreme", 4, 7, 32, 32, weight_bits=weight_bits, bits=(bits,), geometry=geometry)
        check(problem, ISAS, extreme=True)


@settings(max_examples=60)
@given(problem=drawn_geometries(), seed=st.integers(0, 99))
def test_any_geometry_equals_the_reference(problem: ConvProblem, seed: int) -> None:
    check(problem, ISAS, seed, threads=1 + seed % 3)


@pytest.mark.parametrize("activation", ["none", "relu", "prelu"])
def test_results_that_are_not_finite_have_the_references_codes(activation: str) -> None:
    """Of each channel on its own, with codes alone, on rising and on falling grids."""
    problem = ConvProblem("special", 5, 9, 64, 64, bits=(4,), activation=activation, geometry=Geometry(groups=64))
    instance = instantiate(problem)
    ends = torch.tensor([float("nan"), float("inf"), -float("inf"), 3e38, -3e38, 0.0, -0.0])
    instance.layer.beta[..., : len(ends)], instance.layer.alpha[:, : len(ends)] = ends, 0
    for sign in (1, -1):
        instance.out_grid *= sign
        want = instance.run("reference", "codes")[1]
        for isa in ISAS:
            assert torch.equal(instance.run("cpu", "codes", isa)[1], want)
