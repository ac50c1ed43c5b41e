"""The written form of grids and layouts, and the reference's fused multiply-add, against exact rational arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from adabm_kernels.backends.reference import codes_of, fma32
from adabm_kernels.quantize import (
    MAX_BITS,
    MIN_BITS,
    Axis,
    Geometry,
    act_grid,
    act_steps,
    border_class,
    fake_quantize_act,
    fake_quantize_weight,
    padded_channels,
    valid_tap_sums,
    weight_codes,
    weight_integers,
    weight_step,
)

HALF_ULP = 2.0**-24  # relative error of one rounding to float32
WIDTHS = range(MIN_BITS, MAX_BITS + 1)
SETTINGS = settings(max_examples=60)

floats32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
moderate = st.floats(-64, 64, width=32)
ranges = st.tuples(st.floats(-64, 64, width=32), st.floats(2.0**-6, 128, width=32)).map(lambda p: (p[0], p[0] + p[1]))


def nearest_float32(x: Fraction) -> float:
    """x rounded once to float32, half to even, with subnormals and overflow."""
    if x == 0:
        return 0.0
    exponent = abs(x.numerator).bit_length() - x.denominator.bit_length()
    if abs(x) < Fraction(2) ** exponent:
        exponent -= 1
    quantum = Fraction(2) ** (max(exponent, -126) - 23)
    rounded = round(x / quantum) * quantum
    if abs(rounded) >= 2**128:
        return math.copysign(math.inf, rounded)
    return float(rounded)


def f32(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float32)


# ---- fma32


def check_fma(a: float, b: float, c: float) -> None:
    want = nearest_float32(Fraction(a) * Fraction(b) + Fraction(c))
    assert fma32(f32(a), f32(b), f32(c)).item() == want, f"{a.hex()} * {b.hex()} + {c.hex()}"


TIE = 1 + 2.0**-12  # its square, 1 + 2^-11 + 2^-24, lies midway between two float32


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("nudge", [0.0, 2.0**-60, -(2.0**-60), 2.0**-149, -(2.0**-149)])
@pytest.mark.parametrize("tie", [TIE, TIE + 2.0**-23, 3 * TIE, 2.0**-40 * TIE], ids=float.hex)
def test_fma_rounds_ties_once(tie: float, nudge: float, sign: int) -> None:
    check_fma(sign * tie, TIE, nudge)


def test_the_ties_are_hard() -> None:
    """Rounding to float64 first and to float32 then loses the nudge, so the cases above tell the two apart."""
    a, b, c = (f32(value).double() for value in (TIE, TIE, 2.0**-60))
    assert (a * b + c).float().item() != fma32(a.float(), b.float(), c.float()).item()


@pytest.mark.parametrize(
    "a, b, c",
    [
        (2.0**-100, 2.0**-49, 0.0),  # the smallest subnormal
        (2.0**-100, 2.0**-50, 0.0),  # half of it: to zero
        (2.0**-100, 2.0**-50, 2.0**-149),  # a tie between two subnormals
        (2.0**-100, 3 * 2.0**-50, -(2.0**-149)),
        (2.0**-149, 2.0**-149, 2.0**-126),
        (2.0**64, 2.0**64, 0.0),  # overflow
        (2.0**64, -(2.0**64), 0.0),
        (2.0**64, 2.0**63, 2.0**127),
        (2.0**64, 2.0**64, -(2.0**127)),  # the product overflows, the sum does not
        (1 + 2.0**-23, 1 + 2.0**-23, -(1 + 2.0**-22)),  # cancellation down to the last bit of the product
        (2.0**127, 1.0, -(2.0**-149)),
        (1.0, 1.0, -1.0),
    ],
)
def test_fma_at_the_ends_of_float32(a: float, b: float, c: float) -> None:
    check_fma(a, b, c)


@SETTINGS
@given(floats32, floats32, floats32)
def test_fma_rounds_once(a: float, b: float, c: float) -> None:
    check_fma(a, b, c)


@settings(max_examples=300)
@given(st.integers(2**23, 2**24 - 1), st.integers(2**23, 2**24 - 1), st.integers(-80, 30), st.integers(1, 2**24 - 1))
def test_fma_with_sums_that_reach_far_below_the_product(m: int, n: int, exponent: int, c: int) -> None:
    for sign in (1, -1):
        check_fma(m * 2.0**-23, n * 2.0**-23, sign * c * 2.0**exponent)


# ---- weights


@st.composite
def weights(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, int]:
    """(weight, its range, bits): some weights outside the range, some on boundaries between two levels."""
    bits = draw(st.integers(MIN_BITS, MAX_BITS))
    upper = draw(st.floats(2.0**-10, 16, width=32))
    drawn = draw(st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=30))
    edges = [(2 * k + 2) / (2**bits - 1) - 1 for k in draw(st.lists(st.integers(0, 2**bits - 3), max_size=10))]
    return torch.tensor([*drawn, *edges, 1.0, -1.0, 0.0]) * upper, f32(upper), bits


@SETTINGS
@given(weights())
def test_weight_codes_round_like_the_simulation(case: tuple[torch.Tensor, torch.Tensor, int]) -> None:
    weight, upper, bits = case
    codes = weight_codes(weight, upper, bits)
    integers = weight_integers(codes)
    levels = 2**bits - 1
    assert codes.dtype == torch.int8 and integers.dtype == torch.int16
    assert -(2 ** (bits - 1)) <= codes.min() and codes.max() <= 2 ** (bits - 1) - 1
    assert (integers % 2 == 1).all() and integers.abs().max() <= levels
    # fake_quantize_weight divides, multiplies and subtracts after rounding, each with one rounding error: of values up to
    # 2 upper twice and of one up to upper. Neighbouring levels are 2 upper / levels apart, far more.
    grid = integers.double() * upper.double() / levels
    bound = 5 * HALF_ULP * upper.double() * (1 + 2.0**-20)
    assert ((fake_quantize_weight(weight, upper, bits).double() - grid).abs() <= bound).all()


@SETTINGS
@given(weights())
def test_weight_codes_are_those_of_the_formula(case: tuple[torch.Tensor, torch.Tensor, int]) -> None:
    weight, upper, bits = case
    levels, u = 2**bits - 1, Fraction(upper.item())
    for value, code in zip(weight.tolist(), weight_codes(weight, upper, bits).tolist(), strict=True):
        exact = (max(-u, min(u, Fraction(value))) + u) / (2 * u) * levels
        k = code + 2 ** (bits - 1)
        # Three float32 roundings (sum, quotient, product) of a value up to `levels`.
        from_boundary = abs(exact - math.floor(exact) - Fraction(1, 2))
        assert k == round(exact) or (from_boundary <= 3.001 * HALF_ULP * levels and abs(k - exact) < 1)


def test_weight_ranges_per_channel_are_those_of_each_channel() -> None:
    weight = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    upper = torch.rand(5, 1, 1, 1) + 0.1
    together = weight_codes(weight, upper, 4)
    for channel in range(5):
        assert torch.equal(together[channel], weight_codes(weight[channel], upper[channel], 4))


# ---- activations


@SETTINGS
@given(ranges)
def test_act_grid_and_steps_are_their_formulas(bounds: tuple[float, float]) -> None:
    lower, upper = map(Fraction, bounds)
    grid, steps = act_grid(*bounds), act_steps(*bounds)
    assert grid.dtype == torch.float32 and grid.shape == (7, 2)
    assert steps.dtype == torch.float64 and steps.shape == (7,)
    for bits, (scale, offset), step in zip(WIDTHS, grid.tolist(), steps.tolist(), strict=True):
        exact = (2**bits - 1) / (upper - lower)
        # Float64 adds errors of 2^-53 to the one rounding to float32.
        once = Fraction(HALF_ULP) * (1 + Fraction(2) ** -26)
        assert abs(Fraction(scale) - exact) <= once * exact
        assert abs(Fraction(offset) + lower * exact) <= once * abs(lower * exact)
        assert abs(Fraction(step) * exact - 1) <= Fraction(2) ** -51


@SETTINGS
@given(ranges, st.lists(moderate, min_size=1, max_size=20), st.integers(MIN_BITS, MAX_BITS))
def test_codes_are_their_formula(bounds: tuple[float, float], values: list[float], bits: int) -> None:
    """The code is that of the float32 formula exactly, and that of the real numbers but next to a rounding boundary."""
    lower, upper = map(Fraction, bounds)
    grid, levels = act_grid(*bounds), 2**bits - 1
    values = [*values, *bounds]
    codes = codes_of(torch.tensor(values).view(1, 1, 1, -1), grid, torch.tensor([bits], dtype=torch.int32))
    assert codes.shape == (1, 1, 1, padded_channels(len(values)))
    assert not codes[..., len(values) :].any()
    scale, offset = map(Fraction, grid[bits - MIN_BITS].tolist())
    for value, code in zip(map(Fraction, values), codes.flatten().tolist(), strict=False):
        assert code == max(0, min(levels, round(Fraction(nearest_float32(value * scale + offset)))))
        exact = (max(lower, min(upper, value)) - lower) / (upper - lower) * levels
        # Rounding of scale, of offset and of their sum: docs/numerics.md, "Rounding bounds".
        bound = Fraction(HALF_ULP) * (2 * abs(value * scale) + 2 * abs(offset)) * (1 + Fraction(2) ** -20)
        from_boundary = abs(exact - math.floor(exact) - Fraction(1, 2))
        assert code == round(exact) or (from_boundary <= bound and abs(code - exact) < 1)


def test_codes_take_the_bits_of_each_image() -> None:
    x = torch.linspace(-3, 3, 24).view(1, 2, 4, 3).repeat(7, 1, 1, 1)
    bits = torch.arange(MIN_BITS, MAX_BITS + 1, dtype=torch.int32)
    codes = codes_of(x, act_grid(-1.0, 2.0), bits)
    for image, width in enumerate(bits):
        assert torch.equal(codes[image : image + 1], codes_of(x[:1], act_grid(-1.0, 2.0), width.view(1)))
        assert codes[image].max() == 2**width - 1


@SETTINGS
@given(ranges, st.lists(moderate, min_size=1, max_size=20), st.integers(MIN_BITS, MAX_BITS))
def test_fake_quantized_activations_lie_on_the_grid(bounds: tuple[float, float], values: list[float], bits: int) -> None:
    lower, upper = (torch.tensor(b, dtype=torch.float64) for b in bounds)
    x = torch.tensor([*values, *bounds], dtype=torch.float64)
    got = fake_quantize_act(x, lower, upper, bits)
    step = act_steps(*bounds)[bits - MIN_BITS]
    codes = ((got - lower) / step).round()
    assert codes.min() >= 0 and codes.max() <= 2**bits - 1
    size = lower.abs() + upper.abs()
    assert torch.allclose(got, lower + step * codes, rtol=0, atol=8 * 2.0**-53 * size.item())
    assert ((got - x.clamp(lower, upper)).abs() <= step * (0.5 + 2.0**-40)).all()
    assert torch.allclose(fake_quantize_act(got, lower, upper, bits), got, rtol=0, atol=8 * 2.0**-53 * size.item())


def test_fake_quantized_activations_take_bits_per_image_and_pass_gradients() -> None:
    x = torch.linspace(-2, 3, 12).view(2, 1, 2, 3).requires_grad_()
    lower, upper = torch.tensor([-1.0], requires_grad=True), torch.tensor([2.0], requires_grad=True)
    bits = torch.tensor([2.0, 5.0], requires_grad=True)
    y = fake_quantize_act(x, lower, upper, bits.view(2, 1, 1, 1))
    for image, width in enumerate((2, 5)):
        assert torch.equal(y[image], fake_quantize_act(x[image], lower, upper, width))
    y.sum().backward()
    inside = (x > -1) & (x < 2)
    assert torch.allclose(x.grad, inside.float())
    for parameter in (lower, upper, bits):
        assert parameter.grad is not None and parameter.grad.isfinite().all()


@pytest.mark.parametrize("lower, upper", [(1.0, 1.0), (2.0, 1.0), (float("nan"), 1.0), (0.0, float("inf")), (float("-inf"), 0.0)])
def test_act_grid_refuses_an_empty_or_endless_range(lower: float, upper: float) -> None:
    with pytest.raises(ValueError, match=f"finite lower < upper, got lower={lower} and upper={upper}"):
        act_grid(lower, upper)


# ---- layouts


@pytest.mark.parametrize("channels", range(1, 10))
def test_padded_channels_is_the_next_multiple_of_four(channels: int) -> None:
    assert padded_channels(channels) == next(c for c in range(channels, channels + 4) if c % 4 == 0)


@given(st.integers(1, 12), st.integers(0, 5), st.data())
def test_border_class_counts_the_rows_cut_off(size: int, pad: int, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, size - 1))
    taps = range(position - pad, position + pad + 1)
    before, after = sum(t < 0 for t in taps), sum(t >= size for t in taps)
    assert border_class(position, size, pad) == before * (pad + 1) + after


@SETTINGS
@given(
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.sampled_from([1, 3, 5, 9]), st.sampled_from([1, 3, 5])),
    st.integers(0, 99),
)
@example((1, 1), (9, 3), 0)
def test_valid_tap_sums_are_a_convolution_of_ones(size: tuple[int, int], kernel: tuple[int, int], seed: int) -> None:
    (h, w), (r, s) = size, kernel
    integers = torch.randint(-255, 256, (3, 2, r, s), generator=torch.Generator().manual_seed(seed), dtype=torch.int16)
    table = valid_tap_sums(integers)
    assert table.dtype == torch.int64 and table.shape == ((r // 2 + 1) ** 2, (s // 2 + 1) ** 2, 3)
    assert torch.equal(table[0, 0], integers.to(torch.int64).sum((1, 2, 3)))
    want = F.conv2d(torch.ones(1, 2, h, w, dtype=torch.float64), integers.double(), padding=(r // 2, s // 2))[0]
    rows = [border_class(i, h, r // 2) for i in range(h)]
    columns = [border_class(i, w, s // 2) for i in range(w)]
    assert torch.equal(table[rows][:, columns].permute(2, 0, 1), want.to(torch.int64))


def plain_fake_quantize(x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """The published formula, operation by operation, for autograd to differentiate."""
    levels = 2**bits - 1
    unit = (torch.clamp(x, min=lower, max=upper) - lower) / (upper - lower) * levels
    return (unit + (unit.round() - unit).detach()) / levels * (upper - lower) + lower


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_of_fake_quantized_activations_are_those_of_the_formula(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(3, 4, 6, 5, generator=generator) * 50).to(dtype).requires_grad_()
    lower, upper = (torch.tensor([end], dtype=dtype, requires_grad=True) for end in (-40.0, 60.0))
    bits = torch.tensor([3.0, 4.0, 5.0], dtype=dtype).view(3, 1, 1, 1).requires_grad_()
    grad = torch.randn(3, 4, 6, 5, generator=generator).to(dtype)
    want, got = (f(x, lower, upper, bits) for f in (plain_fake_quantize, fake_quantize_act))
    assert torch.equal(want, got)
    inputs = (x, lower, upper, bits)
    for a, b in zip(torch.autograd.grad(want, inputs, grad), torch.autograd.grad(got, inputs, grad), strict=True):
        # Sums of 360 terms in another order; with respect to the bits the terms cancel to a hundredth of their size.
        assert torch.allclose(a, b, rtol=360 * 100 * torch.finfo(dtype).eps, atol=0)


@SETTINGS
@given(st.integers(0, 1000), st.integers(2, 8))
def test_signed_weight_codes_are_the_nearest_integers(seed: int, bits: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight, upper = torch.randn(3, 2, 3, 3, generator=generator), torch.rand(3, 1, 1, 1, generator=generator) + 0.1
    codes = weight_codes(weight, upper, bits, "signed")
    most = 2 ** (bits - 1)
    assert codes.dtype == torch.int8 and torch.equal(weight_integers(codes, "signed"), codes.to(torch.int16))
    step = upper / (most - 1)
    exact = (weight.double() / step.double()).clamp(-most, most - 1)
    # A code next to the nearest one is right only where rounding the quotient to float32 crossed a boundary.
    assert (codes.double() - exact).abs().max() <= 0.5 + most * 2 * HALF_ULP
    assert torch.equal(fake_quantize_weight(weight, upper, bits, "signed"), codes * step)


def test_zero_is_on_the_signed_grid_and_not_on_the_odd_one() -> None:
    weight, upper = torch.zeros(1, 1, 3, 3), torch.ones(1)
    assert fake_quantize_weight(weight, upper, 4, "signed").abs().max() == 0
    assert fake_quantize_weight(weight, upper, 4, "odd").abs().min() > 0


def test_an_unknown_weight_grid_is_named() -> None:
    weight, upper = torch.ones(2, 2, 3, 3), torch.ones(1)
    for call in (
        lambda: weight_step(upper, 4, "od"),
        lambda: fake_quantize_weight(weight, upper, 4, "od"),
        lambda: weight_codes(weight, upper, 4, "od"),
        lambda: weight_integers(weight.to(torch.int8), "od"),
    ):
        with pytest.raises(ValueError, match=r"grid must be one of \('odd', 'signed'\), got 'od'"):
            call()


# ---- geometry


@SETTINGS
@given(
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.none() | st.tuples(*[st.integers(0, 9)] * 2) | st.tuples(*[st.integers(0, 9)] * 4),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
)
def test_border_classes_of_any_geometry_have_the_taps_inside(kernel, stride, dilation, padding, size) -> None:
    """By torch's convolution of an image of ones, whose padding is zero."""
    geometry = Geometry(stride, dilation, 1, padding)
    rows, columns = geometry.axes(*kernel)
    assume(rows.outputs(size[0]) > 0 and columns.outputs(size[1]) > 0)
    g = torch.Generator().manual_seed(0)
    weights = torch.randint(-9, 10, (3, 2, *kernel), generator=g)
    ones = F.pad(torch.ones(1, 2, *size, dtype=torch.float64), (columns.before, columns.after, rows.before, rows.after))
    want = F.conv2d(ones, weights.double(), stride=stride, dilation=dilation)[0].permute(1, 2, 0)
    table = valid_tap_sums(weights, geometry)
    assert table.shape == (rows.classes, columns.classes, 3)
    at = [[axis.border_class(i, n) for i in range(axis.outputs(n))] for axis, n in zip((rows, columns), size, strict=True)]
    assert torch.equal(table[at[0]][:, at[1]].double(), want)
    if padding is None and stride == (1, 1):
        assert (rows.outputs(size[0]), columns.outputs(size[1])) == size


def test_plain_geometry_is_told_however_it_is_written() -> None:
    for geometry in (Geometry(), Geometry(padding=(1, 2)), Geometry(padding=(1, 2, 1, 2)), Geometry.given(1, 1, 1, (1, 2))):
        assert geometry.is_plain(3, 5) and geometry.numbers(3, 5) == () and geometry.describe(3, 5) == ""
    assert Geometry(dilation=(1, 4)).is_plain(3, 1)  # a kernel of one column has no distance between columns
    other = {
        Geometry(stride=(1, 2)): "stride 1x2",
        Geometry.given(dilation=2, groups=3): "dilation 2x2, 3 groups",
        Geometry(padding=(0, 1)): "a kernel of 3x3 with padding (0, 1, 0, 1)",
    }
    for geometry, words in other.items():
        assert not geometry.is_plain(3, 3) and geometry.describe(3, 3) == words
        assert Geometry.of(geometry.numbers(3, 3)).numbers(3, 3) == geometry.numbers(3, 3)
    assert Axis(4, 1, 1, 1, 2).outputs(9) == 9 and Geometry().numbers(4, 4) == (1, 1, 1, 1, 1, 1, 1, 2, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stride": (0, 1)}, r"stride must be 2 whole numbers in 1..1024, got \(0, 1\)"),
        ({"stride": (1.5, 1)}, r"stride must be 2 whole numbers in 1..1024, got \(1.5, 1\)"),
        ({"dilation": (1, 1025)}, r"dilation must be 2 whole numbers in 1..1024, got \(1, 1025\)"),
        ({"dilation": (1,)}, r"dilation must be 2 whole numbers in 1..1024, got \(1,\)"),
        ({"padding": (1, -1)}, r"padding must be 2 or 4 whole numbers in 0..1024, got \(1, -1\)"),
        ({"padding": (1, 1, 1)}, r"padding must be 2 or 4 whole numbers in 0..1024, got \(1, 1, 1\)"),
        ({"groups": 0}, "groups must be a whole number of at least 1, got 0"),
    ],
)
def test_a_wrong_geometry_is_named(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        Geometry(**changes)
    with pytest.raises(ValueError, match="geometry must be no numbers or 9"):
        Geometry.of((1, 1))
