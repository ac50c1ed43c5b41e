"""Pixels, outputs and codes of a tile of the convolution: the index arithmetic that both forms of the convolution share."""

from __future__ import annotations

import triton
import triton.language as tl

from .epilogue import PATCH_WIDTH


@triton.jit
def pixels_of_patch(tile, position, across, height, width, BLOCK_M: tl.constexpr):
    """Row and column of the pixels at `position` [M] of a tile that is a patch, and whether each pixel lies in the image of height
    x width pixels. `across` patches lie side by side in the image."""
    row = tile // across * (BLOCK_M // PATCH_WIDTH) + position // PATCH_WIDTH
    column = tile % across * PATCH_WIDTH + position % PATCH_WIDTH
    return row, column, (row < height) & (column < width)


@triton.jit
def pixels_of_tile(tile, top, left, height, width, PATCHES: tl.constexpr, BLOCK_M: tl.constexpr):
    """Row and column of the pixels [M] of a tile of the part of an image that begins at top, left and has height x width pixels,
    and whether each pixel lies in that part."""
    position = tl.arange(0, BLOCK_M)
    if PATCHES:
        row, column, valid = pixels_of_patch(tile, position, tl.cdiv(width, PATCH_WIDTH), height, width, BLOCK_M)
    else:
        position += tile * BLOCK_M
        row, column, valid = top + position // width, left + position % width, position < height * width
    return row, column, valid


@triton.jit
def outputs_at(axis, CHANNELS: tl.constexpr, GROUPS: tl.constexpr, AXIS: tl.constexpr, BLOCK_N: tl.constexpr):
    """Returns four values for the outputs [N] at the places `axis` on an axis of GROUPS times AXIS outputs: the sub-pixel, the
    channel in it, whether the output exists, and its number."""
    sub, channel = axis // AXIS, axis % AXIS
    known = (sub < GROUPS) & (channel < CHANNELS)
    if CHANNELS == AXIS and GROUPS * AXIS % BLOCK_N == 0:
        # all exist here, which the compiler does not find out by itself: it would keep a mask
        known = tl.full((BLOCK_N,), True, tl.int1)
    return sub, channel, known, tl.where(known, sub * CHANNELS + channel, 0)


@triton.jit
def codes_at(x_q, row, column, valid, height, width, r, first, k, R: tl.constexpr, S: tl.constexpr, PITCH: tl.constexpr,
             BLOCK_K: tl.constexpr):  # fmt: skip
    """Bytes [M, K] of an image that row r of the kernel reads for the pixels at row, column [M], beginning at byte `first` of S
    pixels.

    They are 0 outside the image and for pixels that are not `valid`. k: the numbers first + 0 .. BLOCK_K - 1. PITCH: bytes of a
    pixel.
    """
    from_row = row + (r - R // 2)
    inside = valid & (from_row >= 0) & (from_row < height)
    if PITCH % BLOCK_K == 0:  # then a block lies in one pixel
        from_column = column + (first // PITCH - S // 2)
        inside_k = (inside & (from_column >= 0) & (from_column < width))[:, None]
    else:
        from_column = column[:, None] + (k // PITCH - S // 2)[None, :]
        inside_k = inside[:, None] & (from_column >= 0) & (from_column < width) & (k < S * PITCH)[None, :]
    at = (from_row * width + column - S // 2) * PITCH
    return tl.load(x_q + at[:, None] + k[None, :], mask=inside_k, other=0)
