"""Depths of tiles in the CUDA kernel, executed on the CPU, against the reference."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from cuda_calls import POISON, cuda_on_host
from cuda_library import ORDERS, buffers, host_library, policy, runtime
from tile_pictures import PLACES, THRESHOLDS, pictures

from adabm_kernels import ops
from adabm_kernels.backends import cuda
from adabm_kernels.backends.call import DepthRule
from adabm_kernels.regions import tiles_of


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
