"""The integer convolution with its epilogue, as an implicit GEMM of pixels by outputs over the codes as they lie in memory.

The reduction runs over the rows of the kernel and, in each row, over the bytes of S neighbouring pixels, which are contiguous.
Codes of 4 and 2 bits are taken apart in registers: part p of each byte meets the weights of every 8/s-th channel, and `pack` keeps
a copy of the weights in that order. Sums saturate on tensor cores where the contract lets them wrap. Conversion refuses every layer
in which either could happen, so 255 * SUM |m| fits int32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from ...quantize import packed_pitch, padded_channels
from ...regions import NUMBERS, passes_on
from .. import launches
from ..call import ACTIVATIONS, Conv, Outputs, Packing, RunConv2d, dense, pitch, run_conv2d
from ..rates import rates
from . import launch, tuning
from .codes import bits_at, part_of
from .epilogue import PATCH_WIDTH, finish
from .persistent import persistent_kernel, why_not
from .regions import COMPUTED, any_of, marks_of
from .tiles import codes_at, outputs_at, pixels_of_tile

STORED = (8, 4, 2)
FEATURES, ACCUMULATORS, PIXELS = 1, 2, 3
OUTPUTS = {torch.float32: FEATURES, torch.int16: FEATURES, torch.int32: ACCUMULATORS, torch.uint8: PIXELS}


@dataclass(frozen=True)
class Layout:
    """The places of the parts of a layer's packed weights.

    First come int32 [classes, rows], the sums of each row's weights over all taps. Then, for codes stored in 8, 4 and 2 bits in
    turn, follow int8 [classes, 8/s, rows, R, row bytes]: for part p of a byte, byte i of pixel t in a row of the kernel holds the
    weight of tap t and channel i * 8/s + p. The rows are the K outputs and, with `ones`, one more row of ones, whose result is the
    sum of the codes.
    """

    outputs: int
    channels: int
    kernel_h: int
    kernel_w: int
    classes: int
    ones: bool

    @classmethod
    def of(cls, weight: tuple[int, ...], packed_bytes: int | None = None, ones: bool = False) -> Layout:
        """The layout for a weight of shape [K, R, S, C] or [R, S, K, R, S, C]. Where packed_bytes, the size of its packed form, is
        given, that tells whether there is a row of ones.
        """
        k, r, s, c = weight[-4:]
        layouts = [cls(k, c, r, s, r * s if len(weight) == 6 else 1, ones) for ones in ((False, True) if packed_bytes else (ones,))]
        return next(layout for layout in layouts if packed_bytes in (None, layout.offsets()[-1]))

    @property
    def rows(self) -> int:
        return self.outputs + self.ones

    def pitch(self, stored: int) -> int:
        """Bytes of a pixel whose codes are stored in `stored` bits each."""
        return packed_pitch(self.channels, stored)

    def row_bytes(self, stored: int) -> int:
        """Bytes of the weights of one row of the kernel. It is a multiple of 16, so that vectors can be loaded."""
        return -(-self.kernel_w * self.pitch(stored) // 16) * 16

    def part_bytes(self, stored: int) -> int:
        return self.rows * self.kernel_h * self.row_bytes(stored)

    def offsets(self) -> tuple[int, ...]:
        """The first byte of the weights for each entry of STORED, and the byte past the last."""
        at = [-(-self.classes * self.rows * 4 // 16) * 16]
        for stored in STORED:
            at.append(at[-1] + self.classes * (8 // stored) * self.part_bytes(stored))
        return tuple(at)


def pack(weight: torch.Tensor, packing: Packing) -> torch.Tensor:
    """See call.Kernels, and Layout.

    Under `box_filter` the integers are 2k' + 1. Where all of them fit int8 they are packed themselves; elsewhere k' is packed, with
    a row of ones.
    """
    weight = weight.to(torch.int32)
    ones = False
    if packing.box_filter:
        ones = bool(weight.min() < -64 or weight.max() > 63)
        weight = weight if ones else 2 * weight + 1
    layout = Layout.of(tuple(weight.shape), ones=ones)
    k, r, s, c = weight.shape[-4:]
    rows = weight.reshape(layout.classes, k, r, s, c)
    if ones:
        rows = torch.cat([rows, rows.new_ones(layout.classes, 1, r, s, c)], 1)
    *starts, end = layout.offsets()
    packed = torch.zeros(end, dtype=torch.uint8, device=weight.device)
    sums = rows.sum((2, 3, 4), dtype=torch.int32).contiguous().view(torch.uint8).view(-1)
    packed[: sums.numel()] = sums
    for stored, start in zip(STORED, starts, strict=True):
        share, pitch = 8 // stored, layout.pitch(stored)
        wide = rows.new_zeros(layout.classes, layout.rows, r, s, pitch * share, dtype=torch.int8)
        wide[..., :c] = rows
        parts = wide.view(layout.classes, layout.rows, r, s * pitch, share).permute(0, 4, 1, 2, 3)
        block = parts.new_zeros(*parts.shape[:4], layout.row_bytes(stored))
        block[..., : s * pitch] = parts
        packed[start : start + block.numel()] = block.view(torch.uint8).reshape(-1)
    return packed


@triton.jit
def _products(acc, box, x_q, row, column, valid, height, width, weights, kernel, output, known, K: tl.constexpr,
              C4: tl.constexpr, R: tl.constexpr, S: tl.constexpr, ONES: tl.constexpr, STORED: tl.constexpr,
              BLOCK_K: tl.constexpr):  # fmt: skip
    """Returns acc [M, N] plus the products of one image's codes, which are stored in STORED bits, and box [M, 16] plus the codes'
    sums.

    row, column, valid: [M] pixels of outputs. weights: the address of the first weight for these codes (Layout). kernel: the border
    class of the pixels. output, known: [N] numbers of the outputs, and which of them exist. Codes stored in 8 bits count as 128
    less, and so do those outside the image.
    """
    PITCH: tl.constexpr = (C4 * STORED + 31) // 32 * 4
    ROW: tl.constexpr = (S * PITCH + 15) // 16 * 16
    PART: tl.constexpr = (K + ONES) * R * ROW
    BLOCKS: tl.constexpr = (S * PITCH + BLOCK_K - 1) // BLOCK_K
    weights += kernel * (8 // STORED * PART)
    for step in range(R * BLOCKS):
        r, first = step // BLOCKS, step % BLOCKS * BLOCK_K
        k = first + tl.arange(0, BLOCK_K)
        codes = codes_at(x_q, row, column, valid, height, width, r, first, k, R, S, PITCH, BLOCK_K)
        from_weights = output[None, :] * (R * ROW) + r * ROW + k[:, None]
        known_k = known[None, :] & (k < ROW)[:, None]
        for part in tl.static_range(8 // STORED):
            w = tl.load(weights + part * PART + from_weights, mask=known_k, other=0)
            x = part_of(codes, STORED, part)
            acc = tl.dot(x, w, acc, out_dtype=tl.int32)
            if ONES:
                ones = tl.load(weights + part * PART + K * R * ROW + r * ROW + k, mask=k < ROW, other=0)
                box = tl.dot(x, ones[:, None] + tl.zeros((BLOCK_K, 16), tl.int8), box, out_dtype=tl.int32)
    return acc, box


@triton.jit
def _accumulate(acc, box, x_q, row, column, valid, height, width, bits, weights, kernel, output, known, K: tl.constexpr,
                C4: tl.constexpr, R: tl.constexpr, S: tl.constexpr, ONES: tl.constexpr, PACKED: tl.constexpr, AT_8: tl.constexpr,
                AT_4: tl.constexpr, AT_2: tl.constexpr, BLOCK_K_8: tl.constexpr, BLOCK_K_4: tl.constexpr,
                BLOCK_K_2: tl.constexpr):  # fmt: skip
    """`_products` for codes stored as `bits` asks. weights: the address of the first of all weights. See conv2d_kernel for AT_s and
    BLOCK_K_s.
    """
    if PACKED:
        if bits <= 2:
            acc, box = _products(acc, box, x_q, row, column, valid, height, width, weights + AT_2, kernel, output, known, K,
                                 C4, R, S, ONES, 2, BLOCK_K_2)  # fmt: skip
        elif bits <= 4:
            acc, box = _products(acc, box, x_q, row, column, valid, height, width, weights + AT_4, kernel, output, known, K,
                                 C4, R, S, ONES, 4, BLOCK_K_4)  # fmt: skip
        else:
            acc, box = _products(acc, box, x_q, row, column, valid, height, width, weights + AT_8, kernel, output, known, K,
                                 C4, R, S, ONES, 8, BLOCK_K_8)  # fmt: skip
    else:
        acc, box = _products(acc, box, x_q, row, column, valid, height, width, weights + AT_8, kernel, output, known, K,
                             C4, R, S, ONES, 8, BLOCK_K_8)  # fmt: skip
    return acc, box


@triton.jit
def _side(edge, size, PAD: tl.constexpr):
    """The first position, the number of positions and the class of the rows (or columns) at `edge`, a number in 0 .. 2 * PAD - 1.
    Where `edge` is -1, they are those of the `size` positions between the edges.
    """
    at_end = edge >= PAD
    first = tl.where(edge < 0, PAD, tl.where(at_end, edge + size, edge))
    return first, tl.where(edge < 0, size, 1), tl.where(edge < 0, PAD, tl.where(at_end, edge + 1, edge))


@triton.jit
def _class_part(tile, height, width, R: tl.constexpr, S: tl.constexpr, BLOCK_M: tl.constexpr):
    """The part of the image that a tile belongs to where pixels have a kernel by border class. Returns the part's top, left,
    height, width and class, and the tile's number in it.

    Tiles are counted over the inner pixels first, then over each outer row, each outer column, and the corners one by one.
    """
    P: tl.constexpr = R // 2
    Q: tl.constexpr = S // 2
    rows, columns = height - 2 * P, width - 2 * Q
    inner, a_row, a_column = tl.cdiv(rows * columns, BLOCK_M), tl.cdiv(columns, BLOCK_M), tl.cdiv(rows, BLOCK_M)
    edge_row, edge_column = -1, -1
    if tile >= inner:
        tile -= inner
        if tile < 2 * P * a_row:
            edge_row, tile = tile // a_row, tile % a_row
        else:
            tile -= 2 * P * a_row
            if tile < 2 * Q * a_column:
                edge_column, tile = tile // a_column, tile % a_column
            else:
                tile -= 2 * Q * a_column
                edge_row, edge_column, tile = tile // (2 * Q), tile % (2 * Q), 0
    top, h, r = _side(edge_row, rows, P)
    left, w, s = _side(edge_column, columns, Q)
    return top, left, h, w, r * S + s, tile


# Layers differ in where their bits lie in the table of all layers, in their region, and in the size of their images. None of this
# is a reason to compile a kernel again.
@triton.jit(
    do_not_specialize=["height", "width", "depth_tile", "depth_top", "depth_left", "own_least", "own_most", "near_least",
                       "near_most", "reach", "pass_least", "pass_most", "pass_reach"],
    do_not_specialize_on_alignment=["x_bits", "out_bits", "depth"],
)  # fmt: skip
def conv2d_kernel(x_q, x_bits, packed, alpha, beta, slope, residual, out_grid, out_bits, y, y_q, height, width, per_one, step,
                  depth, depth_tile, depth_top, depth_left, own_least, own_most, near_least, near_most, reach, pass_least,
                  pass_most, pass_reach,
                  K: tl.constexpr, C4: tl.constexpr, R: tl.constexpr, S: tl.constexpr, BY_CLASS: tl.constexpr,
                  ONES: tl.constexpr, ACTIVATION: tl.constexpr, SHUFFLE: tl.constexpr, PACKED: tl.constexpr,
                  Y: tl.constexpr, Y_PITCH: tl.constexpr, CODES: tl.constexpr, RESIDUAL: tl.constexpr, PASSES: tl.constexpr,
                  PATCHES: tl.constexpr, WIDE: tl.constexpr, AXIS: tl.constexpr, AT_8: tl.constexpr, AT_4: tl.constexpr,
                  AT_2: tl.constexpr, BLOCK_K_8: tl.constexpr, BLOCK_K_4: tl.constexpr, BLOCK_K_2: tl.constexpr,
                  BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):  # fmt: skip
    """Computes one tile of BLOCK_M pixels and BLOCK_N outputs of one image.

    depth, depth_tile, ... pass_reach: the map of all images and the numbers of the region; None without a region. per_one, step:
    2^fraction and its inverse where the features (y and the residual) are int16; None where they are float32. Y: what is written to
    y: 0 for nothing, FEATURES, ACCUMULATORS or PIXELS. AXIS: outputs of a sub-pixel, with the padding that their codes need.
    PASSES: whether the region passes pixels on. PATCHES: whether the pixels of a tile are a patch, PATCH_WIDTH wide, or follow each
    other in rows. AT_s, BLOCK_K_s: for codes stored in s bits, the first byte of the weights and the block of the reduction. WIDE:
    whether an image has more elements than 32 bits count.
    """
    CHANNELS: tl.constexpr = K // (SHUFFLE * SHUFFLE)
    GROUPS: tl.constexpr = SHUFFLE * SHUFFLE
    N_BLOCKS: tl.constexpr = (GROUPS * AXIS + BLOCK_N - 1) // BLOCK_N
    image = tl.program_id(1)
    tile, first = tl.program_id(0) // N_BLOCKS, tl.program_id(0) % N_BLOCKS * BLOCK_N
    top, left, h, w, kernel = 0, 0, height, width, 0
    if BY_CLASS:
        top, left, h, w, kernel, tile = _class_part(tile, height, width, R, S, BLOCK_M)
    row, column, valid = pixels_of_tile(tile, top, left, h, w, PATCHES, BLOCK_M)
    computed = valid
    if depth is not None:
        marks = marks_of(depth, image, row, column, height, width, valid, depth_tile, depth_top, depth_left, own_least, own_most,
                         near_least, near_most, reach, pass_least, pass_most, pass_reach, PASSES)  # fmt: skip
        computed, valid = marks == COMPUTED, marks > 0
        if not any_of(valid):
            return
    if WIDE:
        row, column = row.to(tl.int64), column.to(tl.int64)
    sub, channel, known, output = outputs_at(first + tl.arange(0, BLOCK_N), CHANNELS, GROUPS, AXIS, BLOCK_N)

    bits = bits_at(x_bits, image)
    codes = x_q + image.to(tl.int64) * height * width * C4
    weights = packed.to(tl.pointer_type(tl.int8))
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    box = tl.zeros((BLOCK_M, 16), tl.int32)
    if not PASSES:
        acc, box = _accumulate(acc, box, codes, row, column, computed, height, width, bits, weights, kernel, output, known, K,
                               C4, R, S, ONES, PACKED, AT_8, AT_4, AT_2, BLOCK_K_8, BLOCK_K_4, BLOCK_K_2)  # fmt: skip
    elif any_of(computed):
        acc, box = _accumulate(acc, box, codes, row, column, computed, height, width, bits, weights, kernel, output, known, K,
                               C4, R, S, ONES, PACKED, AT_8, AT_4, AT_2, BLOCK_K_8, BLOCK_K_4, BLOCK_K_2)  # fmt: skip

    # Pixels, and outputs where some are missing, are computed again for the results. Kept through the products, in every layout of
    # results, they would take twenty registers more. There is one program along the third axis, which the compiler does not know.
    nothing = tl.num_programs(2) - 1
    if depth is None:
        tile = tl.program_id(0) // N_BLOCKS + nothing
        if CHANNELS != AXIS or GROUPS * AXIS % BLOCK_N != 0:
            axis = first + nothing * BLOCK_N + tl.arange(0, BLOCK_N)
            sub, channel, known, output = outputs_at(axis, CHANNELS, GROUPS, AXIS, BLOCK_N)
        if BY_CLASS:
            top, left, h, w, kernel, tile = _class_part(tile, height, width, R, S, BLOCK_M)
    else:  # Here a program has more to keep, and takes more registers where it computes all of it again.
        tile += nothing
    row, column, inside = pixels_of_tile(tile, top, left, h, w, PATCHES, BLOCK_M)
    if depth is None:
        valid, computed = inside, inside
    if WIDE:
        row, column = row.to(tl.int64), column.to(tl.int64)

    taken = 128  # 128 is taken from every code that is stored in 8 bits, outside the image too
    if PACKED:
        taken = tl.where(bits > 4, 128, 0)
    sums = packed.to(tl.pointer_type(tl.int32)) + kernel * (K + ONES)
    acc += (taken * tl.load(sums + output, mask=known, other=0))[None, :]
    if ONES:
        acc = 2 * acc + (tl.max(box, 1) + taken * tl.load(sums + K))[:, None]

    number = row * width + column
    if not PATCHES and not BY_CLASS:
        number = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        if WIDE:
            number = number.to(tl.int64)
    finish(acc, image, row, column, number, valid, computed, height, width, bits, kernel, first, sub, channel, known, output, alpha,
           beta, slope, residual, out_grid, out_bits, y, y_q, per_one, step, K, R, S, BY_CLASS, ACTIVATION, SHUFFLE, PACKED, Y,
           Y_PITCH, CODES, RESIDUAL, PASSES, AXIS)  # fmt: skip


def _block_k(row: int, pitch: int) -> int:
    """The block of a reduction over `row` bytes of pixels of `pitch` bytes each. It divides a pixel where some block can, and else
    wastes the fewest bytes.
    """
    for block in (64, 32):
        if pitch % block == 0:
            return block
    return min((64, 32), key=lambda block: -(-row // block) * block)


@launches.remembered(4096)
def conv2d_launch(
    capability: int | str, x_q: tuple[int, ...], weight: tuple[int, ...], packed_bytes: int, *, activation: str, shuffle: int,
    packed_codes: bool, y: int, y_pitch: int, codes: bool, residual: bool, depth: bool = False, passes: bool = False,
) -> tuple[dict[str, Any], int]:  # fmt: skip
    """The constants and options of the kernel, and the number of programs for each image, for a call with these shapes.

    y: what is written to y: 0 for nothing, else one of OUTPUTS. y_pitch: elements of y from one pixel to the next, 0 where there is
    no y. depth: whether the call has depths. A program's pixels are then a patch, because a patch meets fewer depth tiles. passes:
    whether the region passes pixels on.
    """
    n, h, w, c4 = x_q
    layout = Layout.of(weight, packed_bytes)
    k, r, s = layout.outputs, layout.kernel_h, layout.kernel_w
    channels = k // shuffle**2
    axis = -(-channels // 16) * 16 if codes else channels
    config = tuning.conv2d_config(capability, c4, r, shuffle**2 * axis, h * w)
    block_m, block_n = config.block_m, config.block_n
    by_class = len(weight) == 6
    persistent = config.form == tuning.PERSISTENT and not why_not_persistent(capability, layout, block_n)
    patches = (depth and not by_class) or persistent
    tiles = -(-h * w // block_m)
    if patches:
        tiles = -(-h // (block_m // PATCH_WIDTH.value)) * -(-w // PATCH_WIDTH.value)
    elif by_class:  # Tiles are counted as in _class_part.
        rows, columns = h - 2 * (r // 2), w - 2 * (s // 2)
        tiles = -(-rows * columns // block_m) + 2 * (r // 2) * -(-columns // block_m) + 2 * (s // 2) * -(-rows // block_m)
        tiles += 4 * (r // 2) * (s // 2)
    elements = h * w * shuffle**2 * max(y_pitch, padded_channels(channels))
    constants = {
        "K": k, "C4": c4, "R": r, "S": s, "BY_CLASS": by_class, "ONES": int(layout.ones), "SHUFFLE": shuffle,
        "ACTIVATION": ACTIVATIONS[activation], "PACKED": packed_codes, "Y": y, "Y_PITCH": y_pitch, "CODES": codes,
        "RESIDUAL": residual, "PASSES": passes, "PATCHES": patches, "WIDE": max(elements, h * w * c4) > launch.NARROW, "AXIS": axis,
        **{f"AT_{stored}": at for stored, at in zip(STORED, layout.offsets(), strict=False)},
        **{f"BLOCK_K_{stored}": _block_k(s * layout.pitch(stored), layout.pitch(stored)) for stored in STORED},
    }  # fmt: skip
    options = config.options()
    # Kernels by border class have fewer patches, and the other two forms need more registers.
    if not by_class and not persistent and not (depth and constants["WIDE"]):
        options |= tuning.most_registers(capability, config)
    blocks = -(-(shuffle**2) * axis // block_n)
    if persistent:
        assert isinstance(capability, int)  # why_not_persistent refuses architectures that are no number
        constants = {name: value for name, value in constants.items() if name in persistent_kernel.arg_names}
        # There are as many programs as the card has room for, divided among its images.
        tiles = min(tiles, max(1, config.programs * rates(capability).multiprocessors // (n * blocks)))
    return constants | options, tiles * blocks


def why_not_persistent(capability: int | str, layout: Layout, block_n: int) -> str:
    """The reason why a layer is not for the persistent form (`persistent.why_not`) on a card of this compute capability, with
    block_n outputs to a program; "" where it is."""
    if isinstance(capability, str):
        return "its programs are counted for cards of NVIDIA"
    pitches = {stored: layout.pitch(stored) for stored in STORED}
    blocks = {stored: _block_k(layout.kernel_w * pitch, pitch) for stored, pitch in pitches.items()}
    kept = {
        stored: layout.kernel_h * -(-layout.kernel_w * pitch // blocks[stored]) * (8 // stored) for stored, pitch in pitches.items()
    }
    most = max(kept[stored] * blocks[stored] * block_n for stored in STORED)
    return why_not(layout.classes > 1, layout.ones, kept, most, launch.shared_bytes(capability))


def kernel_of(constants: dict[str, Any]) -> Any:
    """The kernel that takes what `conv2d_launch` returned: the persistent one or the one by tiles."""
    return conv2d_kernel if "BY_CLASS" in constants else persistent_kernel


def conv2d_out(conv: Conv, to: Outputs) -> None:
    """See call.Kernels."""
    run_conv2d(ready_conv2d_out(conv, to), conv, to)


def ready_conv2d_out(conv: Conv, to: Outputs) -> RunConv2d:
    """See call.Kernels. It also decides how the kernel is launched."""
    y, depth, region = to.y, conv.place.depth, conv.place.region
    x_q, residual = conv.x_q, conv.residual
    n, h, w, _ = x_q.shape
    launch.check("conv2d", "x_q", x_q, h * w * conv.shuffle**2)
    own_pitch = y is None or y.is_contiguous()  # where y is a slice, the residual has the strides of y
    held = y if y is not None else residual if residual is None else residual.contiguous()  # the residual has the pitch of y
    constants, programs = conv2d_launch(
        launch.capability(x_q.device),
        tuple(x_q.shape),
        tuple(conv.weight.shape),
        conv.packed.numel(),
        activation=conv.activation,
        shuffle=conv.shuffle,
        packed_codes=conv.packed_codes,
        y=0 if y is None else OUTPUTS[y.dtype],
        y_pitch=0 if held is None else pitch(held),
        codes=to.y_q is not None,
        residual=residual is not None,
        depth=depth is not None,
        passes=passes_on(region),
    )
    scales = (2.0**conv.fraction, 2.0**-conv.fraction) if conv.features == "int16" else (None, None)
    numbers = (None,) * NUMBERS if depth is None else region
    launch.check_programs("conv2d", x_q.device, programs, constants["num_warps"])
    again = launch.Again(kernel_of(constants), (programs, n), constants)

    def run(x_q, x_bits, _weight, packed, alpha, beta, slope, residual, out_grid, out_bits, depth, y, y_q):
        x_q, x_bits, packed, alpha, beta = dense(x_q), dense(x_bits), dense(packed), dense(alpha), dense(beta)
        slope, out_grid, out_bits = dense(slope), dense(out_grid), dense(out_bits)
        residual = dense(residual) if own_pitch else residual
        with launch.on(x_q):
            again(
                (x_q, packed, alpha, beta, slope, residual, out_grid, y, y_q),
                (x_q, x_bits, packed, alpha, beta, slope, residual, out_grid, out_bits, y, y_q, h, w, *scales, depth, *numbers),
            )

    return run
