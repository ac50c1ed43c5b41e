"""The codes of the first convolution are the pixels themselves."""

import pytest
import torch
from small import one_thread  # noqa: F401

from adabm_kernels import ConvertConfig, convert_model, load, save
from adabm_kernels.calibrate import calibrate
from adabm_kernels.networks.detect import float_network
from adabm_kernels.networks.edsr import EDSRSpec
from adabm_kernels.networks.rdn import RDNSpec
from adabm_kernels.networks.srresnet import SRResNetSpec
from adabm_kernels.nn import ConvertedNetwork

SPECS = [
    EDSRSpec(2, 1, 8),
    EDSRSpec(2, 1, 8, mean_shift=False),
    RDNSpec(2, 1, 2, 4, 8),
    SRResNetSpec(2, 1, 8),
    SRResNetSpec(2, 1, 8, unit_range=True),
]
each_spec = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.network}{SPECS.index(spec)}")


def pixels() -> torch.Tensor:
    """Every pixel value, [1, 3, 16, 24]."""
    return torch.stack([torch.arange(384).roll(31 * i) % 256 for i in range(3)]).view(1, 3, 16, 24).float()


def calibrated(spec, **config):
    torch.manual_seed(3)
    return calibrate(float_network(spec).eval(), [pixels() * 0.5 + 40], ConvertConfig(**config))


@each_spec
def test_simulated_pixels_lose_nothing(spec):
    """Of pixels that calibration never saw; the error left is that of two float32 roundings."""
    sim = calibrated(spec)
    head = sim.quantized_convs()[0]
    seen = []
    hook = head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        sim(pixels())
    hook.remove()
    with torch.no_grad():
        rounded = head._quantized(seen[0], torch.full((1, 1, 1, 1), 8.0))
    assert ((rounded - seen[0]).abs() <= 2 * 2.0**-23 * 255 * sim.pixel_unit()).all()
    assert (head.upper_a - head.lower_a).item() == pytest.approx(255 * sim.pixel_unit(), rel=1e-6)


@each_spec
def test_integer_codes_are_the_pixels(spec, monkeypatch):
    model = convert_model(calibrated(spec))
    taken = []
    quantize = ConvertedNetwork._quantize
    monkeypatch.setattr(ConvertedNetwork, "_quantize", lambda *args, **kw: taken.append(quantize(*args, **kw)) or taken[-1])
    model(pixels())
    assert torch.equal(taken[0][..., :3].permute(0, 3, 1, 2), pixels().to(torch.uint8))


def test_shift_travels_with_the_model(tmp_path):
    sim = calibrated(SPECS[0])
    model = convert_model(sim)
    want = model(pixels())
    save(model, tmp_path / "m.safetensors")
    assert torch.equal(load(tmp_path / "m.safetensors")(pixels()), want)
    model.set_depth("full")  # a state dict holds no exit
    assert torch.equal(convert_model(sim.state_dict(), config=sim.config)(pixels()), model(pixels()))


def test_observed_range_where_asked_for():
    head = calibrated(SPECS[0], input_range="observed").quantized_convs()[0]
    assert head.shift_a is None and float(head.upper_a - head.lower_a) < 200
    assert calibrated(SPECS[0], recipe="paper").quantized_convs()[0].shift_a is None


def test_body_only_networks_have_no_such_convolution():
    assert all(conv.shift_a is None for conv in calibrated(SPECS[0], quantize="body").quantized_convs())


def test_a_shift_of_another_size_is_refused():
    sim = calibrated(SPECS[0])
    state = sim.state_dict()
    state["head.0.shift_a"] = torch.zeros(4)
    with pytest.raises(ValueError, match=r"head\.0\.shift_a"):
        convert_model(state, config=sim.config)
