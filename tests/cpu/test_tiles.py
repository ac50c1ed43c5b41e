"""The tiles: exact by algebra, planned only where 8-bit operands hold them, and as the C library has them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import ConvInstance, ConvProblem, bell_codes, collapsed, instantiate, runnable_isas, set_tile, set_weights

from adabm_kernels import native, ops
from adabm_kernels.backends import cpu
from adabm_kernels.backends.call import Packing
from adabm_kernels.planning.exact import Sums, transformed_weights
from adabm_kernels.planning.layer import plan_layer
from adabm_kernels.planning.tiles import TILES, takes_kn2row, tile_products
from adabm_kernels.planning.times import KINDS, Cost, TileTimes, tile_times
from adabm_kernels.quantize import act_grid, weight_integers

ISAS = runnable_isas()
# Of a processor on which a product takes as long in every tile of bytes; those of words were not measured on it.
_BYTES = {"direct": 87.95, "F(2x1)": 125.04, "F(2x2)": 171.66, "F(2x3)": 183.67, "F(2x4)": 170.6}
VNNI = TileTimes("avx512vnni", {tile: {KINDS[0]: Cost(4.3379, beside, beside)} for tile, beside in _BYTES.items()}, 83.29, {})
# By which a tile is as fast as it has few products, whatever the layer's size.
_ALONE = {tile.name: {KINDS[0]: Cost(1, 0, 0)} for tile in TILES if not tile.words}
PRODUCTS_ALONE = TileTimes("avx512vnni", _ALONE, 0, {})
DEAR_DIRECT = replace(PRODUCTS_ALONE, costs=_ALONE | {"direct": {KINDS[0]: Cost(100, 0, 0)}})  # whatever is exact comes before it


@pytest.mark.parametrize("tile", TILES, ids=lambda t: t.name)
@settings(max_examples=50)
@given(data=st.data())
def test_a_tile_computes_its_outputs_exactly(tile, data: st.DataObject) -> None:
    side = tile.kernel
    height, width = tile.rows.outputs + side - 1, tile.columns.outputs + side - 1
    numbers = st.lists(st.integers(0, 255), min_size=height * width, max_size=height * width)
    codes = np.array(data.draw(numbers)).reshape(height, width)
    weights = np.array(data.draw(st.lists(st.integers(-255, 255), min_size=side**2, max_size=side**2))).reshape(side, side)
    products = (tile.rows.codes @ codes @ tile.columns.codes.T) * transformed_weights(tile, weights[..., None, None])[..., 0, 0]
    sums = tile.rows.sums @ products @ tile.columns.sums.T
    want = [
        [(codes[i : i + side, j : j + side] * weights).sum() for j in range(tile.columns.outputs)] for i in range(tile.rows.outputs)
    ]
    assert np.array_equal(sums, tile.rows.denominator * tile.columns.denominator * np.array(want))


@pytest.mark.parametrize("tile", [tile for tile in TILES[1:] if not tile.words], ids=lambda t: t.name)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_stated_code_range_is_reached_and_not_passed(tile, bits: int) -> None:
    top = 2**bits - 1
    size = (tile.rows.outputs + 2) * (tile.columns.outputs + 2)
    factors = np.kron(tile.rows.codes, tile.columns.codes)  # of every tap, for the codes under the tile
    least = np.minimum(factors, 0).sum(1) * top
    assert factors.shape == (len(tile.rows.codes) * len(tile.columns.codes), size)
    assert (np.maximum(factors, 0).sum(1) * top - least).max() == tile.code_range(bits)


def weights_of(largest: int) -> np.ndarray:
    return np.full((16, 4, 3, 3), largest)


def test_fewer_bits_get_tiles_of_fewer_products() -> None:
    for grid in ("signed", "odd"):
        weights = weight_integers(bell_codes(4, 64, 64), grid).numpy()
        plan = plan_layer("conv", weights, 8, times=VNNI)
        assert plan.tile[2:] == ("F(2x3)", "F(2x2)", "F(2x2)", "F(2x1)", "direct")
        assert plan.tile[1] == "F(2x4)"
        assert list(plan.picoseconds) == sorted(plan.picoseconds)
        assert list(plan.products_for_bits) == sorted(plan.products_for_bits)
        assert plan.time(3, 5) == sum(plan.picoseconds[1:4])


def test_weights_that_outgrow_a_byte_are_split_and_counted() -> None:
    assert 9 * 14 <= 127 < 9 * 15 < 2 * 127
    assert plan_layer("conv", weights_of(14), 6, times=PRODUCTS_ALONE).products_for_bits[6 - 2] == 4
    plan = plan_layer("conv", weights_of(15), 6, times=PRODUCTS_ALONE)
    assert plan.tile[6 - 2] == "F(2x2)"
    assert plan.products_for_bits[6 - 2] == (16 + 2) / 4  # one inner tap outgrows its byte; its partner is split along


def test_the_plan_says_why_a_layer_is_direct() -> None:
    plan = plan_layer("conv", weights_of(63), 8, times=VNNI)
    assert "F(2x2) makes weights of 0..567, beyond 4 bytes" in plan.why_direct[0]
    assert "F(2x1) makes 8-bit codes up to 510, above 255" in plan.why_direct[8 - 2]
    assert plan_layer("conv", weights_of(15)[:, :, :1, :1], 8, times=VNNI).why_direct[0] == "no tile is for a kernel of 1x1"


def test_a_sum_that_only_the_tile_would_overflow_forbids_the_tile() -> None:
    channels = 160_000
    plan = plan_layer("conv", np.full((1, channels, 3, 3), 3), 8, times=DEAR_DIRECT)
    assert channels * 27 * 255 < 2**31
    assert plan.tile[2 - 2] == "F(2x3)"  # its largest sum is 89 times that of the output, and that of F(2x4) 587 times
    assert channels * 27 * 3 * 89 < 2**31 < channels * 27 * 3 * 587
    assert plan.tile[6 - 2] == "F(2x1)"  # 2 times, F(2x2) 8 times
    assert channels * 27 * 63 * 2 < 2**31 < channels * 27 * 63 * 8


def test_words_hold_whatever_f4x4_makes_of_codes_and_weights_of_8_bits() -> None:
    tile = TILES[5]
    assert tile.words and tile.name == "F(4x4)"
    codes = np.kron(tile.rows.codes, tile.columns.codes)
    one_sided = max(np.maximum(codes, 0).sum(1).max(), np.maximum(-codes, 0).sum(1).max())
    assert (one_sided, np.abs(np.kron(tile.rows.weights, tile.columns.weights)).sum(1).max()) == (68, 49)
    assert max(68 * 255, 49 * 128) <= 2**15 - 1


def test_f4x4_is_refused_where_what_it_divides_could_wrap() -> None:
    costs = {"direct": {KINDS[0]: Cost(100, 0, 0)}, "F(4x4)": {KINDS[0]: Cost(1, 0, 0)}}
    measured = TileTimes("avx2", costs, 0, {})
    for channels, tile in ((114, "F(4x4)"), (115, "direct")):
        plan = plan_layer("conv", np.full((2, channels, 3, 3), -128), 8, times=measured)
        assert plan.tile[8 - 2] == tile and plan.tile[7 - 2] == "F(4x4)"
        assert (64 * channels * 9 * 128 * 255 < 2**31) == (tile == "F(4x4)")
    assert f"F(4x4) makes sums up to {64 * 115 * 9 * 128 * 255}, above {2**31 - 1}; F(2x1) was not" in plan.why_direct[8 - 2]


def test_a_layer_that_could_overflow_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"plan_layer: 'body.3' could reach a sum of \d+ with 8-bit codes, above 2147483647"):
        plan_layer("body.3", np.full((1, 8_000, 3, 3), 127), 8, times=VNNI)


def test_avx2_is_planned_for_sums_of_16_bits() -> None:
    """With few bits a run of taps is summed whole; with weights of 8 bits a pair of products already overflows."""
    light, heavy = bell_codes(4, 64, 64).numpy(), np.full((16, 16, 3, 3), 127)
    times = tile_times("avx2")
    bytes_alone = replace(times, costs={tile.name: times.costs[tile.name] for tile in TILES if not tile.words})
    plan, direct = plan_layer("conv", light, 8, times=bytes_alone), plan_layer("conv", heavy, 8, times=bytes_alone)
    assert plan.isa == "avx2" and list(plan.picoseconds) == sorted(plan.picoseconds)
    assert max(plan.products_for_bits[:2]) < 10 / 3 and plan.tile[6] == direct.tile[6] == "direct"
    widened = times.time("direct", "widened", 9, 16, 16, False)
    assert direct.picoseconds[6] == widened > times.time("direct", "whole", 9, 16, 16, False)


def test_avx2_takes_words_where_sums_of_16_bits_are_short() -> None:
    times = tile_times("avx2")
    light, heavy = (plan_layer("conv", bell_codes(bits, 64, 64).numpy(), 8, times=times) for bits in (4, 8))
    assert light.tile[0] == "F(3x4)" and set(light.tile[8 - 2 :]) | set(heavy.tile[4:]) == {"F(4x4)"}
    assert heavy.products_for_bits[8 - 2] == 4.5
    assert heavy.picoseconds[8 - 2] == times.time("F(4x4)", "whole", 4.5, 64, 64, False)


@settings(max_examples=60)
@given(
    runs=st.integers(1, 3),
    quads=st.integers(1, 9),
    most=st.sampled_from([1, 3, 8, 20, 64, 127]),
    top=st.sampled_from([3, 15, 63, 255]),
    seed=st.integers(0, 99),
)
def test_sums_of_the_stated_depth_stay_within_16_bits(runs, quads, most, top, seed) -> None:
    weights = np.random.default_rng(seed).integers(-most, most + 1, (5, runs, quads * 4))
    bits = (top + 1).bit_length() - 1
    sums = Sums.of(np.moveaxis(weights, 0, -1), np.ones(runs, dtype=np.int64))
    depths, kinds = sums.depths(bits), sums.kinds(bits)

    def largest(run: int, depth: int) -> int:
        """Of all sums of `depth` quads, with the codes that are worst for them."""
        pairs = weights[:, run].reshape(5, quads, 2, 2)
        groups = [pairs[:, q : q + depth] for q in range(0, quads, depth)]
        return max(top * max(np.maximum(g, 0).sum((1, 3)).max(), np.maximum(-g, 0).sum((1, 3)).max()) for g in groups)

    for run, depth in enumerate(depths.tolist()):
        assert (largest(run, depth) if depth else 0) <= 2**15 - 1
        assert depth >= quads or largest(run, max(2 * depth, 1)) > 2**15 - 1
    assert sum(kinds.values()) == pytest.approx(1)
    assert kinds["widened"] * runs == pytest.approx((depths == 0).sum())
    assert kinds["pairs"] * runs == pytest.approx((depths == 1).sum())
    assert kinds["few"] * 3 * runs == pytest.approx(sum(-(-quads // depth) - 1 for depth in depths.tolist() if depth > 1))


def test_the_products_of_a_tile_are_those_of_its_transforms() -> None:
    assert [tile_products(tile.name, 3, 3) for tile in TILES] == [9, 6, 4, 10 / 3, 3, 9 / 4, 9, 9 / 2, 25 / 9, 5 / 2]
    assert tile_products("F(4x1,kn2row)", 9, 9) == 9 * 9 / 2
    assert tile_products("direct", 5, 5) == 25


def check_isas(instance: ConvInstance, isas: Sequence[str], threads: Sequence[int] = (1,)) -> None:
    """Accumulators, floats and codes of these instruction sets are the reference's, which is asked once for all."""
    want, want_acc = instance.run("reference", "both"), instance.run("reference", "acc")[0]
    for isa in isas:
        for count in threads:
            assert all(map(torch.equal, instance.run("cpu", "both", isa, count), want)), (isa, count)
        assert torch.equal(instance.run("cpu", "acc", isa)[0], want_acc), isa


TILE_BITS = {1: 7, 2: 6, 3: 4, 4: 3, 5: 8, 8: 3, 9: 2}  # the most that each tile of the header can take


@pytest.mark.skipif(not ISAS, reason="the CPU library was not built")
@pytest.mark.parametrize("tile", TILE_BITS)
def test_every_tile_gives_the_direct_result(tile: int) -> None:
    growth = np.abs(np.kron(TILES[tile].rows.weights, TILES[tile].columns.weights)).sum(1).max()
    most = 24 if TILES[tile].words else min(24, 4 * 127 // growth)  # at most four bytes
    # Widths of less than a tile, of a group of them and of several; odd heights; channels that end within a vector.
    shapes = [(5, 1, 68, 80), (1, 13, 64, 64), (6, 24, 7, 17), (8, 29, 64, 64), (3, 2, 33, 40), (4, 75, 12, 5)]
    for bits in range(2, TILE_BITS[tile] + 1):
        for height, width, channels, outputs in shapes:
            for weight_bits in (4, 8):  # with transforms that fit whole, and with ones in several parts
                problem = ConvProblem(
                    "tile", height, width, channels, outputs, 3, weight_bits, (bits,), activation="relu", residual=True
                )
                instance = instantiate(problem, seed=width)
                instance.layer.weight.clamp_(-most, most)
                set_tile(instance, TILES[tile].name, bits)
                check_isas(instance, ISAS)


@pytest.mark.skipif(not ISAS, reason="the CPU library was not built")
@pytest.mark.parametrize("tile", [tile for tile in TILE_BITS if not TILES[tile].words])
@pytest.mark.parametrize("isa", ISAS)
def test_sums_of_16_bits_hold_the_largest_codes_of_every_tap(isa: str, tile: int) -> None:
    """Weights that are heavy in one tap and light in the others, so that every tap has a depth of its own."""
    bits = TILE_BITS[tile]
    for row, column in ((0, 0), (1, 1), (2, 1), (0, 2)):
        instance = instantiate(ConvProblem("extreme", 7, 14, 36, 20, 3, 8, (bits,)), extreme=True)
        instance.layer.weight.clamp_(-1, 1)
        instance.layer.weight[:, row, column] = 31
        instance.layer.weight[::2, row, column, ::3] = -31
        set_tile(instance, TILES[tile].name, bits)
        assert torch.equal(instance.run("cpu", "acc", isa)[0], instance.run("reference", "acc")[0])


@pytest.mark.skipif(not ISAS, reason="the CPU library was not built")
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bits", [2, 7, 8])
def test_the_largest_codes_and_weights_do_not_wrap_in_f4x4(isa: str, bits: int) -> None:
    for channels, extreme_sign in ((114, -128), (64, 127)):
        instance = instantiate(ConvProblem("extreme", 6, 9, channels, 20, 3, 8, (bits, 3)), extreme=True)
        instance.layer.weight[::2] = extreme_sign
        set_tile(instance, "F(4x4)", bits)
        assert torch.equal(instance.run("cpu", "acc", isa)[0], instance.run("reference", "acc")[0])


@pytest.mark.skipif(not ISAS, reason="the CPU library was not built")
@pytest.mark.parametrize("isa", ISAS)
def test_rows_of_tiles_do_not_depend_on_the_bands_of_threads(isa: str) -> None:
    """Heights that are no multiple of four rows, images of a batch in tiles of two rows and of four."""
    for height in (1, 2, 3, 5, 11, 30):
        instance = instantiate(ConvProblem("bands", height, 10, 16, 16, 3, 4, (3, 8, 5), residual=True))
        plan = instance.layer.plan
        tiles = tuple(TILES[at].name for at in (4, 4, 3, 2, 5, 5, 5))
        instance.layer.plan = replace(plan, tile=tiles)
        want = instance.run("reference", "both")
        for threads in (1, 2, 5):
            for got, expected in zip(instance.run("cpu", "both", isa, threads), want, strict=True):
                assert torch.equal(got, expected)


@pytest.mark.skipif(not ISAS, reason="the CPU library was not built")
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("weight_bits", [4, 6, 8])
@pytest.mark.parametrize("grid", ["odd", "signed"])
def test_both_grids_and_mixed_batches_by_their_plans(isa: str, grid: str, weight_bits: int) -> None:
    problem = ConvProblem("mixed", 7, 21, 68, 68, 3, weight_bits, (3, 8, 4, 6, 7, 2, 5), activation="prelu", residual=True)
    instance = instantiate(problem)
    for planned_for in (isa, VNNI.isa):
        set_weights(instance, bell_codes(weight_bits, 68, 68), grid, planned_for)
        assert weight_bits == 8 or planned_for != VNNI.isa or len(set(instance.layer.plan.tile)) >= 2
        check_isas(instance, (isa,), threads=(1, 3))


@pytest.mark.skipif(not ISAS, reason="the CPU library was not built")
def test_the_library_refuses_tiles_that_are_not_exact() -> None:
    weight = torch.full((16, 3, 3, 4), 15, dtype=torch.int8)
    with pytest.raises(ValueError, match=r"tile_for_bits\[6\] = 1 is not exact: 8-bit codes transform to 510"):
        cpu.pack(weight, Packing((1,) * 7))
    with pytest.raises(ValueError, match="tile 2 needs more than 4 bytes: a weight of output 0 transforms to 540"):
        cpu.pack(weight * 4, Packing((2,) + (0,) * 6))
    with pytest.raises(ValueError, match=r"tile_for_bits\[0\] = 2 is for kernels of 3x3, not of 1x1"):
        cpu.pack(weight[:, :1, :1].contiguous(), Packing((2,) + (0,) * 6))
    with pytest.raises(ValueError, match=r"tile_for_bits\[6\] = 6 is for kernels of 5x5, not of 3x3"):
        cpu.pack(weight, Packing((0,) * 6 + (6,)))
    heavy = torch.full((16, 5, 5, 4), 35, dtype=torch.int8)
    assert 35 * 31**2 > 2**15 - 1 >= 34 * 31**2
    with pytest.raises(ValueError, match="tile 6 needs more than 16 bits: a weight of output 0 transforms to 33635"):
        cpu.pack(heavy, Packing((6,) * 7))
    cpu.pack(heavy - 1, Packing((6,) * 7))
    cpu.pack(weight, Packing((7,) * 7))
    many = torch.zeros(22, 3, 3, 4, dtype=torch.int8)
    for few, shape in ((heavy, "16 outputs of 5x5"), (many, "22 outputs of 3x3")):
        with pytest.raises(ValueError, match=rf"tile_for_bits\[0\] = 7 is for kernels of 3, 9 or 15 rows .* not for {shape}"):
            cpu.pack(few, Packing((7,) * 7))


@pytest.mark.skipif(not ISAS, reason="the CPU library was not built")
@pytest.mark.parametrize("borders", [False, True])
def test_kernels_of_5x5_in_tiles_give_the_direct_result(borders: bool) -> None:
    # From a single inner pixel to several groups of tiles; odd sizes; panels that a PixelShuffle parts, and whole ones.
    shapes = [(5, 5, 16, 12, 2), (6, 7, 9, 48, 4), (9, 83, 13, 27, 3), (12, 40, 64, 64, 1), (7, 6, 20, 64, 2), (5, 41, 68, 70, 1)]
    shapes += [] if borders else [(1, 1, 8, 16, 1), (2, 3, 8, 20, 1), (4, 1, 4, 5, 1)]
    for height, width, channels, outputs, shuffle in shapes:
        layer = collapsed(height, width, channels, outputs, shuffle, (8, 3), borders)
        x_q, bits, weight, alpha, beta = layer["tables"]
        grid = {"out_grid": act_grid(-2.0, 3.0), "out_bits": torch.tensor([4, 8], dtype=torch.int32)}
        forms = {tile: cpu.pack(weight, Packing((0,) * 6 + (tile,))) for tile in (6, 0)}
        for out, residual in (("both", layer["residual"]), ("acc", None), ("float", None)):
            options = {"residual": residual, "out": out, "shuffle": shuffle, "activation": "relu"}
            options |= grid if out == "both" else {}
            want = ops.conv2d(x_q, bits, weight, forms[0], alpha, beta, backend="reference", **options)
            for isa, (tile, packed), threads in itertools.product(ISAS, forms.items(), (1, 3)):
                with native.force_isa(isa):
                    got = ops.conv2d(x_q, bits, weight, packed, alpha, beta, backend="cpu", threads=threads, **options)
                assert all(map(torch.equal, got, want)), (isa, tile, threads)


@pytest.mark.skipif(not ISAS, reason="the CPU library was not built")
def test_few_outputs_by_kernel_columns_give_the_reference() -> None:
    """kn2row, and by tiles along the rows: where it is taken and where it is just not, groups of pixels and less than one, both
    grids."""
    taken = [(k, s) for s in (1, 3, 5, 9) for k in range(1, 70) if takes_kn2row(k, s)]
    assert {(1, 3), (3, 3), (21, 3), (3, 9), (7, 9), (12, 5)} <= set(taken)
    assert not {(5, 1), (16, 3), (22, 3), (8, 9), (13, 5)} & set(taken)
    for kernel, outputs in ((3, 1), (3, 3), (3, 8), (3, 21), (5, 3), (5, 12), (9, 3), (9, 7), (15, 4), (3, 16)):
        for height, width, channels in ((1, 1, 5), (4, 3, 64), (3, 71, 8), (2, 73, 3), (17, 145, 12)):
            problem = ConvProblem("few", height, width, channels, outputs, kernel, 8, (8, 2, 5), activation="prelu", residual=True)
            instance = instantiate(problem, seed=width)
            codes = instance.layer.weight.permute(0, 3, 1, 2).to(torch.int64)
            for grid in ("odd", "signed"):
                forms = {}  # of the weights, as plans choose between them
                for isa in ISAS:
                    set_weights(instance, codes, grid, isa)
                    forms.setdefault(instance.layer.box_filter, isa)
                for planned_for in forms.values():
                    set_weights(instance, codes, grid, planned_for)
                    for tile in [TILES[0]] + [TILES[7]] * TILES[7].takes(outputs, kernel, kernel, False):
                        set_tile(instance, tile.name, 8)
                        check_isas(instance, ISAS, threads=(1, 3))


def test_a_layer_of_few_outputs_is_planned_by_the_lanes_it_takes() -> None:
    """Three outputs of a 9x9 kernel take 27 lanes of 32 in a product for each kernel row, where they took 3 of 16 in each of 81."""
    times = TileTimes("avx512vnni", {"direct": {KINDS[0]: Cost(1, 0, 0)}}, 0, {})
    plan = plan_layer("conv", np.ones((3, 64, 9, 9)), 8, times=times)
    assert plan.picoseconds[0] == pytest.approx(9 * 64 * 32)
    assert plan_layer("conv", np.ones((48, 64, 9, 9)), 8, times=times).picoseconds[0] == 81 * 64 * 48


def test_tiles_along_the_rows_are_planned_for_few_outputs() -> None:
    times = TileTimes("avx2", {name: {KINDS[0]: Cost(1, 0, 0)} for name in ("direct", "F(4x1,kn2row)")}, 0, {})
    plan = plan_layer("last", np.ones((3, 64, 9, 9)), 8, times=times)
    assert set(plan.tile) == {"direct"} and plan.why_direct[0] == "no tile is faster"  # as many products, of words
    halved = replace(times, costs=times.costs | {"F(4x1,kn2row)": {KINDS[0]: Cost(0.5, 0, 0)}})
    plan = plan_layer("last", np.ones((3, 64, 9, 9)), 8, times=halved)
    assert set(plan.tile) == {"F(4x1,kn2row)"} and plan.products_for_bits[0] == 81
    assert plan.picoseconds[0] == pytest.approx(81 / 2 * 64 * 32 / 9)
    for shape in ((8, 64, 9, 9), (3, 64, 5, 5), (3, 64, 1, 1), (22, 64, 3, 3)):
        assert "direct" == plan_layer("other", np.ones(shape), 8, times=halved).tile[0]
    channels = 1040  # where 8 times an output leaves int32
    assert 8 * 127 * 255 * channels * 9 > 2**31 > 127 * 255 * channels * 9
    plan = plan_layer("wide", np.full((3, channels, 3, 3), 127), 8, times=halved)
    assert plan.tile == ("F(4x1,kn2row)",) * 6 + ("direct",)


def test_kernels_of_5x5_are_planned_as_tiles_where_words_hold_their_weights() -> None:
    times = TileTimes("avx2", {name: {KINDS[0]: Cost(1, 0, 0)} for name in ("direct", "F(2x2,5x5)", "F(4x4)")}, 0, {})
    for value, tile in ((34, "F(2x2,5x5)"), (35, "direct")):
        weights = np.full((16, 4, 5, 5), value)
        for borders in (weights, np.broadcast_to(weights, (5, 5, *weights.shape))):
            plan = plan_layer("tail", borders, 8, times=times)
            assert set(plan.tile) == {tile}
    assert plan.why_direct[0] == "F(2x2,5x5) makes weights of 35..33635, beyond 16 bits"
    edge = np.zeros((5, 5, 16, 4, 5, 5), dtype=np.int64)
    edge[0, 0] = 127  # computed directly, whatever it is
    assert set(plan_layer("tail", edge, 8, times=times).tile) == {"F(2x2,5x5)"}
    assert plan_layer("tail", edge, 8, times=times).products_for_bits[0] == 18
