"""Depths of tiles in the CUDA kernel, executed on the CPU, against the reference."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from cuda_calls import POISON, cuda_on_host
from cuda_library import ORDERS, buffers, host_library, policy, runtime

from adabm_kernels import ops
from adabm_kernels.backends import cuda
from adabm_kernels.backends.call import DepthRule
from adabm_kernels.regions import tiles_of

# Height and width of images; tile, top and left.
PLACES = {
    "one_pixel": (1, 1, 4, 0, 0),
    "one_row": (1, 9, 4, 1, 3),
    "one_column": (7, 1, 8, 0, 0),
    "cut_tiles": (25, 34, 8, 3, 7),
    "network_tiles": (50, 60, 24, 0, 0),
    "wider_than_a_warp": (11, 77, 35, 4, 30),
    "huge_tiles": (19, 75, 1 << 20, 5, (1 << 20) - 40),
}
THRESHOLDS = (0, 20, 60, 300, 510)


def pictures(height: int, width: int) -> torch.Tensor:
    """Codes [6, H, W, 4]: strong and weak noise, and grey ones with one other pixel, in a channel each."""
    generator = torch.Generator().manual_seed(height * width)
    x_q = torch.full((6, height, width, 4), 100, dtype=torch.uint8)
    x_q[:2] = torch.randint(0, 256, (2, height, width, 4), dtype=torch.uint8, generator=generator)
    x_q[1] //= 8
    for channel in range(4):
        row, column = (int(torch.randint(size, (), generator=generator)) for size in (height, width))
        x_q[2 + channel, row, column, channel] = (0, 255, 130, 101)[channel]
    return x_q


def wanted(x_q: torch.Tensor, tile: int, top: int, left: int, threshold: int, deep: int) -> torch.Tensor:
    return ops.tile_depths(x_q, tile, threshold, deep, top=top, left=left, backend="reference")


@pytest.fixture(autouse=True)
def built() -> Iterator[None]:
    host_library()
    with cuda_on_host():
        yield


def found(x_q: torch.Tensor, tile: int, top: int, left: int, threshold: int, deep: int) -> torch.Tensor:
    """By the kernel, which may touch nothing but its input and output."""
    sizes = (tiles_of(size, tile, before) for size, before in zip(x_q.shape[1:3], (top, left), strict=True))
    depth = torch.full((len(x_q), *sizes), POISON, dtype=torch.uint8)
    with buffers([x_q], [depth]):
        cuda.tile_depths_out(x_q, DepthRule(tile, top, left, threshold, deep), depth)
    return depth


@pytest.mark.parametrize("place", PLACES)
def test_depths_equal_the_reference(place: str) -> None:
    height, width, *tiles = PLACES[place]
    x_q = pictures(height, width)
    for threshold in THRESHOLDS:
        assert torch.equal(found(x_q, *tiles, threshold, 16), wanted(x_q, *tiles, threshold, 16))


@pytest.mark.parametrize("order", ORDERS)
def test_warps_may_run_in_any_order(order: str) -> None:
    height, width, *tiles = PLACES["cut_tiles"]
    x_q = pictures(height, width)
    with policy(order, seed=3):
        assert torch.equal(found(x_q, *tiles, 20, 255), wanted(x_q, *tiles, 20, 255))


def test_blocks_take_several_tiles() -> None:
    x_q = pictures(21, 20)
    assert torch.equal(found(x_q, 1, 0, 0, 60, 1), wanted(x_q, 1, 0, 0, 60, 1))
    assert runtime().last_blocks() < 6 * 21 * 20


def test_codes_may_begin_at_any_byte() -> None:
    x_q = pictures(9, 10)
    moved = torch.zeros(x_q.numel() + 1, dtype=torch.uint8)[1:].view_as(x_q).copy_(x_q)
    got = ops.tile_depths(moved, 4, 20, 3, backend="cuda")
    assert torch.equal(got, wanted(x_q, 4, 0, 0, 20, 3))
