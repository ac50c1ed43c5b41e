"""Regions: which pixels a layer computes, by the depth of each tile."""

import pytest
import torch

from adabm_kernels import ops
from adabm_kernels.exits import pixel_bends, tile_bends
from adabm_kernels.quantize import act_grid
from adabm_kernels.regions import Depths, Region, tiles_of


def by_hand(region: Region, depths: Depths, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Region.masks pixel by pixel, as its docstring says."""
    masks = torch.zeros(2, len(depths.values), height, width, dtype=torch.bool)

    def depth(n: int, y: int, x: int) -> int:
        return int(depths.values[n, (depths.top + y) // depths.tile, (depths.left + x) // depths.tile])

    def near(n: int, y: int, x: int, ends: tuple[int, int], reach: int) -> bool:
        rows = range(max(y - reach, 0), min(y + reach + 1, height))
        columns = range(max(x - reach, 0), min(x + reach + 1, width))
        return any(ends[0] <= depth(n, i, j) <= ends[1] for i in rows for j in columns)

    for n in range(len(depths.values)):
        for y in range(height):
            for x in range(width):
                own = region.own[0] <= depth(n, y, x) <= region.own[1]
                computed = own and near(n, y, x, region.near, region.reach)
                passed = region.passed is not None and near(n, y, x, region.passed, region.pass_reach)
                masks[0, n, y, x], masks[1, n, y, x] = computed, passed and not computed
    return masks[0], masks[1]


@pytest.mark.parametrize(
    "region",
    [
        Region(),
        Region(near=(1, 255), reach=2),
        Region(own=(0, 0), near=(2, 255), reach=3),
        Region(near=(2, 2), passed=(1, 2), pass_reach=1),
        Region(near=(3, 1), passed=(1, 255)),
    ],
    ids=["all", "around", "easy-beside-hard", "passed-on", "none"],
)
@pytest.mark.parametrize("top, left", [(0, 0), (2, 1)], ids=["whole-tiles", "cut-tiles"])
def test_masks_are_those_of_the_definition(region: Region, top: int, left: int) -> None:
    shape = 2, tiles_of(7, 3, top), tiles_of(11, 3, left)
    depths = Depths(torch.randint(0, 4, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1)), 3, top, left)
    for found, wanted in zip(region.masks(depths, 7, 11), by_hand(region, depths, 7, 11), strict=True):
        assert torch.equal(found, wanted)


def test_numbers_give_the_region_back() -> None:
    depths = Depths(torch.zeros(1, 1, 1, dtype=torch.uint8), 5, 1, 2)
    for region in (Region(), Region((1, 2), (3, 4), 2, (5, 6), 1)):
        assert region.numbers(depths)[:3] == [5, 1, 2]
        assert Region.of(region.numbers(depths)) == region


@pytest.mark.parametrize(
    "change, message",
    [
        ({"region": [8]}, "region must be 11 numbers"),
        ({"depth": torch.zeros(1, 2, 1, dtype=torch.uint8)}, r"depth must have shape \[1, 1, 1\]"),
        ({"depth": torch.zeros(1, 1, 1)}, "depth must be torch.uint8"),
        ({"depth": torch.zeros(1, dtype=torch.uint8)}, r"depth must have shape \[2\], got \[1\]"),
        ({"region": Region(reach=9).numbers(Depths(torch.empty(0), 8))}, r"reaches must be 0..8"),
        ({"region": Region(passed=(0, 1)).numbers(Depths(torch.empty(0), 8))}, "must pass no pixels on"),
    ],
    ids=["numbers", "shape", "dtype", "flat", "reach", "passed-on"],
)
def test_what_an_operator_refuses(change: dict, message: str) -> None:
    x, bits = torch.zeros(1, 4, 8, 8), torch.full((1,), 8, dtype=torch.int32)
    place = {"depth": torch.zeros(1, 1, 1, dtype=torch.uint8), "region": Region().numbers(Depths(torch.empty(0), 8))}
    with pytest.raises(RuntimeError, match=message):
        codes = torch.zeros(1, 8, 8, 4, dtype=torch.uint8)
        ops.quantize_out(x, act_grid(0.0, 1.0), bits, codes, backend="reference", **(place | change))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("height, width, tile, top, left", [(1, 1, 4, 0, 0), (1, 9, 4, 1, 3), (7, 1, 8, 0, 0), (33, 50, 8, 3, 7)])
def test_tile_depths_are_those_of_the_bends(height: int, width: int, tile: int, top: int, left: int, threads: int) -> None:
    generator = torch.Generator().manual_seed(height)
    x_q = torch.randint(0, 256, (2, height, width, 4), dtype=torch.uint8, generator=generator)
    x_q[1] //= 8
    x_q[..., 3] = 0
    for threshold in (0, 20, 60, 300, 510):
        wanted = (tile_bends(x_q.permute(0, 3, 1, 2), tile, top, left) > threshold).to(torch.uint8) * 16
        for backend in ("cpu", "reference"):
            found = ops.tile_depths(x_q, tile, threshold, 16, top=top, left=left, backend=backend, threads=threads)
            assert torch.equal(found, wanted)
            flat = ops.tile_depths(x_q, tile, threshold, 16, top=top, left=left, flat=True, backend=backend, threads=threads)
            assert torch.equal(flat, torch.cat([wanted.flatten(), wanted.new_zeros(1)]))
    torch.library.opcheck(torch.ops.adabm.tile_depths, (x_q, tile, top, left, 20, 16, "cpu", threads))


def test_bends_by_hand() -> None:
    pixels = torch.tensor([[0, 0, 10, 20, 25], [0, 0, 10, 20, 25], [0, 0, 10, 20, 25]])[None, None]
    wanted = torch.tensor([[0, 10, 0, 5, 5]] * 3, dtype=torch.int16)[None]
    assert torch.equal(pixel_bends(pixels), wanted)
    assert tile_bends(pixels, 3).tolist() == [[[10, 5]]]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"tile": 0}, "tile must be 1..1048576"),
        ({"top": 8}, "top and left 0..tile - 1"),
        ({"threshold": 511}, r"threshold must be 0..510, got 511"),
        ({"deep": 0}, r"deep must be 1..255, got 0"),
        ({"x_q": torch.zeros(1, 4, 4, 8, dtype=torch.uint8)}, r"x_q must have shape \[1, 4, 4, 4\]"),
    ],
    ids=["tile", "top", "threshold", "deep", "channels"],
)
def test_what_tile_depths_refuses(change: dict, message: str) -> None:
    arguments = {"x_q": torch.zeros(1, 4, 4, 4, dtype=torch.uint8), "tile": 8, "threshold": 1, "deep": 1}
    with pytest.raises(RuntimeError, match=message):
        ops.tile_depths(**(arguments | change))
