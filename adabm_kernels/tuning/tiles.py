"""Measures the times by which the planner chooses: those of every tile on an instruction set of this machine (`adabm bench
--tune`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import date
from typing import Any

import numpy as np
import torch

from .. import native, ops
from ..backends import cpu
from ..backends.call import Packing
from ..planning.exact import layer_products, layer_sums
from ..planning.tiles import CODE_MAX, DIRECT, TILES, Tile, lanes_of
from ..planning.times import KINDS, KINDS_OF_ISA, Cost, TileTimes, provenance
from ..quantize import MAX_BITS, MIN_BITS, act_grid, padded_channels

HEIGHT, WIDTH = 48, 96  # pixels of the timed layers
SHAPES = ((64, 64), (32, 64), (64, 32), (128, 64), (64, 128))  # channels to outputs
# channels, outputs and kernel of layers for the tiles for few outputs
FEW_OUTPUTS = ((64, 3, 9), (32, 3, 9), (64, 16, 3), (128, 8, 3), (64, 3, 3))
ROUNDS, REPEATS = 6, 3
LEAST_PART = 0.25  # the least part of a layer that a kind of sums must have to be measured by it
Progress = Callable[[int, int, str], None]


def measure_tiles(isa: str, progress: Progress = lambda *_: None) -> TileTimes:
    """The times of all tiles on one instruction set and one thread, in less than half a minute.

    Every layer is timed once in each of several rounds, and its least time is taken: a disturbance of a second then slows a round,
    not a tile. Raises ValueError for an unknown instruction set, and RuntimeError where the library or the processor lacks it.
    """
    if isa not in native.ISAS or isa == "auto":
        raise ValueError(f"measure_tiles: isa must be one of {', '.join(list(native.ISAS)[1:])}, got {isa!r}")
    with native.force_isa(isa):
        native.isa_chosen()
        kinds = KINDS_OF_ISA.get(isa, KINDS[:1])
        ways = [(tile, kind) for tile in TILES for kind in (KINDS[:1] if tile.words else kinds)]
        groups = [(tile, kind, [_Timed(w, tile, bits, of) for w, bits, of in _layers(tile, kind, isa)]) for tile, kind in ways]
        weight, bits, _ = _layers(DIRECT, kinds[0], isa)[0]
        without, with_box = (_Timed(weight, DIRECT, bits, {}, box_filter) for box_filter in (False, True))
        layers = [without, with_box, *(layer for _, _, group in groups for layer in group)]
        for i in range(ROUNDS):
            for j, layer in enumerate(layers):
                progress(i * len(layers) + j, ROUNDS * len(layers), isa)
                layer.run()
    costs: dict[str, dict[str, Cost]] = {}
    for tile, kind, group in groups:
        if group:
            of_tile = costs.setdefault(tile.name, {})
            of_tile[kind] = _cost(tile, kind, group, TileTimes(isa, {tile.name: of_tile}, 0.0, {}))
    box = max(0.0, with_box.picoseconds - without.picoseconds) / weight.shape[-1]
    return TileTimes(isa, costs, box, provenance() | {"date": date.today().isoformat()})


def _cost(tile: Tile, kind: str, timed: list[_Timed], known: TileTimes) -> Cost:
    """The terms of a tile and a kind of sums that fit the times over SHAPES with the least squared relative error. known: the terms
    of the tile's other kinds so far, whose part is taken off the time of a layer."""
    rows, times = [], []
    for layer in timed:
        outputs, _, kernel_w, channels = layer.weight.shape
        products = layer_products(tile, layer.weight.permute(0, 3, 1, 2).numpy())
        lanes = lanes_of(tile, outputs, kernel_w)
        rows.append((products * channels * lanes, channels, outputs))
        others = {other: part for other, part in layer.kinds.items() if part and other != kind} if known.costs[tile.name] else {}
        known_times = {other: known.time(tile.name, other, products, channels, outputs, False, lanes) for other in others}
        rest = sum(part * known_times[other] for other, part in others.items())
        times.append(max(layer.picoseconds - rest, LEAST_PART**2 * layer.picoseconds) / (1 - sum(others.values())))
    left, terms = list(range(3)), np.zeros(3)
    while True:  # a term below 0 is noise, so the fit is repeated without it
        weighed = np.array(rows)[:, left] / np.array(times)[:, None]
        solved = np.linalg.lstsq(weighed, np.ones(len(times)), rcond=None)[0]
        if (solved >= 0).all():
            break
        left.remove(left[int(solved.argmin())])
    terms[left] = solved
    return Cost(*terms.tolist())


def _layers(tile: Tile, kind: str, isa: str) -> list[tuple[torch.Tensor, int, dict[str, float]]]:
    """The layers to time for a tile and a kind of sums, as (weight, bits, shares by kind): one for each of SHAPES, or of
    FEW_OUTPUTS for a kn2row tile.

    Every kernel has one integer in a corner. Most products of a layer are summed by this kind, and the others by an earlier one of
    KINDS. The list is empty where no integer of a byte gives such a layer for one of the shapes.
    """

    def unlike(layer: tuple[torch.Tensor, int, dict[str, float]]) -> float:
        return abs(layer[2][kind] - 1)

    shapes = FEW_OUTPUTS if tile.kn2row else [(*shape, tile.kernel) for shape in SHAPES]
    found = [min(_summed(tile, kind, isa, *shape), key=unlike, default=None) for shape in shapes]
    return [] if None in found else [layer for layer in found if layer is not None]


def _summed(
    tile: Tile, kind: str, isa: str, channels: int, outputs: int, kernel: int
) -> Iterator[tuple[torch.Tensor, int, dict[str, float]]]:
    """Yields layers of one shape whose products are summed by this kind, at least in part: (weight, bits, shares by kind)."""
    for bits in range(MIN_BITS, MAX_BITS + 1):
        if tile is not DIRECT and not tile.words and tile.code_range(bits) > CODE_MAX:
            return
        for value in (1, 2, 3, 5, 8, 14, 30, 60, 90, 127):
            weight = np.zeros((outputs, channels, kernel, kernel), dtype=np.int64)
            weight[:, :, 0, 0] = value  # no transform makes this weight larger
            unsplit = layer_products(tile, weight) == layer_products(tile, weight * 0)
            kinds = {kind: 1.0} if tile.words or isa not in KINDS_OF_ISA else layer_sums(tile, weight).kinds(bits)
            later = sum(kinds[other] for other in KINDS[KINDS.index(kind) + 1 :] if other in kinds)
            if unsplit and not later and kinds[kind] >= (1 - 1e-9 if kind == KINDS[0] else LEAST_PART):
                packable = torch.from_numpy(weight).permute(0, 2, 3, 1).to(torch.int8).contiguous()
                yield packable, bits, kinds


class _Timed:
    """A layer, codes to codes, and the least time of an output pixel so far."""

    def __init__(self, weight: torch.Tensor, tile: Tile, bits: int, kinds: dict[str, float], box_filter: bool = False):
        outputs, _, kernel, channels = weight.shape
        classes = (kernel // 2 + 1) ** 2
        index = [TILES.index(tile) if b == bits else 0 for b in range(MIN_BITS, MAX_BITS + 1)]
        bits_of = torch.tensor([bits], dtype=torch.int32)
        self.weight, self.kinds, self.picoseconds = weight, kinds, float("inf")
        x_q = torch.zeros(1, HEIGHT, WIDTH, padded_channels(channels), dtype=torch.uint8)
        self._args = (
            x_q,
            bits_of,
            weight,
            cpu.pack(weight, Packing(tuple(index))),
            torch.ones(7, outputs),
            torch.zeros(classes, classes, outputs),
        )
        self._settings: dict[str, Any] = {
            "y_q": torch.empty(1, HEIGHT, WIDTH, padded_channels(outputs), dtype=torch.uint8),
            "out_grid": act_grid(0.0, 1.0),
            "out_bits": bits_of,
            "box_filter": box_filter,
            "activation": "relu",
            "backend": "cpu",
            "threads": 1,
        }

    def run(self) -> None:
        for _ in range(REPEATS):
            start = time.perf_counter()
            ops.conv2d_out(*self._args, **self._settings)
            self.picoseconds = min(self.picoseconds, (time.perf_counter() - start) / (HEIGHT * WIDTH) * 1e12)
