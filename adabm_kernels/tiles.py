"""Plans how each layer is computed, as a value: for every bit-width of the input codes, one way to convolve."""

from __future__ import annotations

from dataclasses import dataclass

MIN_BITS, MAX_BITS = 2, 8
TILES = ("direct",)  # index = ADABM_TILE_* of csrc/include/adabm/adabm.h
INT32_MAX = 2**31 - 1


@dataclass(frozen=True)
class LayerPlan:
    """tile: name in TILES for codes of 2, 3, ..., 8 bits. largest_sum: bound of |accumulator| at the most bits it can get."""

    tile: tuple[str, ...]
    largest_sum: int

    @property
    def tile_for_bits(self) -> tuple[int, ...]:
        """The plan as the C ABI takes it."""
        return tuple(TILES.index(name) for name in self.tile)


def plan_layer(name: str, absolute_sum: int, most_bits: int) -> LayerPlan:
    """The plan of one layer.

    absolute_sum: the largest SUM |m| over the weights of any one output. most_bits: the most bits its codes can have.
    Raises ValueError when an accumulator could leave int32: the layer cannot be computed exactly.
    """
    largest = absolute_sum * (2**most_bits - 1)
    if largest > INT32_MAX:
        raise ValueError(
            f"plan_layer: '{name}' could reach an accumulator of {largest} with {most_bits}-bit codes, above {INT32_MAX}"
        )
    return LayerPlan(("direct",) * (MAX_BITS - MIN_BITS + 1), largest)
