"""Decides which pixels a program computes or passes on, by the depths of tiles (regions.Region). The functions are parts of the
kernels beside this file.

Depths and the numbers of a region are read at run time. One compiled kernel serves all regions that pass pixels on, and another one
those that do not. The number of launched programs depends on neither.
"""

from __future__ import annotations

import triton
import triton.language as tl

PASSED_ON, COMPUTED = tl.constexpr(1), tl.constexpr(2)  # what is done with a pixel; a mark of 0 means nothing


@triton.jit
def _tile_of(position, tile, before):
    """uint32: the numbers of the tiles that hold these rows or columns, where the first tile lacks its first `before` of them. Sums
    may exceed what an int32 holds."""
    return (tl.cast(position, tl.uint32) + tl.cast(before, tl.uint32)) // tl.cast(tile, tl.uint32)


@triton.jit
def _moved(position, by, size):
    """Positions moved by `by`, but kept in 0..size - 1."""
    return position + tl.minimum(tl.maximum(by, -position), size - 1 - position)


@triton.jit
def _within(depths, tile_row, tile_column, columns, valid, least, most):
    """Tells which of the depths of tiles lie in least..most. depths: the depths of one image, with `columns` of them to a row."""
    depth = tl.load(depths + (tile_row * columns + tile_column), mask=valid, other=0).to(tl.int32)
    return (depth >= least) & (depth <= most)


@triton.jit
def _near(depths, columns, row, column, height, width, valid, tile, top, left, least, most, reach):
    """Tells which of the pixels at row, column [M] have, at most `reach` rows and columns away, a tile whose depth is in
    least..most.

    A reach is at most a tile, so the tiles of a pixel and of the eight pixels `reach` away are all that lie within it.
    """
    found = tl.zeros((row.shape[0],), tl.int1)
    for i in tl.static_range(3):
        tile_row = _tile_of(_moved(row, (i - 1) * reach, height), tile, top)
        for j in tl.static_range(3):
            tile_column = _tile_of(_moved(column, (j - 1) * reach, width), tile, left)
            found |= _within(depths, tile_row, tile_column, columns, valid, least, most)
    return found


@triton.jit
def marks_of(depth, image, row, column, height, width, valid, tile, top, left, own_least, own_most, near_least, near_most, reach,
             pass_least, pass_most, pass_reach, PASSES: tl.constexpr):  # fmt: skip
    """int32 [M]: COMPUTED, PASSED_ON or 0 for those of the pixels at row, column (int32 [M]) of an image that are `valid`, and 0
    for the others.

    depth: the depths of the tiles of all images. tile, ... pass_reach: numbers of the region. PASSES: whether it passes pixels on.
    """
    rows, columns = _tile_of(height - 1, tile, top) + 1, _tile_of(width - 1, tile, left) + 1
    depths = depth + image.to(tl.int64) * rows * columns
    computed = _within(depths, _tile_of(row, tile, top), _tile_of(column, tile, left), columns, valid, own_least, own_most)
    computed &= _near(depths, columns, row, column, height, width, valid, tile, top, left, near_least, near_most, reach)
    marks = tl.where(computed, COMPUTED, 0)
    if PASSES:
        passed = _near(depths, columns, row, column, height, width, valid, tile, top, left, pass_least, pass_most, pass_reach)
        marks = tl.where(passed & (marks == 0), PASSED_ON, marks)
    # The compiler moves the result of a reduction to the threads that need it. Anything else it computes anew, depths and all, in
    # each layout that needs it, which takes more registers than there are.
    return tl.max(tl.where(valid, marks, 0)[None, :], 0)


@triton.jit
def any_of(marked):
    """Tells whether any element of bool [M] is set."""
    return tl.max(marked.to(tl.int32), 0) > 0
