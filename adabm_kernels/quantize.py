"""Number grids and layouts in plain torch. They define the numbers that every kernel computes with (docs/numerics.md).

An activation of `bits` bits has a code q in 0 .. 2^bits-1 and the value lower + step * q, where step = (upper - lower) /
(2^bits - 1).
Weights lie on one of two grids, each with int8 codes k':
  "odd" (AdaBM, eq. 1, symmetric range) has the integers m = 2k' + 1 with the values m * upper / (2^bits - 1), and no zero;
  "signed" has the integers m = k' in -2^(bits-1) .. 2^(bits-1)-1 with the values m * upper / (2^(bits-1) - 1), and a zero. Its
  integers are half as wide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import torch

Bound = TypeVar("Bound", torch.Tensor, float)

MIN_BITS, MAX_BITS = 2, 8
WEIGHT_GRIDS = ("odd", "signed")
MIN_FRACTION, MAX_FRACTION = -16, 24  # the fractions of int16 features: their powers of two scale every float32 of use exactly
MOST_FIXED = 2**15 - 1  # the largest magnitude of an int16 feature
MOST_FLOAT32 = 2.0**128 - 2.0**104  # the largest finite float32
CODE_CHANNELS = 4  # the channels of code tensors are rounded up to a multiple of this, one 32-bit operand of a dot product


def round_ste(x: torch.Tensor) -> torch.Tensor:
    """Rounds half to even; the gradient passes straight through."""
    return x + (x.round() - x).detach()


def to_pixels(y: torch.Tensor) -> torch.Tensor:
    """Floats in the units of pixels as pixels, uint8 of the same shape: clamped to 0..255 and rounded half to even."""
    return y.clamp(0, 255).round_().to(torch.uint8)


def finite_float32(value: object) -> bool:
    """Whether a value is a number, and neither a truth value nor one that float32 makes infinite or NaN."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= MOST_FLOAT32


def check_fraction(fraction: float) -> None:
    """Raises ValueError unless the fraction is a whole number in MIN_FRACTION..MAX_FRACTION."""
    number = isinstance(fraction, (int, float)) and not isinstance(fraction, bool)
    if not number or fraction not in range(MIN_FRACTION, MAX_FRACTION + 1):
        raise ValueError(f"fraction must be a whole number in {MIN_FRACTION}..{MAX_FRACTION}, got {fraction!r}")


def to_fixed(value: torch.Tensor, fraction: int) -> torch.Tensor:
    """float32 features as int16 of the same shape, in units of 2^-fraction, rounded half to even and clamped to -32767..32767.

    fraction: MIN_FRACTION..MAX_FRACTION. The product with a power of two is exact, so there is only one rounding. NaN gives -32767.
    """
    scaled = value.to(torch.float32) * 2.0**fraction
    return torch.where(scaled.isnan(), -MOST_FIXED, scaled.clamp(-MOST_FIXED, MOST_FIXED).round()).to(torch.int16)


def from_fixed(stored: torch.Tensor, fraction: int) -> torch.Tensor:
    """The float32 values of int16 features in units of 2^-fraction, exactly."""
    return stored.to(torch.float32).mul_(2.0**-fraction)  # in place, because features are large


class _FakeQuantizeAct(torch.autograd.Function):
    """Computes the gradients that autograd would find with straight-through rounding, from a third of its intermediate tensors."""

    @staticmethod
    def forward(ctx, x, lower, upper, bits):
        levels, width = 2**bits - 1, upper - lower
        unit = torch.clamp(x, min=lower, max=upper).sub_(lower).div_(width).mul_(levels)
        q = unit.round()
        ctx.save_for_backward(x, lower, upper, bits, unit, q)
        return q.div(levels).mul_(width).add_(lower)

    @staticmethod
    def backward(ctx, grad):
        x, lower, upper, bits, unit, q = ctx.saved_tensors
        levels = 2**bits - 1
        above = x > upper
        inside = (x >= lower) & ~above
        grad_x = grad * inside
        grad_lower = grad_upper = grad_bits = None
        if any(ctx.needs_input_grad[1:]):
            # The derivative of y by upper is the rounding error in levels inside the range, 1 above it and 0 below it. The
            # derivative by lower is the negative of that error, 0 and 1.
            error = (q - unit).div_(levels).mul_(grad)
            if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
                total, over, within = error.sum(), (grad * above).sum(), grad_x.sum()
                grad_upper = (total + over).reshape(upper.shape)
                grad_lower = (grad.sum() - over - within - total).reshape(lower.shape)
            if ctx.needs_input_grad[3]:
                slope = -(upper - lower) * 2**bits * math.log(2) / levels
                grad_bits = (error * slope).sum_to_size(bits.shape)
        return grad_x, grad_lower, grad_upper, grad_bits


def fake_quantize_act(x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, bits: torch.Tensor | float) -> torch.Tensor:
    """Quantises and dequantises activations, in the order of operations of the published simulation.

    x: [N, ...] float. lower, upper: one element each. bits: a number, or a tensor of one element or [N, 1, ...]. Differentiable in
    x, lower, upper and bits (rounding is a straight-through estimate).
    """
    lower, upper, bits = (torch.as_tensor(value, dtype=x.dtype).to(x.device) for value in (lower, upper, bits))
    return _FakeQuantizeAct.apply(x, lower, upper, bits)


def rest_range(lower: Bound, upper: Bound) -> Bound:
    """Half a step of the 8-bit grid. A value in lower..upper differs by at most this from the value of its code."""
    return (upper - lower) / (2 * (2**MAX_BITS - 1))


def _check_grid(grid: str) -> None:
    if grid not in WEIGHT_GRIDS:
        raise ValueError(f"grid must be one of {WEIGHT_GRIDS}, got {grid!r}")


def weight_step(upper: torch.Tensor, bits: int, grid: str) -> torch.Tensor:
    """The value of the integer 1 on a grid whose largest value is `upper`; same shape and dtype as `upper`.

    Raises ValueError for a grid that is not of WEIGHT_GRIDS.
    """
    _check_grid(grid)
    return upper / (2**bits - 1 if grid == "odd" else 2 ** (bits - 1) - 1)


def fake_quantize_weight(weight: torch.Tensor, upper: torch.Tensor, bits: int, grid: str = "odd") -> torch.Tensor:
    """Quantises and dequantises weights; on the odd grid in the order of operations of the published simulation.

    weight: [K, C, R, S] float. upper: one element, or [K, 1, 1, 1] for one range per output channel. Differentiable in weight and
    upper (rounding is a straight-through estimate). Raises as `weight_step`.
    """
    _check_grid(grid)
    if grid == "signed":
        step, most = weight_step(upper, bits, grid), 2 ** (bits - 1)
        return torch.clamp(round_ste(weight / step), -most, most - 1) * step
    levels = 2**bits - 1
    unit = (torch.clamp(weight, min=-upper, max=upper) + upper) / (2 * upper)
    return round_ste(unit * levels) / levels * (2 * upper) - upper


def weight_codes(weight: torch.Tensor, upper: torch.Tensor, bits: int, grid: str = "odd") -> torch.Tensor:
    """Codes k' in -2^(bits-1) .. 2^(bits-1)-1, int8, of the same shape; `weight_integers` says which integer each stands for.

    The float32 operations are those of `fake_quantize_weight`, so both round every weight to the same level.
    Raises as `weight_step`.
    """
    _check_grid(grid)
    if grid == "signed":
        most = 2 ** (bits - 1)
        return torch.clamp(torch.round(weight / weight_step(upper, bits, grid)), -most, most - 1).to(torch.int8)
    levels = 2**bits - 1
    unit = (torch.clamp(weight, min=-upper, max=upper) + upper) / (2 * upper)
    return (torch.round(unit * levels) - 2 ** (bits - 1)).to(torch.int8)


def weight_integers(codes: torch.Tensor, grid: str = "odd") -> torch.Tensor:
    """The integers m of weights, int16, from their codes k': 2k' + 1 on the odd grid, k' on the signed grid. Raises as
    `weight_step`."""
    _check_grid(grid)
    return codes.to(torch.int16) * 2 + 1 if grid == "odd" else codes.to(torch.int16)


def act_grid(lower: float, upper: float) -> torch.Tensor:
    """The grid of a range, float32 [7, 2]. For each of 2..8 bits it has the pair (scale, offset) that turns a value x into its
    unrounded code scale * x + offset.

    scale = (2^bits - 1) / (upper - lower) and offset = -lower * scale, each rounded once from float64. Raises ValueError unless
    lower < upper and both are finite, and where a pair is not finite in float32.
    """
    lower, upper = float(lower), float(upper)
    if not (lower < upper and abs(lower) < float("inf") and abs(upper) < float("inf")):
        raise ValueError(f"act_grid: needs finite lower < upper, got lower={lower} and upper={upper}")
    levels = torch.tensor([2.0**b - 1 for b in range(MIN_BITS, MAX_BITS + 1)], dtype=torch.float64)
    scale = levels / (upper - lower)
    grid = torch.stack([scale, -lower * scale], 1).to(torch.float32)
    if not grid.isfinite().all():
        raise ValueError(f"act_grid: needs a range whose scale and offset float32 holds, got lower={lower} and upper={upper}")
    return grid


def act_steps(lower: float, upper: float) -> torch.Tensor:
    """The step of the grid for each of 2..8 bits, float64 [7]."""
    levels = torch.tensor([2.0**b - 1 for b in range(MIN_BITS, MAX_BITS + 1)], dtype=torch.float64)
    return (float(upper) - float(lower)) / levels


def padded_channels(channels: int) -> int:
    """The number of channels that a code tensor for `channels` channels holds, padding included."""
    return -(-channels // CODE_CHANNELS) * CODE_CHANNELS


def storage_bits(bits: int) -> int:
    """How many bits a code of `bits` bits takes where codes are packed: 2 for 2, 4 for 3 and 4, and 8 for 5..8."""
    return 2 if bits <= 2 else 4 if bits <= 4 else 8


def packed_pitch(channels: int, bits: int) -> int:
    """The number of bytes from one pixel to the next in an image of packed codes, a multiple of 4."""
    return -(-padded_channels(channels) * storage_bits(bits) // 32) * 4


def pack_codes(codes: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """Packs codes, uint8 [N, H, W, C4], as they are stored where several share a byte: into a buffer of the same shape.

    Image n begins at byte n * H * W * C4 whatever its bits. Its pixel p lies at p * packed_pitch(C4, bits[n]) from there, and byte
    i of a pixel holds channels i * k .. i * k + k - 1 from the low bits up, where k = 8 / storage_bits(bits[n]). The bytes of a
    pixel hold 0 beyond its channels. The rest of the image is 0 here too, while kernels leave it as it was. bits: int32 [N], 2..8;
    a code of image n is below 2^bits[n].
    """
    n, h, w, c4 = codes.shape
    packed = torch.zeros(n, h * w * c4, dtype=torch.uint8, device=codes.device)
    for image, width in enumerate(bits.tolist()):
        stored, pitch = storage_bits(width), packed_pitch(c4, width)
        share = 8 // stored
        wide = torch.zeros(h * w, pitch * share, dtype=torch.uint8, device=codes.device)
        wide[:, :c4] = codes[image].reshape(h * w, c4)
        shifted = wide.view(h * w, pitch, share) << (torch.arange(share, device=codes.device) * stored).to(torch.uint8)
        packed[image, : h * w * pitch] = shifted.sum(2, dtype=torch.uint8).view(-1)
    return packed.view(n, h, w, c4)


def unpack_codes(packed: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """The codes uint8 [N, H, W, C4] in a buffer of `pack_codes`. bits: int32 [N]."""
    n, h, w, c4 = packed.shape
    codes = torch.empty_like(packed, memory_format=torch.contiguous_format)
    for image, width in enumerate(bits.tolist()):
        stored, pitch = storage_bits(width), packed_pitch(c4, width)
        share = 8 // stored
        used = packed[image].reshape(-1)[: h * w * pitch].view(h * w, pitch, 1)
        wide = (used >> (torch.arange(share, device=packed.device) * stored).to(torch.uint8)) & (2**stored - 1)
        codes[image] = wide.view(h * w, pitch * share)[:, :c4].reshape(h, w, c4)
    return codes


MAX_STEP = 2**10  # largest stride, dilation and padding of a convolution
GEOMETRY_NUMBERS = 9


@dataclass(frozen=True)
class Axis:
    """One axis of a convolution, rows or columns: the taps of the kernel, their distance, and the pixels of zeros around the
    image."""

    kernel: int
    stride: int
    dilation: int
    before: int
    after: int

    @property
    def extent(self) -> int:
        """The number of pixels from the first tap to the last one, both included."""
        return self.dilation * (self.kernel - 1) + 1

    @property
    def most_missing(self) -> tuple[int, int]:
        """How many taps an output can lack before the image and after it."""
        return min(self.kernel, -(-self.before // self.dilation)), min(self.kernel, -(-self.after // self.dilation))

    @property
    def classes(self) -> int:
        """The number of border classes. Not all of them occur in each image."""
        before, after = self.most_missing
        return (before + 1) * (after + 1)

    def outputs(self, size: int) -> int:
        """The number of outputs along an axis of `size` pixels. It is below 1 where the kernel does not fit."""
        return (size + self.before + self.after - self.extent) // self.stride + 1

    def missing(self, position: int, size: int) -> tuple[int, int]:
        """How many taps of the output at a position fall before the image and after it."""
        first = position * self.stride - self.before
        inside_from = min(max(-(first // self.dilation), 0), self.kernel)
        inside_to = min(max((size - 1 - first) // self.dilation + 1, 0), self.kernel)
        return inside_from, self.kernel - inside_to

    def border_class(self, position: int, size: int) -> int:
        """The class of the output at a position: the taps missing before the image, times one more than can be missing after it,
        plus the taps missing after it."""
        before, after = self.missing(position, size)
        return before * (self.most_missing[1] + 1) + after


@dataclass(frozen=True)
class Geometry:
    """How a kernel goes over an image. The words mean what they mean for torch.nn.functional.conv2d.

    stride, dilation: for rows and columns, 1..1024. groups: the channels are divided into so many groups, each of which makes its
    share of the outputs; with a PixelShuffle the shares are those of the outputs in torch's order. padding: zeros around the image,
    (rows, columns) or (top, left, bottom, right), 0..1024. None is "same": extent - 1 zeros along each axis, half of them on either
    side; an even kernel has the odd one after the image. With stride 1 the output is then as large as the image.

    Raises ValueError naming the field, its rule and the value.
    """

    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    padding: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name, least, counts in (("stride", 1, (2,)), ("dilation", 1, (2,)), ("padding", 0, (2, 4))):
            value = getattr(self, name)
            if value is None and name == "padding":
                continue
            whole = isinstance(value, tuple) and len(value) in counts and all(type(number) is int for number in value)
            if not whole or not all(least <= number <= MAX_STEP for number in value):
                how_many = " or ".join(map(str, counts))
                raise ValueError(f"{name} must be {how_many} whole numbers in {least}..{MAX_STEP}, got {value!r}")
        if type(self.groups) is not int or self.groups < 1:
            raise ValueError(f"groups must be a whole number of at least 1, got {self.groups!r}")

    @classmethod
    def given(
        cls,
        stride: int | Sequence[int] = 1,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        padding: int | Sequence[int] | None = None,
    ) -> Geometry:
        """A geometry from arguments as torch takes them, where one number stands for rows and columns. Raises as the class."""
        return cls(_pair(stride), _pair(dilation), groups, None if padding is None else _pair(padding))

    @classmethod
    def of(cls, numbers: Sequence[int]) -> Geometry:
        """A geometry from the result of `numbers`."""
        if len(numbers) not in (0, GEOMETRY_NUMBERS):
            raise ValueError(f"geometry must be no numbers or {GEOMETRY_NUMBERS} (quantize.Geometry.numbers), got {list(numbers)}")
        n = tuple(numbers)
        return cls((n[0], n[1]), (n[2], n[3]), n[4], n[5:]) if n else PLAIN

    def axes(self, kernel_h: int, kernel_w: int) -> tuple[Axis, Axis]:
        """The axes of the rows and of the columns."""
        sizes = kernel_h, kernel_w
        if self.padding is None:
            around = [dilation * (kernel - 1) for kernel, dilation in zip(sizes, self.dilation, strict=True)]
            before = [total // 2 for total in around]
            after = [total - first for total, first in zip(around, before, strict=True)]
        else:
            before, after = list(self.padding[:2]), list(self.padding[-2:])
        row, column = (Axis(*of_axis) for of_axis in zip(sizes, self.stride, self.dilation, before, after, strict=True))
        return row, column

    def is_plain(self, kernel_h: int, kernel_w: int) -> bool:
        """Whether this is the geometry that every backend computes for a kernel of this size: stride 1, taps side by side, one
        group, and half an odd kernel of zeros on each side."""
        if self.groups != 1:
            return False
        return all(
            axis.stride == 1 and axis.kernel % 2 == 1 and (axis.dilation == 1 or axis.kernel == 1)
            and axis.before == axis.after == axis.kernel // 2
            for axis in self.axes(kernel_h, kernel_w)
        )  # fmt: skip

    def numbers(self, kernel_h: int, kernel_w: int) -> tuple[int, ...]:
        """The geometry as the operators take it: stride, dilation, groups, and the zeros above, left, below and right. It is empty
        where the geometry is plain."""
        if self.is_plain(kernel_h, kernel_w):
            return ()
        rows, columns = self.axes(kernel_h, kernel_w)
        return (*self.stride, *self.dilation, self.groups, rows.before, columns.before, rows.after, columns.after)

    def describe(self, kernel_h: int, kernel_w: int) -> str:
        """The parts of the geometry that are not plain for a kernel of this size, in words; empty where all are."""
        rows, columns = self.axes(kernel_h, kernel_w)
        parts = [f"stride {self.stride[0]}x{self.stride[1]}"] if self.stride != (1, 1) else []
        parts += [f"dilation {self.dilation[0]}x{self.dilation[1]}"] if self.dilation != (1, 1) else []
        parts += [f"{self.groups} groups"] if self.groups != 1 else []
        if not parts and not self.is_plain(kernel_h, kernel_w):
            around = (rows.before, columns.before, rows.after, columns.after)
            parts.append(f"a kernel of {kernel_h}x{kernel_w} with padding {around}")
        return "" if self.is_plain(kernel_h, kernel_w) else ", ".join(parts)


PLAIN = Geometry()


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else cast(tuple[int, int], tuple(value))  # how many there are is checked later


def shuffle_order(outputs: int, factor: int) -> torch.Tensor:
    """The index that brings outputs from torch's PixelShuffle order, c * r^2 + sub-pixel, into the stored order, sub-pixel * C +
    c."""
    return torch.arange(outputs).view(outputs // factor**2, factor**2).T.reshape(-1)


def border_class(position: int, size: int, pad: int) -> int:
    """The class of one row (or column) of a plain convolution, which tells the kernel rows that fall outside: cut_before * (pad +
    1) + cut_after, each 0 .. pad."""
    return Axis(2 * pad + 1, 1, 1, pad, pad).border_class(position, size)


def valid_tap_sums(weights: torch.Tensor, geometry: Geometry = PLAIN) -> torch.Tensor:
    """The sum of the weights whose taps fall inside the image, for each border class.

    weights: [K, C, R, S], integers or float64, where C is the number of channels of a group. Returns int64 or float64 [classes of
    rows, classes of columns, K], indexed by `Axis.border_class`. Class [0, 0] is the interior. For a plain geometry this is
    [(R//2 + 1)^2, (S//2 + 1)^2, K].
    """
    taps = weights.sum(1, dtype=torch.float64 if weights.is_floating_point() else torch.int64)
    rows, cols = (
        [(first, axis.kernel - cut) for first in range(axis.most_missing[0] + 1) for cut in range(axis.most_missing[1] + 1)]
        for axis in geometry.axes(*weights.shape[2:])
    )
    return torch.stack([torch.stack([taps[:, a:b, c:d].sum((1, 2)) for c, d in cols]) for a, b in rows])


def conv_tables(
    integers: torch.Tensor,
    w_step: torch.Tensor,
    bias: torch.Tensor,
    lower: float | torch.Tensor,
    steps: torch.Tensor,
    geometry: Geometry = PLAIN,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tables by which accumulators become floats (docs/numerics.md, epilogue), in float64. They are later rounded once to
    float32.

    integers: the integers m of the weights, [K, C / groups, R, S]. w_step: the value of the integer 1, float64 [K]. bias: float64
    [K]. lower: the lower end of the input's range, as a number or, where it differs from channel to channel, float64 [C] for one
    group or [K, C / groups]. steps: the step of the input's codes for each of 2..8 bits, float64 [7] (`act_steps`).

    Returns alpha [7, K] and beta [classes of rows, classes of columns, K], indexed by `Axis.border_class`: the result is
    acc * alpha + beta.
    """
    lowers = torch.as_tensor(lower, dtype=torch.float64).expand(integers.shape[:2])
    return steps[:, None] * w_step, bias + w_step * valid_tap_sums(lowers[:, :, None, None] * integers, geometry)
