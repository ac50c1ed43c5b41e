"""Number grids and layouts in plain torch: the written form of what every kernel computes with (docs/numerics.md).

Activations: `bits` bits, codes q in 0 .. 2^bits-1, value lower + step * q with step = (upper - lower) / (2^bits - 1).
Weights lie on one of two grids, each with int8 codes k':
  "odd" (AdaBM, eq. 1, symmetric range): integers m = 2k' + 1, value m * upper / (2^bits - 1), zero absent;
  "signed": integers m = k' in -2^(bits-1) .. 2^(bits-1)-1, value m * upper / (2^(bits-1) - 1), zero present, half as wide.
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch

Bound = TypeVar("Bound", torch.Tensor, float)

MIN_BITS, MAX_BITS = 2, 8
WEIGHT_GRIDS = ("odd", "signed")
MIN_FRACTION, MAX_FRACTION = -16, 24  # of features of 16 bits: powers of two that scale every float32 of use exactly
MOST_FIXED = 2**15 - 1  # largest magnitude of an int16 feature
MOST_FLOAT32 = 2.0**128 - 2.0**104  # largest finite float32
CODE_CHANNELS = 4  # code tensors [N, H, W, C] hold C rounded up to a multiple of this: one 32-bit operand of a dot product


def round_ste(x: torch.Tensor) -> torch.Tensor:
    """round half to even; the gradient passes straight through."""
    return x + (x.round() - x).detach()


def to_pixels(y: torch.Tensor) -> torch.Tensor:
    """Floats in the units of pixels as uint8 of the same shape: clamped to 0..255, rounded half to even."""
    return y.clamp(0, 255).round_().to(torch.uint8)


def finite_float32(value: object) -> bool:
    """Whether a value is a number, and neither a truth value nor one that float32 makes infinite or NaN."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= MOST_FLOAT32


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
    Raises ValueError unless lower < upper and both are finite, and where a pair is not finite in float32.
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


def border_class(position: int, size: int, pad: int) -> int:
    """Class of one row (or column): which kernel rows fall outside, as cut_before * (pad + 1) + cut_after, each 0 .. pad."""
    return max(0, pad - position) * (pad + 1) + max(0, position + pad - (size - 1))


def valid_tap_sums(weights: torch.Tensor) -> torch.Tensor:
    """Sum of the weights whose taps fall inside the image, per border class.

    weights: [K, C, R, S], integers or float64. Returns int64 or float64 [(R//2 + 1)^2, (S//2 + 1)^2, K], indexed by
    `border_class` of the row and column for a "same" padding of R//2 and S//2; class [0, 0] is the interior.
    """
    r, s = weights.shape[2:]
    taps = weights.sum(1, dtype=torch.float64 if weights.is_floating_point() else torch.int64)
    rows = [(top, r - bottom) for top in range(r // 2 + 1) for bottom in range(r // 2 + 1)]
    cols = [(left, s - right) for left in range(s // 2 + 1) for right in range(s // 2 + 1)]
    return torch.stack([torch.stack([taps[:, a:b, c:d].sum((1, 2)) for c, d in cols]) for a, b in rows])
