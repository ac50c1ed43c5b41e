"""The ends of networks with 64 channels and 8-bit codes and weights: the collapsed upsampler and convolutions to 3 channels, in
every form that computes them, beside PyTorch float32. All forms give the same output, which is checked first."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from baselines import require
from torch.nn import functional as F
from turns import THREADS

from adabm_kernels import native, ops
from adabm_kernels.backends import cpu
from adabm_kernels.backends.call import Packing
from adabm_kernels.planning.tiles import DIRECT, TILES
from adabm_kernels.quantize import MAX_BITS

SIZE, CHANNELS, BITS = 96, 64, 8
# By name: outputs, pixels a side of the kernel, the factor of PixelShuffle, and whether there are kernels for the border.
LAYERS = {
    "tail-x4-5x5-64-48": (48, 5, 4, True),
    "tail-x2-5x5-64-12": (12, 5, 2, True),
    "last-3x3-64-3": (3, 3, 1, False),
    "last-9x9-64-3": (3, 9, 1, False),
}
FORMS = [
    pytest.param(name, tile, id=f"{name}-{tile.name}")
    for name, (outputs, kernel, _, borders) in LAYERS.items()
    for tile in TILES
    if tile is DIRECT or (tile.words and tile.takes(outputs, kernel, kernel, borders))
]


@functools.cache
def weights(name: str) -> torch.Tensor:
    """Weights int8 that fall off outwards, as those of trained and collapsed kernels do."""
    outputs, kernel, _, borders = LAYERS[name]
    g = torch.Generator().manual_seed(0)
    away = torch.arange(kernel) - kernel // 2
    fall_off = torch.exp(-(away**2) / 2.0)
    shape = (kernel, kernel) * borders
    values = torch.randn(*shape, outputs, kernel, kernel, CHANNELS, generator=g) * fall_off.view(-1, 1, 1) * fall_off.view(1, -1, 1)
    return (values * 40).round().clamp(-128, 127).to(torch.int8)


def integer_layer(name: str, tile_index: int, size: int, backend: str = "cpu") -> tuple[Callable[[], None], torch.Tensor]:
    """Returns two values: a function that runs the layer, and the tensor with its output."""
    outputs, kernel, shuffle, borders = LAYERS[name]
    weight, classes = weights(name), kernel if borders else (kernel // 2 + 1) ** 2
    g = torch.Generator().manual_seed(1)
    x_q = torch.randint(0, 2**BITS, (1, size, size, CHANNELS), dtype=torch.uint8, generator=g)
    tables = torch.ones(MAX_BITS - 1, outputs), torch.zeros(classes, classes, outputs)
    packed = cpu.pack(weight, Packing((0,) * 6 + (tile_index,)))
    y = torch.empty(1, size * shuffle, size * shuffle, outputs // shuffle**2)
    bits = torch.tensor([BITS], dtype=torch.int32)
    return lambda: ops.conv2d_out(x_q, bits, weight, packed, *tables, y=y, shuffle=shuffle, backend=backend, threads=THREADS), y


@pytest.mark.benchmark(group=f"ends of networks {SIZE}x{SIZE}")
@pytest.mark.parametrize("name, tile", FORMS)
def bench_end(benchmark, name: str, tile) -> None:
    index = TILES.index(tile)
    (small, got), (reference, want) = integer_layer(name, index, 21), integer_layer(name, index, 21, "reference")
    small(), reference()
    assert torch.equal(got, want)
    benchmark.extra_info |= {"tile": tile.name, "isa": native.isa_chosen(), "threads": THREADS}
    benchmark(integer_layer(name, index, SIZE)[0])


@pytest.mark.benchmark(group=f"ends of networks {SIZE}x{SIZE}")
@pytest.mark.parametrize("name", LAYERS)
def bench_torch_end(benchmark, name: str) -> None:
    require("float32")
    outputs, kernel, shuffle, _ = LAYERS[name]
    layout = {"memory_format": torch.channels_last}
    x = torch.rand(1, CHANNELS, SIZE, SIZE).contiguous(**layout)
    weight = torch.rand(outputs, CHANNELS, kernel, kernel).contiguous(**layout)
    benchmark.extra_info |= {"threads": THREADS}
    with torch.no_grad():
        benchmark(lambda: F.pixel_shuffle(F.conv2d(x, weight, padding=kernel // 2), shuffle))
