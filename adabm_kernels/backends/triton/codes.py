"""Codes and features of 16 bits in Triton: from floats to a grid, and into memory; parts of the kernels beside this file."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

# 1.5 * 2^23: a float32 in 0..255 plus this is rounded half to even to an integer, which is then the low byte of its bits. One in
# -32767..32767 likewise, and its integer is the low half.
ROUNDER = tl.constexpr(12582912.0)


@triton.jit
def bits_at(bits, image):
    """Bits of an image; nothing on the host sees them, so a wrong value must not reach past a table."""
    return tl.minimum(tl.maximum(tl.load(bits + image), 2), 8)


interpreted_as = "cuda"  # the maker whose form of the kernels Triton's interpreter computes; tests also set it to "hip"


def assembles(_semantic: Any = None) -> bool:
    """Whether a kernel is built for cards that take PTX, as the compiler that builds it says: known while it is built, and for
    the architecture that is asked for, which need not be that of a card of this machine. The interpreter has no compiler."""
    return (_semantic.builder.options.backend_name if _semantic is not None else interpreted_as) == "cuda"


assembles.__triton_builtin__ = True  # type: ignore[attr-defined]  # Triton then calls it as the kernel is built


@triton.constexpr_function
def _part_asm(stored, part):
    mask = {4: 0x0F0F0F0F, 2: 0x03030303}[stored]
    return f"shr.u32 $0, $1, {part * stored}; and.b32 $0, $0, {mask:#x};"


@triton.jit
def part_of(codes, STORED: tl.constexpr, PART: tl.constexpr):
    """int8 operand from bytes [M, K] of 8/STORED codes: code PART of each, less by 128 where STORED is 8.

    Four bytes to an instruction, which the compiler would spend on one: on NVIDIA's cards in assembly, elsewhere in words that the
    compiler makes and takes apart by naming registers (docs/gpu_amd.md). Codes are the only operand: Triton then takes them from
    shared memory as products need them. With a second one it would take them in the layout of the load and move them through shared
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
        # The third axis of a grid has length 1, so this adds nothing. The compiler cannot know, and leaves words whole: of a mask
        # alone, which is a constant, it makes an instruction or two for every byte.
        return _bytes_of(words | tl.program_id(2).to(tl.uint32))


@triton.jit
def _words_of(codes):
    """uint32 [M, K / 4] of bytes [M, K], the first in the low bits. Bytes that lie in one register cost nothing."""
    M: tl.constexpr = codes.shape[0]
    K: tl.constexpr = codes.shape[1]
    even, odd = tl.split(tl.reshape(codes, (M, K // 2, 2)))
    low, high = tl.split(tl.reshape(even.to(tl.uint32) | (odd.to(tl.uint32) << 8), (M, K // 4, 2)))
    return low | (high << 16)


@triton.jit
def _bytes_of(words):
    """int8 [M, 4 * K] of uint32 [M, K]: undoes _words_of."""
    halves = tl.join(words, words >> 16)
    return tl.reshape(tl.join(halves, halves >> 8).to(tl.int8), (words.shape[0], 4 * words.shape[1]))


@triton.jit
def to_codes(value, grid, bits):
    """int32 codes of float32 values on the grid (float32 [7, 2]) of `bits`: docs/numerics.md, "Epilogue"."""
    scale, offset = tl.load(grid + (bits - 2) * 2), tl.load(grid + (bits - 2) * 2 + 1)
    top = ((1 << bits) - 1).to(tl.float32)
    return _rounded(tl.fma(value, _of_shape(value, scale), _of_shape(value, offset)), top)


@triton.jit
def to_pixels(value):
    """int32 pixels, 0..255, of float32 values in their units: quantize.to_pixels."""
    return _rounded(value, 255.0)


@triton.jit
def _rounded(value, top):
    """float32 values clamped to 0..top, at most 255, and rounded half to even: int32."""
    clamped = tl.where(value > 0, tl.minimum(value, top), 0.0)  # NaN becomes 0
    return (clamped + ROUNDER).to(tl.int32, bitcast=True) & 255


@triton.jit
def _of_shape(value, scalar):
    return tl.zeros_like(value) + scalar


@triton.jit
def to_fixed(value, per_one, step):
    """(int16, the value that it holds) of float32 values: quantize.to_fixed. per_one, step: 2^fraction and its inverse."""
    # Bounds before the scale, by a power of two, give the same; of NaN the maximum is the other operand.
    clamped = tl.minimum(tl.maximum(value, -32767.0 * step), 32767.0 * step)
    total = tl.fma(clamped, _of_shape(value, per_one), _of_shape(value, ROUNDER))
    held = tl.fma(total, _of_shape(value, step), _of_shape(value, -ROUNDER * step))
    return total.to(tl.int32, bitcast=True).to(tl.int16), held


@triton.jit
def pixels_of(row, column, width, sub, SHUFFLE: tl.constexpr):
    """[M, N] pixel, in an image of `width` * SHUFFLE columns, of sub-pixel sub [N] of the pixels row, column [M]."""
    above = (row * SHUFFLE)[:, None] + (sub // SHUFFLE)[None, :]
    return above * (width * SHUFFLE) + (column * SHUFFLE)[:, None] + (sub % SHUFFLE)[None, :]


@triton.jit
def _store_bytes(content, y_q, row, column, width, valid, first, PITCH: tl.constexpr, AXIS: tl.constexpr, SHUFFLE: tl.constexpr,
                 START: tl.constexpr, BYTES: tl.constexpr):  # fmt: skip
    """Bytes [M, N] of one image; element n is byte START + (first + n) % AXIS, of BYTES, of sub-pixel (first + n) / AXIS."""
    at = first + tl.arange(0, content.shape[1])
    sub, byte = at // AXIS, at % AXIS
    inside = (sub < SHUFFLE * SHUFFLE) & (byte < BYTES)
    place = pixels_of(row, column, width, sub, SHUFFLE) * PITCH + (START + byte)[None, :]
    tl.store(y_q + place, content.to(tl.uint8), mask=valid[:, None] & inside[None, :])


@triton.jit
def store_codes(codes, y_q, row, column, width, valid, first, bits, CHANNELS: tl.constexpr, PITCH: tl.constexpr,
                AXIS: tl.constexpr, SHUFFLE: tl.constexpr, START: tl.constexpr, FILL: tl.constexpr,
                PACKED: tl.constexpr):  # fmt: skip
    """Writes int32 codes [M, N] of one image: bytes, or packed (quantize.pack_codes) with the storage that `bits` asks for.

    y_q: the image. row, column, valid: [M] pixels before the shuffle. Element n is channel START + (first + n) % AXIS of sub-pixel
    (first + n) / AXIS, 0 past the last. FILL: channels to write, of the CHANNELS of a pixel, and whatever follows where they are
    its last. AXIS: a multiple of 16, at least that. PITCH: bytes of a pixel where it is not packed.
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
