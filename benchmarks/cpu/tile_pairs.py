"""Pairs F(1..4, 3) x F(1..4, 3) on a converted model's own weights, with and without kernels: the 8-bit products an output, and
what they are estimated to take.

    python benchmarks/cpu/tile_pairs.py adabm_kernels/assets/edsr_x4_w4a4.safetensors

An operand beyond 8 bits counts twice: as two digits (a product for each pair of digits, so four where a code and its weight are
both split) or as a word of 16 bits (two products' time, whichever operand outgrew its byte). The mean over the model's 3x3
convolutions between as many channels.

The estimate is the planner's formula (adabm_kernels/planning/times.py): for tiles of bytes with kernels their measured terms. In
the others a product takes what it takes in those, by how it is summed, and one of words twice that of whole sums; all else takes
the direct form's time and, for each transformed code an output, as much as on average in those tiles, twice for words. Nothing is
timed.
"""

from __future__ import annotations

import sys
from itertools import product

import numpy as np

from adabm_kernels import load
from adabm_kernels.planning import exact, tiles
from adabm_kernels.planning.times import KINDS, KINDS_OF_ISA, TileTimes, tile_times

LINES = {1: tiles.F1, 2: tiles.F2, 3: tiles.F3, 4: tiles.F4}
OF_BYTES = ((1, 1), (2, 1), (2, 2), (2, 3), (2, 4), (3, 3), (3, 4))  # pairs with kernels in the library, as OF_WORDS are
OF_WORDS = ((4, 4),)
ROWS_OF_3 = ((3, 2), (3, 3), (3, 4))
ISAS = ("avx2", "avx512vnni")
Pair = tuple[int, int]


def name(pair: Pair) -> str:
    return "direct" if pair == (1, 1) else f"F({pair[0]}x{pair[1]})"


def tile_of(pair: Pair) -> tiles.Tile:
    return tiles.Tile(name(pair), *(LINES[outputs] for outputs in pair))


def taps(pair: Pair) -> float:
    """The number of transformed codes for each output and channel; 0 for the direct form, which transforms none."""
    return 0.0 if pair == (1, 1) else float(np.prod([len(LINES[outputs].codes) / outputs for outputs in pair]))


def code_range(pair: Pair, bits: int) -> np.ndarray:
    """The largest transformed code of every tap, [row taps, column taps]."""
    rows, columns = (np.abs(LINES[outputs].codes).sum(1) for outputs in pair)
    return np.outer(rows, columns) * (2**bits - 1)


def products(pair: Pair, bits: int, weights: np.ndarray, words: bool = False) -> float:
    """8-bit products per output and channel of one layer. weights: [K, C, 3, 3]. bits: the bits of its codes. words: whether
    operands beyond 8 bits are words instead of two digits."""
    transformed = exact.transformed_weights(tile_of(pair), weights.transpose(2, 3, 1, 0))
    flat = transformed.reshape(*transformed.shape[:2], -1)
    weight_digits = np.where((flat.min(2) >= -128) & (flat.max(2) <= 127), 1, 2)
    code_digits = np.where(code_range(pair, bits) <= tiles.CODE_MAX, 1, 2)
    digits = np.maximum(weight_digits, code_digits) if words else weight_digits * code_digits
    return float(digits.sum()) / (pair[0] * pair[1])


def nanoseconds(pair: Pair, bits: int, weights: np.ndarray, words: bool, times: TileTimes) -> float:
    """The estimated nanoseconds of an output pixel of one layer on one thread."""
    outputs, channels = weights.shape[:2]

    kinds = {KINDS[0]: 1.0}
    if times.isa in KINDS_OF_ISA and not words:
        kinds = exact.layer_sums(tiles.DIRECT if pair == (1, 1) else tile_of(pair), weights).kinds(bits)

    def predict(tile: str, count: float) -> float:
        return sum(part * times.time(tile, kind, count, channels, outputs, False) for kind, part in kinds.items() if part)

    def beside_products(tile: str) -> float:
        return times.time(tile, KINDS[0], 0.0, channels, outputs, False)

    measured = [built for built in OF_BYTES if name(built) in times.costs]
    like = name(pair) if pair in measured else "F(2x4)"
    count = 2 * taps(pair) if words else products(pair, bits, weights)
    beside = 0.0
    if pair not in measured:
        direct = beside_products("direct")
        of_a_tap = np.mean([(beside_products(name(built)) - direct) / taps(built) for built in measured[1:]])
        beside += direct + of_a_tap * taps(pair) * (2 if words else 1) - beside_products(like)
    return (predict(like, count) + beside) / 1e3


def best(counted: dict[Pair, float], digits: int) -> str:
    value, pair = min(((value, pair) for pair, value in counted.items()), default=(0.0, (0, 0)))
    return f"{name(pair)} {value:.{digits}f}" if counted else "none fits"


def main() -> None:
    layers = [parameters.codes.numpy().astype(np.int64) for parameters in load(sys.argv[1]).parameters_by_name.values()]
    layers = [codes for codes in layers if codes.shape[2:] == (3, 3) and codes.shape[0] == codes.shape[1]]
    pairs = [pair for pair in product(LINES, repeat=2) if pair[0] > 1 or pair == (1, 1)]
    all_bits = range(tiles.MAX_BITS, tiles.MIN_BITS - 1, -1)
    fits = {(pair, bits): pair == (1, 1) or code_range(pair, bits).max() <= tiles.CODE_MAX for pair in pairs for bits in all_bits}
    print(f"{len(layers)} layers: products an output\n\n| bits | with kernels of bytes | best of the others, digits | words |")
    print("|---|---|---|---|")
    for bits in all_bits:
        digits, words = (
            {pair: float(np.mean([products(pair, bits, codes, words) for codes in layers])) for pair in pairs}
            for words in (False, True)
        )
        built = {pair for pair in OF_BYTES if fits[pair, bits]}
        cells = [best({pair: digits[pair] for pair in built}, 2)]
        cells += [best({pair: count for pair, count in counts.items() if pair not in built}, 2) for counts in (digits, words)]
        print(f"| {bits} | " + " | ".join(cells) + " |")
    layer = layers[0]
    for times in map(tile_times, ISAS):
        print(f"\nestimated ns of an output pixel, one layer {layer.shape[1]} to {layer.shape[0]}, {times.isa}\n")
        print("| bits | bytes | rows of 3, bytes | words |\n|---|---|---|---|")
        for bits in all_bits:
            cells = [
                best({pair: nanoseconds(pair, bits, layer, False, times) for pair in group if fits[pair, bits]}, 0)
                for group in ([pair for pair in OF_BYTES if pair[0] < 3], ROWS_OF_3)
            ]
            cells.append(best({pair: nanoseconds(pair, bits, layer, True, times) for pair in OF_WORDS}, 0))
            print(f"| {bits} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
