"""The integer convolution by programs that keep the weights: each program loads those of all taps once and then computes tile after
tile.

The compiler holds the weights in shared memory over the loop. Tiles are patches, PATCH_WIDTH pixels wide, whose pixels are loaded
through the L1 cache: of the nine taps of a 3x3 kernel, eight find their pixels there. L2 supplies only a tile's pixels with a
border, and a share of the weights. The form of conv2d.py loads pixels and weights anew for every tap. No count tells which is
faster, so the tuner tries both (tuning.candidates).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .codes import bits_at, part_of
from .epilogue import PATCH_WIDTH, finish
from .regions import COMPUTED, any_of, marks_of
from .tiles import codes_at, outputs_at, pixels_of_patch

# The most operands of products that a program keeps: each has a name of its own in the compiled code.
MOST_KEPT = 18


def why_not(by_class: bool, ones: bool, kept: dict[int, int], kept_bytes: int, shared: int) -> str:
    """The reason why a layer is not for this form; "" where it is.

    by_class: whether the layer has kernels by border class. ones: whether the sum of the codes is needed. kept: how many operands
    hold the weights, by the bits that codes are stored in. kept_bytes: the largest size of these operands. shared: bytes of shared
    memory that a block can have.
    """
    if by_class:
        return "pixels have different weights by border class"
    if ones:
        return "the sum of the codes is needed"
    if max(kept.values()) > MOST_KEPT:
        return f"{max(kept.values())} operands hold the weights, more than {MOST_KEPT}"
    if kept_bytes > shared // 2:  # the rest is for pixels and for the exchange of results
        return f"weights take {kept_bytes} bytes, more than half of the {shared} that a block can have"
    return ""


@triton.jit
def _kept(weights, output, known, K: tl.constexpr, C4: tl.constexpr, R: tl.constexpr, S: tl.constexpr, STORED: tl.constexpr,
          BLOCK_K: tl.constexpr):  # fmt: skip
    """Weights int8 [BLOCK_K, N] for codes stored in STORED bits: one operand for each block of each row of the kernel and each part
    of a byte (conv2d.Layout). weights: the address of the first."""
    PITCH: tl.constexpr = (C4 * STORED + 31) // 32 * 4
    ROW: tl.constexpr = (S * PITCH + 15) // 16 * 16
    BLOCKS: tl.constexpr = (S * PITCH + BLOCK_K - 1) // BLOCK_K
    kept = ()
    for block in tl.static_range(R * BLOCKS):
        k = block % BLOCKS * BLOCK_K + tl.arange(0, BLOCK_K)
        at = output[None, :] * (R * ROW) + block // BLOCKS * ROW + k[:, None]
        mask = known[None, :] & (k < ROW)[:, None]
        for part in tl.static_range(8 // STORED):
            kept = kept + (tl.load(weights + part * (K * R * ROW) + at, mask=mask, other=0),)  # type: ignore[assignment]
    return kept


@triton.jit
def _products(acc, kept, x_q, row, column, computed, height, width, C4: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
              STORED: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    """acc [M, N] plus the products of the codes of those pixels at row, column [M] that are `computed` with the weights from
    `_kept`."""
    PITCH: tl.constexpr = (C4 * STORED + 31) // 32 * 4
    BLOCKS: tl.constexpr = (S * PITCH + BLOCK_K - 1) // BLOCK_K
    PARTS: tl.constexpr = 8 // STORED
    for block in tl.static_range(R * BLOCKS):
        k = block % BLOCKS * BLOCK_K + tl.arange(0, BLOCK_K)
        codes = codes_at(x_q, row, column, computed, height, width, block // BLOCKS, block % BLOCKS * BLOCK_K, k, R, S, PITCH,
                         BLOCK_K)  # fmt: skip
        for part in tl.static_range(PARTS):
            acc = tl.dot(part_of(codes, STORED, part), kept[block * PARTS + part], acc, out_dtype=tl.int32)
    return acc


@triton.jit
def _tiles(x_q, image, bits, packed, alpha, beta, slope, residual, out_grid, out_bits, y, y_q, height, width, per_one, step, depth,
           depth_tile, depth_top, depth_left, own_least, own_most, near_least, near_most, reach, pass_least, pass_most, pass_reach,
           K: tl.constexpr, C4: tl.constexpr, R: tl.constexpr, S: tl.constexpr, ACTIVATION: tl.constexpr, SHUFFLE: tl.constexpr,
           PACKED: tl.constexpr, Y: tl.constexpr, Y_PITCH: tl.constexpr, CODES: tl.constexpr, RESIDUAL: tl.constexpr,
           PASSES: tl.constexpr, WIDE: tl.constexpr, AXIS: tl.constexpr, AT: tl.constexpr, STORED: tl.constexpr,
           BLOCK_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):  # fmt: skip
    """Computes all tiles of this program in an image whose codes are stored in STORED bits. AT: the first byte of the weights for
    these."""
    GROUPS: tl.constexpr = SHUFFLE * SHUFFLE
    CHANNELS: tl.constexpr = K // GROUPS
    N_BLOCKS: tl.constexpr = (GROUPS * AXIS + BLOCK_N - 1) // BLOCK_N
    first = tl.program_id(0) % N_BLOCKS * BLOCK_N
    sub, channel, known, output = outputs_at(first + tl.arange(0, BLOCK_N), CHANNELS, GROUPS, AXIS, BLOCK_N)
    kept = _kept(packed.to(tl.pointer_type(tl.int8)) + AT, output, known, K, C4, R, S, STORED, BLOCK_K)
    # 128 is subtracted from every code that is stored in 8 bits, outside the image too.
    taken = (128 if STORED == 8 else 0) * tl.load(packed.to(tl.pointer_type(tl.int32)) + output, mask=known, other=0)
    codes = x_q + image.to(tl.int64) * height * width * C4
    across = tl.cdiv(width, PATCH_WIDTH)
    tiles = across * tl.cdiv(height, BLOCK_M // PATCH_WIDTH)
    position = tl.arange(0, BLOCK_M)
    for tile in tl.range(tl.program_id(0) // N_BLOCKS, tiles, tl.num_programs(0) // N_BLOCKS, num_stages=1):
        row, column, valid = pixels_of_patch(tile, position, across, height, width, BLOCK_M)
        computed, turns, products = valid, 1, 1
        if depth is not None:
            marks = marks_of(depth, image, row, column, height, width, valid, depth_tile, depth_top, depth_left, own_least,
                             own_most, near_least, near_most, reach, pass_least, pass_most, pass_reach, PASSES)  # fmt: skip
            computed, valid = marks == COMPUTED, marks > 0
            turns, products = any_of(valid).to(tl.int32), any_of(computed).to(tl.int32)
        if WIDE:
            row, column = row.to(tl.int64), column.to(tl.int64)
        # Loops of at most one turn stand here in place of conditions. The compiler moves out of a loop what does not change in it;
        # without that, the weights would be written to shared memory for every tile.
        for _ in tl.range(0, turns, num_stages=1):
            acc = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
            if PASSES:
                for _ in tl.range(0, products, num_stages=1):
                    acc = _products(acc, kept, codes, row, column, computed, height, width, C4, R, S, STORED, BLOCK_K)
            else:
                acc = _products(acc, kept, codes, row, column, computed, height, width, C4, R, S, STORED, BLOCK_K)
            acc += taken[None, :]
            number = row * width + column
            finish(acc, image, row, column, number, valid, computed, height, width, bits, 0, first, sub, channel, known, output,
                   alpha, beta, slope, residual, out_grid, out_bits, y, y_q, per_one, step, K, R, S, False, ACTIVATION, SHUFFLE,
                   PACKED, Y, Y_PITCH, CODES, RESIDUAL, PASSES, AXIS)  # fmt: skip


@triton.jit(
    do_not_specialize=["height", "width", "depth_tile", "depth_top", "depth_left", "own_least", "own_most", "near_least",
                       "near_most", "reach", "pass_least", "pass_most", "pass_reach"],
    do_not_specialize_on_alignment=["x_bits", "out_bits", "depth"],
)  # fmt: skip
def persistent_kernel(x_q, x_bits, packed, alpha, beta, slope, residual, out_grid, out_bits, y, y_q, height, width, per_one, step,
                      depth, depth_tile, depth_top, depth_left, own_least, own_most, near_least, near_most, reach, pass_least,
                      pass_most, pass_reach,
                      K: tl.constexpr, C4: tl.constexpr, R: tl.constexpr, S: tl.constexpr, ACTIVATION: tl.constexpr,
                      SHUFFLE: tl.constexpr, PACKED: tl.constexpr, Y: tl.constexpr, Y_PITCH: tl.constexpr, CODES: tl.constexpr,
                      RESIDUAL: tl.constexpr, PASSES: tl.constexpr, WIDE: tl.constexpr, AXIS: tl.constexpr, AT_8: tl.constexpr,
                      AT_4: tl.constexpr, AT_2: tl.constexpr, BLOCK_K_8: tl.constexpr, BLOCK_K_4: tl.constexpr,
                      BLOCK_K_2: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):  # fmt: skip
    """Computes the tiles that fall to one program, each of BLOCK_M pixels and BLOCK_N outputs of one image
    (conv2d.conv2d_kernel)."""
    image = tl.program_id(1)
    bits = bits_at(x_bits, image)
    # Bits are data, so a loop is compiled for each way to store codes, and an image takes one of them.
    if PACKED:
        if bits <= 2:
            _tiles(x_q, image, bits, packed, alpha, beta, slope, residual, out_grid, out_bits, y, y_q, height, width, per_one, step,
                   depth, depth_tile, depth_top, depth_left, own_least, own_most, near_least, near_most, reach, pass_least,
                   pass_most, pass_reach, K, C4, R, S, ACTIVATION, SHUFFLE, PACKED, Y, Y_PITCH, CODES, RESIDUAL, PASSES, WIDE, AXIS,
                   AT_2, 2, BLOCK_K_2, BLOCK_M, BLOCK_N)  # fmt: skip
        elif bits <= 4:
            _tiles(x_q, image, bits, packed, alpha, beta, slope, residual, out_grid, out_bits, y, y_q, height, width, per_one, step,
                   depth, depth_tile, depth_top, depth_left, own_least, own_most, near_least, near_most, reach, pass_least,
                   pass_most, pass_reach, K, C4, R, S, ACTIVATION, SHUFFLE, PACKED, Y, Y_PITCH, CODES, RESIDUAL, PASSES, WIDE, AXIS,
                   AT_4, 4, BLOCK_K_4, BLOCK_M, BLOCK_N)  # fmt: skip
        else:
            _tiles(x_q, image, bits, packed, alpha, beta, slope, residual, out_grid, out_bits, y, y_q, height, width, per_one, step,
                   depth, depth_tile, depth_top, depth_left, own_least, own_most, near_least, near_most, reach, pass_least,
                   pass_most, pass_reach, K, C4, R, S, ACTIVATION, SHUFFLE, PACKED, Y, Y_PITCH, CODES, RESIDUAL, PASSES, WIDE, AXIS,
                   AT_8, 8, BLOCK_K_8, BLOCK_M, BLOCK_N)  # fmt: skip
    else:
        _tiles(x_q, image, bits, packed, alpha, beta, slope, residual, out_grid, out_bits, y, y_q, height, width, per_one, step,
               depth, depth_tile, depth_top, depth_left, own_least, own_most, near_least, near_most, reach, pass_least, pass_most,
               pass_reach, K, C4, R, S, ACTIVATION, SHUFFLE, PACKED, Y, Y_PITCH, CODES, RESIDUAL, PASSES, WIDE, AXIS, AT_8, 8,
               BLOCK_K_8, BLOCK_M, BLOCK_N)  # fmt: skip
