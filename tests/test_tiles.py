"""The tiles: exact by algebra, planned only where 8-bit operands hold them, and as the C library has them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import ConvProblem, instantiate, runnable_isas

from adabm_kernels.backends import cpu
from adabm_kernels.tiles import TILES, plan_layer


@pytest.mark.parametrize("tile", TILES, ids=lambda t: t.name)
@settings(max_examples=50, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_tile_computes_its_outputs_exactly(tile, data: st.DataObject) -> None:
    codes = np.array(data.draw(st.lists(st.integers(0, 255), min_size=tile.outputs + 2, max_size=tile.outputs + 2)))
    weights = np.array(data.draw(st.lists(st.integers(-255, 255), min_size=3, max_size=3)))
    sums = tile.sums @ ((tile.codes @ codes) * (tile.weights @ weights))
    want = np.array([codes[i : i + 3] @ weights for i in range(tile.outputs)])
    assert np.array_equal(sums, tile.denominator * want)


@pytest.mark.parametrize("tile", TILES[1:], ids=lambda t: t.name)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_stated_code_range_is_reached_and_not_passed(tile, bits: int) -> None:
    top = 2**bits - 1
    corners = np.array(list(itertools.product([0, top], repeat=tile.outputs + 2)))
    values = corners @ tile.codes.T
    assert (values.max(0) - values.min(0)).max() == tile.code_range(bits)


def weights_of(largest: int) -> np.ndarray:
    return np.full((4, 4, 3, 3), largest)


def test_fewer_bits_get_tiles_of_fewer_products() -> None:
    plan = plan_layer("conv", weights_of(15), 8)
    products = {tile.name: tile.products for tile in TILES}
    costs = [products[name] for name in plan.tile]
    assert plan.tile == ("F(4,3)",) * 3 + ("F(3,3)", "F(2,3)", "F(2,3)", "direct")
    assert costs == sorted(costs)


def test_weights_that_outgrow_a_byte_forbid_a_tile_and_the_plan_says_why() -> None:
    assert 7 * 19 > 127 >= 3 * 19
    plan = plan_layer("conv", weights_of(19), 8)
    assert plan.tile[0] == "F(2,3)"
    plan = plan_layer("conv", weights_of(63), 8)
    assert plan.tile == ("direct",) * 7
    assert "F(2,3) makes weights of" in plan.why_direct[0]
    assert "F(2,3) makes 8-bit codes up to 510, above 255" in plan.why_direct[6]
    assert plan_layer("conv", weights_of(15)[:, :, :1, :1], 8).why_direct[0] == "kernel 1x1 is not 3x3"


def test_a_sum_that_only_the_tile_would_overflow_forbids_the_tile() -> None:
    integers = np.full((1, 45_000, 3, 3), 15)
    plan = plan_layer("conv", integers, 4)
    assert 24 * 45_000 * 9 * 15 * 15 > 2**31 > 24 * 45_000 * 9 * 15 * 7
    assert plan.tile[:3] == ("F(4,3)", "F(4,3)", "F(3,3)")


def test_a_layer_that_could_overflow_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"plan_layer: 'body.3' could reach a sum of \d+ with 8-bit codes, above 2147483647"):
        plan_layer("body.3", np.full((1, 8_000, 3, 3), 127), 8)


def test_avx2_is_planned_for_codes_that_one_product_can_take() -> None:
    plan = plan_layer("conv", weights_of(15), 8, isa="avx2")
    assert plan.tile[4 - 2] == "F(3,3)"  # F(4,3) has fewer products but codes up to 150, which cost two each
    assert plan.tile[3 - 2] == "F(4,3)"


@pytest.mark.skipif(not runnable_isas(), reason="the CPU library was not built")
@pytest.mark.parametrize("tile", range(4))
@pytest.mark.parametrize("isa", runnable_isas())
def test_every_tile_that_is_exact_gives_the_direct_result(isa: str, tile: int) -> None:
    bits = {0: 8, 1: 7, 2: 5, 3: 4}[tile]
    for lower in range(2, bits + 1):
        for width in (1, 2, 5, 13, 24, 29):
            problem = ConvProblem("tile", 5, width, 68, 80, bits=(lower,), activation="relu", residual=True)
            instance = instantiate(problem, seed=width, extreme=width % 2 == 0)
            want = instance.run("reference", "both")
            acc, _ = instance.run("reference", "acc")
            instance.layer.packed = cpu.pack(instance.layer.weight, (tile,) * (bits - 1) + (0,) * (8 - bits))
            for got, expected in zip(instance.run("cpu", "both", isa), want, strict=True):
                assert torch.equal(got, expected)
            assert torch.equal(instance.run("cpu", "acc", isa)[0], acc)


@pytest.mark.skipif(not runnable_isas(), reason="the CPU library was not built")
def test_the_library_refuses_tiles_that_are_not_exact() -> None:
    weight = torch.full((16, 3, 3, 4), 15, dtype=torch.int8)
    with pytest.raises(ValueError, match=r"tile_for_bits\[6\] = 1 is not exact: 8-bit codes transform to 510"):
        cpu.pack(weight, (1,) * 7)
    with pytest.raises(ValueError, match="a weight of output 0 transforms to 133"):
        cpu.pack(weight + 4, (3,) + (0,) * 6)
    with pytest.raises(ValueError, match=r"tile_for_bits\[0\] must be 0 \(direct\) for this kernel, got 2"):
        cpu.pack(weight[:, :1, :1], (2,) + (0,) * 6)
