"""Features of any strides become codes, as bytes or packed."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...quantize import padded_channels
from ..call import Quantization, RunQuantize, dense, pitch, run_quantize
from . import launch, tuning
from .codes import bits_at, store_codes, to_codes
from .regions import any_of, marks_of

COMPUTED_NUMBERS = 8  # the first numbers of a region; those behind them are about pixels that are passed on


# The numbers of a region and the place of its map differ from layer to layer, which is no reason to compile a kernel again.
@triton.jit(
    do_not_specialize=["width", "pixels", "depth_tile", "depth_top", "depth_left", "own_least", "own_most", "near_least",
                       "near_most", "reach"],
    do_not_specialize_on_alignment=["bits", "depth"],
)  # fmt: skip
def quantize_kernel(x, step, shift, grid, bits, y_q, width, pixels, stride_n, stride_c, stride_h, stride_w,
                    depth, depth_tile, depth_top, depth_left, own_least, own_most, near_least, near_most, reach,
                    C: tl.constexpr, SHIFT: tl.constexpr, CHANNELS: tl.constexpr, PITCH: tl.constexpr, START: tl.constexpr,
                    FILL: tl.constexpr, AXIS: tl.constexpr, PACKED: tl.constexpr, WIDE: tl.constexpr, BLOCK_M: tl.constexpr,
                    BLOCK_N: tl.constexpr):  # fmt: skip
    """Quantises one tile of BLOCK_M pixels and BLOCK_N channels of one image. CHANNELS, PITCH, START, FILL, AXIS: see store_codes.

    step: value of the integer 1 where x is int16, None where it is float32. depth, depth_tile, ... reach: the map of all images and
    the numbers of the region; None without a region.
    """
    image = tl.program_id(1)
    N_BLOCKS: tl.constexpr = (AXIS + BLOCK_N - 1) // BLOCK_N
    tile, first = tl.program_id(0) // N_BLOCKS, tl.program_id(0) % N_BLOCKS * BLOCK_N
    pixel = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = first + tl.arange(0, BLOCK_N)
    valid, known = pixel < pixels, channel < C
    row, column, from_channel = pixel // width, pixel % width, channel
    if depth is not None:
        marks = marks_of(depth, image, row, column, pixels // width, width, valid, depth_tile, depth_top, depth_left, own_least,
                         own_most, near_least, near_most, reach, 1, 0, 0, False)  # fmt: skip
        valid = marks > 0
        if not any_of(valid):
            return
    if WIDE:
        row, column, from_channel, pixel = row.to(tl.int64), column.to(tl.int64), channel.to(tl.int64), pixel.to(tl.int64)
    at = (row * stride_h + column * stride_w)[:, None] + (from_channel * stride_c)[None, :]
    value = tl.load(x + image.to(tl.int64) * stride_n + at, mask=valid[:, None] & known[None, :], other=0)
    if step is not None:
        value = value.to(tl.float32) * step
    if SHIFT:
        value = value - tl.load(shift + channel, mask=known, other=0.0)[None, :]
    width_bits = bits_at(bits, image)
    codes = tl.where(known[None, :], to_codes(value, grid, width_bits), 0)
    y_image = y_q + image.to(tl.int64) * pixels * PITCH
    store_codes(codes, y_image, pixel, tl.zeros_like(pixel), 1, valid, first, width_bits, CHANNELS, PITCH, AXIS, 1, START, FILL,
                PACKED)  # fmt: skip


def quantize_out(read: Quantization, y_q: torch.Tensor) -> None:
    """See call.Kernels."""
    run_quantize(ready_quantize_out(read, y_q), read, y_q)


def ready_quantize_out(read: Quantization, y_q: torch.Tensor) -> RunQuantize:
    """See call.Kernels. It also decides how the kernel is launched."""
    x, start, packed_codes = read.x, read.start, read.packed_codes
    n, c, h, w = x.shape
    launch.check("quantize", "x", x, h * w)
    channels, y_pitch = y_q.shape[3], pitch(y_q)
    fill = padded_channels(c) if packed_codes else channels
    last = packed_codes and start + fill == channels
    axis = -(-(-(-channels // 16) * 16 - start if last else fill) // 16) * 16
    reach = sum((size - 1) * abs(stride) for size, stride in zip(x.shape[1:], x.stride()[1:], strict=True))
    numbers = (None,) * COMPUTED_NUMBERS if read.place.depth is None else read.place.region[:COMPUTED_NUMBERS]
    constants = {
        "C": c, "SHIFT": read.shift is not None, "CHANNELS": channels, "PITCH": y_pitch, "START": start, "FILL": fill, "AXIS": axis,
        "PACKED": packed_codes, "WIDE": max(reach, h * w * y_pitch) > launch.NARROW,
    }  # fmt: skip
    step = 2.0**-read.fraction if x.dtype == torch.int16 else None
    config = tuning.quantize_config(axis)
    programs = -(-h * w // config.block_m) * -(-axis // config.block_n)
    launch.check_programs("quantize", x.device, programs, config.num_warps)
    strides = x.stride()
    again = launch.Again(quantize_kernel, (programs, n), constants | config.options())

    def run(x, shift, grid, bits, depth, y_q):
        shift, grid, bits = dense(shift), dense(grid), dense(bits)
        with launch.on(x):
            again((x, shift, grid, y_q), (x, step, shift, grid, bits, y_q, w, h * w, *strides, depth, *numbers))

    return run
