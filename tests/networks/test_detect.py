"""Architectures read off state dicts: every published layout is recognised, every defect is named."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shared import shared_path
from torch import nn

from adabm_kernels.config import ConvertConfig
from adabm_kernels.networks.checkpoints import load_state
from adabm_kernels.networks.detect import adabm_name, detect, float_network, to_float_state
from adabm_kernels.networks.edsr import EDSR, EDSRSpec
from adabm_kernels.networks.rdn import RDNSpec
from adabm_kernels.networks.srresnet import SRResNetSpec
from adabm_kernels.simulate import SimulatedNetwork

SPECS = st.builds(
    EDSRSpec,
    scale=st.sampled_from([2, 3, 4]),
    blocks=st.integers(1, 12),
    channels=st.integers(1, 24),
    mean_shift=st.booleans(),
    tail=st.sampled_from(["staged", "single"]),
    res_scale=st.sampled_from([1.0, 0.1]),
)
SPEC = EDSRSpec(scale=4, blocks=2, channels=8)


def float_state(spec=SPEC):
    return EDSR(spec).state_dict()


def calibrated_state(spec=SPEC, **config):
    """Ranges of no meaning: only keys and shapes are looked at."""
    state = SimulatedNetwork.from_float(float_state(spec), ConvertConfig(**{"recipe": "paper"} | config)).state_dict()
    return {key: torch.nan_to_num(value, nan=1.0) for key, value in state.items()}


@settings(max_examples=40)
@given(SPECS)
def test_float_round_trip(spec):
    state = float_state(spec)
    found = detect(state, spec.res_scale)
    assert found.spec == spec
    assert (found.layout, found.calibrated, found.quantize, found.adaptive) == ("edsr_pytorch", False, None, False)
    EDSR(found.spec).load_state_dict(to_float_state(state, found), strict=True)


@settings(max_examples=40)
@given(SPECS, st.sampled_from(["full", "body"]), st.booleans())
def test_calibrated_round_trip(spec, quantize, adaptive):
    state = calibrated_state(spec, quantize=quantize, adaptive=adaptive)
    found = detect(state, spec.res_scale)
    assert found.spec == spec
    assert (found.layout, found.calibrated, found.quantize, found.adaptive) == ("adabm", True, quantize, adaptive)
    floats = to_float_state(state, found)
    EDSR(found.spec).load_state_dict(floats, strict=True)
    assert all(torch.equal(value, state[adabm_name(key)]) for key, value in floats.items())


def test_float_weights_under_adabm_names():
    state = {adabm_name(key): value for key, value in float_state().items()}
    found = detect(state)
    assert (found.layout, found.calibrated) == ("adabm", False)
    EDSR(found.spec).load_state_dict(to_float_state(state, found), strict=True)


def test_one_weight_range_per_output_channel():
    state = calibrated_state()
    state["body.0.conv1.upper_w"] = torch.ones(8, 1, 1, 1)
    assert detect(state).calibrated


def test_quantised_convolutions_in_the_order_they_run():
    spec = EDSRSpec(scale=4, blocks=1, channels=8)
    body = {"body.0.conv1": "adaptive", "body.0.conv2": "adaptive"}
    assert {name: conv.role for name, conv in spec.quantized("body").items()} == body
    ends = {"tail.0.0": "end", "tail.0.2": "end", "tail.1": "end"}
    roles = [(name, conv.role) for name, conv in spec.quantized("full").items()]
    assert roles == [("head.0", "end"), *body.items(), ("body.1", "adaptive"), *ends.items()]
    single = EDSRSpec(scale=2, blocks=1, channels=8, tail="single").quantized("full")
    assert [name for name in single if name.startswith("tail")] == ["tail.0.0"]


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("edsr_baseline_x4", EDSRSpec(4, 16, 64)),
        ("edsr_baseline_x2", EDSRSpec(2, 16, 64)),
        ("edsr_r8f64_x2", EDSRSpec(2, 8, 64)),
        ("mlperf_edsr_f32b5_x2", EDSRSpec(2, 5, 32, mean_shift=False, tail="single")),
    ],
)
def test_published_weights(name, spec):
    state = load_state(shared_path("data", "weights", f"{name}.pt"))
    found = detect(state)
    assert found.spec == spec and found.layout == "edsr_pytorch" and not found.calibrated
    EDSR(spec).load_state_dict(to_float_state(state, found), strict=True)


@pytest.mark.parametrize(
    ("file", "spec", "quantize"),
    [
        ("edsr_x4_fq_w4a4.pt", EDSRSpec(4, 4, 32), "full"),
        ("edsr_x2_body_w8a6.pt", EDSRSpec(2, 4, 32), "body"),
        ("edsr_baseline_x4_fq_w4a4/checkpoint.pt", EDSRSpec(4, 16, 64), "full"),
    ],
)
def test_checkpoints_of_the_original_implementation(file, spec, quantize):
    found = detect(load_state(shared_path("reference", *file.split("/"))))
    assert found.spec == spec
    assert (found.layout, found.calibrated, found.quantize, found.adaptive) == ("adabm", True, quantize, True)


@pytest.mark.parametrize(
    ("file", "spec", "quantize"),
    [
        ("rdn_x4_fq_w4a4", RDNSpec(scale=4, blocks=3, layers=3, growth=16, channels=16), "full"),
        ("srresnet_x4_body_w4a4", SRResNetSpec(scale=4, blocks=3, channels=32), "body"),
    ],
)
def test_other_families_of_the_original_implementation(file, spec, quantize):
    found = detect(load_state(shared_path("reference", f"{file}.pt")))
    assert found.spec == spec
    assert (found.layout, found.calibrated, found.quantize, found.adaptive) == ("adabm", True, quantize, True)


def test_srresnet_in_0_to_1():
    state = load_state(shared_path("data", "weights", "srresnet_r8f64_x4.pt"))
    found = detect(state)
    assert found.spec == SRResNetSpec(scale=4, blocks=8, channels=64, bias=True, slopes=64, unit_range=True)
    assert (found.layout, found.calibrated) == ("conv_in", False)
    float_network(found.spec).load_state_dict(to_float_state(state, found), strict=True)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_edsr_under_the_names_of_basicsr(scale):
    """Its code subtracts the mean colour of pixels in 0..1, scales to 0..255, and undoes both: written out here."""
    torch.manual_seed(scale)
    ours = {
        "head.0": "conv_first",
        "body.3": "conv_after_body",
        "tail.0.0": "upsample.0",
        "tail.0.2": "upsample.2",
        "tail.1": "conv_last",
    }
    plain = EDSR(EDSRSpec(scale, 3, 8, mean_shift=False)).state_dict()
    state = {adabm_name(key): value for key, value in plain.items()}
    state = {f"{ours.get(name, name)}.{part}": state[key] for key in state for name, _, part in [key.rpartition(".")]}
    found = detect(state, res_scale=0.5)
    assert found.spec == EDSRSpec(scale, 3, 8, mean_shift=True, res_scale=0.5)
    assert (found.layout, found.calibrated) == ("basicsr", False)

    def conv(x, name):
        return nn.functional.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)

    x = torch.rand(1, 3, 6, 5) * 255
    mean = torch.tensor([0.4488, 0.4371, 0.4040]).view(3, 1, 1)
    first = y = conv((x / 255 - mean) * 255, "conv_first")
    for block in range(3):
        y = y + 0.5 * conv(conv(y, f"body.{block}.conv1").relu(), f"body.{block}.conv2")
    y = conv(y, "conv_after_body") + first
    for stage in ("upsample.0", "upsample.2") if scale == 4 else ("upsample.0",):
        y = nn.functional.pixel_shuffle(conv(y, stage), 2 if scale == 4 else scale)
    want = (conv(y, "conv_last") / 255 + mean) * 255
    network = float_network(found.spec)
    network.load_state_dict(to_float_state(state, found), strict=True)
    torch.testing.assert_close(network(x), want, rtol=0, atol=2e-3)  # of 255: the mean is rounded after one scaling or two
    for key in ("body.1.conv2.bias", "conv_last.weight", "upsample.0.weight"):
        with pytest.raises(ValueError, match="detect: "):
            detect({name: value for name, value in state.items() if name != key})
    with pytest.raises(ValueError, match="unexpected 'conv_hr.weight'"):
        detect(state | {"conv_hr.weight": torch.zeros(1)})


FAMILIES = [
    *(RDNSpec(scale, 2, 3, 4, 8) for scale in (2, 3, 4)),
    *(SRResNetSpec(s, 2, 8, bias=s == 3, slopes=8 if s == 2 else 1, unit_range=s == 3) for s in (2, 3, 4)),
]


@pytest.mark.parametrize("spec", FAMILIES, ids=lambda spec: f"{spec.network}_x{spec.scale}")
def test_other_families_are_read_off_their_keys(spec):
    state = float_network(spec).state_dict()
    assert detect(state).spec == spec
    convs = {name: module for name, module in float_network(spec).named_modules() if isinstance(module, nn.Conv2d)}
    assert {conv.name for conv in spec.convs()} == set(convs)
    for conv in spec.convs():
        module = convs[conv.name]
        shape = (module.in_channels, module.out_channels, module.kernel_size[0], module.bias is not None)
        assert shape == (conv.channels_in, conv.channels_out, conv.kernel, conv.bias)
    gone = next(key for key in state if key.endswith(".weight"))
    with pytest.raises(ValueError, match="detect: "):
        detect({key: value for key, value in state.items() if key != gone})
    with pytest.raises(ValueError, match="unexpected 'attention.weight'"):
        detect(state | {"attention.weight": torch.zeros(1)})


def test_batch_counters_are_integers_that_may_be_absent():
    state = float_network(FAMILIES[-1]).state_dict()
    counters = [key for key in state if key.endswith("num_batches_tracked")]
    assert counters and all(state[key].dtype == torch.int64 for key in counters)
    for form in (state, {key: value for key, value in state.items() if key not in counters}):
        float_network(FAMILIES[-1]).load_state_dict(to_float_state(form, detect(form)), strict=True)


def test_half_precision_weights_become_float32():
    state = {key: value.half() for key, value in float_state().items()}
    assert {value.dtype for value in to_float_state(state, detect(state)).values()} == {torch.float32}


@settings(max_examples=30)
@given(st.data())
def test_any_defect_is_named(data):
    state = calibrated_state(quantize=data.draw(st.sampled_from(["full", "body"])))
    # Without these the architecture itself cannot be told; they have tests of their own.
    telling = re.compile(r"head\.0|tail|body\.\d+\.(conv1\.weight|weight)|measure_|.*lower_a")
    key = data.draw(st.sampled_from(sorted(key for key in state if not telling.match(key))))
    defect = data.draw(st.sampled_from(["missing", "shape", "nan", "inf", "integer"]))
    if defect == "missing":
        del state[key]
        message = "missing .*" + re.escape(key)
    elif defect == "shape":
        state[key] = torch.zeros(5, 7)
        message = re.escape(f"{key!r} has shape (5, 7), expected")
    elif defect == "integer":
        state[key] = state[key].to(torch.int32)
        message = re.escape(f"{key!r} must hold floating-point values, got torch.int32")
    else:
        state[key] = state[key].clone().fill_(float(defect))
        message = re.escape(f"{key!r} holds NaN or infinite values")
    with pytest.raises(ValueError, match=message):
        detect(state)


def test_unexpected_keys_are_listed():
    state = float_state() | {f"extra.{i}": torch.ones(1) for i in range(10)}
    with pytest.raises(ValueError, match="unexpected 'extra.0', .*'extra.7' and 2 more"):
        detect(state)


def test_several_defects_are_told_at_once():
    state = float_state() | {"extra": torch.ones(1), "head.0.bias": torch.ones(9)}
    del state["body.1.body.2.bias"]
    with pytest.raises(ValueError) as error:
        detect(state)
    assert "missing 'body.1.body.2.bias'; unexpected 'extra'" in str(error.value)
    assert "'head.0.bias' has shape (9,), expected (8,)" in str(error.value)


def test_biases_that_are_left_out_are_named_as_the_network_calls_them():
    """CADyQ's float networks have none before the upsampler: zeros of the shape of the weights stand for them."""
    state = {adabm_name(key): value for key, value in float_state().items()}
    state = {key: value for key, value in state.items() if key.startswith("tail") or not key.endswith(".bias") or "mean" in key}
    assert detect(state).spec == SPEC
    with pytest.raises(ValueError, match=r"'body.2.bias' has shape \(16,\), expected \(8,\)"):
        detect(state | {"body.2.weight": torch.zeros(16, 8, 3, 3)})


def test_the_reason_of_another_shape_is_told():
    state = float_state() | {"body.0.body.0.weight": torch.zeros(8, 2, 3, 3), "body.1.body.2.weight": torch.zeros(8, 8, 5, 5)}
    with pytest.raises(ValueError) as error:
        detect(state)
    assert "'body.0.body.0.weight' has shape (8, 2, 3, 3), expected (8, 8, 3, 3): a convolution in 4 groups" in str(error.value)
    assert "'body.1.body.2.weight' has shape (8, 8, 5, 5), expected (8, 8, 3, 3): a kernel of 5x5" in str(error.value)
    assert "(EDSR is known by 'head.0.weight' with" in str(error.value)


def test_half_a_mean_shift_is_missing_the_other_half():
    state = {key: value for key, value in float_state().items() if not key.startswith("add_mean")}
    with pytest.raises(ValueError, match="missing 'add_mean.weight', 'add_mean.bias'"):
        detect(state)


def test_a_gap_in_the_blocks_is_missing_weights():
    state = {key: value for key, value in float_state(EDSRSpec(4, 3, 8)).items() if not key.startswith("body.1.")}
    with pytest.raises(ValueError, match="missing 'body.1.body.0.weight'"):
        detect(state)


@pytest.mark.parametrize("gone", ["head.0.weight", "body.0.body.0.weight"])
def test_not_an_edsr(gone):
    state = float_state(EDSRSpec(4, 1, 8))
    del state[gone]
    with pytest.raises(ValueError, match="detect: not an EDSR, .* state dict: known are EDSR .'head.0.weight' with"):
        detect(state)


def test_the_scale_must_be_readable():
    state = float_state()
    del state["tail.0.0.weight"]
    with pytest.raises(ValueError, match="the scale cannot be read: 'tail.0.0.weight' is missing"):
        detect(state)


@pytest.mark.parametrize(("tail", "outputs", "rule"), [("staged", 40, "32 or 72"), ("single", 32, "12, 27 or 48")])
def test_a_scale_that_is_not_supported(tail, outputs, rule):
    state = float_state(EDSRSpec(2, 1, 8, tail=tail)) | {"tail.0.0.weight": torch.zeros(outputs, 8, 3, 3)}
    with pytest.raises(ValueError, match=f"'tail.0.0.weight' must have {rule} output channels, got {outputs}"):
        detect(state)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("x", TypeError, "res_scale must be a number, got str"),
        (True, TypeError, "res_scale must be a number, got bool"),
        (-1.0, ValueError, r"res_scale must be finite and at least 0, at most 1e\+09, got -1.0"),
        (float("nan"), ValueError, r"res_scale must be finite and at least 0, at most 1e\+09, got nan"),
    ],
)
def test_a_residual_scale_that_cannot_be_is_named(value, error, message):
    with pytest.raises(error, match=message):
        detect(EDSR(EDSRSpec(scale=2, blocks=1, channels=8)).state_dict(), value)


@pytest.mark.parametrize("spec", [EDSRSpec(2, 1, 8), SRResNetSpec(2, 1, 8)], ids=["edsr", "srresnet"])
@pytest.mark.parametrize("key", ["head.0.weight", "tail.0.0.weight"])
def test_a_weight_without_axes_is_an_error(spec, key):
    with pytest.raises(ValueError, match="^detect: "):
        detect(float_network(spec).state_dict() | {key: torch.zeros(())})


@pytest.mark.parametrize(
    "key", ["body.99999999999.conv1.weight", "body.300000.body.0.weight", "RDBs.99999999.convs.0.conv.0.weight"]
)
def test_a_number_of_blocks_that_no_network_has_is_refused_at_once(key):
    first = "SFENet1.weight" if key.startswith("RDBs") else "head.0.weight"
    state = {first: torch.zeros(8, 3, 3, 3), key: torch.zeros(8, 8, 3, 3)}
    state |= {"RDBs.0.convs.0.conv.0.weight": torch.zeros(8, 8, 3, 3)} if key.startswith("RDBs") else {}
    with pytest.raises(ValueError, match="parts of a network are numbered below 1000, got '(body|RDBs)"):
        detect(state)
