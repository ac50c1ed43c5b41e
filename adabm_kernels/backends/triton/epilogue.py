"""Turns the accumulators of a tile into features, pixels or codes. Every form of the convolution ends with it."""

from __future__ import annotations

import triton
import triton.language as tl

from .codes import bits_at, pixels_of, store_codes, to_codes, to_fixed, to_pixels

PATCH_WIDTH = tl.constexpr(16)  # pixels in a row of a patch; a tile has at least this many pixels


@triton.jit
def finish(acc, image, row, column, number, valid, computed, height, width, bits, kernel, first, sub, channel, known, output, alpha,
           beta, slope, residual, out_grid, out_bits, y, y_q, per_one, step, K: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
           BY_CLASS: tl.constexpr, ACTIVATION: tl.constexpr, SHUFFLE: tl.constexpr, PACKED: tl.constexpr, Y: tl.constexpr,
           Y_PITCH: tl.constexpr, CODES: tl.constexpr, RESIDUAL: tl.constexpr, PASSES: tl.constexpr,
           AXIS: tl.constexpr):  # fmt: skip
    """Writes what a layer makes of acc int32 [M, N], the sums of products of one image. Parameters not named here are those of
    conv2d_kernel.

    row, column, number: [M] pixels, and their numbers in the image, counted row by row. valid, computed: [M] which of the pixels
    are written, and which of these have sums; the others are passed on. bits, kernel: the bits of the image's codes, and the border
    class of the pixels. first: the number of the first of the outputs [N] in the tile. sub, channel, known, output: [N] the
    sub-pixel of each output, its channel there, whether it exists, and its number.
    """
    CHANNELS: tl.constexpr = K // (SHUFFLE * SHUFFLE)
    GROUPS: tl.constexpr = SHUFFLE * SHUFFLE
    y_image = image.to(tl.int64) * height * width * GROUPS
    wanted = valid[:, None] & known[None, :]
    to_row, to_column, to_width = row, column, width
    if SHUFFLE == 1:  # by the number of a pixel alone, so that rows and columns need not be computed in every layout of results
        to_row, to_column, to_width = number, tl.zeros_like(row), 1
    at = pixels_of(to_row, to_column, to_width, sub, SHUFFLE) * Y_PITCH + channel[None, :]
    if Y == 2:
        tl.store(y + y_image * Y_PITCH + at, acc, mask=wanted)
    else:
        scale = tl.load(alpha + (bits - 2) * K + output, mask=known, other=0.0)
        if BY_CLASS:
            value = _scaled(acc, scale, tl.load(beta + kernel * K + output, mask=known, other=0.0)[None, :])
        else:
            border = _border(row, column, valid, height, width, R, S)
            # This stands in either branch, so that sums and shifts need not both be kept until the branches meet.
            if tl.max(border, 0) == 0:
                value = _scaled(acc, scale, tl.load(beta + output, mask=known, other=0.0)[None, :])
            else:
                shift = tl.load(beta + (border * K)[:, None] + output[None, :], mask=valid[:, None] & known[None, :], other=0.0)
                value = _scaled(acc, scale, shift)
        if ACTIVATION == 1:
            value = tl.maximum(value, 0.0)
        elif ACTIVATION == 2:
            value = tl.where(value < 0, value * tl.load(slope + output, mask=known, other=0.0)[None, :], value)
        if PASSES:
            # Adding -0.0 leaves every float as it is.
            value = tl.where(computed[:, None], value, -0.0 if RESIDUAL else 0.0)
        if step is None:
            if RESIDUAL:
                value = tl.load(residual + y_image * Y_PITCH + at, mask=wanted, other=0.0) + value
            if Y == 1:
                tl.store(y + y_image * Y_PITCH + at, value, mask=wanted)
        else:
            if RESIDUAL:
                stored = tl.load(residual + y_image * Y_PITCH + at, mask=wanted, other=0)
                # This is a choice, not a sum as elsewhere: where an integer is widened, the compiler computes all that follows it
                # twice, once in the layout of the load.
                value = tl.fma(stored.to(tl.float32), tl.zeros_like(value) + step, value)
            fixed, value = to_fixed(value, per_one, step)
            if Y == 1:
                tl.store(y + y_image * Y_PITCH + at, fixed, mask=wanted)
        if Y == 3:
            tl.store(y + y_image * Y_PITCH + at, to_pixels(value).to(tl.uint8), mask=wanted)
        if CODES:
            next_bits = bits_at(out_bits, image)
            new = tl.where(known[None, :], to_codes(value, out_grid, next_bits), 0)
            C4_OUT: tl.constexpr = (CHANNELS + 3) // 4 * 4
            store_codes(new, y_q + y_image * C4_OUT, to_row, to_column, to_width, valid, first, next_bits, C4_OUT, C4_OUT, AXIS,
                        SHUFFLE, 0, C4_OUT, PACKED)  # fmt: skip


@triton.jit
def _border(row, column, valid, height, width, R: tl.constexpr, S: tl.constexpr):
    """int32 [M]: the border class of each pixel (quantize.border_class), 0 for all pixels of a tile that touches no border."""
    P: tl.constexpr = R // 2
    Q: tl.constexpr = S // 2
    above, below = tl.maximum(P - row, 0), tl.maximum(row + P - (height - 1), 0)
    before, behind = tl.maximum(Q - column, 0), tl.maximum(column + Q - (width - 1), 0)
    border = (above * (P + 1) + below) * ((Q + 1) * (Q + 1)) + before * (Q + 1) + behind
    return tl.where(valid, border, 0).to(tl.int32)


@triton.jit
def _scaled(acc, scale, shift):
    """float32 [M, N]: acc * scale + shift with one rounding. scale: [N]. shift: [M, N] or [1, N]."""
    value = acc.to(tl.float32)
    return tl.fma(value, tl.broadcast_to(scale[None, :], value.shape), tl.broadcast_to(shift, value.shape))
