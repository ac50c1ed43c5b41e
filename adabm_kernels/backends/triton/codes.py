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
def pixels_of(row, column, width, sub, SHUFFLE: tl.constexpr):
    """[M, N] pixel, in an image of `width` * SHUFFLE columns, of sub-pixel sub [N] of the pixels row, column [M]."""
    above = (row * SHUFFLE)[:, None] + (sub // SHUFFLE)[None, :]
    return above * (width * SHUFFLE) + (column * SHUFFLE)[:, None] + (sub % SHUFFLE)[None, :]


@triton.jit
def _store_bytes(content, y_q, row, column, width, valid, first, PITCH: tl.constexpr, AXIS: tl.constexpr,
                 SHUFFLE: tl.constexpr, START: tl.constexpr, SHARE: tl.constexpr):  # fmt: skip
    """Bytes [M, N] of SHARE codes each, element n being byte (first + n) % (AXIS / SHARE) of its sub-pixel."""
    N: tl.constexpr = content.shape[1]
    BYTES: tl.constexpr = PITCH - START // SHARE
    at = first // SHARE + tl.arange(0, N)
    sub, byte = at // (AXIS // SHARE), at % (AXIS // SHARE)
    inside = (sub < SHUFFLE * SHUFFLE) & (byte < BYTES)
    place = pixels_of(row, column, width, sub, SHUFFLE) * PITCH + (START // SHARE + byte)[None, :]
    tl.store(y_q + place, content.to(tl.uint8), mask=valid[:, None] & inside[None, :])


@triton.jit
def store_codes(codes, y_q, row, column, width, valid, first, bits, CHANNELS: tl.constexpr, PITCH: tl.constexpr,
                AXIS: tl.constexpr, SHUFFLE: tl.constexpr, START: tl.constexpr, PACKED: tl.constexpr):  # fmt: skip
    """Writes int32 codes [M, N] of one image: bytes, or packed (quantize.pack_codes) with the storage that `bits` asks for.

    y_q: the image. row, column, valid: [M] pixels before the shuffle. Element n is channel START + (first + n) % AXIS of sub-pixel
    (first + n) / AXIS; AXIS is a multiple of 16, and codes past the last channel are 0. CHANNELS: of the buffer, padded. PITCH:
    bytes of a pixel where it is not packed.
    """
    M: tl.constexpr = codes.shape[0]
    N: tl.constexpr = codes.shape[1]
    if PACKED:
        if bits <= 2:
            even, odd = tl.split(tl.reshape(codes, (M, N // 2, 2)))
            low, high = tl.split(tl.reshape(even | (odd << 2), (M, N // 4, 2)))
            _store_bytes(low | (high << 4), y_q, row, column, width, valid, first, (CHANNELS + 15) // 16 * 4, AXIS,
                         SHUFFLE, START, 4)  # fmt: skip
        elif bits <= 4:
            even4, odd4 = tl.split(tl.reshape(codes, (M, N // 2, 2)))
            _store_bytes(even4 | (odd4 << 4), y_q, row, column, width, valid, first, (CHANNELS + 7) // 8 * 4, AXIS,
                         SHUFFLE, START, 2)  # fmt: skip
        else:
            _store_bytes(codes, y_q, row, column, width, valid, first, PITCH, AXIS, SHUFFLE, START, 1)
    else:
        _store_bytes(codes, y_q, row, column, width, valid, first, PITCH, AXIS, SHUFFLE, START, 1)
