"""SPAN, IMDN, RFDN, CARN, VDSR, DnCNN, ESPCN and FSRCNN: graphs against the published modules written out, and their names."""

import functools
import re

import pytest
import torch
from published_families import CARN, ESPCN, FAMILIES, FSRCNN, SPAN, VDSR, DnCNN, imdn, rfdn
from small import NETWORKS, images, one_thread  # noqa: F401
from torch import nn
from torch.nn import functional as F

from adabm_kernels import ConvertConfig, convert_model, load, save, upscale
from adabm_kernels.calibrate import calibrate
from adabm_kernels.networks.brightness import FULL, STUDIO
from adabm_kernels.networks.convention import Convention
from adabm_kernels.networks.detect import detect, float_network, to_float_state
from adabm_kernels.networks.known import LAYOUTS, layout_of
from adabm_kernels.networks.known import NETWORKS as SPECS

SCALED = {"vdsr": 3, "fsrcnn": 2}  # families whose weights do for several scales, and which is meant here


@functools.cache
def published(family: str) -> nn.Module:
    torch.manual_seed(0)
    network = FAMILIES[family]().eval()
    for module in network.modules():
        if isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, -0.3, 0.5)
    return network


def key_of(family: str) -> str | None:
    return f"x{SCALED[family]}" if family in SCALED else None


def enlarged(x: torch.Tensor, scale: int) -> torch.Tensor:
    return F.interpolate(x, scale_factor=scale, mode="bicubic", antialias=True)


def in_float(state: dict, x: torch.Tensor, **reading: object) -> torch.Tensor:
    """What the float network makes of pixels in 0..255."""
    key = reading.pop("weights_key", None)
    found = detect(state, convention=Convention(**reading), weights_key=key)
    network = float_network(found.spec)
    network.load_state_dict(to_float_state(state, found))
    with torch.no_grad():
        return network(x)


def assert_near(got: torch.Tensor, want: torch.Tensor) -> None:
    """To the rounding of sums of a few hundred float32 products, of pixels up to 255 or of what random weights make of them."""
    torch.testing.assert_close(got, want, rtol=0, atol=8e-6 * max(255.0, float(want.abs().max())))


def check(network: nn.Module, x: torch.Tensor, want: torch.Tensor, **reading: object) -> None:
    assert_near(in_float(network.state_dict(), x, **reading), want)


def made(make: object, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return make().eval()  # type: ignore[operator]


COLOUR = {
    **{f"span x{s}": functools.partial(SPAN, s, norm=s > 2) for s in (1, 2, 3, 4)},
    **{f"imdn x{s}": functools.partial(imdn, s) for s in (2, 3, 4)},
    **{f"rfdn x{s}": functools.partial(rfdn, s) for s in (2, 3, 4)},
    **{f"carn x{s}": functools.partial(CARN, s) for s in (2, 3, 4)},
    "carn-m x4": functools.partial(CARN, 4, groups=2),
    "dncnn": DnCNN,
    "dncnn of KAIR with norms": functools.partial(DnCNN, norm=1e-4),
    "dncnn of its authors": functools.partial(DnCNN, norm=1e-4, biases=(True, False), name="dncnn"),
    "dncnn of SaoYan": functools.partial(DnCNN, norm=1e-5, biases=(False, False), name="dncnn"),
    **{f"espcn x{s}": functools.partial(ESPCN, s) for s in (2, 3, 4)},
}


@pytest.mark.parametrize("case", COLOUR)
def test_the_graph_computes_what_the_published_module_does(case):
    network, x = made(COLOUR[case]), images(2, 3, 17, 19)
    with torch.no_grad():
        check(network, x, network(x / 255) * 255)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("make", [VDSR, FSRCNN])
def test_weights_that_do_for_several_scales(make, colours, scale):
    network, x = made(lambda: make(colours=colours) if make is VDSR else make(scale, colours)), images(2, 3, 9, 11)
    with torch.no_grad():
        compute = (lambda y: network(enlarged(y, scale))) if make is VDSR else network
        check(network, x, of_colours(compute, x, scale, colours, STUDIO), weights_key=f"x{scale}")
    with pytest.raises(ValueError, match="is a network for each of several scales, 'x2', 'x3', 'x4': name one of them"):
        detect(network.state_dict())


def of_colours(compute, x, scale, colours, of):
    """The picture that a network makes of colours, or of the brightness with the colours that bicubic makes."""
    if colours == 3:
        return compute(x / 255) * 255
    parts = torch.tensor(of.parts).view(1, 3, 1, 1)

    def brightness(x):
        return (x / 255 * parts).sum(1, keepdim=True) + of.offset

    base = enlarged(x, scale) if scale > 1 else x
    return base + of.gain * 255 * (compute(brightness(x)) - brightness(base))


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_espcn_of_the_brightness(scale):
    network, x = made(functools.partial(ESPCN, scale, 1)), images(2, 3, 9, 11)
    with torch.no_grad():
        check(network, x, of_colours(network, x, scale, 1, STUDIO))


def test_dncnn_of_grey_pictures():
    network, x = made(functools.partial(DnCNN, 1)), images(2, 3, 9, 11)
    with torch.no_grad():
        check(network, x, of_colours(network, x, 1, 1, FULL))
        grey = x[:, :1]
        check(network, grey.expand(-1, 3, -1, -1), (network(grey / 255) * 255).expand(-1, 3, -1, -1))


def test_a_carn_for_several_scales():
    networks = {scale: made(functools.partial(CARN, scale)) for scale in (2, 3, 4)}
    state = {key: value for key, value in networks[2].state_dict().items() if not key.startswith("upsample")}
    for scale, network in networks.items():
        network.load_state_dict(state, strict=False)
        own = {key: value for key, value in network.state_dict().items() if key.startswith("upsample")}
        state |= {key.replace("up.", f"up{scale}.", 1).replace("upsample.up", "upsample.up"): value for key, value in own.items()}
    assert "upsample.up4.body.3.weight" in state
    x = images(1, 3, 9, 11)
    for scale, network in networks.items():
        with torch.no_grad():
            assert_near(in_float(state, x, weights_key=f"x{scale}"), network(x / 255) * 255)
    with pytest.raises(ValueError, match="several scales, 'x2', 'x3', 'x4'"):
        detect(state)


def test_other_names_of_the_same():
    x = images(1, 3, 9, 11)

    def same(network, renamed, **reading):
        state = {renamed(key): value for key, value in network.state_dict().items()}
        assert state.keys() != network.state_dict().keys()
        assert torch.equal(in_float(state, x, **reading), in_float(network.state_dict(), x, **reading))

    def put(names):
        return lambda key: functools.reduce(lambda k, pair: re.sub(f"^{pair[0]}", pair[1], k), names.items(), key)

    same(published("vdsr"), put({r"conv1\.0": "input", "conv2": "output", "trunk": "residual_layer"}), weights_key="x2")
    same(published("espcn"), put({"first_part": "feature_maps", "last_part": "sub_pixel"}))
    lists = {r"mid_part\.([01])\.": r"shrink.\1.", r"mid_part\.([6-7])\.": lambda m: f"expand.{int(m[1]) - 6}."}
    lists |= {r"mid_part\.([2-5])\.": lambda m: f"map.{int(m[1]) - 2}.", "first_part": "feature_extraction", "last_part": "deconv"}
    same(published("fsrcnn"), put(lists), weights_key="x2")


def test_a_span_that_was_saved_after_training():
    """Its convolutions are collapsed already, and what they were made of is left out."""
    network, x = published("span"), images(1, 3, 9, 11)
    state = network.state_dict()
    want = in_float(state, x)
    collapsed = to_float_state(state, detect(state))
    whole = {"conv_1": "stem", "conv_2": "after"}
    whole |= {f"block_{i + 1}.c{j + 1}_r": f"spab.{i}.convs.{j}" for i in range(6) for j in range(3)}
    evaluated = {f"{name}.eval_conv.{p}": collapsed[f"{own}.{p}"] for name, own in whole.items() for p in ("weight", "bias")}
    alone = {key: value for key, value in state.items() if not key.startswith(tuple(whole))} | evaluated
    assert torch.equal(in_float(alone, x), want)
    broken = state | {"block_2.c1_r.conv.1.weight": torch.zeros(16, 8, 3, 3)}
    with pytest.raises(ValueError, match="'block_2.c1_r' must be convolutions of 1x1, 3x3 and 1x1 beside one of 1x1, got"):
        detect(broken)


@pytest.mark.parametrize("family", dict.fromkeys([*FAMILIES, *NETWORKS]))
def test_no_family_is_taken_for_another(family):
    """Under the names of the authors, and under those of the graph."""
    state = (published(family) if family in FAMILIES else NETWORKS[family]()).state_dict()
    found = detect(state, weights_key=key_of(family))
    assert found.spec.network == family
    assert [layout.name for layout in LAYOUTS if layout.fits(state) and layout.name != "adabm"] in ([found.layout], [])
    own = float_network(found.spec).state_dict()
    assert detect(own).spec == found.spec
    prepared = layout_of(own).apply(own)
    assert [spec.network for spec in SPECS if spec.fits(prepared)] == [family]
    for other in FAMILIES:
        if other != family:
            with pytest.raises(ValueError, match=r"^detect: "):
                detect(dict(published(other).state_dict()) | dict(state), weights_key=key_of(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_wrong_keys_are_named(family):
    state, key = published(family).state_dict(), key_of(family)
    with pytest.raises(ValueError, match=r"^detect: (.*unexpected 'attention.weight'|not an EDSR)"):
        detect(state | {"attention.weight": torch.zeros(1)}, weights_key=key)
    keys = [name for name in state if not name.endswith(("num_batches_tracked", "no_norm")) and "eval_conv" not in name]
    for gone in dict.fromkeys([*keys[:3], *keys[3::4], *keys[-3:]]):
        if gone != "trunk.1.conv.weight":  # a VDSR of one layer less is one
            with pytest.raises(ValueError, match=r"^detect: "):
                detect({name: value for name, value in state.items() if name != gone}, weights_key=key)
        for value in (torch.zeros(()), torch.zeros(3, 5), state[gone].flatten(0)):
            if value.shape != state[gone].shape:
                with pytest.raises(ValueError, match=r"^detect: "):
                    detect(state | {gone: value}, weights_key=key)


@pytest.mark.parametrize("family, quantize", [*((family, "full") for family in FAMILIES), ("span", "body"), ("fsrcnn", "body")])
def test_integers_are_those_of_the_simulation_and_of_the_file(family, quantize, tmp_path):
    config = ConvertConfig(6, 6, recipe="best", batch=1, quantize=quantize)
    key = key_of(family)
    simulated = calibrate(published(family).state_dict(), [images(1, 3, 24, 26)], config, weights_key=key, check=False)
    model, x = convert_model(simulated), images(2, 3, 20, 18)
    want, scale = model(x), model.scale
    assert want.shape == (2, 3, 20 * scale, 18 * scale)
    with torch.no_grad():
        # A code that lies between two may fall to the other one; most do not.
        assert (want - simulated(x)).abs().mean() < 0.05
        assert simulated.spec.attention or (want - simulated(x)).abs().median() < 1e-3
    assert torch.equal(model.mean_bits(x), simulated.mean_bits(x))
    save(model, tmp_path / "model.safetensors")
    loaded = load(tmp_path / "model.safetensors")
    assert torch.equal(loaded(x), want) and loaded.spec == model.spec
    loaded.set_backend("reference")
    assert torch.equal(loaded(x), want)
    if not simulated.spec.attention:
        assert torch.equal(upscale(x, model, tile=16, halo=model.spec.radius, bits=4), upscale(x, model, tile=0, bits=4))
    assert upscale(x, model).shape == want.shape


@pytest.mark.parametrize("family, parts", [("span", r"spab\.0\.attention"), ("imdn", r"imdb\.0\.cca"), ("rfdn", r"rfdb\.0\.esa")])
def test_attention_stays_in_floats_and_says_so(family, parts):
    model = convert_model(published(family), [images(1, 3, 24, 26)], ConvertConfig(recipe="paper", batch=1), check=False)
    floats = model.in_floats()
    assert any(re.match(parts, name) for name in floats) and all(floats.values())
    quantized = [layer["name"] for layer in model.report["layers"]]
    assert not any(re.match(r".*\.(cca|esa)\.", name) for name in quantized) and any(".convs." in name for name in quantized)


def test_pictures_that_the_attention_of_rfdn_is_too_large_for():
    network = published("rfdn")
    model = convert_model(network, [images(1, 3, 24, 26)], ConvertConfig(recipe="paper", batch=1), check=False)
    for size in ((1, 1), (3, 20), (15, 7)):
        assert model(images(1, 3, *size)).shape == (1, 3, 2 * size[0], 2 * size[1])


def test_readings_that_a_network_cannot_have():
    grey, span = made(functools.partial(DnCNN, 1)).state_dict(), published("span").state_dict()
    x = images(1, 3, 9, 11)
    assert not torch.equal(in_float(grey, x), in_float(grey, x, rgb_range=255))
    for state, reading, message in [
        (made(functools.partial(ESPCN, 2, 1)).state_dict(), {"channel_order": "bgr"}, "channel_order must be 'rgb' for a network"),
        (span, {"channel_order": "bgr"}, "channel_order must be 'rgb' for a network that takes the brightness or subtracts"),
        (span, {"rgb_range": 255}, "rgb_range must be 1 for a SPAN that subtracts a mean colour"),
        (published("imdn").state_dict(), {"mean_shift": "div2k"}, "mean_shift must be left out for an IMDN"),
    ]:
        with pytest.raises(ValueError, match=message):
            detect(state, convention=Convention(**reading))
    network = published("imdn")
    with torch.no_grad():
        check(network, x / 255, network(x / 255), rgb_range=255)
        check(network, x, network(x / 255) * 255, rgb_range=1)
        check(network, x, network(x.flip(1) / 255).flip(1) * 255, channel_order="bgr")


@pytest.mark.parametrize(
    "family, key", [("imdn", "IMDB998.c1.weight"), ("rfdn", "B998.c5.bias"), ("vdsr", "trunk.998.conv.weight")]
)
def test_blocks_that_are_numbered_higher_than_there_are_weights(family, key):
    state = published(family).state_dict() | {key: torch.zeros(8, 8, 3, 3)}
    with pytest.raises(ValueError, match=r"parts of a network of \d+ values are numbered below that, got '"):
        detect(state, weights_key=key_of(family))


def test_networks_that_look_like_these():
    ircnn = made(functools.partial(DnCNN, layers=5)).state_dict()
    with pytest.raises(ValueError, match="cannot be told from an IRCNN"):
        detect(ircnn)
    noise_level = published("dncnn").state_dict() | {"model.0.weight": torch.zeros(8, 4, 3, 3)}
    with pytest.raises(ValueError, match="one for pictures of 4 channels .'0.weight' takes 4"):
        detect(noise_level)
