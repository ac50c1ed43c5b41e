"""RRDBNet: its graph against the published module written out, its names, and codes of repeated pixels."""

import copy
import re

import pytest
import torch
from shared import shared_path
from small import images, one_thread  # noqa: F401
from torch import nn
from torch.nn import functional as F

from adabm_kernels import ConvertConfig, convert_model, load, save, upscale
from adabm_kernels.calibrate import calibrate
from adabm_kernels.networks.checkpoints import load_state
from adabm_kernels.networks.convention import Convention
from adabm_kernels.networks.detect import check_modules, detect, float_network, to_float_state
from adabm_kernels.networks.rrdb import RRDBSpec
from adabm_kernels.nn import ConvertedNetwork
from adabm_kernels.nn.steps import FloatStep, RepeatStep

SPEC = RRDBSpec(scale=4, blocks=1, channels=8, growth=4)


class DenseBlock(nn.Module):
    def __init__(self, channels: int, growth: int):
        super().__init__()
        for i in range(1, 6):
            outputs = growth if i < 5 else channels
            self.add_module(f"conv{i}", nn.Conv2d(channels + (i - 1) * growth, outputs, 3, 1, 1))
        self.lrelu = nn.LeakyReLU(negative_slope=0.2, inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x1 = self.lrelu(self.conv1(x))
        x2 = self.lrelu(self.conv2(torch.cat((x, x1), 1)))
        x3 = self.lrelu(self.conv3(torch.cat((x, x1, x2), 1)))
        x4 = self.lrelu(self.conv4(torch.cat((x, x1, x2, x3), 1)))
        return self.conv5(torch.cat((x, x1, x2, x3, x4), 1)) * 0.2 + x


class Block(nn.Module):
    def __init__(self, channels: int, growth: int):
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (DenseBlock(channels, growth) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rdb3(self.rdb2(self.rdb1(x))) * 0.2 + x


class RRDBNet(nn.Module):
    """As BasicSR writes it: [N, 3, H, W] in 0..1 -> [N, 3, scale*H, scale*W], H and W multiples of 4 / scale."""

    def __init__(self, blocks: int, channels: int, growth: int, scale: int = 4):
        super().__init__()
        self.unshuffle = 4 // scale
        self.conv_first = nn.Conv2d(3 * self.unshuffle**2, channels, 3, 1, 1)
        self.body = nn.Sequential(*[Block(channels, growth) for _ in range(blocks)])
        self.conv_body, self.conv_up1, self.conv_up2, self.conv_hr = (nn.Conv2d(channels, channels, 3, 1, 1) for _ in range(4))
        self.conv_last = nn.Conv2d(channels, 3, 3, 1, 1)
        self.lrelu = nn.LeakyReLU(negative_slope=0.2, inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        feat = self.conv_first(F.pixel_unshuffle(x, self.unshuffle))
        feat = feat + self.conv_body(self.body(feat))
        feat = self.lrelu(self.conv_up1(F.interpolate(feat, scale_factor=2, mode="nearest")))
        feat = self.lrelu(self.conv_up2(F.interpolate(feat, scale_factor=2, mode="nearest")))
        return self.conv_last(self.lrelu(self.conv_hr(feat)))


@pytest.fixture(scope="module")
def network() -> RRDBNet:
    torch.manual_seed(0)
    return RRDBNet(SPEC.blocks, SPEC.channels, SPEC.growth).eval()


def of_2018(key: str) -> str:
    """The name that ESRGAN's first public code gives a weight."""
    names = {"conv_first": "0", "conv_body": "1.sub.1", "conv_up1": "3", "conv_up2": "6", "conv_hr": "8", "conv_last": "10"}
    name, part = key.rsplit(".", 1)
    inner = re.sub(r"body\.(\d+)\.rdb(\d)\.conv(\d)", r"1.sub.\1.RDB\2.conv\3.0", name)
    return f"model.{names.get(name, inner)}.{part}"


def of_2019(key: str) -> str:
    """The name that its later code gives it."""
    names = {"conv_body": "trunk_conv", "conv_up1": "upconv1", "conv_up2": "upconv2", "conv_hr": "HRconv"}
    name, part = key.rsplit(".", 1)
    inner = re.sub(r"body(.*)rdb", r"RRDB_trunk\1RDB", name)
    return f"{names.get(name, inner)}.{part}"


@pytest.mark.parametrize(
    "named, layout", [(str, "realesrgan_rrdb"), (of_2018, "esrgan_old"), (of_2019, "esrgan")], ids=["realesrgan", "2018", "2019"]
)
def test_the_graph_computes_what_the_published_module_does(network, named, layout):
    state, x = {named(key): value for key, value in network.state_dict().items()}, images(2, 3, 7, 9)
    found = detect(state)
    assert (found.spec, found.layout) == (SPEC, layout)
    model = convert_model(state, [images(1, 3, 16, 17)], ConvertConfig(recipe="paper", batch=1), check=False)
    with torch.no_grad():
        want, got = network(x / 255) * 255, model.float_model()(x)
    # Sums of a few hundred float32 products of pixels up to 255.
    torch.testing.assert_close(got, want, rtol=0, atol=2e-3)


@pytest.mark.parametrize("named", [str, of_2018, of_2019], ids=["realesrgan", "2018", "2019"])
@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize("scale", [1, 2])
def test_networks_that_take_pixels_side_by_side(scale, order, named):
    """Also of sides that are no multiples of them, where the picture is mirrored at its end."""
    torch.manual_seed(scale)
    network = RRDBNet(1, 8, 4, scale).eval()
    state, factor = {named(key): value for key, value in network.state_dict().items()}, 4 // scale
    found = detect(state, convention=Convention(channel_order=order))
    assert found.spec == RRDBSpec(scale, 1, 8, 4, factor) and found.spec.grid == factor
    model = float_network(found.spec)
    model.load_state_dict(to_float_state(state, found))
    for height, width in [(8, 12), (9, 11)]:
        x = images(2, 3, height, width)
        more = [-side % factor for side in (width, height)]
        given = F.pad(x.flip(1) if order == "bgr" else x, (0, more[0], 0, more[1]), mode="reflect")
        with torch.no_grad():
            want, got = network(given / 255)[:, :, : scale * height, : scale * width] * 255, model(x)
        torch.testing.assert_close(got, want.flip(1) if order == "bgr" else want, rtol=0, atol=2e-3)
    assert model(images(1, 3, 1, 1)).shape == (1, 3, scale, scale)


@pytest.mark.parametrize("ups", [0, 1])
def test_networks_of_2018_that_enlarge_less(ups):
    torch.manual_seed(ups)
    network, x = RRDBNet(1, 8, 4).eval(), images(1, 3, 7, 9)
    state = {of_2018(key): value for key, value in network.state_dict().items()}
    moved = {"model.8.": f"model.{3 * ups + 2}.", "model.10.": f"model.{3 * ups + 4}."}
    gone = [f"model.{3 * i}." for i in range(ups + 1, 3)]
    kept = {key: value for key, value in state.items() if not key.startswith(tuple(gone))}
    kept = {next((key.replace(a, b) for a, b in moved.items() if key.startswith(a)), key): value for key, value in kept.items()}
    found = detect(kept)
    assert found.spec == RRDBSpec(2**ups, 1, 8, 4)
    feat = network.conv_first(x / 255)
    feat = feat + network.conv_body(network.body(feat))
    if ups:
        feat = network.lrelu(network.conv_up1(F.interpolate(feat, scale_factor=2)))
    want = network.conv_last(network.lrelu(network.conv_hr(feat))) * 255
    model = float_network(found.spec)
    model.load_state_dict(to_float_state(kept, found))
    torch.testing.assert_close(model(x), want, rtol=0, atol=2e-3)


@pytest.mark.parametrize("scale", [1, 2])
def test_windows_begin_where_pixels_are_taken_together(scale, tmp_path):
    torch.manual_seed(0)
    config = ConvertConfig(6, 6, recipe="best", batch=1)
    simulated = calibrate(RRDBNet(1, 8, 4, scale).eval().state_dict(), [images(1, 3, 24, 28)], config, check=False)
    model, x = convert_model(simulated), images(2, 3, 50, 97)
    with torch.no_grad():
        assert (model(x) - simulated(x)).abs().mean() < 0.05
    first = simulated.quantized_convs()[0]
    assert (first.lower_a.item(), first.upper_a.item()) == (0, 255)  # its codes are the pixels
    save(model, tmp_path / "model.safetensors")
    loaded = load(tmp_path / "model.safetensors")
    loaded.set_backend("reference")
    assert torch.equal(loaded(x), model(x)) and loaded.spec == model.spec
    whole = upscale(x, model, tile=0, bits=4)
    assert whole.shape == (2, 3, 50 * scale, 97 * scale)
    assert torch.equal(upscale(x, model, tile=16, halo=model.spec.radius, bits=4), whole)
    picture = x[0].permute(1, 2, 0).round().to(torch.uint8).numpy()
    assert (upscale(picture, model, tile=16, bits=4) == upscale(picture, model, tile=0, bits=4)).all()


@pytest.mark.parametrize("quantize, digits", [("full", 1), ("full", 2), ("body", 1)])
def test_integers_are_those_of_the_reference_and_of_the_file(network, quantize, digits, tmp_path, monkeypatch):
    config = ConvertConfig(6, 6, recipe="best", batch=1, quantize=quantize, tail_digits=digits, layer_map="deviation")
    simulated = calibrate(network, [images(1, 3, 16, 17)], config, check=False)
    model, x = convert_model(simulated), images(2, 3, 20, 18)
    assert (simulated.exit is not None) == (quantize == "full") and simulated.fraction is None
    want = model(x)
    with torch.no_grad():
        assert (want - simulated(x)).abs().mean() < 0.05
    save(model, tmp_path / "model.safetensors")
    loaded = load(tmp_path / "model.safetensors")
    assert torch.equal(loaded(x), want) and loaded.spec == model.spec
    for early in (False, True):
        monkeypatch.setattr(ConvertedNetwork, "quantizes_early", early)
        loaded.set_backend("reference")
        assert torch.equal(loaded(x), want)
    assert torch.equal(upscale(x, model, tile=16, halo=model.spec.radius, bits=4), upscale(x, model, tile=0, bits=4))

    # Codes are repeated, features where the layer computes in floats. Two digits has the convolution behind the blocks alone.
    assert [conv.name for conv in simulated.quantized_convs() if conv.digits == 2] == ["after_blocks"] * (digits - 1)
    steps = model._programs[0].steps
    repeated = sum(isinstance(step, RepeatStep) for step in steps)
    floats = [step.node.name for step in steps if isinstance(step, FloatStep)]
    assert repeated == {("full", 1): 2, ("full", 2): 2, ("body", 1): 0}[quantize, digits]
    assert sum(name.endswith(".enlarged") for name in floats) == 2 - repeated
    assert not any(name.endswith(".act") and name.startswith("blocks.") for name in floats)


def test_repeated_codes_are_those_of_repeated_features(network, monkeypatch):
    state, x = network.state_dict(), images(2, 3, 20, 18)
    config = ConvertConfig(recipe="paper", batch=1)
    simulated = calibrate(state, [images(1, 3, 16, 17)], config, check=False)
    want = convert_model(simulated)(x)
    monkeypatch.setattr("adabm_kernels.nn.compile._Compiler._repeats_codes", lambda *_: False)
    plain = convert_model(simulated)
    assert not any(isinstance(step, RepeatStep) for step in plain._programs[0].steps)
    assert torch.equal(plain(x), want)


@pytest.mark.parametrize(
    "layer, message",
    [
        (nn.LeakyReLU(0.2), ""),
        (nn.Upsample(scale_factor=2), ""),
        (nn.LeakyReLU(0.1), "a LeakyReLU with negative_slope=0.1: it must be 0.2"),
        (nn.Upsample(scale_factor=2, mode="bilinear"), "an Upsample, bilinear by 2.0: it must be nearest by 2"),
        (nn.Upsample(scale_factor=4), "an Upsample, nearest by 4.0: it must be nearest by 2"),
        (nn.ReLU(), "a ReLU, and its layers must be Conv2d, PixelShuffle, LeakyReLU, Upsample"),
    ],
)
def test_layers_of_torch_that_compute_otherwise_are_refused(network, layer, message):
    other = copy.deepcopy(network)
    other.another = layer
    if not message:
        check_modules(other, SPEC)
        return
    with pytest.raises(ValueError, match=f"'another' is not supported in this RRDBNet: it is {message}"):
        check_modules(other, SPEC)


def test_what_is_no_such_network(network):
    state = network.state_dict()
    for edit, message in [
        ({"conv_first.weight": torch.zeros(8, 27, 3, 3)}, "pictures of 27 channels .'conv_first.weight' takes 27 channels"),
        (
            {"conv_first.weight": torch.zeros(8, 48, 3, 3), "conv_up3.weight": torch.zeros(1)},
            "missing 'up.2.bias'; .*'conv_up3.weight'",
        ),
        ({"body.0.rdb1.conv2.weight": torch.zeros(4, 9, 3, 3)}, "'body.0.rdb1.conv2.weight' has shape .4, 9, 3, 3., expected"),
        (
            {"conv_up3.weight": torch.zeros(8, 8, 3, 3)},
            "an RRDBNet must be for x1, x2 or x4, got one that takes 1x1",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            detect(state | edit)
    with pytest.raises(ValueError, match="missing"):
        detect({key: value for key, value in state.items() if key != "conv_hr.weight"})
    with pytest.raises(ValueError, match="RRDBSpec: scale must be 1, 2 or 4, got 3"):
        RRDBSpec(3, 1)


def test_the_published_file():
    found = detect(load_state(shared_path("data", "weights", "realesrgan_x4plus_anime_6b.pt")))
    assert (found.spec, found.layout, found.calibrated) == (RRDBSpec(4, 6, 64, 32), "realesrgan_rrdb", False)
