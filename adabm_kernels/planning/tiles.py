"""Exact fast-convolution tiles: the ways in which a kernel can compute a convolution.

A tile F(m, 3) along one axis computes m outputs from m + 2 transformed inputs (Cook-Toom; Winograd, 1980). F(mxn) is F(m, 3) along
the rows times F(n, 3) along the columns. With integer transforms it is exact as long as every transformed code fits 8 unsigned bits
and no sum leaves int32. A transformed weight that outgrows 8 signed bits is the sum of parts that fit, and each part costs a
product. Fewer bits leave room for larger tiles, and a larger tile needs fewer products. F(4x4), and F(2x2,5x5) for kernels of 5x5,
take operands of 16 bits, which hold codes of any bits, but one product of these costs as much as two of 8 bits. The choice never
changes a result (docs/numerics.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

MIN_BITS, MAX_BITS = 2, 8
INT32_MAX = 2**31 - 1
CODE_MAX = 255  # the largest transformed code, shifted to start at 0
WORD_PRODUCTS = 2  # 8-bit products in the time of one 16-bit product
KN2ROW_HEIGHTS = (3, 9, 15)  # odd multiples of 3
PANEL, MOST_LANES = 16, 64  # outputs of a panel, and the most outputs that are multiplied together


@dataclass(frozen=True)
class Line:
    """F(outputs, kernel) along one axis; F(1, 3) has three taps and identity transforms.

    codes: B^T, [taps, outputs + kernel - 1] integers. weights: G scaled to integers, [taps, kernel].
    sums: A^T with each tap's factor times the common denominator, [outputs, taps]: denominator * y = sums @ products.
    The two outer taps, at 0 and infinity, come last: each serves one output only.
    """

    outputs: int
    codes: np.ndarray
    weights: np.ndarray
    sums: np.ndarray
    denominator: int


@dataclass(frozen=True)
class Tile:
    """A way to compute a rectangle of outputs.

    words: whether operands have 16 bits. kn2row: whether the kernel's columns are computed as outputs, and its rows three at a time
    as F(outputs, 3).
    """

    name: str
    rows: Line
    columns: Line
    words: bool = False
    kn2row: bool = False

    @property
    def kernel(self) -> int:
        """Pixels a side of the kernels that the tile is for. The direct form is for any kernel, and for kn2row see `takes`."""
        return self.rows.weights.shape[1]

    @property
    def products(self) -> float:
        """Products per output and channel where transformed weights fit whole. The direct form has 9, those of a kernel of 3x3."""
        return len(self.rows.codes) * len(self.columns.codes) / (self.rows.outputs * self.columns.outputs)

    def takes(self, outputs: int, kernel_h: int, kernel_w: int, borders: bool) -> bool:
        """Tells whether the tile is for layers of such a shape. borders: whether the layer has kernels of its own at the border."""
        if not self.kn2row:
            return kernel_h == kernel_w == self.kernel
        return not borders and kernel_h in KN2ROW_HEIGHTS and _lanes(outputs * kernel_w) <= MOST_LANES

    def products_of(self, kernel_h: int, kernel_w: int) -> float:
        """`products` for a kernel of this size, which the tile must be for."""
        if self is DIRECT or self.kn2row:
            return self.products * kernel_h * kernel_w / 9
        return self.products

    @cached_property
    def reach(self) -> np.ndarray:
        """[row taps, column taps]: how many times as large as a code a transformed code can be, shifted to start at 0."""
        return np.outer(np.abs(self.rows.codes).sum(1), np.abs(self.columns.codes).sum(1))

    def code_range(self, bits: int) -> int:
        """The largest transformed code of any tap, shifted to start at 0."""
        return int(self.reach.max()) * (2**bits - 1)


def _line(outputs: int, codes: list, weights: list, sums: list, denominator: int) -> Line:
    b_t, g, a_t = (np.array(table, dtype=np.int64) for table in (codes, weights, sums))
    return Line(outputs, b_t, g, a_t, denominator)


_POINTS = {0: [1, 0, 0], 1: [1, 1, 1], -1: [1, -1, 1], 2: [1, 2, 4], -2: [1, -2, 4], math.inf: [0, 0, 1]}  # the rows of G

# The transforms are those of csrc/cpu/isa/transforms.inc.
F1 = _line(1, np.eye(3).tolist(), np.eye(3).tolist(), [[1, 1, 1]], 1)
F2 = _line(
    2,
    [[0, 1, 1, 0], [0, -1, 1, 0], [1, 0, -1, 0], [0, -1, 0, 1]],
    [_POINTS[at] for at in (1, -1, 0, math.inf)],
    [[1, 1, 2, 0], [1, -1, 0, 2]],
    2,
)
F3 = _line(
    3,
    [[0, -2, -1, 1, 0], [0, 2, -3, 1, 0], [0, -1, 0, 1, 0], [2, -1, -2, 1, 0], [0, 2, -1, -2, 1]],
    [_POINTS[at] for at in (1, -1, 2, 0, math.inf)],
    [[-3, -1, 1, 3, 0], [-3, 1, 2, 0, 0], [-3, -1, 4, 0, 6]],
    6,
)
_F4_CODES = [
    [0, -4, -4, 1, 1, 0],
    [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0],
    [0, 2, -1, -2, 1, 0],
    [4, 0, -5, 0, 1, 0],
    [0, 4, 0, -5, 0, 1],
]
_F4_POINTS = (1, -1, 2, -2, 0, math.inf)
_F4_SUMS = [[-4, -4, 1, 1, 6, 0], [-4, 4, 2, -2, 0, 0], [-4, -4, 4, 4, 0, 0], [-4, 4, 8, -8, 0, 24]]
F4 = _line(
    4,
    _F4_CODES,
    [_POINTS[at] for at in _F4_POINTS],
    _F4_SUMS,
    24,
)
# F(4, 3) with a factor of 6 moved from the outer taps into their weights, for which words have room.
F4_OF_WORDS = _line(
    4,
    _F4_CODES,
    [[factor * weight for weight in _POINTS[at]] for at, factor in zip(_F4_POINTS, (1, 1, 1, 1, 6, 6), strict=True)],
    [[-4, -4, 1, 1, 1, 0], [-4, 4, 2, -2, 0, 0], [-4, -4, 4, 4, 0, 0], [-4, 4, 8, -8, 0, 4]],
    24,
)

# With the points of F(4, 3), F(2, 5) has the same codes and similar sums.
F2_OF_5_WORDS = _line(
    2,
    _F4_CODES,
    [[1, 1, 1, 1, 1], [1, -1, 1, -1, 1], [1, 2, 4, 8, 16], [1, -2, 4, -8, 16], [6, 0, 0, 0, 0], [0, 0, 0, 0, 12]],
    [[-4, -4, 1, 1, 1, 0], [-4, 4, 2, -2, 0, 2]],
    24,
)

# The index of a tile is ADABM_TILE_* of csrc/include/adabm/adabm.h.
TILES = (
    Tile("direct", F1, F1),
    Tile("F(2x1)", F2, F1),
    Tile("F(2x2)", F2, F2),
    Tile("F(2x3)", F2, F3),
    Tile("F(2x4)", F2, F4),
    Tile("F(4x4)", F4_OF_WORDS, F4_OF_WORDS, words=True),
    Tile("F(2x2,5x5)", F2_OF_5_WORDS, F2_OF_5_WORDS, words=True),
    Tile("F(4x1,kn2row)", F4_OF_WORDS, F1, words=True, kn2row=True),
    Tile("F(3x3)", F3, F3),
    Tile("F(3x4)", F3, F4),
)
DIRECT = TILES[0]


def takes_kn2row(outputs: int, kernel_w: int) -> bool:
    """Tells whether the direct form computes the kernel's columns as outputs (kn2row), because fewer lanes idle then. It is the
    rule of csrc/cpu/pack.cpp, for layers without kernels of their own at the border."""
    lanes = _lanes(outputs * kernel_w)
    return kernel_w > 1 and lanes <= MOST_LANES and lanes < _lanes(outputs) * kernel_w


def lanes_of(tile: Tile, outputs: int, kernel_w: int, borders: bool = False) -> float:
    """Lanes of panels that a product of a layer takes, idle ones counted; where the kernel's columns are outputs, those for each
    column. borders: whether the layer has kernels of its own at the border."""
    if tile.kn2row or (tile is DIRECT and not borders and takes_kn2row(outputs, kernel_w)):
        return _lanes(outputs * kernel_w) / kernel_w
    return _lanes(outputs)


def _lanes(outputs: int) -> int:
    """The number of outputs, rounded up to whole panels."""
    return -(-outputs // PANEL) * PANEL


def tile_products(name: str, kernel_h: int, kernel_w: int) -> float:
    """Products per output and channel of a kernel of this size in the tile of that name, where no weight is split."""
    return next(tile for tile in TILES if tile.name == name).products_of(kernel_h, kernel_w)
