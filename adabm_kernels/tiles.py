"""Exact fast-convolution tiles and the plan of each layer: for every bit-width of the input codes, one way to convolve.

A tile F(m, 3) along the columns computes m outputs of a row from m + 2 transformed inputs (Cook-Toom; Winograd, 1980); the
three kernel rows are summed in the accumulators. With integer transforms it is exact as long as every transformed code fits
8 unsigned bits and every transformed weight 8 signed bits: fewer bits leave room for larger tiles, and a larger tile needs
fewer products. The choice never changes a result (docs/numerics.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MIN_BITS, MAX_BITS = 2, 8
INT32_MAX = 2**31 - 1
CODE_MAX = 255  # of a transformed code, shifted to start at 0
MADD_MAX = 127  # largest code that AVX2's vpmaddubsw multiplies without saturating: beyond it takes two products


@dataclass(frozen=True)
class Tile:
    """F(outputs, 3) along the columns; "direct" is F(1, 3) with three taps and identity transforms.

    codes: B^T, [taps, outputs + 2] integers. weights: G scaled to integers, [taps, 3].
    sums: A^T with each tap's factor times the common denominator, [outputs, taps]: denominator * y = sums @ products.
    """

    name: str
    outputs: int
    codes: np.ndarray
    weights: np.ndarray
    sums: np.ndarray
    denominator: int

    @property
    def products(self) -> float:
        """8-bit products per output and channel of a 3x3 convolution; 9 when direct."""
        return 3 * len(self.codes) / self.outputs

    def code_range(self, bits: int) -> int:
        """Largest transformed code of any tap, shifted to start at 0."""
        return int(np.abs(self.codes).sum(1).max()) * (2**bits - 1)


def _tile(name: str, outputs: int, codes: list, weights: list, sums: list, denominator: int) -> Tile:
    return Tile(name, outputs, *(np.array(table, dtype=np.int64) for table in (codes, weights, sums)), denominator)


_POINTS = [[1, 0, 0], [1, 1, 1], [1, -1, 1], [1, 2, 4], [1, -2, 4], [0, 0, 1]]  # rows of G at 0, 1, -1, 2, -2, infinity

# Index = ADABM_TILE_* of csrc/include/adabm/adabm.h; the transforms are those of csrc/cpu/transforms.inc.
TILES = (
    _tile("direct", 1, np.eye(3).tolist(), np.eye(3).tolist(), [[1, 1, 1]], 1),
    _tile(
        "F(2,3)",
        2,
        [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, -1, 0, 1]],
        [_POINTS[i] for i in (0, 1, 2, 5)],
        [[2, 1, 1, 0], [0, 1, -1, 2]],
        2,
    ),
    _tile(
        "F(3,3)",
        3,
        [[2, -1, -2, 1, 0], [0, -2, -1, 1, 0], [0, 2, -3, 1, 0], [0, -1, 0, 1, 0], [0, 2, -1, -2, 1]],
        [_POINTS[i] for i in (0, 1, 2, 3, 5)],
        [[3, -3, -1, 1, 0], [0, -3, 1, 2, 0], [0, -3, -1, 4, 6]],
        6,
    ),
    _tile(
        "F(4,3)",
        4,
        [
            [4, 0, -5, 0, 1, 0],
            [0, -4, -4, 1, 1, 0],
            [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0],
            [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1],
        ],
        _POINTS,
        [[6, -4, -4, 1, 1, 0], [0, -4, 4, 2, -2, 0], [0, -4, -4, 4, 4, 0], [0, -4, 4, 8, -8, 24]],
        24,
    ),
)
DIRECT = TILES[0]


@dataclass(frozen=True)
class LayerPlan:
    """tile: name of the tile for codes of 2, 3, ..., 8 bits. why_direct: for each of them, why no faster tile was taken.

    largest_sum: bound of |accumulator| at the most bits the layer can get.
    """

    tile: tuple[str, ...]
    why_direct: tuple[str, ...]
    largest_sum: int

    def products(self, least_bits: int, most_bits: int) -> float:
        """Products per output and channel, summed over the bit-widths least_bits..most_bits."""
        by_name = {tile.name: tile.products for tile in TILES}
        return sum(by_name[self.tile[bits - MIN_BITS]] for bits in range(least_bits, most_bits + 1))

    @property
    def tile_for_bits(self) -> tuple[int, ...]:
        """The plan as the C ABI takes it."""
        names = [tile.name for tile in TILES]
        return tuple(names.index(name) for name in self.tile)


def transformed_weights(tile: Tile, weights: np.ndarray) -> np.ndarray:
    """[K, C, 3, taps] of [K, C, 3, 3]: the weights of every row in the tile's columns."""
    return np.asarray(weights, dtype=np.int64) @ tile.weights.T


def _refusal(tile: Tile, weights: np.ndarray, bits: int, largest_sum: int) -> str:
    """Why a tile is not exact for these weights and codes; empty where it is."""
    if tile.code_range(bits) > CODE_MAX:
        return f"{tile.name} makes {bits}-bit codes up to {tile.code_range(bits)}, above {CODE_MAX}"
    if tile.denominator * largest_sum > INT32_MAX:
        return f"{tile.name} makes sums up to {tile.denominator * largest_sum}, above {INT32_MAX}"
    transformed = transformed_weights(tile, weights)
    if transformed.min() < -128 or transformed.max() > 127:
        return f"{tile.name} makes weights of {transformed.min()}..{transformed.max()}, outside -128..127"
    return ""


def plan_layer(
    name: str,
    weights: np.ndarray,
    most_bits: int,
    *,
    box_filter: bool = False,
    isa: str = "avx512vnni",
) -> LayerPlan:
    """The plan of one layer: for every bit-width the exact tile with the fewest products.

    weights: [..., K, C, R, S], the integers that are multiplied: m, or k' with m = 2k' + 1 under `box_filter`. most_bits: the
    most bits its codes can have, 2..8. isa: what it is planned for; on AVX2 a code above 127 costs two products.
    Raises ValueError when an accumulator could leave int32: the layer cannot be computed exactly.
    """
    weights = np.asarray(weights, dtype=np.int64)
    integers = 2 * weights + 1 if box_filter else weights
    absolute_sum = int(np.abs(integers).sum((-3, -2, -1)).max())
    largest = absolute_sum * (2**most_bits - 1)
    if largest > INT32_MAX:
        raise ValueError(f"plan_layer: '{name}' could reach a sum of {largest} with {most_bits}-bit codes, above {INT32_MAX}")
    only_direct = ""
    if weights.ndim != 4 or weights.shape[2:] != (3, 3):
        only_direct = f"kernel {weights.shape[-2]}x{weights.shape[-1]} is not 3x3"
    tiles, reasons = [], []
    for bits in range(MIN_BITS, MAX_BITS + 1):
        refused: list[str] = []
        best = DIRECT
        for tile in () if only_direct else TILES[1:]:
            reason = _refusal(tile, weights, bits, absolute_sum * (2**bits - 1))
            if reason:
                refused.append(reason)
            elif _cost(tile, bits, isa) < _cost(best, bits, isa):
                best = tile
        tiles.append(best.name)
        reasons.append((only_direct or "; ".join(refused) or "no tile is faster") if best is DIRECT else "")
    return LayerPlan(tuple(tiles), tuple(reasons), largest)


def _cost(tile: Tile, bits: int, isa: str) -> float:
    largest = 2**bits - 1 if tile is DIRECT else tile.code_range(bits)
    return tile.products * (2 if isa in ("avx2",) and largest > MADD_MAX else 1)
