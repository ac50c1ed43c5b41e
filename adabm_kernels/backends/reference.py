"""Integer arithmetic in plain torch: the definition of a correct result (docs/numerics.md). It is slow, and runs on any device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.nn import functional as F

from ..exits import tile_bends
from ..image_bits import bits_by_rule, image_offsets, measure_images
from ..quantize import (
    MAX_BITS,
    MIN_BITS,
    PLAIN,
    Axis,
    Geometry,
    from_fixed,
    pack_codes,
    padded_channels,
    shuffle_order,
    to_fixed,
    to_pixels,
    unpack_codes,
)
from ..regions import Depths, Region, as_tiles
from .call import Conv, DepthRule, Outputs, Packing, Place, Quantization, RunConv2d, RunQuantize


def fma32(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """float32 a * b + c with one rounding, as a fused multiply-add computes it.

    The product of two float32 is exact in float64. The sum is rounded to odd there (Boldo and Melquiond, IEEE ToC 2008),
    so that the second rounding, to float32, gives what a single one would.
    """
    a, b, c = torch.broadcast_tensors(a.double(), b.double(), c.double())
    product = a * b
    total = product + c
    part = total - product
    error = (product - (total - part)) + (c - part)  # TwoSum: total + error is the exact sum
    even = total.contiguous().view(torch.int64) % 2 == 0
    toward = torch.where(error > 0, torch.inf, -torch.inf).to(torch.float64)
    return torch.where((error != 0) & even, torch.nextafter(total, toward), total).to(torch.float32)


def accumulate(
    x_q: torch.Tensor, weight: torch.Tensor, box_filter: bool, geometry: Geometry = PLAIN, shuffle: int = 1
) -> torch.Tensor:
    """SUM x_q * m over the valid taps, int32 [N, H, W, K] of the output. m is weight, or 2 * weight + 1 with `box_filter`.

    x_q: uint8 [N, H, W, C4]. weight: int8 [K, R, S, C / groups]. shuffle: the factor of the PixelShuffle whose order the outputs
    are in, which decides their groups. Products of float64 integers are exact far beyond 2^31.
    """
    k, r, s, c = weight.shape
    rows, columns = geometry.axes(r, s)
    integers = weight.permute(0, 3, 1, 2).to(torch.float64)
    order = shuffle_order(k, shuffle).to(weight.device)
    if geometry.groups > 1:  # groups are those of outputs in torch's order
        integers = integers[torch.argsort(order)]
    codes = x_q[..., : c * geometry.groups].permute(0, 3, 1, 2).to(torch.float64)
    codes = F.pad(codes, (columns.before, columns.after, rows.before, rows.after))
    integers = 2 * integers + 1 if box_filter else integers
    sums = F.conv2d(codes, integers, stride=geometry.stride, dilation=geometry.dilation, groups=geometry.groups)
    sums = sums[:, order] if geometry.groups > 1 else sums
    return sums.permute(0, 2, 3, 1).to(torch.int32)


def kernel_classes(size: int, kernel: int) -> list[tuple[int, int]]:
    """Half-open ranges of positions that share a kernel, in the order of the kernel classes (csrc/include/adabm/adabm.h)."""
    pad = kernel // 2
    return [(i, i + 1) for i in range(pad)] + [(pad, size - pad)] + [(i, i + 1) for i in range(size - pad, size)]


def accumulate_by_class(x_q: torch.Tensor, weight: torch.Tensor, box_filter: bool) -> torch.Tensor:
    """`accumulate` for weights [R, S, K, R, S, C], where every border class of pixels has a kernel of its own."""
    r, s, k = weight.shape[:3]
    n, h, w, _ = x_q.shape
    acc = torch.empty(n, h, w, k, dtype=torch.int32, device=x_q.device)
    padded = F.pad(x_q, (0, 0, s // 2, s // 2, r // 2, r // 2))
    for i, (top, bottom) in enumerate(kernel_classes(h, r)):
        for j, (left, right) in enumerate(kernel_classes(w, s)):
            window = padded[:, top : bottom + r - 1, left : right + s - 1]
            sums = accumulate(window, weight[i, j], box_filter)
            acc[:, top:bottom, left:right] = sums[:, r // 2 : sums.shape[1] - r // 2, s // 2 : sums.shape[2] - s // 2]
    return acc


def class_table(table: torch.Tensor, axes: tuple[Axis, Axis], height: int, width: int) -> torch.Tensor:
    """beta of every pixel of the output: [rows, columns, K] by border class becomes [H, W, K]. height, width: those of the
    image."""

    def index(axis: Axis, size: int) -> torch.Tensor:
        return torch.tensor([axis.border_class(i, size) for i in range(axis.outputs(size))], device=table.device)

    return table[index(axes[0], height)][:, index(axes[1], width)]


def kernel_table(table: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """beta of every pixel: [R, S, K] by kernel class becomes [height, width, K]."""

    def index(size: int, kernel: int) -> torch.Tensor:
        counts = torch.tensor([end - start for start, end in kernel_classes(size, kernel)], device=table.device)
        return torch.arange(kernel, device=table.device).repeat_interleave(counts)

    return table[index(height, table.shape[0])][:, index(width, table.shape[1])]


def pixel_shuffle(x: torch.Tensor, factor: int) -> torch.Tensor:
    """[N, H, W, r*r*C] -> [N, r*H, r*W, C]: output (i*r + j)*C + c of a pixel becomes channel c of its sub-pixel (i, j)."""
    if factor == 1:
        return x
    n, h, w, k = x.shape
    x = x.view(n, h, w, factor, factor, k // factor**2)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(n, h * factor, w * factor, k // factor**2)


def codes_of(value: torch.Tensor, grid: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """uint8 codes of float32 [N, H, W, C] on the grid of each image's bits; padding channels are 0.

    grid: float32 [7, 2] (quantize.act_grid). bits: int32 [N].
    """
    row = grid[(bits - MIN_BITS).long()].view(-1, 2, 1, 1, 1)
    top = (2.0 ** bits.to(torch.float32) - 1).view(-1, 1, 1, 1)
    codes = torch.minimum(fma32(value, row[:, 0], row[:, 1]).clamp(min=0), top).round().to(torch.uint8)
    return F.pad(codes, (0, padded_channels(value.shape[3]) - value.shape[3]))


def _check_bits(name: str, bits: torch.Tensor) -> None:
    if bits.min() < MIN_BITS or bits.max() > MAX_BITS:
        raise ValueError(f"{name} must be {MIN_BITS}..{MAX_BITS}, got {bits.tolist()}")


def conv2d(conv: Conv, out: str) -> tuple[torch.Tensor, torch.Tensor]:
    """See ops.conv2d."""
    _check_bits("conv2d: x_bits", conv.x_bits)
    if out in ("codes", "both"):
        assert conv.out_bits is not None
        _check_bits("conv2d: out_bits", conv.out_bits)
    by_class = conv.weight.dim() == 6
    if by_class:
        acc = accumulate_by_class(conv.x_q, conv.weight, conv.box_filter)
    else:
        acc = accumulate(conv.x_q, conv.weight, conv.box_filter, conv.geometry, conv.shuffle)
    nothing = acc.new_empty(0, dtype=torch.uint8)
    if out == "acc":
        return pixel_shuffle(acc, conv.shuffle), nothing
    scale = conv.alpha[(conv.x_bits - MIN_BITS).long()].view(len(acc), 1, 1, -1)
    size = conv.x_q.shape[1:3]
    table = kernel_table(conv.beta, *size) if by_class else class_table(conv.beta, conv.axes, *size)
    value = fma32(acc.to(torch.float32), scale, table)
    if conv.activation == "relu":
        value = torch.where(value > 0, value, 0.0)  # NaN becomes 0, as in the kernels
    elif conv.activation == "prelu":
        assert conv.slope is not None
        value = torch.where(value < 0, value * conv.slope, value)
    value = pixel_shuffle(value, conv.shuffle)
    if conv.residual is not None:
        value = _values(conv, conv.residual) + value
    y = value
    if conv.features == "int16":  # what follows is computed from the value that the int16 holds
        y = to_fixed(value, conv.fraction)
        value = from_fixed(y, conv.fraction)
    codes = _output_codes(conv, value) if out in ("codes", "both") else nothing
    return (y if out in ("float", "both") else y.new_empty(0)), codes


def _output_codes(conv: Conv, value: torch.Tensor) -> torch.Tensor:
    """The codes of float32 values on the grid of the convolution's output."""
    assert conv.out_grid is not None and conv.out_bits is not None
    return codes_of(value, conv.out_grid, conv.out_bits)


def _values(conv: Conv, features: torch.Tensor) -> torch.Tensor:
    """The float32 values of features as the convolution stores them."""
    return from_fixed(features, conv.fraction) if conv.features == "int16" else features


def pack(weight: torch.Tensor, packing: Packing) -> torch.Tensor:
    """See call.Kernels. It packs nothing: the reference takes the weights as they are."""
    return torch.empty(0, dtype=torch.uint8, device=weight.device)


def conv2d_out(conv: Conv, to: Outputs) -> None:
    """See call.Kernels. Pixels are rounded from floats."""
    y, y_q = to.y, to.y_q
    if y is not None and y.dtype == torch.uint8:
        floats = y.to(torch.float32)
        conv2d_out(conv, Outputs(floats, y_q))
        y.copy_(to_pixels(floats))
        return
    if conv.packed_codes:
        conv = replace(conv, x_q=unpack_codes(conv.x_q, conv.x_bits))
    out = "codes" if y is None else "acc" if y.dtype == torch.int32 else "float" if y_q is None else "both"
    value, codes = conv2d(conv, out)
    masks = _masks(conv.place, conv.x_q.shape, conv.shuffle)
    passed = masks[1] if masks is not None and masks[1].any() else None
    handed = value.new_zeros(1, 1, 1, conv.weight.shape[-4]) if conv.residual is None else conv.residual
    if y_q is not None:
        if passed is not None:
            handed_q = _output_codes(conv, _values(conv, handed).expand(len(conv.x_q), -1, -1, -1))
            codes = torch.where(passed, handed_q, codes)
        _put(y_q, codes, masks, conv.out_bits if conv.packed_codes else None)
    if y is not None:
        value = value if passed is None else torch.where(passed, handed, value)
        y.copy_(value if masks is None else torch.where(masks[0] | masks[1], value, y))


def ready_conv2d_out(conv: Conv, to: Outputs) -> RunConv2d:
    """See call.Kernels."""
    settings, region = conv.settings, conv.place.region

    def run(x_q, x_bits, weight, packed, alpha, beta, slope, residual, out_grid, out_bits, depth, y, y_q) -> None:
        tensors = (x_q, x_bits, weight, packed, alpha, beta, slope, residual, out_grid, out_bits)
        conv2d_out(Conv(*tensors, **settings, place=Place(depth, region)), Outputs(y, y_q))

    return run


def _masks(place: Place, shape: Sequence[int], factor: int = 1) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Masks [N, factor*H, factor*W, 1] of the pixels that a region computes and of those that it passes on; None where every pixel
    is computed.

    shape: begins with N, H and W.
    """
    depth, numbers = place.depth, place.region
    if depth is None:
        return None
    images, height, width = shape[:3]
    values = as_tiles(depth, images, height, width, *numbers[:3]) if depth.dim() == 1 else depth
    masks = Region.of(list(numbers)).masks(Depths(values, *numbers[:3]), height, width)
    computed, passed = (mask.repeat_interleave(factor, 1).repeat_interleave(factor, 2)[..., None] for mask in masks)
    return computed, passed


def _put(
    y_q: torch.Tensor, codes: torch.Tensor, masks: tuple[torch.Tensor, torch.Tensor] | None, packed: torch.Tensor | None
) -> None:
    """Writes codes into a buffer where a region has them. packed: the bits of the codes, where the buffer holds several codes a
    byte."""
    if masks is not None:
        there = y_q if packed is None else unpack_codes(y_q, packed)
        codes = torch.where(masks[0] | masks[1], codes, there)
    y_q.copy_(codes if packed is None else pack_codes(codes, packed))


def quantize_out(read: Quantization, y_q: torch.Tensor) -> None:
    """See call.Kernels."""
    _check_bits("quantize: bits", read.bits)
    x = read.x.permute(0, 2, 3, 1)
    x = from_fixed(x, read.fraction) if x.dtype == torch.int16 else x
    codes = codes_of(x if read.shift is None else x - read.shift, read.grid, read.bits)
    masks = _masks(read.place, x.shape)
    if not read.packed_codes:
        _put(y_q, F.pad(codes[..., : x.shape[3]], (0, y_q.shape[3] - x.shape[3])), masks, None)
        return
    whole = unpack_codes(y_q, read.bits)
    whole[..., read.start : read.start + codes.shape[3]] = codes
    _put(y_q, whole, masks, read.bits)


def ready_quantize_out(read: Quantization, y_q: torch.Tensor) -> RunQuantize:
    """See call.Kernels."""
    settings, region = read.settings, read.place.region

    def run(x, shift, grid, bits, depth, y_q) -> None:
        quantize_out(Quantization(x, shift, grid, bits, **settings, place=Place(depth, region)), y_q)

    return run


def tile_depths_out(x_q: torch.Tensor, rule: DepthRule, depth: torch.Tensor) -> None:
    """See call.Kernels."""
    hard = tile_bends(x_q.permute(0, 3, 1, 2), rule.tile, rule.top, rule.left) > rule.threshold
    depth.copy_(hard * rule.deep)


def image_measure(x: torch.Tensor) -> torch.Tensor:
    """See call.Kernels."""
    return measure_images(x)


def layer_bits(x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, rules: torch.Tensor) -> torch.Tensor:
    """See call.Kernels."""
    return bits_by_rule(rules, image_offsets(measure_images(x), lower, upper))
