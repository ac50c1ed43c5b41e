"""Conventions that weights do not tell, folded into them: what a network's own code computes comes out, to the picture's border."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from small import small_edsr
from torch import nn
from torch.nn import functional as F

import adabm_kernels
from adabm_kernels import ConvertConfig, checkpoint, convert_model
from adabm_kernels.networks.convention import Convention
from adabm_kernels.networks.detect import adabm_name, detect, float_network, to_float_state
from adabm_kernels.networks.edsr import DIV2K_PIXELS, EDSR, EDSRSpec
from adabm_kernels.networks.rdn import RDN, RDNSpec
from adabm_kernels.networks.srresnet import SRResNet, SRResNetSpec
from adabm_kernels.simulate import SimulatedNetwork

FOREIGN = (0.31, 0.62, 0.05)
X = torch.rand(2, 3, 7, 6, generator=torch.Generator().manual_seed(1)).mul(255)


def read(state, res_scale=1.0, **convention):
    """The float network of a state dict, in float64."""
    found = detect(state, res_scale, convention=Convention(**convention))
    network = float_network(found.spec)
    network.load_state_dict(to_float_state(state, found), strict=True)
    return network.double()


def check(state, own, x=X, **convention):
    """own: what the network's code computes of pixels in its own range, in float64."""
    with torch.no_grad():
        torch.testing.assert_close(read(state, **convention)(x.double()), own(x.double()), rtol=0, atol=1e-3)


def edsr_code(state, rgb_range, *, shifts=True, order="rgb"):
    """EDSR-PyTorch's forward pass, with `sub_mean` and `add_mean` as 1x1 convolutions of whatever they hold, on 0..255."""
    spec = detect({key: value for key, value in state.items() if "mean" not in key}).spec
    plain = EDSR(spec)
    plain.load_state_dict({key: value for key, value in state.items() if "mean" not in key})
    plain = plain.double()

    def shifted(x, name):
        return F.conv2d(x, state[f"{name}.weight"].double(), state[f"{name}.bias"].double()) if shifts else x

    def run(x):
        x = (x.flip(1) if order == "bgr" else x) * (rgb_range / 255)
        y = shifted(plain(shifted(x, "sub_mean")), "add_mean") * (255 / rgb_range)
        return y.flip(1) if order == "bgr" else y

    return run


def with_shift(state, rgb_range, mean, std=(1.0, 1.0, 1.0)):
    """The mean shift of EDSR-PyTorch's `MeanShift(rgb_range, mean, std)`, whose two ends both divide by the deviation."""
    mean, std = torch.tensor(mean), torch.tensor(std)
    weight = torch.eye(3).view(3, 3, 1, 1) / std.view(3, 1, 1, 1)
    shift = rgb_range * mean / std
    return state | {"sub_mean.weight": weight, "sub_mean.bias": -shift, "add_mean.weight": weight, "add_mean.bias": shift}


def plain_state(tail="staged", scale=2):
    return small_edsr(scale=scale, tail=tail, mean_shift=False).state_dict()


@pytest.mark.parametrize("tail", ["staged", "single"])
@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize("rgb_range", [1, 255])
@pytest.mark.parametrize(
    "mean, std", [(DIV2K_PIXELS, None), (FOREIGN, None), (FOREIGN, (0.5, 0.25, 2.0))], ids=["div2k", "foreign", "deviation"]
)
def test_edsr_with_any_mean_colour(tail, order, rgb_range, mean, std):
    """The range is read off the size of the mean colour."""
    colour = np.array(mean, np.float32) / 255 if mean is DIV2K_PIXELS else mean
    state = with_shift(plain_state(tail), rgb_range, tuple(map(float, colour)), std or (1.0, 1.0, 1.0))
    check(state, edsr_code(state, rgb_range, order=order), channel_order=order)
    spec = detect(state, convention=Convention(channel_order=order)).spec
    if mean is DIV2K_PIXELS and order == "rgb":
        assert spec.mean == DIV2K_PIXELS
    else:
        assert spec.mean == pytest.approx([255 * value for value in (colour[::-1] if order == "bgr" else colour)], rel=1e-5)


@pytest.mark.parametrize("rgb_range", [1, 255])
@pytest.mark.parametrize("tail", ["staged", "single"])
def test_edsr_whose_shift_is_said_beside_the_weights(rgb_range, tail):
    state = plain_state(tail)
    check(state, edsr_code(state, rgb_range, shifts=False), rgb_range=rgb_range)
    registered = with_shift(state, 255, (0.4488, 0.4371, 0.4040))  # as in super-image: registered and never called
    check(registered, edsr_code(state, rgb_range, shifts=False), rgb_range=rgb_range, mean_shift="none")
    for said, colour in (("div2k", (0.4488, 0.4371, 0.4040)), (FOREIGN, FOREIGN)):
        own = edsr_code(with_shift(state, rgb_range, colour), rgb_range)
        check(state, own, rgb_range=rgb_range, mean_shift=said)
        check(registered, own, rgb_range=rgb_range, mean_shift=said)


def test_a_colour_transform_before_and_after():
    """A network that works in another colour space than RGB, as a learned 1x1 convolution on either side."""
    state = with_shift(plain_state(), 255, FOREIGN)
    state["sub_mean.weight"] = torch.tensor([[0.3, 0.6, 0.1], [-0.2, -0.3, 0.5], [0.5, -0.4, -0.1]]).view(3, 3, 1, 1)
    state["add_mean.weight"] = torch.linalg.inv(state["sub_mean.weight"].view(3, 3)).view(3, 3, 1, 1)
    check(state, edsr_code(state, 255))
    state["sub_mean.weight"][2] = state["sub_mean.weight"][1]
    with pytest.raises(ValueError, match="'sub_mean.weight' must not lose a colour"):
        detect(state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_precisions_convert_like_float32(dtype):
    state = small_edsr().state_dict()
    given = {key: value.to(dtype) for key, value in state.items()}
    rounded = {key: value.to(dtype).float() for key, value in state.items() if "mean" not in key}
    found = detect(given)
    assert found.spec == detect(state).spec
    got = to_float_state(given, found)
    assert all(torch.equal(got[key], rounded.get(key, state[key])) for key in state)
    assert convert_model(given, pictures(), ConvertConfig(recipe="paper")).spec.mean == DIV2K_PIXELS


def test_networks_without_biases_up_to_the_upsampler():
    state = small_edsr().state_dict()
    bare = {key: value for key, value in state.items() if not (key.startswith(("head", "body")) and key.endswith("bias"))}
    zeros = {key: torch.zeros_like(value) if key not in bare else value for key, value in state.items()}
    want = EDSR(detect(state).spec)
    want.load_state_dict(zeros)
    check(bare, want.double())


# ---- layouts, each against its own code written out


def conv(state, name, x):
    weight = state[f"{name}.weight"].double()
    bias = state.get(f"{name}.bias")
    return F.conv2d(x, weight, None if bias is None else bias.double(), padding=weight.shape[2] // 2)


def random_state(shapes, seed=0):
    torch.manual_seed(seed)
    made = {}
    for name, (i, o, k, bias) in shapes.items():
        made |= {f"{name}.{key}": value for key, value in nn.Conv2d(i, o, k, bias=bias).state_dict().items()}
    return made


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_edsr_of_mmagic(scale):
    """Pixels in 0..1, from which its code subtracts the mean colour as it is."""
    convs = {"conv_first": (3, 8), "conv_after_body": (8, 8), "conv_last": (8, 3)}
    convs |= {f"body.{i}.conv{j}": (8, 8) for i in range(2) for j in (1, 2)}
    factors = [2, 2] if scale == 4 else [scale]
    convs |= {f"upsample.{i}.upsample_conv": (8, 8 * r * r) for i, r in enumerate(factors)}
    state = random_state({name: (i, o, 3, True) for name, (i, o) in convs.items()})
    mean = torch.tensor([0.4488, 0.4371, 0.4040], dtype=torch.float64).view(3, 1, 1)

    def own(x):
        first = y = conv(state, "conv_first", x / 255 - mean)
        for i in range(2):
            y = y + conv(state, f"body.{i}.conv2", conv(state, f"body.{i}.conv1", y).relu())
        y = conv(state, "conv_after_body", y) + first
        for i, r in enumerate(factors):
            y = F.pixel_shuffle(conv(state, f"upsample.{i}.upsample_conv", y), r)
        return (conv(state, "conv_last", y) + mean) * 255

    assert detect(state).layout == "mmagic" and detect(state).spec == EDSRSpec(scale, 2, 8)
    check(state, own)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_rdn_of_yjn870_and_mmagic(scale):
    """Pixels in 0..1; otherwise the same network as RDN-PyTorch's."""
    factors = [2, 2] if scale == 4 else [scale]
    convs = {"sfe1": (3, 8, 3), "sfe2": (8, 8, 3), "gff.0": (16, 8, 1), "gff.1": (8, 8, 3), "output": (8, 3, 3)}
    convs |= {f"rdbs.{i}.layers.{j}.conv": (8 + 8 * j, 8, 3) for i in range(2) for j in range(3)}
    convs |= {f"rdbs.{i}.lff": (32, 8, 1) for i in range(2)}
    convs |= {f"upscale.{2 * i}": (8, 8 * r * r, 3) for i, r in enumerate(factors)}
    state = random_state({name: (*shape, True) for name, shape in convs.items()})

    def own(x):
        first = conv(state, "sfe1", x / 255)
        y, features = conv(state, "sfe2", first), []
        for i in range(2):
            dense = y
            for j in range(3):
                dense = torch.cat([dense, conv(state, f"rdbs.{i}.layers.{j}.conv", dense).relu()], 1)
            y = y + conv(state, f"rdbs.{i}.lff", dense)
            features.append(y)
        y = conv(state, "gff.1", conv(state, "gff.0", torch.cat(features, 1))) + first
        for i, r in enumerate(factors):
            y = F.pixel_shuffle(conv(state, f"upscale.{2 * i}", y), r)
        return conv(state, "output", y) * 255

    assert detect(state).layout == "yjn870" and detect(state).spec == RDNSpec(scale, 2, 3, 8, 8)
    check({"state_dict": {f"generator.{key}": value for key, value in state.items()}}, own)


def srresnet_parts(names, bias):
    """Weights of an SRResNet x4 with two blocks of 8 channels, its BatchNorms in use; names: of every part."""
    shapes = {names["head"]: (3, 8, 9, bias), names["last"]: (8, 8, 3, False), names["out"]: (8, 3, 9, bias)}
    shapes |= {names["conv"](i, j): (8, 8, 3, False) for i in range(2) for j in (1, 2)}
    shapes |= {names["up"](i): (8, 32, 3, bias) for i in range(2)}
    state = random_state(shapes)
    for name in [names["last_norm"], *(names["norm"](i, j) for i in range(2) for j in (1, 2))]:
        state |= {f"{name}.weight": torch.rand(8) + 0.5, f"{name}.bias": torch.randn(8), f"{name}.running_mean": torch.randn(8)}
        state |= {f"{name}.running_var": torch.rand(8) + 0.5, f"{name}.num_batches_tracked": torch.tensor(3)}
    return state


def srresnet_code(state, names, act):
    def norm(name, x):
        parts = (state[f"{name}.{part}"].double() for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *parts)

    def run(x):
        first = y = act(names["acts"][0], conv(state, names["head"], x / 255))
        for i in range(2):
            inner = act(names["acts"][1 + i], norm(names["norm"](i, 1), conv(state, names["conv"](i, 1), y)))
            y = y + norm(names["norm"](i, 2), conv(state, names["conv"](i, 2), inner))
        y = norm(names["last_norm"], conv(state, names["last"], y)) + first
        for i in range(2):
            y = act(names["acts"][3 + i], F.pixel_shuffle(conv(state, names["up"](i), y), 2))
        return conv(state, names["out"], y) * 255

    return run


@pytest.mark.parametrize("first", ["conv_block", "conv"])
def test_srresnet_of_lornatang(first):
    """Pixels in 0..1, PReLUs of one slope each; its parts are called conv_block1 or, later, conv1."""
    layer = {(1, "conv"): 0, (1, "norm"): 1, (2, "conv"): 3, (2, "norm"): 4}
    names = {
        "head": f"{first}1.0",
        "last": f"{first}2.0",
        "last_norm": f"{first}2.1",
        "out": f"{first}3",
        "conv": lambda i, j: f"trunk.{i}.rcb.{layer[j, 'conv']}",
        "norm": lambda i, j: f"trunk.{i}.rcb.{layer[j, 'norm']}",
        "up": lambda i: f"upsampling.{i}.upsample_block.0",
        "acts": [f"{first}1.1", "trunk.0.rcb.2", "trunk.1.rcb.2", *(f"upsampling.{i}.upsample_block.2" for i in range(2))],
    }
    state = srresnet_parts(names, bias=True)
    state |= {f"{name}.weight": torch.rand(1) for name in names["acts"]}
    own = srresnet_code(state, names, lambda name, x: F.prelu(x, state[f"{name}.weight"].double()))
    assert detect(state).layout == "lornatang" and detect(state).spec == SRResNetSpec(4, 2, 8, bias=True)
    check({"epoch": 1, "best_psnr": 28.1, "state_dict": state, "optimizer": {}, "scheduler": None}, own)


def test_srresnet_of_twtygqyy():
    """Pixels in 0..1, LeakyReLUs of slope 0.2, which are not among its weights."""
    names = {
        "head": "conv_input",
        "last": "conv_mid",
        "last_norm": "bn_mid",
        "out": "conv_output",
        "conv": lambda i, j: f"residual.{i}.conv{j}",
        "norm": lambda i, j: f"residual.{i}.bn{j}",
        "up": lambda i: f"upscale4x.{3 * i}",
        "acts": [""] * 5,
    }
    state = srresnet_parts(names, bias=False)
    assert detect(state).layout == "twtygqyy"
    check(state, srresnet_code(state, names, lambda _, x: F.leaky_relu(x, 0.2)))


@pytest.mark.parametrize("spec", [RDNSpec(2, 2, 2, 4, 8), SRResNetSpec(2, 2, 8), SRResNetSpec(2, 2, 8, unit_range=True)])
def test_other_families_in_another_range_and_order(spec):
    torch.manual_seed(3)
    network = float_network(spec)
    state = network.state_dict()
    if getattr(spec, "unit_range", False):  # what is said takes the place of what its layout says
        plain = SRResNet(SRResNetSpec(2, 2, 8)).eval()
        plain.load_state_dict({key: value for key, value in state.items() if key != "unit_range"})
        network = plain
    network = network.double()
    check(state, lambda x: network(x / 255) * 255, rgb_range=1)
    check(state, lambda x: network(x.flip(1) / 255).flip(1) * 255, rgb_range=1, channel_order="bgr")
    with pytest.raises(ValueError, match="mean_shift must be left out for an (RDN|SRResNet), which has none here, got 'div2k'"):
        detect(state, convention=Convention(mean_shift="div2k"))
    assert isinstance(float_network(detect(state).spec), RDN if spec.network == "rdn" else SRResNet)


class Block(nn.Module):
    """As in EDSR-PyTorch, which keeps the residual scale in each block."""

    def __init__(self, block, res_scale):
        super().__init__()
        self.body, self.res_scale = block.body, res_scale

    def forward(self, x):
        return x + self.body(x) * self.res_scale


class Foreign(nn.Module):
    def __init__(self, edsr, *scales):
        super().__init__()
        self.head, self.tail = edsr.head, edsr.tail
        blocks = [Block(block, scale) for block, scale in zip(edsr.body, scales, strict=False)]
        self.body = nn.Sequential(*blocks, edsr.body[-1])


def test_the_residual_scale_is_read_off_the_blocks_of_a_module():
    model = Foreign(small_edsr(mean_shift=False), 0.1, 0.1)
    assert convert_model(model, pictures(), ConvertConfig(recipe="paper")).spec.res_scale == 0.1
    assert convert_model(model, pictures(), ConvertConfig(recipe="paper"), res_scale=0.5).spec.res_scale == 0.5
    with pytest.raises(ValueError, match="res_scale must be the same in all blocks of the module, got \\[0.1, 1.0\\]"):
        convert_model(Foreign(small_edsr(mean_shift=False), 0.1, 1), pictures())


# ---- integer networks and their files


def pictures():
    return [torch.rand(2, 3, 18, 17, generator=torch.Generator().manual_seed(2)) * 255]


@pytest.mark.parametrize("config", [{}, {"recipe": "paper"}, {"quantize": "body"}], ids=["best", "paper", "body"])
def test_the_integer_network_and_its_file_have_the_convention(tmp_path, config):
    """At 8 bits it is close to the network's own code; its float form is that code."""
    state = with_shift(plain_state(), 1, FOREIGN, (0.5, 0.25, 2.0))
    own, x = edsr_code(state, 1, order="bgr"), pictures()[0]
    config = ConvertConfig(weight_bits=8, act_bits=8, adaptive=False, **config)
    model = convert_model(state, [x], config, channel_order="bgr")
    with torch.no_grad():
        want = own(x.double()).float()
        torch.testing.assert_close(model.float_model()(x), want, rtol=0, atol=1e-2)
        spread = (want - want.mean()).square().mean()
        assert (model(x) - want).square().mean() < spread / 400
    adabm_kernels.save(model, tmp_path / "m.safetensors")
    again = adabm_kernels.load(tmp_path / "m.safetensors")
    assert again.spec == model.spec and torch.equal(again(x), model(x))
    assert checkpoint.read_header(tmp_path / "m.safetensors")["format"] == checkpoint.FORMAT_VERSION


@pytest.mark.parametrize("version", [1, 2, 3])
def test_files_of_before_the_mean_colour_compute_as_they_did(tmp_path, version):
    model = convert_model(small_edsr(), pictures(), ConvertConfig(recipe="paper"))
    adabm_kernels.save(model, tmp_path / "new.safetensors")
    with safe_open(tmp_path / "new.safetensors", framework="pt") as file:
        header, tensors = json.loads(file.metadata()["adabm"]), {key: file.get_tensor(key) for key in file.keys()}
    del header["spec"]["mean"]
    header["format"] = version
    save_file(tensors, tmp_path / "old.safetensors", metadata={"adabm": json.dumps(header)})
    old = adabm_kernels.load(tmp_path / "old.safetensors")
    assert old.spec == model.spec and torch.equal(old(pictures()[0]), model(pictures()[0]))


def test_a_calibrated_network_keeps_its_own_convention():
    state = SimulatedNetwork.from_float(small_edsr().state_dict(), ConvertConfig(recipe="paper")).state_dict()
    state = {key: torch.nan_to_num(value, nan=1.0) for key, value in state.items()}
    with pytest.raises(ValueError, match="rgb_range must be left out for a calibrated network, whose ranges hold in 0..255, got 1"):
        detect(state, convention=Convention(rgb_range=1))
    with pytest.raises(ValueError, match="'sub_mean' and 'add_mean' of a calibrated network must subtract and add one colour"):
        detect(state | {"sub_mean.weight": 2 * state["sub_mean.weight"]})
    colour = {"sub_mean.bias": -torch.tensor([90.0, 80.0, 70.0]), "add_mean.bias": torch.tensor([90.0, 80.0, 70.0])}
    assert detect(state | colour).spec.mean == (90.0, 80.0, 70.0)


# ---- what is refused


@pytest.mark.parametrize(
    "convention, message",
    [
        ({"rgb_range": 2}, "rgb_range must be 1 or 255, got 2"),
        ({"rgb_range": True}, "rgb_range must be 1 or 255, got True"),
        ({"rgb_range": "1"}, "rgb_range must be 1 or 255, got '1'"),
        ({"mean_shift": "imagenet"}, "mean_shift must be 'none', 'div2k' or three numbers in 0..1, got 'imagenet'"),
        ({"mean_shift": (114.4, 111.5, 103.0)}, "mean_shift must be .* got \\(114.4, 111.5, 103.0\\)"),
        ({"mean_shift": (0.4, 0.4)}, "mean_shift must be .* got \\(0.4, 0.4\\)"),
        ({"mean_shift": 0.4}, "mean_shift must be .* got 0.4"),
        ({"channel_order": "gbr"}, "channel_order must be 'rgb' or 'bgr', got 'gbr'"),
    ],
)
def test_a_convention_that_cannot_be_is_named(convention, message):
    with pytest.raises((TypeError, ValueError), match=f"convert_model: {message}"):
        convert_model(small_edsr(), pictures(), **convention)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: grey(1), "network is one for grey pictures \\('head.0.weight' takes 1 channel\\): supported are .* three colours"),
        (lambda: grey(4), "one for pictures of 4 channels \\('head.0.weight' takes 4 channels\\)"),
        (lambda: staged(8), "the network is one for x8 \\(its 'tail.0.4.weight' says so\\): supported are x2, x3 and x4"),
        (lambda: single(8), "the network is one for x8 \\(its 'tail.0.0.weight' says so\\)"),
        (lambda: upconv("upconv1"), "an MSRResNet .the SRResNet of BasicSR and mmagic.*adds a bilinear enlargement"),
        (lambda: upconv("upsample1.upsample_conv"), "an MSRResNet"),
        (lambda: {"1.sub.0.res.0.weight": torch.zeros(8, 8, 3, 3)}, "in the layout of BasicSR before 2020"),
        (lambda: {"conv_block1.conv_block.0.weight": torch.zeros(8, 3, 9, 9)}, "ends in a tanh"),
        (lambda: {"conv_input.weight": torch.ones(1), "residual.0.in1.weight": torch.ones(8)}, "InstanceNorm"),
        (lambda: plain_state() | {"body.0.body.0.body.3.conv_du.0.weight": torch.ones(1)}, "an RCAN, whose channel attention"),
        (lambda: plain_state() | {"pre_process.0.0.body.0.weight": torch.ones(1)}, "an MDSR"),
        (lambda: plain_state() | {"body.0.bitsel1.net_small.0.weight": torch.ones(1)}, "a network that CADyQ has quantised"),
    ],
)
def test_networks_of_other_kinds_are_named(make, message):
    with pytest.raises(ValueError, match=f"^detect: .*{message}") as error:
        detect(make())
    assert "groups" not in str(error.value)


STATES = [
    lambda: with_shift(plain_state(), 1, FOREIGN),
    lambda: upconv("conv_after_body"),
    lambda: float_network(RDNSpec(4, 1, 1, 4, 8)).state_dict(),
    lambda: float_network(SRResNetSpec(4, 1, 8)).state_dict(),
    lambda: {"sfe1.weight": torch.zeros(8, 3, 3, 3), "rdbs.0.layers.0.conv.weight": torch.zeros(8, 8, 3, 3)},
    lambda: {"conv_block1.0.weight": torch.zeros(8, 3, 9, 9), "trunk.0.rcb.0.weight": torch.zeros(8, 8, 3, 3)},
    lambda: {"conv1.0.weight_g": torch.zeros(8, 1, 1, 1), "conv1.0.weight_v": torch.zeros(8, 3, 9, 9)},
]
CONVENTIONS = [Convention(), Convention(1), Convention(255, "none"), Convention(None, "div2k", "bgr"), Convention(1, FOREIGN)]


@settings(max_examples=150)
@given(st.data())
def test_any_damage_is_an_error_that_is_meant(data):
    """Keys gone, and shapes and kinds that belong elsewhere: what is not read is refused, and nothing else happens."""
    state = dict(data.draw(st.sampled_from(STATES))())
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(st.sampled_from(sorted(state)))
        shape = data.draw(st.sampled_from([None, (), (1,), (0,), (3,), (8, 3, 3, 3), (0, 3, 3, 3), (3, 8, 1, 1), (8, 8)]))
        kind = data.draw(st.sampled_from([torch.float32, torch.float16, torch.int64, torch.complex64]))
        state[key] = None if shape is None else torch.zeros(shape, dtype=kind)
    try:
        found = detect(state, convention=data.draw(st.sampled_from(CONVENTIONS)))
    except ValueError as error:
        assert str(error).startswith(("detect: ", "state_dict "))
    else:
        float_network(found.spec).load_state_dict(to_float_state(state, found), strict=True)


def grey(colours):
    return plain_state() | {"head.0.weight": torch.zeros(8, colours, 3, 3), "tail.1.weight": torch.zeros(colours, 8, 3, 3)}


def staged(scale):
    return plain_state(scale=4) | {"tail.0.4.weight": torch.zeros(32, 8, 3, 3), "tail.0.4.bias": torch.zeros(32)}


def single(scale):
    return plain_state("single") | {"tail.0.0.weight": torch.zeros(3 * scale**2, 8, 3, 3)}


def upconv(name):
    names = ("conv_first", "body.0.conv1", "body.0.conv2", name, "conv_hr", "conv_last")
    return {f"{key}.weight": torch.zeros(8, 8, 3, 3) for key in names}


def test_names_of_adabm_are_those_of_its_authors():
    assert [adabm_name(key) for key in ("body.3.body.2.bias", "tail.1.bias")] == ["body.3.conv2.bias", "tail.1.bias"]
