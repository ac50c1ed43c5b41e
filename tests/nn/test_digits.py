"""The input of the upsampler in two 8-bit digits."""

import dataclasses

import pytest
import torch
from small import one_thread  # noqa: F401
from torch.nn import functional as F

from adabm_kernels import ConvertConfig, convert_model, load, save
from adabm_kernels.calibrate import calibrate
from adabm_kernels.networks.collapse import collapse
from adabm_kernels.networks.detect import float_network
from adabm_kernels.networks.edsr import EDSRSpec
from adabm_kernels.networks.rdn import RDNSpec
from adabm_kernels.networks.srresnet import SRResNetSpec
from adabm_kernels.nn.tail import CollapsedConv2d
from adabm_kernels.quantize import act_grid

EDSR = EDSRSpec(2, 1, 8)
SPECS = [EDSR, RDNSpec(2, 1, 2, 4, 8), SRResNetSpec(2, 1, 8, slopes=8), SRResNetSpec(2, 1, 8, unit_range=True)]
each_spec = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.network}{SPECS.index(spec)}")
U = 2.0**-24  # relative error of one rounding to float32


def image(side: int = 24) -> torch.Tensor:
    return torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(5)) * 255


def calibrated(spec=EDSR, **config):
    torch.manual_seed(3)
    settings = {"weight_bits": 6, "act_bits": 6} | config
    return calibrate(float_network(spec).eval(), [image()], ConvertConfig(**settings))


@each_spec
def test_simulated_digits_leave_half_a_step_of_sixteen_bits(spec):
    sim = calibrated(spec)
    conv = sim.upsampler_convs()[0]
    assert conv.digits == 2
    x = torch.linspace(conv.lower_a.item(), conv.upper_a.item(), 10_001).view(1, 1, 1, -1)
    with torch.no_grad():
        rounded = conv._quantized(x, torch.full((1, 1, 1, 1), 8.0))
    width = (conv.upper_a - conv.lower_a).item()
    # Half a step of either digit, and a few float32 roundings of values up to the range.
    assert (rounded - x).abs().max().item() <= width / 255 / 255 / 2 + 8 * U * max(-conv.lower_a.item(), conv.upper_a.item(), width)


def test_sum_of_both_convolutions_is_that_of_the_features():
    """Against the float64 convolution of the features themselves with the integer weights, at every pixel, borders too."""
    generator = torch.Generator().manual_seed(1)
    stages = [(torch.randn(32, 8, 3, 3, generator=generator) * 0.1, torch.randn(32, generator=generator))]
    stages += [(torch.randn(3, 8, 3, 3, generator=generator), torch.randn(3, generator=generator))]
    lower, upper = -1.5, 2.25
    tail = CollapsedConv2d(collapse(stages, (2,)), lower, upper, torch.zeros(3, dtype=torch.float64), digits=2)
    x = torch.rand(1, 9, 11, 8, generator=generator) * (upper - lower) + lower
    codes = [_codes(x, act_grid(lower, upper))]
    left = tail.leave(x.clone(), codes[0])
    codes.append(_codes(left, tail.rest.grid))
    bits = torch.full((1,), 8, dtype=torch.int32)
    y = tail.two_digits(codes[0], codes[1], bits)
    weight = tail.weight[2, 2].double()  # [K, R, S, C], outputs sub-pixel first
    scale = tail.alpha[-1].double() / tail.step
    bias = tail.beta[2, 2].double() - scale * lower * weight.sum((1, 2, 3))
    want = F.conv2d(x.double().permute(0, 3, 1, 2), weight.permute(0, 3, 1, 2)) * scale.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)
    want = F.pixel_shuffle(want.view(1, 4, 3, 5, 7).transpose(1, 2).reshape(1, 12, 5, 7), 2)[0].permute(1, 2, 0)
    absolute = (weight.abs().sum((1, 2, 3)) * scale).max().item()
    # What the second digit rounds away through every tap, then float32: the features left (three roundings of values in the
    # range), the tables and the two sums (eight roundings of at most twice the largest result).
    bound = absolute * ((upper - lower) / 255 / 255 / 2 + 4 * U * 2.25) + 16 * U * (absolute * 2.25 + bias.abs().max().item())
    assert (y[0, 4:-4, 4:-4].double() - want).abs().max().item() <= bound


@pytest.mark.parametrize("spec", [SPECS[0], SPECS[2]], ids=lambda spec: spec.network)
def test_staged_convolution_of_two_digits_is_that_of_the_features(spec):
    """Against the float64 convolution of the features themselves with the weights on their grid, at every pixel, borders too."""
    sim = calibrated(spec)
    plain, conv = sim.upsampler_convs()[0], convert_model(sim).conv("tail.0.0")
    lower, upper = plain.lower_a.item(), plain.upper_a.item()
    x = torch.rand(2, 7, 6, 8, generator=torch.Generator().manual_seed(2)) * (upper - lower) + lower
    codes = _codes(x, conv.grid)
    y = conv.two_digits(codes, _codes(conv.leave(x.clone(), codes), conv.rest.grid), torch.full((2,), 8, dtype=torch.int32))
    with torch.no_grad():
        weight = plain.quantized_weight().double()
        bias = torch.zeros(len(weight)).double() if plain.bias is None else plain.bias.double()
        want = F.pixel_shuffle(F.conv2d(x.double().permute(0, 3, 1, 2), weight, bias, padding=1), 2)
        if spec.network == "srresnet":
            want = F.prelu(want, sim.tail[0][2].weight.double())
    absolute, most = weight.abs().sum((1, 2, 3)).max().item(), max(-lower, upper)
    # As above; the tables of the kernel are exact to u of their largest terms, a PReLU of slope below 1 adds one rounding.
    bound = absolute * ((upper - lower) / 255 / 255 / 2 + 4 * U * most) + 17 * U * (absolute * most + bias.abs().max().item())
    assert (y.permute(0, 3, 1, 2).double() - want).abs().max().item() <= bound


def _codes(x: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    scale, offset = grid[-1].tolist()
    return (x.double() * scale + offset).round().clamp(0, 255).to(torch.uint8)


@each_spec
@pytest.mark.parametrize("residual", ["float32", "int16"])
def test_integers_equal_the_reference(spec, residual):
    if residual == "int16" and not spec.residual_stream:
        pytest.skip("its features are slices of wider ones")
    model = convert_model(calibrated(spec, residual=residual))
    assert (model.fraction is None) == (residual == "float32")
    assert ("tail.0.0, second digit" if spec.network == "srresnet" else "tail, second digit") in model.plan()
    got = model(image())
    model.set_backend("reference")
    assert torch.equal(got, model(image()))
    small = image(4)  # too small for the collapsed tail: stage by stage, from the first digit
    want = model(small)
    model.set_backend("auto")
    assert torch.equal(model(small), want)


def test_digits_travel_with_the_model(tmp_path):
    sim = calibrated()
    model = convert_model(sim)
    want = model(image())
    save(model, tmp_path / "m.safetensors")
    assert torch.equal(load(tmp_path / "m.safetensors")(image()), want)
    assert torch.equal(convert_model(sim.state_dict(), config=sim.config)(image()), want)


@pytest.mark.parametrize(
    ("spec", "config", "digits"),
    [
        (EDSR, {}, 2),
        (EDSR, {"act_bits": 5}, 1),
        (EDSR, {"act_bits": 4, "tail_digits": 2}, 2),
        (EDSR, {"recipe": "paper"}, 1),
        (EDSR, {"tail": "staged"}, 2),
        (EDSR, {"tail_digits": 1}, 1),
    ],
    ids=["best", "fewer-bits", "asked-for", "paper", "staged", "one"],
)
def test_where_there_are_two(spec, config, digits):
    sim = calibrated(spec, **config)
    assert [conv.digits for conv in sim.upsampler_convs()] == [digits] + [1] * (len(sim.upsampler_convs()) - 1)
    assert dataclasses.asdict(sim.config)["tail_digits"] == config.get("tail_digits", 0)


def test_bad_values_are_refused():
    with pytest.raises(ValueError, match="tail_digits must be 0, 1 or 2, got 3"):
        ConvertConfig(tail_digits=3)
    sim = calibrated()
    state = sim.state_dict() | {"tail.0.0.digits_a": torch.full((1,), 7.0)}
    with pytest.raises(ValueError, match=r"'tail\.0\.0\.digits_a' must be 1 or 2, got 7"):
        convert_model(state, config=sim.config)
