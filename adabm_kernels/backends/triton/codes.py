"""Codes in Triton: from floats to a grid, and into memory; parts of the kernels beside this file."""

from __future__ import annotations

import triton
import triton.language as tl

# 1.5 * 2^23: a float32 in 0..255 plus this is rounded half to even to an integer, which is then the low byte of its bits.
ROUNDER = tl.constexpr(12582912.0)


@triton.jit
def bits_at(bits, image):
    """Bits of an image; nothing on the host sees them, so a wrong value must not reach past a table."""
    return tl.minimum(tl.maximum(tl.load(bits + image), 2), 8)


@triton.jit
def to_codes(value, grid, bits):
    """int32 codes of float32 values on the grid (float32 [7, 2]) of `bits`: docs/numerics.md, "Epilogue"."""
    scale, offset = tl.load(grid + (bits - 2) * 2), tl.load(grid + (bits - 2) * 2 + 1)
    top = ((1 << bits) - 1).to(tl.float32)
    unrounded = tl.fma(value, tl.zeros_like(value) + scale, tl.zeros_like(value) + offset)
    clamped = tl.where(unrounded > 0, tl.minimum(unrounded, top), 0.0)  # NaN becomes 0
    return (clamped + ROUNDER).to(tl.int32, bitcast=True) & 255


@triton.jit
def store_codes(codes, y_q, pixel, row_valid, first, bits, CHANNELS: tl.constexpr, PITCH: tl.constexpr, AXIS: tl.constexpr,
                GROUPS: tl.constexpr, START: tl.constexpr, PACKED: tl.constexpr):  # fmt: skip
    """Writes int32 codes [M, N] of one image: bytes, or packed (quantize.pack_codes) with the storage that `bits` asks for.

    y_q: the image. pixel: [M, N] pixel of each element, which is channel START + (first + n) % AXIS where (first + n) / AXIS is below
    GROUPS; AXIS is a multiple of 16, and codes past the last channel are 0. CHANNELS: of the buffer. PITCH: bytes a pixel has
    unpacked. row_valid: [M].
    """
    M: tl.constexpr = codes.shape[0]
    N: tl.constexpr = codes.shape[1]
    stored = 8
    if PACKED:
        stored = tl.where(bits <= 2, 2, tl.where(bits <= 4, 4, 8))
    if stored == 8:
        at = first + tl.arange(0, N)
        channel = at % AXIS
        inside = (channel < CHANNELS - START) & (at < GROUPS * AXIS)
        tl.store(y_q + pixel * PITCH + (START + channel)[None, :], codes.to(tl.uint8), mask=row_valid[:, None] & inside[None, :])
    else:
        if PACKED:
            low, high = tl.split(tl.reshape(codes, (M, N // 2, 2)))
            pixels, _ = tl.split(tl.reshape(pixel, (M, N // 2, 2)))
            if stored == 4:
                P4: tl.constexpr = (CHANNELS + 7) // 8 * 4
                at = first // 2 + tl.arange(0, N // 2)
                byte = at % (AXIS // 2)
                inside = (byte < P4 - START // 2) & (at < GROUPS * AXIS // 2)
                tl.store(y_q + pixels * P4 + (START // 2 + byte)[None, :], (low | (high << 4)).to(tl.uint8),
                         mask=row_valid[:, None] & inside[None, :])  # fmt: skip
            else:
                P2: tl.constexpr = (CHANNELS + 15) // 16 * 4
                low, high = tl.split(tl.reshape(low | (high << 2), (M, N // 4, 2)))
                pixels, _ = tl.split(tl.reshape(pixels, (M, N // 4, 2)))
                at = first // 4 + tl.arange(0, N // 4)
                byte = at % (AXIS // 4)
                inside = (byte < P2 - START // 4) & (at < GROUPS * AXIS // 4)
                tl.store(y_q + pixels * P2 + (START // 4 + byte)[None, :], (low | (high << 4)).to(tl.uint8),
                         mask=row_valid[:, None] & inside[None, :])  # fmt: skip
