"""Decides whether a tile is exact for the weights of a layer: transformed weights and codes must fit their types, and sums must not
overflow."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .tiles import CODE_MAX, DIRECT, F1, INT32_MAX, TILES, WORD_PRODUCTS, Tile
from .times import FEW, KINDS

SUM16_MAX = 2**15 - 1
MAX_PARTS = 4  # the most parts of a transformed weight
_WEIGHT_GROWTH = max(int(np.abs(np.kron(t.rows.weights, t.columns.weights)).sum(1).max()) for t in TILES if not t.words)
WORD_MIN, WORD_MAX = -(2**15), 2**15 - 1
# Tiles of words divide once, at the end. Sums may wrap until then, and the 3 of each axis is divided out by its inverse modulo
# 2^32. What is left to be shifted is at most this many times an output, for each axis.
_WORD_SUM = 8


def transformed_weights(tile: Tile, weights: np.ndarray) -> np.ndarray:
    """[row taps, column taps, C, K] of weights [kernel, kernel, C, K], in the same dtype."""
    side = tile.kernel
    rows, columns = (line.weights.astype(weights.dtype) for line in (tile.rows, tile.columns))
    # matmul is not used, because its threads would wait in a loop for more work while torch's threads want the cores.
    along_rows = np.einsum("tr,rn->tn", rows, weights.reshape(side, -1)).reshape(len(rows), side, -1)
    return np.einsum("us,tsn->tun", columns, along_rows).reshape(len(rows), len(columns), *weights.shape[2:])


def laid_out(weights: np.ndarray) -> np.ndarray:
    """Weights [..., K, C, R, S] as [R, S, C4, K], with channels padded to quads. They are floats, which are fast and stay exact on
    the way through any tile."""
    weights = weights.reshape(-1, *weights.shape[-3:])
    # No transform or sum below has more terms than an output has weights, each with its largest factor.
    most = int(np.abs(weights).max()) * math.prod(weights.shape[1:]) * _WEIGHT_GROWTH
    padded = np.zeros((*weights.shape[2:], -(-weights.shape[1] // 4) * 4, len(weights)), np.float32 if most < 2**24 else np.float64)
    padded[:, :, : weights.shape[1]] = weights.transpose(2, 3, 1, 0)
    return padded


@dataclass(frozen=True)
class Fit:
    """The weights of a layer in the form of a tile, and the numbers that decide for which bits the tile is exact.

    products: 8-bit products per output and channel. largest_sum: the largest of the sums on the way to the output that must not
    wrap, when codes are at most 1. transformed: [row taps, column taps, C4, K], all in least..most. parts: [row taps, column taps],
    into how many parts these are split. A tile of words has neither of these two.
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
    def of(cls, tile: Tile, weights: np.ndarray) -> Fit:
        """The fit of a tile to weights [kernel, kernel, C4, K] of `laid_out`."""
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
        # The kernels split the row taps at 1 and -1 of a column tap alike, and also the two outer ones. F(1, 3) has one column tap
        # in place of these.
        for taps in (slice(2), slice(-2, None)):
            parts[taps] = parts[taps].max() if tile.columns is F1 else parts[taps].max(0)
        # Bounds of a tap's products, whatever the sign and the shift of its codes. They are then summed along the rows, divided,
        # and summed along the columns, with the absolute value of every factor.
        products = np.abs(transformed).sum(2).astype(np.float64) * tile.reach[..., None]  # [row taps, column taps, K]
        along_rows = np.tensordot(np.abs(tile.rows.sums), products, 1)
        along_columns = np.abs(tile.columns.sums) @ (along_rows / tile.rows.denominator)
        largest = max(along_rows.max(), along_columns.max())
        return cls(tile.products * float(parts.mean()), float(largest), transformed, parts, int(low.min()), int(high.max()))


def refusal(tile: Tile, fit: Fit, bits: int) -> str:
    """The reason why a tile is not exact for these weights and codes of so many bits; "" where it is."""
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
    """The largest 16-bit sums of a layer's products, where channels 0, 1 and channels 2, 3 of a quad have a sum each.

    largest: [steps, runs], the largest sum when codes are at most 1, by the number 1, 2, 4, ... of quads that are summed together,
    counted from the start of a run of taps. quads: the number of quads of a run. shares: [runs], the share of each run in the
    layer's products.
    """

    largest: np.ndarray
    quads: int
    shares: np.ndarray

    @classmethod
    def of(cls, runs: np.ndarray, reach: np.ndarray) -> Sums:
        """The sums of weights `runs`, [runs, channels of a run's taps, padded to quads, K], in the order in which they are summed.

        reach: [runs], the largest code of each run when the layer's codes are at most 1. Every run has an equal share.
        """
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
        """[runs]: how many quads may be summed in 16 bits. It is a power of two (PackedHeader::depth of csrc/cpu/packed.h), or 0
        where two products can overflow."""
        return (1 << (self.largest * (2**bits - 1) <= SUM16_MAX).sum(0)) >> 1

    def kinds(self, bits: int) -> dict[str, float]:
        """By the kind of sums (times.KINDS), the factor with which its time counts; together they are 1.

        Every sum of a run beyond the first takes the same time, and the kind "few" has FEW - 1 of them.
        """
        depths = self.depths(bits)
        sums = -(-self.quads // np.maximum(depths, 1))
        few = float((self.shares * (sums - 1))[depths > 1].sum()) / (FEW - 1)
        pairs, widened = (float(self.shares[depths == depth].sum()) for depth in (1, 0))
        return dict(zip(KINDS, (1 - few - pairs - widened, few, pairs, widened), strict=True))


def layer_sums(tile: Tile, weights: np.ndarray) -> Sums:
    """The sums of weights [..., K, C, R, S] in a tile of bytes. For split weights they are those of even shares."""
    weights = laid_out(weights)
    return direct_sums(weights) if tile is DIRECT else tile_sums(tile, Fit.of(tile, weights))


def direct_sums(weights: np.ndarray, kn2row: bool = False) -> Sums:
    if kn2row:  # a run is one tap of each kernel row, and the row's columns are outputs
        weights = weights.transpose(0, 2, 1, 3)
        weights = weights.reshape(*weights.shape[:2], -1)
    rows = Sums.of(weights.reshape(len(weights), -1, weights.shape[-1]), np.ones(len(weights), dtype=np.int64))
    return Sums(rows.largest.max(1, keepdims=True), rows.quads, np.ones(1))  # all rows are summed in the same way


def tile_sums(tile: Tile, fit: Fit) -> Sums:
    """The sums of a tile of bytes."""
    shares, of_taps = fit.transformed, fit.parts
    assert shares is not None and of_taps is not None, "a tile of bytes"
    if of_taps.max() > 1:
        shares = np.ceil(np.abs(shares) / of_taps[..., None, None].astype(shares.dtype)) * np.sign(shares)
    if tile.columns is F1:  # the kernel columns accumulate as one run
        sums, parts = Sums.of(shares.reshape(len(shares), -1, shares.shape[-1]), tile.reach.max(1)), of_taps[:, 0]
    else:
        sums, parts = Sums.of(shares.reshape(tile.reach.size, *shares.shape[2:]), tile.reach.reshape(-1)), of_taps.reshape(-1)
    return Sums(sums.largest, sums.quads, parts / parts.sum())


def layer_products(tile: Tile, weights: np.ndarray) -> float:
    """8-bit products per output and channel of weights [..., K, C, R, S], with the products of split weights counted."""
    if tile is DIRECT:
        return float(weights.shape[-2] * weights.shape[-1])
    return Fit.of(tile, laid_out(weights)).products
