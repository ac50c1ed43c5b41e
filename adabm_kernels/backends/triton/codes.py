"""Codes and 16-bit features in Triton: how float values become integers of a grid and how these are written to memory. The
functions are parts of the kernels beside this file.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

# The number is 1.5 * 2^23. Added to a float32 in 0..255 it rounds that half to even to an integer, which is then the low byte of
# the bits of the sum. A float32 in -32767..32767 is rounded in the same way, and its integer is the low half of the bits.
ROUNDER = tl.constexpr(12582912.0)


@triton.jit
def bits_at(bits, image):
    """Bits of an image, clamped to 2..8: nothing on the host sees them, so a wrong value must not reach past the end of a table."""
    return tl.minimum(tl.maximum(tl.load(bits + image), 2), 8)


interpreted_as = "cuda"  # The maker of cards whose form of the kernels Triton's interpreter computes. Tests also set it to "hip".


def assembles(_semantic: Any = None) -> bool:
    """Tells whether a kernel is built for cards that take PTX.

    The compiler that builds the kernel says so, and the answer is a constant in the kernel. It holds for the architecture that is
    asked for, which need not be that of a card of this machine. The interpreter has no compiler and goes by `interpreted_as`.
    """
    return (_semantic.builder.options.backend_name if _semantic is not None else interpreted_as) == "cuda"


assembles.__triton_builtin__ = True  # type: ignore[attr-defined]  # Triton then calls it as the kernel is built


@triton.constexpr_function
def _part_asm(stored, part):
    mask = {4: 0x0F0F0F0F, 2: 0x03030303}[stored]
    return f"shr.u32 $0, $1, {part * stored}; and.b32 $0, $0, {mask:#x};"


@triton.jit
def part_of(codes, STORED: tl.constexpr, PART: tl.constexpr):
    """The int8 operand of a product: code number PART of each of the bytes [M, K], less 128 where STORED is 8.

    A byte holds 8/STORED codes. One instruction handles four bytes, where the compiler by itself would spend one instruction on
    each. On NVIDIA's cards it is written in assembly; elsewhere the bytes are joined to words and taken apart again, which the
    compiler does by naming registers (docs/gpu_amd.md). The codes are the only operand, because Triton then reads them from shared
    memory when products need them. With a second operand it would read them in the layout of the load and move them through shared
    memory again.
    """
    if assembles():
        if STORED == 8:
            return tl.inline_asm_elementwise("xor.b32 $0, $1, 0x80808080;", "=r,r", [codes], dtype=tl.int8, is_pure=True, pack=4)
        else:
            return tl.inline_asm_elementwise(_part_asm(STORED, PART), "=r,r", [codes], dtype=tl.int8, is_pure=True, pack=4)
    else:
        if STORED == 8:
            words = _words_of(codes) ^ 0x80808080
        else:
            MASK: tl.constexpr = 0x0F0F0F0F if STORED == 4 else 0x03030303
            words = (_words_of(codes) >> (PART * STORED)) & MASK
        # The third axis of a grid has length 1, so this adds nothing. The compiler cannot know that, and therefore keeps words
        # whole. After a mask alone, which is a constant, it would make an instruction or two for every byte.
        return _bytes_of(words | tl.program_id(2).to(tl.uint32))


@triton.jit
def _words_of(codes):
    """uint32 [M, K / 4] whose words each hold four of the bytes [M, K], the first in the low bits. Joining bytes that lie in one
    register costs nothing.
    """
    M: tl.constexpr = codes.shape[0]
    K: tl.constexpr = codes.shape[1]
    even, odd = tl.split(tl.reshape(codes, (M, K // 2, 2)))
    low, high = tl.split(tl.reshape(even.to(tl.uint32) | (odd.to(tl.uint32) << 8), (M, K // 4, 2)))
    return low | (high << 16)


@triton.jit
def _bytes_of(words):
    """int8 [M, 4 * K]: the bytes of the words uint32 [M, K], which undoes `_words_of`."""
    halves = tl.join(words, words >> 16)
    return tl.reshape(tl.join(halves, halves >> 8).to(tl.int8), (words.shape[0], 4 * words.shape[1]))


@triton.jit
def to_codes(value, grid, bits):
    """int32 codes of float32 values on the grid (float32 [7, 2]) that belongs to `bits` (docs/numerics.md, "Epilogue")."""
    scale, offset = tl.load(grid + (bits - 2) * 2), tl.load(grid + (bits - 2) * 2 + 1)
    top = ((1 << bits) - 1).to(tl.float32)
    return _rounded(tl.fma(value, _of_shape(value, scale), _of_shape(value, offset)), top)


@triton.jit
def to_pixels(value):
    """int32 pixels, 0..255, of float32 values in units of one pixel level, as `quantize.to_pixels` computes them."""
    return _rounded(value, 255.0)


@triton.jit
def _rounded(value, top):
    """int32: float32 values clamped to 0..top, where top is at most 255, and rounded half to even."""
    clamped = tl.where(value > 0, tl.minimum(value, top), 0.0)  # NaN becomes 0
    return (clamped + ROUNDER).to(tl.int32, bitcast=True) & 255


@triton.jit
def _of_shape(value, scalar):
    return tl.zeros_like(value) + scalar


@triton.jit
def to_fixed(value, per_one, step):
    """Two tensors: the int16 features of float32 values, and the float32 values that these stand for, as `quantize.to_fixed`
    computes them.

    per_one: 2^fraction. step: its inverse.
    """
    # Clamping before the scale, which is a power of two, gives the same result. Where one operand is NaN, the maximum is the other
    # one.
    clamped = tl.minimum(tl.maximum(value, -32767.0 * step), 32767.0 * step)
    total = tl.fma(clamped, _of_shape(value, per_one), _of_shape(value, ROUNDER))
    held = tl.fma(total, _of_shape(value, step), _of_shape(value, -ROUNDER * step))
    return total.to(tl.int32, bitcast=True).to(tl.int16), held


@triton.jit
def pixels_of(row, column, width, sub, SHUFFLE: tl.constexpr):
    """The number [M, N], in an image of `width` * SHUFFLE columns, of sub-pixel sub [N] of each pixel at row, column [M]."""
    above = (row * SHUFFLE)[:, None] + (sub // SHUFFLE)[None, :]
    return above * (width * SHUFFLE) + (column * SHUFFLE)[:, None] + (sub % SHUFFLE)[None, :]


@triton.jit
def _store_bytes(content, y_q, row, column, width, valid, first, PITCH: tl.constexpr, AXIS: tl.constexpr, SHUFFLE: tl.constexpr,
                 START: tl.constexpr, BYTES: tl.constexpr):  # fmt: skip
    """Writes bytes [M, N] of one image. Element n is byte START + (first + n) % AXIS, out of BYTES, of sub-pixel (first + n) /
    AXIS.
    """
    at = first + tl.arange(0, content.shape[1])
    sub, byte = at // AXIS, at % AXIS
    inside = (sub < SHUFFLE * SHUFFLE) & (byte < BYTES)
    place = pixels_of(row, column, width, sub, SHUFFLE) * PITCH + (START + byte)[None, :]
    tl.store(y_q + place, content.to(tl.uint8), mask=valid[:, None] & inside[None, :])


@triton.jit
def store_codes(codes, y_q, row, column, width, valid, first, bits, CHANNELS: tl.constexpr, PITCH: tl.constexpr,
                AXIS: tl.constexpr, SHUFFLE: tl.constexpr, START: tl.constexpr, FILL: tl.constexpr,
                PACKED: tl.constexpr):  # fmt: skip
    """Writes int32 codes [M, N] of one image, either as bytes or packed (quantize.pack_codes) with the storage that `bits` asks
    for.

    y_q: the image. row, column, valid: [M] pixels before the shuffle. Element n is channel START + (first + n) % AXIS of sub-pixel
    (first + n) / AXIS, and 0 past the last channel. FILL: how many of the CHANNELS of a pixel to write, together with the padding
    behind them where they are its last. AXIS: a multiple of 16, and at least FILL. PITCH: bytes of a pixel where codes are not
    packed.
    """
    M: tl.constexpr = codes.shape[0]
    N: tl.constexpr = codes.shape[1]
    LAST: tl.constexpr = START + FILL == CHANNELS
    P4: tl.constexpr = (CHANNELS + 7) // 8 * 4
    P2: tl.constexpr = (CHANNELS + 15) // 16 * 4
    if PACKED:
        if bits <= 2:
            even, odd = tl.split(tl.reshape(codes, (M, N // 2, 2)))
            low, high = tl.split(tl.reshape(even | (odd << 2), (M, N // 4, 2)))
            _store_bytes(low | (high << 4), y_q, row, column, width, valid, first // 4, P2, AXIS // 4, SHUFFLE, START // 4,
                         P2 - START // 4 if LAST else FILL // 4)  # fmt: skip
        elif bits <= 4:
            even4, odd4 = tl.split(tl.reshape(codes, (M, N // 2, 2)))
            _store_bytes(even4 | (odd4 << 4), y_q, row, column, width, valid, first // 2, P4, AXIS // 2, SHUFFLE, START // 2,
                         P4 - START // 2 if LAST else FILL // 2)  # fmt: skip
        else:
            _store_bytes(codes, y_q, row, column, width, valid, first, PITCH, AXIS, SHUFFLE, START, FILL)
    else:
        _store_bytes(codes, y_q, row, column, width, valid, first, PITCH, AXIS, SHUFFLE, START, FILL)
