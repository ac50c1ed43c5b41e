"""Exact fast-convolution tiles and the plan of each layer: for every bit-width of the input codes, one way to convolve.

A tile F(m, 3) along one axis computes m outputs from m + 2 transformed inputs (Cook-Toom; Winograd, 1980); F(2xn) is F(2, 3)
along the rows times F(n, 3) along the columns. With integer transforms it is exact as long as every transformed code fits 8
unsigned bits and no sum leaves int32; a transformed weight that outgrows 8 signed bits is the sum of parts that do not, at a
product each. Fewer bits leave room for larger tiles, and a larger tile needs fewer products. The choice never changes a result
(docs/numerics.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

MIN_BITS, MAX_BITS = 2, 8
INT32_MAX = 2**31 - 1
CODE_MAX = 255  # of a transformed code, shifted to start at 0
MADD_MAX = 127  # largest code that AVX2's vpmaddubsw multiplies without saturating: beyond it takes two products
MAX_PARTS = 4  # of a transformed weight


@dataclass(frozen=True)
class Line:
    """F(outputs, 3) along one axis; F(1, 3) has three taps and identity transforms.

    codes: B^T, [taps, outputs + 2] integers. weights: G scaled to integers, [taps, 3].
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
    name: str
    rows: Line
    columns: Line

    @property
    def products(self) -> float:
        """8-bit products per output and channel of a 3x3 convolution whose transformed weights fit whole; 9 when direct."""
        return len(self.rows.codes) * len(self.columns.codes) / (self.rows.outputs * self.columns.outputs)

    def code_range(self, bits: int) -> int:
        """Largest transformed code of any tap, shifted to start at 0."""
        return int(np.abs(self.rows.codes).sum(1).max() * np.abs(self.columns.codes).sum(1).max()) * (2**bits - 1)


def _line(outputs: int, codes: list, weights: list, sums: list, denominator: int) -> Line:
    return Line(outputs, *(np.array(table, dtype=np.int64) for table in (codes, weights, sums)), denominator)


_POINTS = {0: [1, 0, 0], 1: [1, 1, 1], -1: [1, -1, 1], 2: [1, 2, 4], -2: [1, -2, 4], math.inf: [0, 0, 1]}  # rows of G

# The transforms are those of csrc/cpu/transforms.inc.
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
F4 = _line(
    4,
    [
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [4, 0, -5, 0, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    [_POINTS[at] for at in (1, -1, 2, -2, 0, math.inf)],
    [[-4, -4, 1, 1, 6, 0], [-4, 4, 2, -2, 0, 0], [-4, -4, 4, 4, 0, 0], [-4, 4, 8, -8, 0, 24]],
    24,
)

# Index = ADABM_TILE_* of csrc/include/adabm/adabm.h.
TILES = (
    Tile("direct", F1, F1),
    Tile("F(2x1)", F2, F1),
    Tile("F(2x2)", F2, F2),
    Tile("F(2x3)", F2, F3),
    Tile("F(2x4)", F2, F4),
)
DIRECT = TILES[0]


@dataclass(frozen=True)
class LayerPlan:
    """tile: name of the tile for codes of 2, 3, ..., 8 bits. why_direct: for each of them, why no faster tile was taken.

    products_for_bits: 8-bit products per output and channel, split weights counted. cost: time of each, in units of one product
    of the direct form. largest_sum: bound of |accumulator| at the most bits the layer can get.
    """

    tile: tuple[str, ...]
    why_direct: tuple[str, ...]
    products_for_bits: tuple[float, ...]
    cost: tuple[float, ...]
    largest_sum: int

    def time(self, least_bits: int, most_bits: int) -> float:
        """Predicted time, summed over the bit-widths least_bits..most_bits; comparable between plans of one layer."""
        return sum(self.cost[least_bits - MIN_BITS : most_bits - MIN_BITS + 1])

    @property
    def tile_for_bits(self) -> tuple[int, ...]:
        """The plan as the C ABI takes it."""
        names = [tile.name for tile in TILES]
        return tuple(names.index(name) for name in self.tile)


def transformed_weights(tile: Tile, weights: np.ndarray) -> np.ndarray:
    """[K, C, row taps, column taps] of [K, C, 3, 3]."""
    return tile.rows.weights @ np.asarray(weights, dtype=np.int64) @ tile.columns.weights.T


@dataclass(frozen=True)
class _Fit:
    """What a layer's weights make of a tile, for any bits.

    parts: [row taps, column taps] of their transforms, which lie in least..most. largest_sum: of any sum on the way to the
    output when codes are at most 1.
    """

    parts: np.ndarray
    least: int
    most: int
    largest_sum: float

    @classmethod
    def of(cls, tile: Tile, weights: np.ndarray) -> _Fit:
        transformed = transformed_weights(tile, weights)
        low, high = np.minimum(transformed.min((0, 1)), 0), np.maximum(transformed.max((0, 1)), 0)
        parts = np.maximum(np.maximum(-(low // 128), -(-high // 127)), 1)
        # The kernels split the inner row taps of a column tap alike, and so the outer ones; F(1, 3) has one column tap for them.
        for taps in (slice(tile.rows.outputs), slice(tile.rows.outputs, None)):
            parts[taps] = parts[taps].max() if tile.columns is F1 else parts[taps].max(0)
        # Bounds of a tap's products, whatever the sign and the shift of its codes; then summed along the rows, divided, and
        # summed along the columns, every factor in its absolute value.
        products = np.abs(transformed).sum(1) * np.abs(tile.rows.codes).sum(1)[:, None] * np.abs(tile.columns.codes).sum(1)
        along_rows = np.abs(tile.rows.sums) @ products
        along_columns = along_rows / tile.rows.denominator @ np.abs(tile.columns.sums).T
        return cls(parts, int(low.min()), int(high.max()), float(max(along_rows.max(), along_columns.max())))


def _refusal(tile: Tile, fit: _Fit, bits: int) -> str:
    """Why a tile is not exact for these weights and codes; empty where it is."""
    if tile.code_range(bits) > CODE_MAX:
        return f"{tile.name} makes {bits}-bit codes up to {tile.code_range(bits)}, above {CODE_MAX}"
    if fit.largest_sum * (2**bits - 1) > INT32_MAX:
        return f"{tile.name} makes sums up to {fit.largest_sum * (2**bits - 1):.0f}, above {INT32_MAX}"
    if fit.parts.max() > MAX_PARTS:
        return f"{tile.name} makes weights of {fit.least}..{fit.most}, beyond {MAX_PARTS} bytes"
    return ""


def plan_layer(
    name: str,
    weights: np.ndarray,
    most_bits: int,
    *,
    box_filter: bool = False,
    isa: str = "avx512vnni",
) -> LayerPlan:
    """The plan of one layer: for every bit-width the exact tile with the least predicted time.

    weights: [..., K, C, R, S], the integers that are multiplied: m, or k' with m = 2k' + 1 under `box_filter`. most_bits: the
    most bits its codes can have, 2..8. isa: what it is planned for; on AVX2 a code above 127 costs two products.
    Raises ValueError when an accumulator could leave int32: the layer cannot be computed exactly.
    """
    weights = np.asarray(weights, dtype=np.int64)
    integers = 2 * weights + 1 if box_filter else weights
    largest = int(np.abs(integers).sum((-3, -2, -1)).max()) * (2**most_bits - 1)
    if largest > INT32_MAX:
        raise ValueError(f"plan_layer: '{name}' could reach a sum of {largest} with {most_bits}-bit codes, above {INT32_MAX}")
    only_direct = ""
    if weights.ndim != 4 or weights.shape[2:] != (3, 3):
        only_direct = f"kernel {weights.shape[-2]}x{weights.shape[-1]} is not 3x3"
    fits = {} if only_direct else {tile.name: _Fit.of(tile, weights) for tile in TILES[1:]}
    chosen, reasons = [], []
    for bits in range(MIN_BITS, MAX_BITS + 1):
        refused: list[str] = []
        best, best_products = DIRECT, DIRECT.products
        for tile in () if only_direct else TILES[1:]:
            reason = _refusal(tile, fits[tile.name], bits)
            products = tile.products * float(fits[tile.name].parts.mean())
            if reason:
                refused.append(reason)
            elif _cost(tile, products, bits, isa, box_filter) < _cost(best, best_products, bits, isa, box_filter):
                best, best_products = tile, products
        chosen.append((best.name, best_products, _cost(best, best_products, bits, isa, box_filter)))
        reasons.append((only_direct or "; ".join(refused) or "no tile is faster") if best is DIRECT else "")
    tiles, products, costs = zip(*chosen, strict=True)
    return LayerPlan(tiles, tuple(reasons), products, costs, largest)


def _cost(tile: Tile, products: float, bits: int, isa: str, box_filter: bool) -> float:
    """Predicted time of an output, in products: its own, and what else the tile has to do."""
    largest = 2**bits - 1 if tile is DIRECT else tile.code_range(bits)
    twice = isa == "avx2" and largest > MADD_MAX
    return products * (2 if twice else 1) + OVERHEAD[isa][TILES.index(tile)] + (BOX if box_filter else 0)


# Time beside the products, in that of one product: transforms, epilogue and their share of stores. For each tile of TILES, from
# minima of one 64 to 64 layer on 192x192 with codes out, one thread, AMD EPYC 9004 (Zen 4), 2026-11-23: direct 6.31 ms, tiles
# 4.52, 3.43, 3.05, 2.77 where a product takes 0.655; with AVX2 13.3, 9.9, 8.3, 7.3, 6.7 where it takes 1.36 (codes up to 127).
# AVX-VNNI and NEON are taken as AVX512-VNNI: they are not measured yet.
OVERHEAD = {
    "scalar": (0.0, 0.1, 0.2, 0.2, 0.2),
    "neon": (0.6, 0.9, 1.2, 1.3, 1.2),
    "avx2": (0.8, 1.3, 2.1, 2.0, 1.9),
    "avxvnni": (0.6, 0.9, 1.2, 1.3, 1.2),
    "avx512vnni": (0.6, 0.9, 1.2, 1.3, 1.2),
}
BOX = 0.3  # the sum of the codes under the kernel
