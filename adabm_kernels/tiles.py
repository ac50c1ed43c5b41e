"""Exact fast-convolution tiles and the plan of each layer: for every bit-width of the input codes, one way to convolve.

A tile F(m, 3) along one axis computes m outputs from m + 2 transformed inputs (Cook-Toom; Winograd, 1980); F(mxn) is F(m, 3)
along the rows times F(n, 3) along the columns. With integer transforms it is exact as long as every transformed code fits 8
unsigned bits and no sum leaves int32; a transformed weight that outgrows 8 signed bits is the sum of parts that do not, at a
product each. Fewer bits leave room for larger tiles, and a larger tile needs fewer products. F(4x4), and F(2x2,5x5) for kernels
of 5x5, take operands of 16 bits, which hold codes of any bits: a product of them costs as much as two of 8 bits. The choice never
changes a result (docs/numerics.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .tile_times import FEW, KINDS, KINDS_OF_ISA, TileTimes

MIN_BITS, MAX_BITS = 2, 8
INT32_MAX = 2**31 - 1
CODE_MAX = 255  # of a transformed code, shifted to start at 0
WORD_PRODUCTS = 2  # 8-bit products in the time of one of 16 bits
SUM16_MAX = 2**15 - 1
MAX_PARTS = 4  # of a transformed weight
KN2ROW_HEIGHTS = (3, 9, 15)  # odd multiples of 3
PANEL, MOST_LANES = 16, 64  # outputs of a panel, and of as many as are multiplied together


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
    """words: operands have 16 bits. kn2row: the kernel's columns are outputs, and of its rows three at a time are F(outputs, 3)."""

    name: str
    rows: Line
    columns: Line
    words: bool = False
    kn2row: bool = False

    @property
    def kernel(self) -> int:
        """Pixels a side of the kernels it is for; the direct form is for any, and with kn2row see `takes`."""
        return self.rows.weights.shape[1]

    @property
    def products(self) -> float:
        """Products per output and channel where transformed weights fit whole; 9 when direct, of a kernel of 3x3."""
        return len(self.rows.codes) * len(self.columns.codes) / (self.rows.outputs * self.columns.outputs)

    def takes(self, outputs: int, kernel_h: int, kernel_w: int, borders: bool) -> bool:
        """Whether it is for layers of such a shape. borders: with kernels of their own at the border."""
        if not self.kn2row:
            return kernel_h == kernel_w == self.kernel
        return not borders and kernel_h in KN2ROW_HEIGHTS and _lanes(outputs * kernel_w) <= MOST_LANES

    def products_of(self, kernel_h: int, kernel_w: int) -> float:
        """`products` of a kernel that it is for."""
        if self is DIRECT or self.kn2row:
            return self.products * kernel_h * kernel_w / 9
        return self.products

    @cached_property
    def reach(self) -> np.ndarray:
        """[row taps, column taps]: how many times as large as a code a transformed one can be, shifted to start at 0."""
        return np.outer(np.abs(self.rows.codes).sum(1), np.abs(self.columns.codes).sum(1))

    def code_range(self, bits: int) -> int:
        """Largest transformed code of any tap, shifted to start at 0."""
        return int(self.reach.max()) * (2**bits - 1)


def _line(outputs: int, codes: list, weights: list, sums: list, denominator: int) -> Line:
    return Line(outputs, *(np.array(table, dtype=np.int64) for table in (codes, weights, sums)), denominator)


_POINTS = {0: [1, 0, 0], 1: [1, 1, 1], -1: [1, -1, 1], 2: [1, 2, 4], -2: [1, -2, 4], math.inf: [0, 0, 1]}  # rows of G

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
# The same with a factor of 6 of the outer taps in their weights, which words have room for.
F4_OF_WORDS = _line(
    4,
    _F4_CODES,
    [[factor * weight for weight in _POINTS[at]] for at, factor in zip(_F4_POINTS, (1, 1, 1, 1, 6, 6), strict=True)],
    [[-4, -4, 1, 1, 1, 0], [-4, 4, 2, -2, 0, 0], [-4, -4, 4, 4, 0, 0], [-4, 4, 8, -8, 0, 4]],
    24,
)

# The points of F(4, 3) give F(2, 5) the same codes, and sums alike.
F2_OF_5_WORDS = _line(
    2,
    _F4_CODES,
    [[1, 1, 1, 1, 1], [1, -1, 1, -1, 1], [1, 2, 4, 8, 16], [1, -2, 4, -8, 16], [6, 0, 0, 0, 0], [0, 0, 0, 0, 12]],
    [[-4, -4, 1, 1, 1, 0], [-4, 4, 2, -2, 0, 2]],
    24,
)

# Index = ADABM_TILE_* of csrc/include/adabm/adabm.h.
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
_WEIGHT_GROWTH = max(int(np.abs(np.kron(t.rows.weights, t.columns.weights)).sum(1).max()) for t in TILES if not t.words)
WORD_MIN, WORD_MAX = -(2**15), 2**15 - 1
# Tiles of words divide once, at the end: sums may wrap until then, and the 3 of each axis is divided out by its inverse modulo
# 2^32. What is left to be shifted is at most this many times an output, for each axis.
_WORD_SUM = 8


@dataclass(frozen=True)
class LayerPlan:
    """tile: name of the tile for codes of 2, 3, ..., 8 bits. why_direct: for each of them, why no faster tile was taken.

    products_for_bits: 8-bit products per output and channel, split weights counted. picoseconds: predicted for one output pixel
    on one thread (tile_times.py). largest_sum: bound of |accumulator| at the most bits the layer can get. isa: planned for.
    """

    tile: tuple[str, ...]
    why_direct: tuple[str, ...]
    products_for_bits: tuple[float, ...]
    picoseconds: tuple[float, ...]
    largest_sum: int
    isa: str

    def time(self, least_bits: int, most_bits: int) -> float:
        """Predicted time, summed over the bit-widths least_bits..most_bits; comparable between plans of one layer."""
        return sum(self.picoseconds[least_bits - MIN_BITS : most_bits - MIN_BITS + 1])

    @property
    def tile_for_bits(self) -> tuple[int, ...]:
        """The plan as the C ABI takes it."""
        names = [tile.name for tile in TILES]
        return tuple(names.index(name) for name in self.tile)


def transformed_weights(tile: Tile, weights: np.ndarray) -> np.ndarray:
    """[row taps, column taps, C, K] of [kernel, kernel, C, K], of the same dtype."""
    side = tile.kernel
    rows, columns = (line.weights.astype(weights.dtype) for line in (tile.rows, tile.columns))
    # Not by matmul, whose threads would wait in a loop for more while torch's want the cores.
    along_rows = np.einsum("tr,rn->tn", rows, weights.reshape(side, -1)).reshape(len(rows), side, -1)
    return np.einsum("us,tsn->tun", columns, along_rows).reshape(len(rows), len(columns), *weights.shape[2:])


def _laid_out(weights: np.ndarray) -> np.ndarray:
    """[R, S, C4, K] of [..., K, C, R, S], channels padded to quads: floats, fast and exact on the way through any tile."""
    weights = weights.reshape(-1, *weights.shape[-3:])
    # No transform or sum below has more terms than there are weights of an output, each in its largest factor.
    most = int(np.abs(weights).max()) * math.prod(weights.shape[1:]) * _WEIGHT_GROWTH
    padded = np.zeros((*weights.shape[2:], -(-weights.shape[1] // 4) * 4, len(weights)), np.float32 if most < 2**24 else np.float64)
    padded[:, :, : weights.shape[1]] = weights.transpose(2, 3, 1, 0)
    return padded


@dataclass(frozen=True)
class _Fit:
    """What a layer's weights make of a tile, for any bits.

    products: 8-bit ones per output and channel. largest_sum: of any sum on the way to the output that must not wrap, when codes are
    at most 1. transformed: [row taps, column taps, C4, K], which lie in least..most. parts: [row taps, column taps] of them. A tile
    of words keeps neither.
    """

    products: float
    largest_sum: float
    transformed: np.ndarray | None = None
    parts: np.ndarray | None = None
    least: int = 0
    most: int = 0

    @property
    def packable(self) -> bool:
        if self.parts is None:
            return WORD_MIN <= self.least and self.most <= WORD_MAX
        return bool(self.parts.max() <= MAX_PARTS)

    @classmethod
    def of(cls, tile: Tile, weights: np.ndarray) -> _Fit:
        """weights: [kernel, kernel, C4, K] of `_laid_out`."""
        if tile.words:
            largest = _WORD_SUM ** (1 if tile.kn2row else 2) * float(np.abs(weights).sum((0, 1, 2)).max())
            if tile.kn2row:  # words hold any weight of 8 bits
                return cls(WORD_PRODUCTS * tile.products_of(*weights.shape[:2]), largest)
            transformed = transformed_weights(tile, weights)
            return cls(WORD_PRODUCTS * tile.products, largest, least=int(transformed.min()), most=int(transformed.max()))
        transformed = transformed_weights(tile, weights)
        flat = transformed.reshape(*transformed.shape[:2], -1)
        low, high = (np.array(found, dtype=np.int64) for found in (np.minimum(flat.min(2), 0), np.maximum(flat.max(2), 0)))
        parts = np.maximum(np.maximum(-(low // 128), -(-high // 127)), 1)
        # The kernels split the row taps at 1 and -1 of a column tap alike, and the outer ones; F(1, 3) has one column tap for them.
        for taps in (slice(2), slice(-2, None)):
            parts[taps] = parts[taps].max() if tile.columns is F1 else parts[taps].max(0)
        # Bounds of a tap's products, whatever the sign and the shift of its codes; then summed along the rows, divided, and
        # summed along the columns, every factor in its absolute value.
        products = np.abs(transformed).sum(2).astype(np.float64) * tile.reach[..., None]  # [row taps, column taps, K]
        along_rows = np.tensordot(np.abs(tile.rows.sums), products, 1)
        along_columns = np.abs(tile.columns.sums) @ (along_rows / tile.rows.denominator)
        largest = max(along_rows.max(), along_columns.max())
        return cls(tile.products * float(parts.mean()), float(largest), transformed, parts, int(low.min()), int(high.max()))


def _refusal(tile: Tile, fit: _Fit, bits: int) -> str:
    """Why a tile is not exact for these weights and codes; empty where it is."""
    if not tile.words and tile.code_range(bits) > CODE_MAX:
        return f"{tile.name} makes {bits}-bit codes up to {tile.code_range(bits)}, above {CODE_MAX}"
    if fit.largest_sum * (2**bits - 1) > INT32_MAX:
        return f"{tile.name} makes sums up to {fit.largest_sum * (2**bits - 1):.0f}, above {INT32_MAX}"
    if not fit.packable and tile.words:
        return f"{tile.name} makes weights of {fit.least}..{fit.most}, beyond 16 bits"
    if not fit.packable:
        return f"{tile.name} makes weights of {fit.least}..{fit.most}, beyond {MAX_PARTS} bytes"
    return ""


@dataclass(frozen=True)
class Sums:
    """What a layer's products come to in 16 bits, where channels 0, 1 and channels 2, 3 of a quad have a sum each.

    largest: [steps, runs], by number of quads 1, 2, 4, ... summed together, counted from the start of a run of taps, the largest
    sum when codes are at most 1. quads: of a run. shares: [runs], of the layer's products.
    """

    largest: np.ndarray
    quads: int
    shares: np.ndarray

    @classmethod
    def of(cls, runs: np.ndarray, reach: np.ndarray) -> Sums:
        """runs: the weights [runs, channels of a run's taps, padded to quads, K] in the order of their sums. reach: [runs], the
        largest code of each run when the layer's are at most 1. Every run has as large a share."""
        first, second = runs[:, ::2], runs[:, 1::2]
        above = np.maximum(first, 0) + np.maximum(second, 0)
        signs = np.stack([above, above - first - second]).reshape(2, len(runs), -1, 2 * runs.shape[2])  # [signs, runs, quads, sums]
        quads, largest = signs.shape[2], []
        while True:
            largest.append(signs.reshape(2, len(runs), -1).max((0, 2)).astype(np.int64) * reach)
            if 2 ** (len(largest) - 1) >= quads:
                return cls(np.array(largest), quads, np.full(len(runs), 1 / len(runs)))
            if signs.shape[2] % 2:
                signs = np.concatenate([signs, np.zeros_like(signs[:, :, :1])], 2)
            signs = signs[:, :, ::2] + signs[:, :, 1::2]

    def depths(self, bits: int) -> np.ndarray:
        """[runs]: how many quads may be summed in 16 bits, a power of two (PackedHeader::depth of csrc/cpu/packed.h); 0 where two
        products can overflow."""
        return (1 << (self.largest * (2**bits - 1) <= SUM16_MAX).sum(0)) >> 1

    def kinds(self, bits: int) -> dict[str, float]:
        """By how products are summed, tile_times.KINDS, what each kind's time has to be multiplied by; together 1. Every sum of a
        run beyond the first takes the same time, of which "few" has FEW - 1."""
        depths = self.depths(bits)
        sums = -(-self.quads // np.maximum(depths, 1))
        few = float((self.shares * (sums - 1))[depths > 1].sum()) / (FEW - 1)
        pairs, widened = (float(self.shares[depths == depth].sum()) for depth in (1, 0))
        return dict(zip(KINDS, (1 - few - pairs - widened, few, pairs, widened), strict=True))


def layer_sums(tile: Tile, weights: np.ndarray) -> Sums:
    """The sums of weights [..., K, C, R, S] in a tile of bytes; of split weights those of even shares."""
    weights = _laid_out(weights)
    return _direct_sums(weights) if tile is DIRECT else _tile_sums(tile, _Fit.of(tile, weights))


def _direct_sums(weights: np.ndarray, kn2row: bool = False) -> Sums:
    if kn2row:  # a run is one tap of each kernel row, whose columns are outputs
        weights = weights.transpose(0, 2, 1, 3)
        weights = weights.reshape(*weights.shape[:2], -1)
    rows = Sums.of(weights.reshape(len(weights), -1, weights.shape[-1]), np.ones(len(weights), dtype=np.int64))
    return Sums(rows.largest.max(1, keepdims=True), rows.quads, np.ones(1))  # all rows are summed alike


def _tile_sums(tile: Tile, fit: _Fit) -> Sums:
    shares = fit.transformed
    if fit.parts.max() > 1:
        shares = np.ceil(np.abs(shares) / fit.parts[..., None, None].astype(shares.dtype)) * np.sign(shares)
    if tile.columns is F1:  # the kernel columns accumulate as one run
        sums, parts = Sums.of(shares.reshape(len(shares), -1, shares.shape[-1]), tile.reach.max(1)), fit.parts[:, 0]
    else:
        sums, parts = Sums.of(shares.reshape(tile.reach.size, *shares.shape[2:]), tile.reach.reshape(-1)), fit.parts.reshape(-1)
    return Sums(sums.largest, sums.quads, parts / parts.sum())


def takes_kn2row(outputs: int, kernel_w: int) -> bool:
    """Whether the direct form takes the kernel's columns for outputs (kn2row), as fewer lanes idle then: the rule of
    csrc/cpu/pack.cpp, for layers without kernels of their own at the border."""
    lanes = _lanes(outputs * kernel_w)
    return kernel_w > 1 and lanes <= MOST_LANES and lanes < _lanes(outputs) * kernel_w


def lanes_of(tile: Tile, outputs: int, kernel_w: int, borders: bool = False) -> float:
    """Lanes of panels that a product of a layer takes, idle ones counted; for each of the kernel's columns where these are outputs.
    borders: with kernels of their own at the border."""
    if tile.kn2row or (tile is DIRECT and not borders and takes_kn2row(outputs, kernel_w)):
        return _lanes(outputs * kernel_w) / kernel_w
    return _lanes(outputs)


def _lanes(outputs: int) -> int:
    """Outputs in whole panels."""
    return -(-outputs // PANEL) * PANEL


def tile_products(name: str, kernel_h: int, kernel_w: int) -> float:
    """Products per output and channel of a kernel in the tile of that name, when no weight is split."""
    return next(tile for tile in TILES if tile.name == name).products_of(kernel_h, kernel_w)


def layer_products(tile: Tile, weights: np.ndarray) -> float:
    """8-bit products per output and channel of weights [..., K, C, R, S], split ones counted."""
    if tile is DIRECT:
        return float(weights.shape[-2] * weights.shape[-1])
    return _Fit.of(tile, _laid_out(weights)).products


def plan_layer(
    name: str,
    weights: np.ndarray,
    most_bits: int,
    *,
    times: TileTimes,
    box_filter: bool = False,
) -> LayerPlan:
    """The plan of one layer: for every bit-width the exact tile with the least predicted time, of those that were measured.

    weights: [K, C, R, S], or [R, S, K, C, R, S] with kernels of their own at the border: the integers that are multiplied, m, or
    k' with m = 2k' + 1 under `box_filter`. most_bits: the most bits its codes can have, 2..8. times: of the instruction set it is
    planned for.
    Raises ValueError when an accumulator could leave int32: the layer cannot be computed exactly.
    """
    weights = np.asarray(weights, dtype=np.int64)
    integers = 2 * weights + 1 if box_filter else weights
    largest = int(np.abs(integers).sum((-3, -2, -1)).max()) * (2**most_bits - 1)
    if largest > INT32_MAX:
        raise ValueError(f"plan_layer: '{name}' could reach a sum of {largest} with {most_bits}-bit codes, above {INT32_MAX}")
    outputs, channels, kernel_h, kernel_w = weights.shape[-4:]
    borders = weights.ndim > 4
    tiles = [tile for tile in TILES[1:] if tile.takes(outputs, kernel_h, kernel_w, borders)]
    measured = [tile for tile in tiles if tile.name in times.costs]
    unmeasured = [f"{tile.name} was not measured on {times.isa}" for tile in tiles if tile not in measured]
    inside = _laid_out(weights[kernel_h // 2, kernel_w // 2] if borders else weights)
    fits = {tile.name: _Fit.of(tile, inside) for tile in measured}
    lanes = {tile.name: lanes_of(tile, outputs, kernel_w, borders) for tile in (DIRECT, *tiles)}
    sums = {}
    if times.isa in KINDS_OF_ISA:
        usable = [tile for tile in measured if fits[tile.name].packable and not tile.words]
        sums = {tile.name: _tile_sums(tile, fits[tile.name]) for tile in usable}
        sums[DIRECT.name] = _direct_sums(_laid_out(weights), not borders and takes_kn2row(outputs, kernel_w))

    def predict(tile: Tile, bits: int) -> tuple[float, str, float]:
        """(picoseconds, tile, products)"""
        products = fits[tile.name].products if tile.name in fits else tile.products_of(kernel_h, kernel_w)
        kinds = sums[tile.name].kinds(bits) if tile.name in sums else {KINDS[0]: 1.0}
        layer = products, channels, outputs, box_filter, lanes[tile.name]
        return sum(part * times.time(tile.name, kind, *layer) for kind, part in kinds.items() if part), tile.name, products

    chosen, reasons = [], []
    for bits in range(MIN_BITS, MAX_BITS + 1):
        refused = [_refusal(tile, fits[tile.name], bits) for tile in measured]
        exact = [DIRECT, *(tile for tile, reason in zip(measured, refused, strict=False) if not reason)]
        best = min((predict(tile, bits) for tile in exact), key=lambda prediction: prediction[0])
        chosen.append(best)
        none = "" if tiles else f"no tile is for a kernel of {kernel_h}x{kernel_w}"
        why = none or "; ".join([*filter(None, refused), *unmeasured]) or "no tile is faster"
        reasons.append(why if best[1] == DIRECT.name else "")
    picoseconds, tiles, products = zip(*chosen, strict=True)
    return LayerPlan(tiles, tuple(reasons), products, picoseconds, largest, times.isa)
