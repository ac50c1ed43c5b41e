"""Where a layer computes: tiles of an image have a depth, and a layer computes those of some depths, with pixels around them.

The depth of a tile is how many blocks of the network are computed there. A `Region` tells a block, and each of the layers in it,
which pixels it is for, and kernels skip the rest. `Region.masks` defines what a region means, and csrc/include/adabm/adabm.h says
the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F

MAX_DEPTH = 255  # the largest depth of a tile, since depths are bytes
MAX_TILE = 1 << 20  # the most pixels a side of a tile
EVERY = (0, MAX_DEPTH)


@dataclass(frozen=True)
class Depths:
    """The depth of every tile of an image, or of each image of a batch.

    values: uint8 [N, rows, columns], contiguous; or flat, as `as_tiles` takes them, where only operators read them. tile: pixels a
    side of a tile, at the resolution of the layer. top, left: rows and columns of pixels that the first tiles lack, 0..tile - 1,
    because the image begins within them.
    """

    values: torch.Tensor
    tile: int
    top: int = 0
    left: int = 0

    def enlarged(self, factor: int) -> Depths:
        """The same depths where the image has `factor` times as many pixels a side."""
        return replace(self, tile=self.tile * factor, top=self.top * factor, left=self.left * factor)


def tiles_of(size: int, tile: int, before: int = 0) -> int:
    """How many tiles `size` pixels lie in, where the first tile lacks `before` pixels."""
    return -(-(before + size) // tile)


def pixels_of_tiles(size: int, tile: int, before: int = 0) -> list[int]:
    """How many of `size` pixels lie in each tile, where the first tile lacks `before` pixels."""
    edges = [min(max(i * tile - before, 0), size) for i in range(tiles_of(size, tile, before) + 1)]
    return [last - first for first, last in zip(edges, edges[1:], strict=False)]


def flat_length(images: int, height: int, width: int, tile: int, top: int = 0, left: int = 0) -> int:
    """The length of flat depths, which is the number of tiles plus one.

    Where torch traces with sizes that vary, it asks of every dimension of a tensor whether it is 1, and the traced program is then
    valid for that answer alone. So rows and columns of tiles must not be dimensions, and their product alone must not be one
    either.
    """
    return images * tiles_of(height, tile, top) * tiles_of(width, tile, left) + 1


def as_tiles(flat: torch.Tensor, images: int, height: int, width: int, tile: int, top: int = 0, left: int = 0) -> torch.Tensor:
    """The depths of tiles, [N, rows, columns], from flat depths [`flat_length`]. These hold the depths one after the other and then
    a 0 that belongs to no tile."""
    return flat[:-1].view(images, tiles_of(height, tile, top), tiles_of(width, tile, left))


def pixel_depths(depths: Depths, images: int, height: int, width: int) -> torch.Tensor:
    """The depth of every pixel, [N, height, width], from flat depths."""
    rows, columns = tiles_of(height, depths.tile, depths.top), tiles_of(width, depths.tile, depths.left)
    row, column = (
        (torch.arange(size, device=depths.values.device) + before) // depths.tile
        for size, before in ((height, depths.top), (width, depths.left))
    )
    image = torch.arange(images, device=depths.values.device)
    return depths.values[(image[:, None, None] * rows + row[:, None]) * columns + column]


@dataclass(frozen=True)
class Region:
    """Pixels that a layer computes, and pixels that it passes on.

    A pixel is computed where the depth of its own tile is in `own` and a tile whose depth is in `near` has a pixel at most `reach`
    rows and columns away. It is passed on where it is not computed and a tile whose depth is in `passed` has a pixel at most
    `pass_reach` rows and columns away: its result is then the residual alone, or 0 where there is none. Other pixels are not
    touched. own, near, passed: the least and the greatest depth. passed is None where no pixels are passed on. reach, pass_reach:
    at most a tile.
    """

    own: tuple[int, int] = EVERY
    near: tuple[int, int] = EVERY
    reach: int = 0
    passed: tuple[int, int] | None = None
    pass_reach: int = 0

    def numbers(self, depths: Depths) -> list[int]:
        """The region of these depths as the operators take it."""
        passed = (1, 0) if self.passed is None else self.passed
        return [depths.tile, depths.top, depths.left, *self.own, *self.near, self.reach, *passed, self.pass_reach]

    @classmethod
    def of(cls, numbers: list[int]) -> Region:
        """A region from the result of `numbers`, without the tile and the place where it begins."""
        _, _, _, own_least, own_most, near_least, near_most, reach, pass_least, pass_most, pass_reach = numbers
        passed = (pass_least, pass_most) if pass_least <= pass_most else None
        return cls((own_least, own_most), (near_least, near_most), reach, passed, pass_reach)

    def masks(self, depths: Depths, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Two masks, bool [N, height, width]: the pixels that are computed, and those that are passed on. This is the definition of
        a region."""
        rows = depths.values.repeat_interleave(depths.tile, 1)[:, depths.top : depths.top + height]
        pixels = rows.repeat_interleave(depths.tile, 2)[:, :, depths.left : depths.left + width]
        computed = _within(pixels, self.own) & _around(_within(pixels, self.near), self.reach)
        passed = torch.zeros_like(computed) if self.passed is None else _around(_within(pixels, self.passed), self.pass_reach)
        return computed, passed & ~computed


NUMBERS = len(Region().numbers(Depths(torch.empty(0), 1)))  # how many numbers a region has


def passes_on(numbers: Sequence[int]) -> bool:
    """Whether the region with these numbers, if there are any, passes pixels on."""
    return len(numbers) == NUMBERS and numbers[8] <= numbers[9]


def _within(depths: torch.Tensor, ends: tuple[int, int]) -> torch.Tensor:
    return (depths >= ends[0]) & (depths <= ends[1])


def _around(marked: torch.Tensor, reach: int) -> torch.Tensor:
    return F.max_pool2d(marked[:, None].float(), 2 * reach + 1, 1, reach)[:, 0] > 0
