"""The simulation against the formulas, and against outputs of the method's original implementation.

Bounds. With u = 2^-24, a float32 sum of n products carries a relative error of at most n u / (1 - n u) of the sum of the
products' magnitudes (Higham, Accuracy and Stability of Numerical Algorithms, 3.1). Inside one convolution that is all,
and the first half of this file uses it. Across a network it is not: a value close to a rounding boundary gets the
neighbouring code in another correct float implementation, and one changed code moves a whole neighbourhood of the next
layer. How far outputs may then differ is measured on the network itself: it runs in float64 with the output of every
convolution displaced by +-3 sqrt(n) u of those magnitudes, signs at random, which is what float32 rounding amounts to
(Higham and Mary, SIAM J. Sci. Comput. 2019, eq. 1.6, with lambda = 3). The largest distance of three such runs from the
undisturbed one bounds the distance of any float32 run, per image, in root mean square and in maximum.
"""

import json
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from shared import shared_path
from small import one_thread, small_edsr  # noqa: F401
from torch import nn
from torch.nn import functional as F

from adabm_kernels.calibrate import calibrate
from adabm_kernels.config import ConvertConfig
from adabm_kernels.evaluation.metrics import psnr, psnr_y
from adabm_kernels.networks.checkpoints import load_state
from adabm_kernels.networks.detect import detect, float_network, to_float_state
from adabm_kernels.networks.edsr import EDSR
from adabm_kernels.networks.rdn import RDNSpec
from adabm_kernels.networks.spec import ConvSpec
from adabm_kernels.networks.srresnet import SRResNetSpec
from adabm_kernels.quantize import fake_quantize_act, fake_quantize_weight
from adabm_kernels.simulate import SimulatedConv2d, SimulatedNetwork, image_measure, image_offsets

U = 2.0**-24
REFERENCES = {
    "edsr_x4_fq_w4a4": ConvertConfig(),
    "edsr_x2_body_w8a6": ConvertConfig(weight_bits=8, act_bits=6, quantize="body"),
    "rdn_x4_fq_w4a4": ConvertConfig(),
    "srresnet_x4_body_w4a4": ConvertConfig(quantize="body"),
}


def photos(*sizes, seed=0):
    """Noise over a ramp, one float [1, 3, h, w] in 0..255 per size."""
    generator = torch.Generator().manual_seed(seed)
    return [(torch.linspace(0, 200, w).expand(1, 3, h, w) + 55 * torch.rand(1, 3, h, w, generator=generator)) for h, w in sizes]


def small_simulated(config=None, **spec):
    return calibrate(small_edsr(**spec), photos((24, 24), (24, 24), (24, 24)), config or ConvertConfig(recipe="paper"))


# Grids. The range must not be so narrow that float32 cannot tell its levels apart: width at least 2^-6 of its ends.


@st.composite
def grids(draw):
    lower = draw(st.floats(-1000, 1000, width=32))
    upper = draw(st.floats(-1000, 1000, width=32))
    assume(upper - lower > max(abs(lower), abs(upper), 1e-3) * 2**-6)
    return torch.tensor([lower]), torch.tensor([upper]), draw(st.integers(2, 8))


VALUES = st.lists(st.floats(-2000, 2000, width=32), min_size=1, max_size=50).map(torch.tensor)


@given(VALUES, grids())
def test_activation_grid(x, grid):
    lower, upper, bits = grid
    y = fake_quantize_act(x, lower, upper, float(bits))
    slack = 4 * U * max(lower.abs(), upper.abs())
    assert (y >= lower - slack).all() and (y <= upper + slack).all()
    assert torch.equal(fake_quantize_act(y, lower, upper, float(bits)), y)
    order = x.argsort()
    assert (y[order].diff() >= 0).all()
    step = (upper - lower) / (2**bits - 1)
    inside = (x >= lower) & (x <= upper)
    assert ((y - x).abs()[inside] <= step / 2 + slack).all()


@given(VALUES, st.floats(2**-10, 1000, width=32), st.integers(2, 8))
def test_weight_grid(w, upper, bits):
    upper = torch.tensor([upper])
    y = fake_quantize_weight(w, upper, bits)
    assert torch.equal(fake_quantize_weight(y, upper, bits), y)
    assert (y[w.argsort()].diff() >= 0).all()
    m = y / upper * (2**bits - 1)  # odd integers: zero is not on the grid
    assert ((m + 1) / 2 - ((m + 1) / 2).round()).abs().max() <= 2**bits * 4 * U
    assert m.abs().max() <= (2**bits - 1) * (1 + 4 * U)


def test_bits_given_as_a_tensor_apply_per_image():
    x = torch.rand(3, 2, 4, 4)
    lower, upper = torch.tensor([0.0]), torch.tensor([1.0])
    together = fake_quantize_act(x, lower, upper, torch.tensor([2.0, 4.0, 8.0]).view(3, 1, 1, 1))
    for image, bits, got in zip(x, (2, 4, 8), together, strict=True):
        assert torch.equal(fake_quantize_act(image, lower, upper, bits), got)


# Bits.


@given(st.integers(1, 20), st.integers(2, 20), st.floats(0, 12))
def test_image_measure_of_a_ramp(height, width, slope):
    """Inside, a ramp of luma has its slope as gradient; in the outer columns the replicated border halves it."""
    x = (slope * torch.arange(width, dtype=torch.float64)).expand(1, 3, height, width)
    want = slope / 255 * (width - 1) / width / 2 * 1000
    assert image_measure(x).item() == pytest.approx(want, abs=1e-9)
    assert image_measure(x.transpose(2, 3)).item() == pytest.approx(want, abs=1e-9)


def test_image_measure_is_per_image_and_zero_for_flat_ones():
    x = torch.cat([*photos((9, 13)), torch.full((1, 3, 9, 13), 77.0)])
    measure = image_measure(x)
    assert measure.shape == (2,) and measure[0] > 1
    assert measure[1] == pytest.approx(0, abs=1000 * 16 * U)  # sums of at most 16 rounded products of values up to 1
    assert torch.allclose(measure, torch.cat([image_measure(x[:1]), image_measure(x[1:])]))


def test_image_measure_weighs_colours_as_luma_does():
    steps = torch.zeros(3, 3, 4, 4, dtype=torch.float64)
    for i in range(3):
        steps[i, i, :, 2:] = 255
    measure = image_measure(steps)
    assert measure / measure.sum() == pytest.approx(torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64))


def test_thresholds_themselves_change_no_bits():
    measure = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    offsets = image_offsets(measure, torch.tensor([2.0]), torch.tensor([4.0]))
    assert offsets.tolist() == [-1, 0, 0, 0, 1] and offsets.dtype == torch.int32
    assert image_offsets(measure, torch.tensor([3.0]), torch.tensor([3.0])).tolist() == [-1, -1, 0, 1, 1]


@pytest.mark.parametrize(("measure", "offset"), [(-1.4, -1), (-0.5, 0), (-0.51, -1), (0.49, 0), (0.5, 0), (0.6, 1), (7.0, 1)])
def test_layer_offsets_round_half_to_even(measure, offset):
    conv = SimulatedConv2d(ConvSpec("conv", 3, 4, 3, "adaptive"), ConvertConfig())
    nn.init.constant_(conv.measure_layer, measure)
    assert conv.layer_offset == offset
    assert conv.bits(torch.tensor([-1, 0, 1], dtype=torch.int32)).tolist() == [3 + offset, 4 + offset, 5 + offset]


def test_bits_are_clamped_only_when_asked():
    offsets = torch.tensor([-1, 0, 1], dtype=torch.int32)
    clamped = SimulatedConv2d(ConvSpec("conv", 3, 4, 3, "adaptive"), ConvertConfig(act_bits=8, clamp_bits=True))
    assert clamped.bits(offsets).tolist() == [7, 8, 8]
    fixed = SimulatedConv2d(ConvSpec("conv", 3, 4, 3, "adaptive"), ConvertConfig(act_bits=8, adaptive=False))
    assert fixed.bits(offsets).tolist() == [8, 8, 8] and not hasattr(fixed, "measure_layer")
    end = SimulatedConv2d(ConvSpec("conv", 3, 4, 3, "end"), ConvertConfig())
    assert end.bits(offsets).tolist() == [8, 8, 8] and end.weight_bits == 8


def test_a_batch_gives_what_its_images_give_alone():
    model = small_simulated().double()
    x = torch.cat([*photos((20, 22), (20, 22), seed=3), torch.full((1, 3, 20, 22), 90.0)]).double()
    x[1] = (x[1] - 127) * 1.5 + 127
    with torch.no_grad():
        measure = image_measure(x)
        model.measure_l.copy_(measure[0] - 1), model.measure_u.copy_(measure[0] + 1)
        together, alone = model(x), torch.cat([model(image[None]) for image in x])
    assert model.image_offsets(x).tolist() == [model.image_offsets(image[None]).item() for image in x] == [0, 1, -1]
    assert model.mean_bits(x).tolist() == torch.cat([model.mean_bits(image[None]) for image in x]).tolist()
    # Sums of another order: in float64 far from moving any code, and far below one level of the 8-bit output.
    assert torch.allclose(together, alone, rtol=0, atol=1e-9)


def test_mean_bits_leave_out_the_ends():
    model = small_simulated()
    x = photos((20, 20))[0]
    bits = model.layer_bits(model.image_offsets(x))
    assert list(bits) == ["head.0", *(f"body.{i}.conv{j}" for i in (0, 1) for j in (1, 2)), "body.2", "tail.0.0", "tail.1"]
    assert all(bits[name].tolist() == [8] for name in ("head.0", "tail.0.0", "tail.1"))
    assert model.mean_bits(x).item() == np.float32(np.mean([v.item() for k, v in bits.items() if k.startswith("body")]))


def test_a_network_that_is_not_adaptive_uses_its_base_bits():
    model = small_simulated(ConvertConfig(act_bits=3, adaptive=False))
    x = torch.cat([photos((20, 20))[0], torch.zeros(1, 3, 20, 20)])
    assert model.mean_bits(x).tolist() == [3, 3]
    assert not any("measure" in key for key in model.state_dict())


# One convolution and one network.


def test_padding_is_zero_after_rounding():
    """Zero is off this grid: a border pixel must miss the taps outside, not see `lower` there."""
    conv = SimulatedConv2d(ConvSpec("conv", 2, 1, 3, "adaptive"), ConvertConfig(adaptive=False)).double()
    with torch.no_grad():
        conv.lower_a.fill_(1.0), conv.upper_a.fill_(4.0), conv.upper_w.fill_(0.15)
        conv.weight.fill_(0.15), conv.bias.fill_(0.5)
        y = conv(torch.full((1, 2, 3, 3), 2.0, dtype=torch.float64), torch.zeros(1, dtype=torch.int32))
    taps = torch.tensor([[4, 6, 4], [6, 9, 6], [4, 6, 4]], dtype=torch.float64)
    assert torch.allclose(y[0, 0], 0.5 + 2 * taps * 2.0 * 0.15)


@pytest.mark.parametrize("quantize", ["full", "body"])
def test_one_convolution_in_float32_against_float64(quantize):
    """From one and the same input: codes differ only on a boundary, sums by their rounding."""
    model = small_simulated(ConvertConfig(quantize=quantize), channels=16)
    seen = []
    hooks = [conv.register_forward_hook(lambda *call: seen.append(call)) for conv in model.quantized_convs()]
    with torch.no_grad():
        model(torch.cat(photos((32, 32), (32, 32), seed=5)))
        for hook in hooks:
            hook.remove()
        flips, expected = 0, 0.0
        for conv, (x, offset), y in seen:
            levels = (2 ** conv.bits(offset) - 1).view(-1, 1, 1, 1)
            lower, upper = conv.lower_a, conv.upper_a
            shift = torch.zeros(1) if conv.shift_a is None else conv.shift_a.view(1, -1, 1, 1)

            def position(dtype, x=x, shift=shift, lower=lower, upper=upper, levels=levels):
                x, low, high = x.to(dtype) - shift.to(dtype), lower.to(dtype), upper.to(dtype)
                return (x.clamp(low, high) - low) / (high - low) * levels.to(dtype)

            exact = position(torch.float64)
            # Three differences, a quotient and a product, each rounded once; lower is 0 where there is a shift.
            bound = 5 * U / (1 - 5 * U) * exact
            differs = position(torch.float32).round() != exact.round()
            to_boundary = (exact - exact.floor() - 0.5).abs()
            assert (to_boundary[differs] <= bound[differs]).all()
            flips, expected = flips + int(differs.sum()), expected + 2 * float(bound.sum())

            x_hat = fake_quantize_act(x - shift, lower, upper, levels.add(1).log2()) + shift
            w_hat = conv.quantized_weight()
            want = F.conv2d(x_hat.double(), w_hat.double(), conv.bias.double(), padding=1)
            magnitude = F.conv2d(x_hat.double().abs(), w_hat.double().abs(), conv.bias.double().abs(), padding=1)
            n = conv.weight[0].numel() + 1
            assert ((y - want).abs() <= n * U / (1 - n * U) * magnitude).all()
    assert len(seen) == len(model.quantized_convs())
    # A value anywhere falls within its bound of a boundary with probability 2 * bound; 3 sigma of that many chances.
    assert flips <= expected + 3 * expected**0.5


@settings(max_examples=25)
@given(
    st.builds(
        dict,
        scale=st.sampled_from([2, 3, 4]),
        blocks=st.integers(1, 3),
        channels=st.integers(1, 9),
        mean_shift=st.booleans(),
        tail=st.sampled_from(["staged", "single"]),
        res_scale=st.sampled_from([1.0, 0.1]),
    ),
    st.sampled_from(["full", "body"]),
    st.booleans(),
)
def test_every_architecture_is_its_own_teacher_and_survives_its_state_dict(spec, quantize, adaptive):
    float_model = small_edsr(**spec)
    config = ConvertConfig(quantize=quantize, adaptive=adaptive)
    model = calibrate(float_model, photos((16, 16), (16, 17)), config)
    x = photos((16, 18), seed=9)[0]
    again = SimulatedNetwork.from_state(model.state_dict(), config, float_model.spec.res_scale)
    with torch.no_grad():
        with model.float_mode():
            assert torch.equal(model(x), float_model(x))
        y = model(x)
        assert y.shape == (1, 3, 16 * float_model.spec.scale, 18 * float_model.spec.scale)
        assert torch.equal(again(x), y)
    assert again.spec == model.spec == float_model.spec
    floats = model.float_state()
    EDSR(model.spec).load_state_dict(floats, strict=True)
    assert all(torch.equal(value, floats[key]) for key, value in float_model.state_dict().items())


FAMILIES = [
    RDNSpec(2, 2, 2, 3, 5),
    RDNSpec(3, 1, 3, 4, 4),
    RDNSpec(4, 2, 1, 2, 3),
    SRResNetSpec(2, 2, 4),
    SRResNetSpec(3, 1, 5, bias=True, slopes=5, unit_range=True),
    SRResNetSpec(4, 1, 4, bias=True, res_scale=0.5),
]


def small_network(spec):
    """Random weights; BatchNorms with statistics and a training step counter, slopes of both signs."""
    torch.manual_seed(spec.blocks)
    model = float_network(spec)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5), nn.init.normal_(module.bias)
            module.running_mean.normal_(), module.running_var.uniform_(0.5, 2), module.num_batches_tracked.fill_(7)
        if isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, -0.3, 0.5)
    return model


@pytest.mark.parametrize("quantize", ["full", "body"])
@pytest.mark.parametrize("spec", FAMILIES, ids=lambda spec: f"{spec.network}_x{spec.scale}")
def test_other_families_are_their_own_teachers_and_survive_their_state_dicts(spec, quantize):
    float_model = small_network(spec)
    config = ConvertConfig(quantize=quantize, recipe="paper")
    model = calibrate(float_model, photos((16, 16), (16, 17)), config, res_scale=spec.res_scale)
    x = photos((17, 19), seed=9)[0]
    again = SimulatedNetwork.from_state(model.state_dict(), config, spec.res_scale)
    assert again.spec == model.spec == spec
    with torch.no_grad():
        want = float_model(x)
        with model.float_mode():
            assert torch.equal(model(x), want)
        y = model(x)
        assert y.shape == want.shape == (1, 3, 17 * spec.scale, 19 * spec.scale)
        assert torch.equal(again(x), y) and not torch.equal(y, want)
    assert all(conv.quantized for conv in model.quantized_convs())
    assert [conv.name for conv in model.quantized_convs()] == list(spec.quantized(quantize))
    restored = float_network(spec)
    restored.load_state_dict(model.float_state(), strict=True)
    with torch.no_grad():
        assert torch.equal(restored(x), want)


@pytest.mark.parametrize("spec", FAMILIES[1:5:3], ids=lambda spec: spec.network)
def test_what_fine_tuning_learns_leaves_the_teacher(spec):
    float_model = small_network(spec)
    model = calibrate(float_model, photos((16, 16)), ConvertConfig(recipe="paper"))
    x = photos((16, 18), seed=9)[0]
    with torch.no_grad():
        before = model(x)
        for value in [*model.body_biases(), *(conv.weight for conv in model.quantized_convs())]:
            value += 0.1
        learned = [bias.clone() for bias in model.body_biases()]
        with model.float_mode():
            assert torch.equal(model(x), float_model(x))
        assert all(map(torch.equal, model.body_biases(), learned)) and not torch.equal(model(x), before)
        assert all(not bias.requires_grad or bias.is_leaf for bias in model.body_biases())


@pytest.mark.parametrize("spec", FAMILIES[1:5:3], ids=lambda spec: spec.network)
def test_previews_are_told_what_to_multiply_in(spec):
    """The preview of fine-tuning follows `set_compute_dtype`, up to the rounding of bfloat16 inputs and sums of one image."""
    model = calibrate(small_network(spec), photos((16, 16)), ConvertConfig(recipe="paper"))
    x = photos((16, 18), seed=9)[0]
    with torch.no_grad(), model.float_mode():
        want = model.preview(x)
        model.set_compute_dtype(torch.bfloat16)
        got = model.preview(x)
    assert got.dtype == want.dtype == torch.float32 and got.shape == want.shape
    # 2^-8 for each of the few dozen roundings in a row that such a network makes.
    assert 0 < (got - want).norm() < 36 * 2**-8 * want.norm()


def test_an_srresnet_in_0_to_1_gives_pictures():
    """The published PSNR of these weights, 31.88 dB, is the mean over Set5, whose butterfly has 27.92."""
    state = load_state(shared_path("data", "weights", "srresnet_r8f64_x4.pt"))
    found = detect(state)
    model = float_network(found.spec)
    model.load_state_dict(to_float_state(state, found))
    parts = (("LR_x4", "butterfly"), ("HR", "butterfly"))
    lr, hr = (
        np.array(Image.open(shared_path("data", "images", "set5", part, f"{name}.png")).convert("RGB")) for part, name in parts
    )
    with torch.no_grad():
        sr = picture(model(torch.from_numpy(lr).permute(2, 0, 1)[None].float()))
    assert round(psnr_y(sr, hr[: sr.shape[0], : sr.shape[1]], 4), 2) == 27.92


def test_float_mode_ends_with_its_context():
    model = small_simulated()
    with pytest.raises(KeyError), model.float_mode():
        assert not any(conv.quantized for conv in model.quantized_convs())
        raise KeyError
    assert all(conv.quantized for conv in model.quantized_convs())


def test_gradients_reach_every_range():
    model = small_simulated().requires_grad_(True)
    model(photos((16, 16))[0]).square().mean().backward()
    for conv in model.quantized_convs():
        assert all(p.grad is not None and p.grad.isfinite().all() for p in (conv.lower_a, conv.upper_a, conv.upper_w))


def test_one_weight_range_per_output_channel():
    model = small_simulated()
    state = model.state_dict()
    x = photos((16, 16))[0]
    with torch.no_grad():
        want = model(x)
        for conv in model.quantized_convs():
            state[f"{conv.name}.upper_w"] = conv.upper_w.expand(conv.out_channels).reshape(-1, 1, 1, 1).clone()
        assert torch.equal(SimulatedNetwork.from_state(state, model.config)(x), want)
        state["head.0.upper_w"][0] *= 0.5
        assert not torch.equal(SimulatedNetwork.from_state(state, model.config)(x), want)


def test_uncalibrated_ranges_poison_the_output():
    model = SimulatedNetwork.from_float(small_edsr().state_dict(), ConvertConfig())
    with torch.no_grad():
        assert model(photos((16, 16))[0]).isnan().all()


@pytest.mark.parametrize("x", [torch.zeros(3, 8, 8), torch.zeros(1, 1, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)])
def test_input_must_be_a_batch_of_float_pictures(x):
    with pytest.raises(ValueError, match=r"x must be floating point \[N, 3, H, W\], got torch\.\w+ \("):
        small_simulated()(x)


def test_from_state_refuses_what_does_not_fit():
    model = small_simulated()
    state = model.state_dict()
    with pytest.raises(ValueError, match="holds float weights without ranges: calibrate it first"):
        SimulatedNetwork.from_state(small_edsr().state_dict(), ConvertConfig())
    with pytest.raises(ValueError, match="config.quantize must be 'full' as in the state dict, got 'body'"):
        SimulatedNetwork.from_state(state, ConvertConfig(quantize="body"))
    fixed = {key: value for key, value in state.items() if "measure_" not in key}
    with pytest.raises(ValueError, match="config.adaptive must be False: the state dict has no thresholds and offsets"):
        SimulatedNetwork.from_state(fixed, ConvertConfig())
    empty = state | {"body.1.conv2.lower_a": torch.tensor([2.0]), "body.1.conv2.upper_a": torch.tensor([1.0])}
    with pytest.raises(ValueError, match="'body.1.conv2.lower_a' must be below 'body.1.conv2.upper_a', got 2 and 1"):
        SimulatedNetwork.from_state(empty, ConvertConfig())
    with pytest.raises(ValueError, match="'tail.1.upper_w' must be positive, got -0.5"):
        SimulatedNetwork.from_state(state | {"tail.1.upper_w": torch.tensor([-0.5])}, ConvertConfig())


def test_adaptive_weights_can_run_on_fixed_bits():
    model = small_simulated()
    fixed = SimulatedNetwork.from_state(model.state_dict(), ConvertConfig(act_bits=8, adaptive=False))
    assert fixed.mean_bits(photos((16, 16))[0]).tolist() == [8]


# The original implementation.


@contextmanager
def disturbed(model, seed):
    """Displace the output of every convolution as float32 rounding may (see the top of this file)."""
    generator = torch.Generator().manual_seed(seed)

    def displace(conv, args, y):
        x, w = args[0], conv.weight
        if isinstance(conv, SimulatedConv2d):
            x = x.clamp(conv.lower_a, conv.upper_a)
            w = w.clamp(-conv.upper_w, conv.upper_w)
        # 8: the roundings of the input on its way to the grid and back, and of the sums around the convolution.
        n = w[0].numel() + 8
        magnitude = F.conv2d(x.abs(), w.abs(), None if conv.bias is None else conv.bias.abs(), padding=conv.padding)
        return y + 3 * n**0.5 * U * magnitude * (2 * torch.randint(0, 2, y.shape, generator=generator) - 1)

    hooks = [module.register_forward_hook(displace) for module in model.modules() if isinstance(module, nn.Conv2d)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def distances(a, b):
    """Root mean square and largest difference of each image: float64 [2, N]."""
    difference = a.double() - b.double()
    return torch.stack([difference.square().mean((1, 2, 3)).sqrt(), difference.abs().amax((1, 2, 3))])


@pytest.mark.parametrize("inputs", ["batch", "odd"])
@pytest.mark.parametrize("name", REFERENCES)
def test_outputs_of_the_original_implementation(name, inputs):
    reference = load_state(shared_path("reference", f"{name}.pt"))
    single = SimulatedNetwork.from_state(reference, REFERENCES[name])
    double = SimulatedNetwork.from_state(reference, REFERENCES[name]).double()
    x, want = reference[inputs].float(), reference[f"{inputs}_sr"]
    with torch.no_grad():
        assert torch.equal(single.mean_bits(x), reference[f"{inputs}_mean_bits"])
        assert torch.equal(double.mean_bits(x.double()), reference[f"{inputs}_mean_bits"])
        exact, bound = double(x.double()), torch.zeros(2, len(x))
        for seed in range(3):
            with disturbed(double, seed):
                bound = torch.maximum(bound, distances(double(x.double()), exact))
        assert (distances(want, exact) <= bound).all()
        assert (distances(single(x), exact) <= bound).all()
        # The bound must tell rounding from quantising: it stays below the distance of the float network.
        with double.float_mode():
            assert (bound[0] < distances(double(x.double()), exact)[0]).all()


@pytest.mark.parametrize("name", REFERENCES)
def test_layer_offsets_of_the_original_implementation(name):
    reference = load_state(shared_path("reference", f"{name}.pt"))
    model = SimulatedNetwork.from_state(reference, REFERENCES[name])
    got = [conv.layer_offset if conv.adaptive else None for conv in model.quantized_convs()]
    assert got == [None if value.isnan() else value.item() for value in reference["layer_offsets"]]


SET5_SMALL = ("bird", "butterfly", "head", "woman")


def fine_tuned(name):
    """The fine-tuned network, a Set5 image [1, 3, h, w], its original and its picture by the original implementation."""
    folder = shared_path("reference", "edsr_baseline_x4_fq_w4a4")
    model = SimulatedNetwork.from_state(load_state(folder / "checkpoint.pt"), ConvertConfig())
    paths = [shared_path("data", "images", "set5", part, f"{name}.png") for part in ("LR_x4", "HR")]
    lr, hr, sr = (np.array(Image.open(path).convert("RGB")) for path in (*paths, folder / f"set5_{name}.png"))
    return model, torch.from_numpy(lr).permute(2, 0, 1)[None].float(), hr[: sr.shape[0], : sr.shape[1]], sr


def picture(y):
    return y[0].clamp(0, 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("name", SET5_SMALL)
def test_pictures_of_the_original_implementation(name):
    model, x, _, want = fine_tuned(name)
    with torch.no_grad():
        single = picture(model(x))
        exact = picture(model.double()(x.double()))
        with disturbed(model, 0):
            bound = psnr(picture(model(x.double())), exact)
        with model.float_mode():
            assert psnr(picture(model(x.double())), exact) < bound
    assert psnr(want, exact) >= bound and psnr(single, exact) >= bound


def test_figures_of_the_original_implementation():
    results = json.loads(shared_path("reference", "edsr_baseline_x4_fq_w4a4", "results.json").read_text())
    published = {entry["image"].removeprefix("set5_"): entry for entry in results}
    differences = []
    for name in SET5_SMALL:
        model, x, hr, _ = fine_tuned(name)
        with torch.no_grad():
            differences.append(psnr_y(picture(model(x)), hr, 4) - published[name]["psnr_y"])
            assert round(model.mean_bits(x).item(), 4) == published[name]["mean_bits"]
    assert abs(np.mean(differences)) <= 0.01
