"""Regions on the CPU: every kernel writes what the reference writes, and nothing else."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from problems import ConvProblem, collapsed, instantiate, int16_features, runnable_isas, set_tile
from torch.nn import functional as F

from adabm_kernels import native
from adabm_kernels.backends import cpu, reference
from adabm_kernels.backends.call import Conv, Outputs, Packing, Place, Quantization
from adabm_kernels.planning.tiles import DIRECT, TILES
from adabm_kernels.quantize import act_grid, from_fixed, to_pixels
from adabm_kernels.regions import Depths, Region, tiles_of

ISAS = runnable_isas()
pytestmark = pytest.mark.skipif(not ISAS, reason="the CPU library was not built")

REGIONS = {
    "everywhere": Region(),
    "nowhere": Region(near=(9, 9)),
    "around": Region(near=(2, 255), reach=1),
    "far-around": Region(near=(3, 255), reach=3),
    "own": Region(own=(2, 255)),
    "easy-beside-hard": Region(own=(0, 1), near=(3, 255), reach=4),
}
PASSING = {
    "block": Region(own=(2, 255), passed=(3, 255), pass_reach=2),
    "nothing-but": Region(own=(9, 9), passed=(0, 255)),
    "within-computed": Region(near=(1, 255), reach=4, passed=(3, 255), pass_reach=2),
}
# Pixels a side of a tile, and what the first ones lack: tiles that rows of kernels fit, ones that they do not, and single pixels.
GRIDS = [(12, 0, 0), (12, 5, 7), (16, 3, 0), (7, 1, 6), (4, 0, 2), (1, 0, 0)]


def depths(batch: int, height: int, width: int, grid: tuple[int, int, int]) -> Depths:
    """Another map for each image, the last one with few tiles that are computed."""
    tile, top, left = grid
    g = torch.Generator().manual_seed(tile + top)
    values = torch.randint(0, 5, (batch, tiles_of(height, tile, top), tiles_of(width, tile, left)), generator=g)
    values[-1] *= torch.rand(values.shape[1:], generator=g) < 0.2
    return Depths(values.to(torch.uint8), *grid)


def placed(conv: Conv, region: Region, grid: tuple[int, int, int]) -> Conv:
    at = depths(*conv.x_q.shape[:3], grid)
    # With tiles of a few pixels a reach is at most a tile.
    region = Region(region.own, region.near, min(region.reach, at.tile), region.passed, min(region.pass_reach, at.tile))
    return replace(conv, place=Place(at.values, tuple(region.numbers(at))))


def values(conv: Conv, features: torch.Tensor) -> torch.Tensor:
    return from_fixed(features, conv.fraction) if conv.features == "int16" else features


def masks_of(conv: Conv) -> tuple[torch.Tensor, torch.Tensor]:
    numbers = conv.place.region
    return Region.of(numbers).masks(Depths(conv.place.depth, *numbers[:3]), *conv.x_q.shape[1:3])


def with_garbage(conv: Conv) -> Conv:
    """The same with the largest byte for all codes that no computed pixel reads: they may be of a layer with more bits."""
    computed, _ = masks_of(conv)
    *_, r, s, c = conv.weight.shape
    read = F.max_pool2d(computed[:, None].float(), (r, s), 1, (r // 2, s // 2))[:, 0] > 0
    x_q = conv.x_q.clone()
    x_q[..., :c] = torch.where(read[..., None], x_q[..., :c], 255)
    return replace(conv, x_q=x_q)


class Wanted:
    """What the reference makes of all pixels, computed once, and of it what a region leaves."""

    def __init__(self, conv: Conv) -> None:
        self.conv = conv
        self.acc, _ = reference.conv2d(replace(conv, residual=None), "acc")
        alone = replace(conv, residual=None)
        self.of = {True: reference.conv2d(conv, "both"), False: reference.conv2d(alone, "both")}
        zeros = torch.zeros_like(conv.residual)
        self.passed = {True: conv.residual, False: zeros}
        self.passed_codes = {
            with_residual: reference.codes_of(values(conv, v), conv.out_grid, conv.out_bits)
            for with_residual, v in self.passed.items()
        }

    def masks(self, conv: Conv) -> tuple[torch.Tensor, torch.Tensor]:
        r = conv.shuffle
        return tuple(mask.repeat_interleave(r, 1).repeat_interleave(r, 2)[..., None] for mask in masks_of(conv))

    def check(self, conv: Conv, threads: int, floats: bool, codes: bool, *, in_place: bool = False, beside: int = 0) -> None:
        """beside: channels of the features beside those of y. in_place: y holds the residual."""
        computed, passed = self.masks(conv)
        with_residual, passes = conv.residual is not None or in_place, conv.place.region[8] <= conv.place.region[9]
        value, value_codes = self.of[with_residual]
        k = value.shape[3]
        y = y_q = None
        if floats:
            before = torch.full((*value.shape[:3], k + beside), -123, dtype=value.dtype)
            before[..., :k] = conv.residual if in_place else -123
            y = before.clone()[..., :k]
            if beside and not in_place and with_residual:
                conv = replace(conv, residual=torch.zeros_like(before)[..., :k].copy_(conv.residual))
            conv = replace(conv, residual=y) if in_place else conv
        if codes:
            codes_before = torch.full(value_codes.shape, 251, dtype=torch.uint8)
            y_q = codes_before.clone()
        cpu.conv2d_out(replace(with_garbage(conv), threads=threads), Outputs(y, y_q))
        if floats:
            want = before.clone()
            want[..., :k] = torch.where(computed, value, torch.where(passed, self.passed[with_residual], before[..., :k]))
            assert torch.equal(y if y._base is None else y._base, want)
        if codes and not with_residual and not floats and not passes:  # the codes around those computed are arbitrary
            assert torch.equal(torch.where(computed, y_q, 0), torch.where(computed, value_codes, 0))
        elif codes:
            passed_codes = torch.where(passed, self.passed_codes[with_residual], codes_before)
            assert torch.equal(y_q, torch.where(computed, value_codes, passed_codes))

    def check_sums(self, conv: Conv, threads: int) -> None:
        shape = self.of[False][0].shape
        y = torch.full(shape, -123, dtype=torch.int32)
        cpu.conv2d_out(replace(with_garbage(conv), threads=threads), Outputs(y))
        assert torch.equal(y, torch.where(self.masks(conv)[0], self.acc, -123))

    def check_pixels(self, conv: Conv, threads: int) -> None:
        value = self.of[conv.residual is not None][0]
        image = torch.full(value.shape, 251, dtype=torch.uint8)
        cpu.conv2d_out(replace(conv, threads=threads), Outputs(image))
        assert torch.equal(image, torch.where(self.masks(conv)[0], to_pixels(value), 251).to(torch.uint8))


def made(problem: ConvProblem, tile: int = 0, most_bits: int = 8) -> Conv:
    """The problem on tiles of one kind, with a residual of its own."""
    instance = instantiate(problem)
    if tile:
        kernel = TILES[tile].rows.weights
        if not TILES[tile].kn2row:
            growth = abs(kernel).sum(1).max() * abs(TILES[tile].columns.weights).sum(1).max()
            most = 24 if TILES[tile].words else min(24, int(4 * 127 // growth))
            instance.layer.weight.clamp_(-most, most)
    set_tile(instance, TILES[tile].name if tile else DIRECT.name, most_bits)
    layer = instance.layer
    layer.set_backend("cpu", 1)
    assert layer.plan.tile_for_bits[problem.bits[0] - 2] == tile
    tables = (instance.x_q, instance.bits, layer.weight, layer.packed, layer.alpha, layer.beta, layer.slope, instance.residual)
    return Conv(*tables, instance.out_grid, instance.out_bits, layer.box_filter, layer.activation, layer.shuffle)


def made_collapsed(tile: int, borders: bool, outputs: int, shuffle: int) -> Conv:
    layer = collapsed(26, 41, 12, outputs, shuffle, (8, 3), borders)
    x_q, bits, weight, alpha, beta = layer["tables"]
    packed = cpu.pack(weight, Packing((tile,) * 7))
    out_bits = torch.tensor([4, 8], dtype=torch.int32)
    return Conv(
        x_q, bits, weight, packed, alpha, beta, None, layer["residual"], act_grid(-2.0, 3.0), out_bits, False, "none", shuffle
    )


def three_by_three(
    tile: int, bits: tuple[int, ...], outputs: int = 20, weight_bits: int = 4, width: int = 43, **more
) -> Callable[[], Conv]:
    problem = ConvProblem("region", 29, width, 12, outputs, 3, weight_bits, bits, residual=True, **more)
    return lambda: made(problem, tile, max(b for b in bits if b < 8 or tile in (0, 5, 7)))


KINDS: dict[str, Callable[[], Conv]] = {
    "direct": three_by_three(0, (4, 8, 2), activation="prelu"),
    "direct-whole-panels": three_by_three(0, (5, 3), outputs=64),
    "direct-box": three_by_three(0, (8, 6), weight_bits=8),
    "one-by-one": lambda: made(ConvProblem("region", 20, 31, 9, 16, 1, 4, (4, 8), residual=True)),
    "nine-by-nine": lambda: made(ConvProblem("region", 20, 31, 3, 22, 9, 4, (8, 3), residual=True)),
    "F(2x1)": three_by_three(1, (6, 3, 8), outputs=68, activation="relu"),
    "F(2x2)": three_by_three(2, (4, 2, 8), outputs=64),
    "F(2x3)": three_by_three(3, (4, 2, 8), width=80),
    "F(2x4)": three_by_three(4, (2, 3, 8), outputs=64),
    # Sums of codes for a box filter, of several rows that end with a vector.
    "F(4x4)": three_by_three(5, (8, 2), outputs=64, weight_bits=8, width=48),
    "F(4x4)-few-bits": three_by_three(5, (8, 4), outputs=9, width=90),
    "F(3x3)": three_by_three(8, (3, 2, 8), outputs=64),
    "F(3x4)": three_by_three(9, (2, 8), outputs=64),
    "kn2row": three_by_three(0, (8, 5), outputs=3, weight_bits=8, width=101),
    "kn2row-nine": lambda: made(ConvProblem("region", 20, 31, 6, 3, 9, 8, (8, 3), residual=True)),
    "kn2row-in-tiles": three_by_three(7, (8, 5), outputs=3, weight_bits=8, width=96),
    "shuffle": three_by_three(0, (8, 4), outputs=64, weight_bits=8, shuffle=2),
    "shuffle-in-tiles": three_by_three(5, (8, 4), outputs=64, weight_bits=8, shuffle=2),
    "shuffle-parted": three_by_three(2, (4, 8), outputs=45, shuffle=3),
    "five-by-five": lambda: made_collapsed(6, False, 12, 2),
    "border-kernels": lambda: made_collapsed(6, True, 64, 1),
    "border-kernels-parted": lambda: made_collapsed(6, True, 27, 3),
    "border-kernels-direct": lambda: made_collapsed(0, True, 12, 2),
}


def some(kind: str, regions: dict[str, Region]) -> list[tuple[tuple[int, int, int], Region]]:
    """A third of all pairs of a grid and a region, other ones for the next kind of kernel; each grid and each region is in them."""
    pairs, first = itertools.product(enumerate(GRIDS), enumerate(regions.values())), list(KINDS).index(kind)
    return [(grid, region) for (i, grid), (j, region) in pairs if (i + j + first) % 3 == 0]


FRACTION = 11


@functools.cache
def wanted(kind: str, features: str = "float32") -> Wanted:
    conv = KINDS[kind]()
    return Wanted(conv if features == "float32" else int16_features(conv, FRACTION))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_convolution_writes_its_region_alone(kind: str, isa: str) -> None:
    want = wanted(kind)
    with native.force_isa(isa):
        for at, (grid, region) in enumerate(some(kind, REGIONS)):
            threads, conv = (1, 3)[at % 2], placed(want.conv, region, grid)
            alone = replace(conv, residual=None)
            want.check(conv, threads, floats=True, codes=True)
            want.check(alone, threads, floats=False, codes=True)
            want.check(conv, threads, floats=False, codes=True)
            want.check_sums(alone, threads)
            want.check_pixels(alone, threads)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("features", ["float32", "int16"])
@pytest.mark.parametrize(
    "kind", ["direct", "F(2x2)", "F(2x3)", "F(3x3)", "F(3x4)", "F(4x4)", "kn2row", "kn2row-in-tiles", "border-kernels"]
)
def test_pixels_that_are_passed_on_get_the_residual_or_zero(kind: str, features: str, isa: str) -> None:
    want = wanted(kind, features)
    beside = (0, 3, 5) if features == "float32" else (0, 0, 0)  # those of 16 bits have none beside them
    with native.force_isa(isa):
        for at, (grid, region) in enumerate(some(kind, PASSING)):
            threads, conv = (1, 3)[at % 2], placed(want.conv, region, grid)
            want.check(conv, threads, floats=True, codes=True)
            want.check(conv, threads, floats=False, codes=True)
            want.check(conv, threads, floats=True, codes=False, beside=beside[2])
            want.check(conv, threads, floats=True, codes=True, in_place=True, beside=beside[at % 2])
            alone = replace(conv, residual=None)
            want.check(alone, threads, floats=True, codes=True)
            want.check(alone, threads, floats=False, codes=True)
            want.check(alone, threads, floats=True, codes=False, beside=beside[2])


@pytest.mark.parametrize("kind", ["direct", "shuffle-parted"])
def test_the_reference_keeps_to_the_region(kind: str) -> None:
    """As `Wanted` has it: what the kernels are compared with is the reference."""
    want = wanted(kind)
    for region in (PASSING["block"], PASSING["nothing-but"]) if want.conv.shuffle == 1 else REGIONS.values():
        conv = placed(want.conv, region, GRIDS[1])
        computed, passed = want.masks(conv)
        for with_residual, given in ((True, conv), (False, replace(conv, residual=None))):
            y, y_q = (torch.full(value.shape, 99, dtype=value.dtype) for value in want.of[True])
            reference.conv2d_out(given, Outputs(y, y_q))
            handed = want.passed[with_residual], want.passed_codes[with_residual]
            for got, value, passed_on in zip((y, y_q), want.of[with_residual], handed, strict=True):
                assert torch.equal(got, torch.where(computed, value, torch.where(passed, passed_on, 99)).to(value.dtype))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("features", ["float32", "int16"])
def test_quantisation_writes_its_region_alone(features: str, isa: str) -> None:
    g = torch.Generator().manual_seed(0)
    x, fraction, shifts = torch.randn(3, 29, 43, 10, generator=g), 0, (None, torch.rand(10, generator=g))
    if features == "int16":
        x, fraction, shifts = torch.randint(-32768, 32768, x.shape, generator=g).to(torch.int16), 13, (None,)
    bits = torch.tensor([3, 8, 5], dtype=torch.int32)
    for read in (x.permute(0, 3, 1, 2), x.permute(0, 3, 2, 1).contiguous().transpose(2, 3)):
        for grid in GRIDS:
            for region in REGIONS.values():
                at = depths(3, 29, 43, grid)
                region = Region(region.own, region.near, min(region.reach, at.tile))
                place = Place(at.values, tuple(region.numbers(at)))
                for shift in shifts:
                    wide = [torch.full((3, 29, 43, 16), 251, dtype=torch.uint8) for _ in range(2)]
                    given = Quantization(read, shift, act_grid(-2.0, 3.0), bits, fraction, threads=3, place=place)
                    with native.force_isa(isa):
                        cpu.quantize_out(given, wide[0][..., :12])
                    reference.quantize_out(given, wide[1][..., :12])
                    assert torch.equal(*wide)
