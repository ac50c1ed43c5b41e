"""The depth of each tile: a kernel that decides whether the image bends there by more than a threshold."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...regions import tiles_of
from ..call import DepthRule
from . import launch

BLOCK = 512  # pixels that a program looks at before it asks whether it has seen enough


@triton.jit
def _pixels(x, row, column, width, valid):
    """int32 [M, 4]: the channels of pixels [M] of an image."""
    at = (row * width + column) * 4
    return tl.load(x + at[:, None] + tl.arange(0, 4)[None, :], mask=valid[:, None], other=0).to(tl.int32)


@triton.jit(do_not_specialize=["height", "width", "rows", "columns", "tile", "top", "left", "threshold", "deep"])
def tile_depths_kernel(x_q, depth, height, width, rows, columns, tile, top, left, threshold, deep, BLOCK: tl.constexpr):
    """Decides about one tile of one image, looking at BLOCK of its pixels at a time until one bends by more than the threshold."""
    index, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    # Positions have 64 bits, because a tile may reach beyond an image whose positions just fit 32.
    size = tl.cast(tile, tl.int64)
    first_row, first_column = index // columns * size - top, index % columns * size - left
    end_row, end_column = tl.minimum(first_row + size, height), tl.minimum(first_column + size, width)
    first_row, first_column = tl.maximum(first_row, 0), tl.maximum(first_column, 0)
    tile_width = (end_column - first_column).to(tl.int32)
    pixels = (end_row - first_row).to(tl.int32) * tile_width
    x = x_q + image * height * width * 4
    bend, start = threshold * 0, pixels * 0
    while (start < pixels) & (bend <= threshold):
        pixel = start + tl.arange(0, BLOCK)
        valid = pixel < pixels
        row, column = first_row + pixel // tile_width, first_column + pixel % tile_width
        at = _pixels(x, row, column, width, valid)
        above = _pixels(x, tl.maximum(row - 1, 0), column, width, valid)
        below = _pixels(x, tl.minimum(row + 1, height - 1), column, width, valid)
        before = _pixels(x, row, tl.maximum(column - 1, 0), width, valid)
        after = _pixels(x, row, tl.minimum(column + 1, width - 1), width, valid)
        down, across = tl.abs(above - 2 * at + below), tl.abs(before - 2 * at + after)
        bend = tl.max(tl.max(tl.maximum(down, across), 1), 0)
        start += BLOCK
    tl.store(depth + image * rows * columns + index, tl.where(bend > threshold, deep, 0).to(tl.uint8))


def tile_depths_out(x_q: torch.Tensor, rule: DepthRule, depth: torch.Tensor) -> None:
    """See call.Kernels. It is one launch."""
    n, h, w, _ = x_q.shape
    launch.check("tile_depths", "x_q", x_q, h * w)
    rows, columns = tiles_of(h, rule.tile, rule.top), tiles_of(w, rule.tile, rule.left)
    launch.check_programs("tile_depths", x_q.device, rows * columns, 4)
    with launch.on(x_q):
        numbers = h, w, rows, columns, rule.tile, rule.top, rule.left, rule.threshold, rule.deep
        launch.run(tile_depths_kernel, (rows * columns, n), (x_q, depth), numbers, BLOCK=BLOCK, num_warps=4)
