"""The plan of a layer: for every bit-width of its input codes, the exact tile that takes the least time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .exact import Fit, direct_sums, laid_out, refusal, tile_sums
from .tiles import DIRECT, INT32_MAX, MAX_BITS, MIN_BITS, TILES, Tile, lanes_of, takes_kn2row
from .times import KINDS, KINDS_OF_ISA, TileTimes


@dataclass(frozen=True)
class LayerPlan:
    """The tile of a layer for every bit-width, with the prediction and the reason.

    tile: the name of the tile for codes of 2, 3, ..., 8 bits. why_direct: for each of them, why no faster tile was taken.
    products_for_bits: 8-bit products per output and channel, with those of split weights counted. picoseconds: predicted for one
    output pixel on one thread (times.py). largest_sum: bound of |accumulator| at the most bits the layer can get. isa: the
    instruction set it is planned for.
    """

    tile: tuple[str, ...]
    why_direct: tuple[str, ...]
    products_for_bits: tuple[float, ...]
    picoseconds: tuple[float, ...]
    largest_sum: int
    isa: str

    def time(self, least_bits: int, most_bits: int) -> float:
        """Predicted time, summed over the bit-widths least_bits..most_bits. It is comparable between plans of one layer."""
        return sum(self.picoseconds[least_bits - MIN_BITS : most_bits - MIN_BITS + 1])

    @property
    def tile_for_bits(self) -> tuple[int, ...]:
        """The plan as the C ABI takes it."""
        names = [tile.name for tile in TILES]
        return tuple(names.index(name) for name in self.tile)


def plan_layer(
    name: str,
    weights: np.ndarray,
    most_bits: int,
    *,
    times: TileTimes,
    box_filter: bool = False,
    plain: bool = True,
) -> LayerPlan:
    """The plan of one layer: for every bit-width the exact tile with the least predicted time, among those that were measured.

    weights: [K, C, R, S], or [R, S, K, C, R, S] with kernels of their own at the border. They are the integers m that are
    multiplied, or k' with m = 2k' + 1 under `box_filter`. most_bits: the most bits its codes can have, 2..8. times: those of the
    instruction set it is planned for. plain: whether its geometry is plain (quantize.Geometry). Layers with another geometry, whose
    C is that of one group, are computed directly. Raises ValueError where an accumulator could leave int32: the layer could not be
    computed exactly.
    """
    weights = np.asarray(weights, dtype=np.int64)
    integers = 2 * weights + 1 if box_filter else weights
    largest = int(np.abs(integers).sum((-3, -2, -1)).max()) * (2**most_bits - 1)
    if largest > INT32_MAX:
        raise ValueError(f"plan_layer: '{name}' could reach a sum of {largest} with {most_bits}-bit codes, above {INT32_MAX}")
    outputs, channels, kernel_h, kernel_w = weights.shape[-4:]
    borders = weights.ndim > 4
    tiles = [tile for tile in TILES[1:] if plain and tile.takes(outputs, kernel_h, kernel_w, borders)]
    measured = [tile for tile in tiles if tile.name in times.costs]
    unmeasured = [f"{tile.name} was not measured on {times.isa}" for tile in tiles if tile not in measured]
    inside = laid_out(weights[kernel_h // 2, kernel_w // 2] if borders else weights)
    fits = {tile.name: Fit.of(tile, inside) for tile in measured}
    apart = borders or not plain  # the kernel's columns are then no outputs
    lanes = {tile.name: lanes_of(tile, outputs, kernel_w, apart) for tile in (DIRECT, *tiles)}
    sums = {}
    if times.isa in KINDS_OF_ISA:
        usable = [tile for tile in measured if fits[tile.name].packable and not tile.words]
        sums = {tile.name: tile_sums(tile, fits[tile.name]) for tile in usable}
        sums[DIRECT.name] = direct_sums(laid_out(weights), not apart and takes_kn2row(outputs, kernel_w))

    def predict(tile: Tile, bits: int) -> tuple[float, str, float]:
        """(picoseconds, tile, products)"""
        products = fits[tile.name].products if tile.name in fits else tile.products_of(kernel_h, kernel_w)
        kinds = sums[tile.name].kinds(bits) if tile.name in sums else {KINDS[0]: 1.0}
        layer = products, channels, outputs, box_filter, lanes[tile.name]
        return sum(part * times.time(tile.name, kind, *layer) for kind, part in kinds.items() if part), tile.name, products

    chosen, reasons = [], []
    for bits in range(MIN_BITS, MAX_BITS + 1):
        refused = [refusal(tile, fits[tile.name], bits) for tile in measured]
        exact = [DIRECT, *(tile for tile, reason in zip(measured, refused, strict=False) if not reason)]
        best = min((predict(tile, bits) for tile in exact), key=lambda prediction: prediction[0])
        chosen.append(best)
        none = "" if tiles else f"no tile is for a kernel of {kernel_h}x{kernel_w}" if plain else "tiles are for plain geometry"
        why = none or "; ".join([*filter(None, refused), *unmeasured]) or "no tile is faster"
        reasons.append(why if best[1] == DIRECT.name else "")
    picoseconds, names, products = zip(*chosen, strict=True)
    return LayerPlan(names, tuple(reasons), products, picoseconds, largest, times.isa)
