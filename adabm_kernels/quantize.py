"""Number grids and layouts in plain torch: the written form of what every kernel computes with (docs/numerics.md).

Activations: `bits` bits, codes q in 0 .. 2^bits-1, value lower + step * q with step = (upper - lower) / (2^bits - 1).
Weights lie on one of two grids, each with int8 codes k':
  "odd" (AdaBM, eq. 1, symmetric range): integers m = 2k' + 1, value m * upper / (2^bits - 1), zero absent;
  "signed": integers m = k' in -2^(bits-1) .. 2^(bits-1)-1, value m * upper / (2^(bits-1) - 1), zero present, half as wide.
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
MIN_FRACTION, MAX_FRACTION = -16, 24  # of features of 16 bits: powers of two that scale every float32 of use exactly
MOST_FIXED = 2**15 - 1  # largest magnitude of an int16 feature
CODE_CHANNELS = 4  # code tensors [N, H, W, C] hold C rounded up to a multiple of this: one 32-bit operand of a dot product


def round_ste(x: torch.Tensor) -> torch.Tensor:
    """round half to even; the gradient passes straight through."""
    return x + (x.round() - x).detach()


def to_pixels(y: torch.Tensor) -> torch.Tensor:
    """Floats in the units of pixels as uint8 of the same shape: clamped to 0..255, rounded half to even."""
    return y.clamp(0, 255).round_().to(torch.uint8)


def check_fraction(fraction: float) -> None:
    """ValueError unless it is a whole number in MIN_FRACTION..MAX_FRACTION."""
    number = isinstance(fraction, (int, float)) and not isinstance(fraction, bool)
    if not number or fraction not in range(MIN_FRACTION, MAX_FRACTION + 1):
        raise ValueError(f"fraction must be a whole number in {MIN_FRACTION}..{MAX_FRACTION}, got {fraction!r}")


def to_fixed(value: torch.Tensor, fraction: int) -> torch.Tensor:
    """float32 features as int16 of the same shape, in units of 2^-fraction: rounded half to even, clamped to -32767..32767.

    fraction: MIN_FRACTION..MAX_FRACTION. The product with a power of two is exact, so there is one rounding. NaN gives -32767.
    """
    scaled = value.to(torch.float32) * 2.0**fraction
    return torch.where(scaled.isnan(), -MOST_FIXED, scaled.clamp(-MOST_FIXED, MOST_FIXED).round()).to(torch.int16)


def from_fixed(stored: torch.Tensor, fraction: int) -> torch.Tensor:
    """The values of int16 features in units of 2^-fraction: float32, exact."""
    return stored.to(torch.float32).mul_(2.0**-fraction)  # in place: features are large


class _FakeQuantizeAct(torch.autograd.Function):
    """The gradients that autograd would find with straight-through rounding, from a third of its intermediate tensors."""

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
            # d y / d upper: rounding error in levels inside, 1 above, 0 below; d y / d lower: its negative, 0 and 1.
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
    """Quantise and dequantise activations, in the order of operations of the published simulation.

    x: [N, ...] float. lower, upper: one element each. bits: a number, or a tensor of one element or [N, 1, ...].
    Differentiable in x, lower, upper and bits (rounding is a straight-through estimate).
    """
    lower, upper, bits = (torch.as_tensor(value, dtype=x.dtype).to(x.device) for value in (lower, upper, bits))
    return _FakeQuantizeAct.apply(x, lower, upper, bits)


def rest_range(lower: Bound, upper: Bound) -> Bound:
    """Half a step of the 8-bit grid: what its codes leave of the values in lower..upper lies in -half..half."""
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
    """Quantise and dequantise weights; on the odd grid in the order of operations of the published simulation.

    weight: [K, C, R, S] float. upper: one element, or [K, 1, 1, 1] for one range per output channel.
    Differentiable in weight and upper (rounding is a straight-through estimate). Raises as `weight_step`.
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
    """m as int16: 2k' + 1 on the odd grid, k' itself on the signed one. Raises as `weight_step`."""
    _check_grid(grid)
    return codes.to(torch.int16) * 2 + 1 if grid == "odd" else codes.to(torch.int16)


def act_grid(lower: float, upper: float) -> torch.Tensor:
    """float32 [7, 2]: for bits 2..8, the pair (scale, offset) that turns a value x into its unrounded code scale * x + offset.

    scale = (2^bits - 1) / (upper - lower) and offset = -lower * scale, each rounded once from float64.
    Raises ValueError unless lower < upper and both are finite.
    """
    lower, upper = float(lower), float(upper)
    if not (lower < upper and abs(lower) < float("inf") and abs(upper) < float("inf")):
        raise ValueError(f"act_grid: needs finite lower < upper, got lower={lower} and upper={upper}")
    levels = torch.tensor([2.0**b - 1 for b in range(MIN_BITS, MAX_BITS + 1)], dtype=torch.float64)
    scale = levels / (upper - lower)
    return torch.stack([scale, -lower * scale], 1).to(torch.float32)


def act_steps(lower: float, upper: float) -> torch.Tensor:
    """float64 [7]: the step of the grid for bits 2..8."""
    levels = torch.tensor([2.0**b - 1 for b in range(MIN_BITS, MAX_BITS + 1)], dtype=torch.float64)
    return (float(upper) - float(lower)) / levels


def padded_channels(channels: int) -> int:
    """Channels that a code tensor of `channels` channels holds."""
    return -(-channels // CODE_CHANNELS) * CODE_CHANNELS


def storage_bits(bits: int) -> int:
    """Bits that a code of `bits` bits takes where codes are packed: 2 for 2, 4 for 3 and 4, 8 for 5..8."""
    return 2 if bits <= 2 else 4 if bits <= 4 else 8


def packed_pitch(channels: int, bits: int) -> int:
    """Bytes from one pixel to the next in an image of packed codes: a multiple of 4."""
    return -(-padded_channels(channels) * storage_bits(bits) // 32) * 4


def pack_codes(codes: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """Codes as they are stored where several share a byte: uint8 [N, H, W, C4] -> a buffer of the same shape.

    Image n begins at byte n * H * W * C4 whatever its bits; its pixel p lies at p * packed_pitch(C4, bits[n]) from there, and
    byte i of a pixel holds channels i * k .. i * k + k - 1 from the low bits up, k = 8 / storage_bits(bits[n]). What a pixel's
    bytes hold beyond its channels is 0; so is the rest of the image here, which kernels leave as it was.
    bits: int32 [N], 2..8; a code of image n is below 2^bits[n].
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
    """A convolution along the rows or the columns: taps of the kernel, their distance, and the pixels of zeros around the image."""

    kernel: int
    stride: int
    dilation: int
    before: int
    after: int

    @property
    def extent(self) -> int:
        """Pixels from the first tap to the last one."""
        return self.dilation * (self.kernel - 1) + 1

    @property
    def most_missing(self) -> tuple[int, int]:
        """How many taps an output can lack before the image and after it."""
        return min(self.kernel, -(-self.before // self.dilation)), min(self.kernel, -(-self.after // self.dilation))

    @property
    def classes(self) -> int:
        """Number of border classes; not all of them occur in each image."""
        before, after = self.most_missing
        return (before + 1) * (after + 1)

    def outputs(self, size: int) -> int:
        """Outputs along an axis of `size` pixels, below 1 where the kernel does not fit."""
        return (size + self.before + self.after - self.extent) // self.stride + 1

    def missing(self, position: int, size: int) -> tuple[int, int]:
        """How many taps of the output at a position fall before the image and after it."""
        first = position * self.stride - self.before
        inside_from = min(max(-(first // self.dilation), 0), self.kernel)
        inside_to = min(max((size - 1 - first) // self.dilation + 1, 0), self.kernel)
        return inside_from, self.kernel - inside_to

    def border_class(self, position: int, size: int) -> int:
        """Class of the output at a position: taps missing before the image, times one more than can be missing after it, plus
        taps missing after it."""
        before, after = self.missing(position, size)
        return before * (self.most_missing[1] + 1) + after


@dataclass(frozen=True)
class Geometry:
    """How a kernel goes over an image, with the meaning that torch.nn.functional.conv2d gives to these words.

    stride, dilation: of rows and columns, 1..1024. groups: the channels are divided into so many groups, each of which makes its
    share of the outputs; with a PixelShuffle the shares are those of the outputs in torch's order. padding: zeros around the image,
    (rows, columns), or (top, left, bottom, right), 0..1024; None is "same": together extent - 1 zeros along each axis, of which an
    even kernel has the odd one after the image, so that with stride 1 the output is as large as the image.

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
        """Of arguments as torch takes them, where one number stands for rows and columns. Raises as the class."""
        steps = cast(tuple[int, int], _numbers(stride)), cast(tuple[int, int], _numbers(dilation))
        return cls(*steps, groups, None if padding is None else _numbers(padding))

    @classmethod
    def of(cls, numbers: Sequence[int]) -> Geometry:
        """Of `numbers`."""
        if len(numbers) not in (0, GEOMETRY_NUMBERS):
            raise ValueError(f"geometry must be no numbers or {GEOMETRY_NUMBERS} (quantize.Geometry.numbers), got {list(numbers)}")
        n = tuple(numbers)
        return cls((n[0], n[1]), (n[2], n[3]), n[4], n[5:]) if n else PLAIN

    def axes(self, kernel_h: int, kernel_w: int) -> tuple[Axis, Axis]:
        """Rows and columns."""
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
        """Whether it is what every backend computes for a kernel of this size: stride 1, taps side by side, one group, and half an
        odd kernel of zeros on each side."""
        if self.groups != 1:
            return False
        return all(
            axis.stride == 1 and axis.kernel % 2 == 1 and (axis.dilation == 1 or axis.kernel == 1)
            and axis.before == axis.after == axis.kernel // 2
            for axis in self.axes(kernel_h, kernel_w)
        )  # fmt: skip

    def numbers(self, kernel_h: int, kernel_w: int) -> tuple[int, ...]:
        """As the operators take it: stride, dilation, groups, and the zeros above, left, below and right; no numbers where it is
        plain."""
        if self.is_plain(kernel_h, kernel_w):
            return ()
        rows, columns = self.axes(kernel_h, kernel_w)
        return (*self.stride, *self.dilation, self.groups, rows.before, columns.before, rows.after, columns.after)

    def describe(self, kernel_h: int, kernel_w: int) -> str:
        """What of it is not plain for a kernel of this size, in words; empty where all is."""
        rows, columns = self.axes(kernel_h, kernel_w)
        parts = [f"stride {self.stride[0]}x{self.stride[1]}"] if self.stride != (1, 1) else []
        parts += [f"dilation {self.dilation[0]}x{self.dilation[1]}"] if self.dilation != (1, 1) else []
        parts += [f"{self.groups} groups"] if self.groups != 1 else []
        if not parts and not self.is_plain(kernel_h, kernel_w):
            around = (rows.before, columns.before, rows.after, columns.after)
            parts.append(f"a kernel of {kernel_h}x{kernel_w} with padding {around}")
        return "" if self.is_plain(kernel_h, kernel_w) else ", ".join(parts)


PLAIN = Geometry()


def _numbers(value: int | Sequence[int]) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)


def shuffle_order(outputs: int, factor: int) -> torch.Tensor:
    """Index that brings torch's PixelShuffle order c * r^2 + sub-pixel into the stored one, sub-pixel * C + c."""
    return torch.arange(outputs).view(outputs // factor**2, factor**2).T.reshape(-1)


def border_class(position: int, size: int, pad: int) -> int:
    """Class of one row (or column) of a plain convolution: which kernel rows fall outside, as cut_before * (pad + 1) + cut_after,
    each 0 .. pad."""
    return Axis(2 * pad + 1, 1, 1, pad, pad).border_class(position, size)


def valid_tap_sums(weights: torch.Tensor, geometry: Geometry = PLAIN) -> torch.Tensor:
    """Sum of the weights whose taps fall inside the image, per border class.

    weights: [K, C, R, S], integers or float64; C those of a group. Returns int64 or float64 [classes of rows, classes of columns,
    K], indexed by `Axis.border_class`; class [0, 0] is the interior. Plain geometry: [(R//2 + 1)^2, (S//2 + 1)^2, K].
    """
    taps = weights.sum(1, dtype=torch.float64 if weights.is_floating_point() else torch.int64)
    rows, cols = (
        [(first, axis.kernel - cut) for first in range(axis.most_missing[0] + 1) for cut in range(axis.most_missing[1] + 1)]
        for axis in geometry.axes(*weights.shape[2:])
    )
    return torch.stack([torch.stack([taps[:, a:b, c:d].sum((1, 2)) for c, d in cols]) for a, b in rows])
