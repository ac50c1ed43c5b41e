"""8-bit products an output of pairs F(1..4, 3) x F(1..4, 3) on a converted model's own weights, with and without kernels.

    python benchmarks/tile_pairs.py adabm_kernels/assets/edsr_x4_w4a4.safetensors

A transformed code or weight beyond 8 bits counts as two digits, at a product for each pair of digits; the kernels have digits of
weights only. The mean over the model's 3x3 convolutions between as many channels; arithmetic only, nothing is timed.
"""

from __future__ import annotations

import sys
from itertools import product

import numpy as np

from adabm_kernels import load, tiles

LINES = {1: tiles.F1, 2: tiles.F2, 3: tiles.F3, 4: tiles.F4}
BUILT = ((1, 1), (2, 1), (2, 2), (2, 3), (2, 4))


def code_range(pair: tuple[int, int], bits: int) -> np.ndarray:
    """Largest transformed code of every tap, [row taps, column taps]."""
    rows, columns = (np.abs(LINES[outputs].codes).sum(1) for outputs in pair)
    return np.outer(rows, columns) * (2**bits - 1)


def products(pair: tuple[int, int], bits: int, weights: np.ndarray) -> float:
    """Of one layer, its weights [K, C, 3, 3] and codes of so many bits."""
    transformed = tiles.transformed_weights(tiles.Tile("", *(LINES[outputs] for outputs in pair)), weights)
    fits = (transformed.min((0, 1)) >= -128) & (transformed.max((0, 1)) <= 127)
    digits = np.where(fits, 1, 2) * np.where(code_range(pair, bits) <= tiles.CODE_MAX, 1, 2)
    return float(digits.sum()) / (pair[0] * pair[1])


def main() -> None:
    layers = [parameters.codes.numpy() for parameters in load(sys.argv[1]).parameters_by_name.values()]
    layers = [codes for codes in layers if codes.shape[2:] == (3, 3) and codes.shape[0] == codes.shape[1]]
    print(f"{len(layers)} layers\n\n| bits | with kernels | products | without | products |\n|---|---|---|---|---|")
    for bits in range(tiles.MAX_BITS, tiles.MIN_BITS - 1, -1):
        counted = {}
        for pair in product(LINES, repeat=2):
            has_kernel = pair in BUILT and code_range(pair, bits).max() <= tiles.CODE_MAX
            counted[pair, has_kernel] = np.mean([products(pair, bits, codes) for codes in layers])
        cells = []
        for built in (True, False):
            count, pair = min((count, pair) for (pair, has_kernel), count in counted.items() if has_kernel == built)
            cells += [f"F({pair[0]}x{pair[1]})", f"{count:.2f}"]
        print(f"| {bits} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
