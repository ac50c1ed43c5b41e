"""SRVGGNetCompact: its graph against the published module written out, and what is read off it, with no class of its own."""

import pytest
import torch
from shared import shared_path
from small import images, one_thread  # noqa: F401
from torch import nn
from torch.nn import functional as F

from adabm_kernels import ConvertConfig, convert_model, load, save, upscale
from adabm_kernels.calibrate import calibrate
from adabm_kernels.networks.checkpoints import load_state
from adabm_kernels.networks.detect import detect
from adabm_kernels.networks.srvgg import SRVGGSpec

SCALES = (1, 2, 3, 4)


class SRVGGNetCompact(nn.Module):
    """As Real-ESRGAN writes it: [N, 3, H, W] in 0..1 -> [N, 3, scale*H, scale*W]."""

    def __init__(self, scale: int, layers: int, channels: int):
        super().__init__()
        self.scale = scale
        self.body = nn.ModuleList([nn.Conv2d(3, channels, 3, 1, 1), nn.PReLU(channels)])
        for _ in range(layers):
            self.body += [nn.Conv2d(channels, channels, 3, 1, 1), nn.PReLU(channels)]
        self.body.append(nn.Conv2d(channels, 3 * scale**2, 3, 1, 1))
        self.upsampler = nn.PixelShuffle(scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for layer in self.body:
            y = layer(y)
        return self.upsampler(y) + F.interpolate(x, scale_factor=self.scale, mode="nearest")


def published(scale: int, layers: int = 2, channels: int = 8) -> SRVGGNetCompact:
    """One with random weights, and slopes on both sides of zero."""
    torch.manual_seed(scale)
    network = SRVGGNetCompact(scale, layers, channels).eval()
    for layer in network.body[1::2]:
        nn.init.uniform_(layer.weight, -0.3, 0.5)
    return network


@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize("scale", SCALES)
def test_the_graph_computes_what_the_published_module_does(scale, order):
    """In 0..255, and for pictures with red and blue exchanged: the enlarged picture is no part of what weights are folded into."""
    network, x = published(scale), images(2, 3, 7, 9)
    found = detect(network.state_dict())
    assert (found.spec, found.layout) == (SRVGGSpec(scale, 2, 8), "realesrgan")
    model = convert_model(network, [images(1, 3, 16, 17)], ConvertConfig(recipe="paper", batch=1), channel_order=order, check=False)
    with torch.no_grad():
        given = x.flip(1) if order == "bgr" else x
        want = network(given / 255) * 255
        got = model.float_model()(x)
    # Sums of a few hundred float32 products of pixels up to 255.
    torch.testing.assert_close(got, want.flip(1) if order == "bgr" else want, rtol=0, atol=2e-3)


@pytest.mark.parametrize("quantize", ["full", "body"])
@pytest.mark.parametrize("scale", [1, 4])
def test_integers_are_those_of_the_reference_and_of_the_file(scale, quantize, tmp_path):
    config = ConvertConfig(6, 6, recipe="best", batch=1, quantize=quantize)
    simulated = calibrate(published(scale).state_dict(), [images(1, 3, 16, 17)], config, check=False)
    model, x = convert_model(simulated), images(2, 3, 20, 18)
    assert not simulated.spec.skips_blocks and simulated.exit is None and model.fraction is None
    want = model(x)
    assert want.shape == simulated(x).shape == (2, 3, 20 * scale, 18 * scale)
    assert torch.equal(model.mean_bits(x), simulated.mean_bits(x))
    save(model, tmp_path / "model.safetensors")
    loaded = load(tmp_path / "model.safetensors")
    assert torch.equal(loaded(x), want) and loaded.spec == model.spec
    loaded.set_backend("reference")
    assert torch.equal(loaded(x), want)
    assert torch.equal(model.pixels(x), want.clamp(0, 255).round().to(torch.uint8))
    # Windows with the whole halo, and sizes that one pass does not give.
    assert torch.equal(upscale(x, model, tile=16, halo=model.spec.radius, bits=4), upscale(x, model, tile=0, bits=4))
    assert upscale(x, model, scale=2 * scale).shape[2:] == (40 * scale, 36 * scale)


def test_a_network_without_blocks_says_so():
    state, config = published(2).state_dict(), ConvertConfig(recipe="paper", batch=1, residual="int16")
    with pytest.raises(ValueError, match="residual must .* an SRVGGNetCompact has no residual blocks that features could pass by"):
        calibrate(state, [images(1, 3, 16, 17)], config, check=False)
    model = convert_model(state, [images(1, 3, 16, 17)], ConvertConfig(recipe="paper", batch=1), check=False)
    assert model.report["floats"] == {"enlarged": "integer kernels have no Resize"}
    with pytest.raises(ValueError, match="depth must be 'auto' or 'full' for a network without blocks, got 2"):
        model.set_depth(2)


def test_what_is_no_such_network():
    state = published(2).state_dict()
    for edit, message in [
        ({"body.6.weight": torch.zeros(20, 8, 3, 3)}, "the last convolution must have 3, 12, 27 or 48 output channels, got 20"),
        ({"body.0.weight": torch.zeros(8, 1, 3, 3)}, "one for grey pictures .'body.0.weight' takes 1 channel"),
        ({"body.2.weight": torch.zeros(8, 9, 3, 3)}, "'body.2.weight' has shape .8, 9, 3, 3., expected"),
        ({"body.7.weight": torch.zeros(8)}, "unexpected 'body.7.weight'"),
    ]:
        with pytest.raises(ValueError, match=message):
            detect(state | edit)
    with pytest.raises(ValueError, match="missing 'acts.1.weight'"):
        detect({key: value for key, value in state.items() if key != "body.3.weight"})
    with pytest.raises(ValueError, match="lacks its first or its last convolution"):
        detect({key: value for key, value in state.items() if not key.startswith(("body.2", "body.3", "body.4", "body.6"))})
    with pytest.raises(ValueError, match="SRVGGSpec: scale must be 1, 2, 3 or 4, got 8"):
        SRVGGSpec(8, 2, 8)


def test_the_published_file():
    found = detect(load_state(shared_path("data", "weights", "realesr_animevideov3_x4.pt")))
    assert (found.spec, found.layout, found.calibrated) == (SRVGGSpec(scale=4, layers=16, channels=64), "realesrgan", False)
