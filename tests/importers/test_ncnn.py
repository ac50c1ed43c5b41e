"""Files of ncnn: networks written in its format come back as they were, layers compute what ncnn says, and damage is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from imported_networks import SPECS, computed, graph_state, network_of
from ncnn_files import Writer, write_ncnn
from small import images, one_thread, same  # noqa: F401
from torch.nn import functional as F

from adabm_kernels import ConvertConfig, convert_model, read_network
from adabm_kernels.importers.ncnn_layers import read_ncnn
from adabm_kernels.importers.reading import read_known
from adabm_kernels.networks.detect import detect, to_float_state

GENERATOR = torch.Generator().manual_seed(5)


def draw(*size: int) -> torch.Tensor:
    return torch.randn(*size, generator=GENERATOR)


# ---- networks


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize("name", SPECS)
def test_known_networks_come_back_with_their_names_and_every_bit(name: str, half: bool, tmp_path: Path) -> None:
    spec = SPECS[name]
    network = network_of(spec)
    state = graph_state(network)
    path = write_ncnn(tmp_path / "n.param", spec.graph(), state, half)
    read, res_scale = read_known(path)
    found = detect(read, res_scale)
    assert found.spec == spec and res_scale == spec.res_scale
    assert found.layout == ("adabm_unit" if spec.network in ("srvgg", "rrdb") else "adabm")  # 0..1 for Real-ESRGAN's
    want = {key: value.half().float() if half and value.ndim == 4 else value for key, value in state.items()}
    want |= {key: state[key] for key in state if key.startswith(("sub_mean", "add_mean"))}  # written as a Scale, of float32
    got = to_float_state(read, detect(read, res_scale, convention=_in_255(spec)))
    assert same({key: got[key] for key in got if "num_batches" not in key}, _published(want, network))


def _in_255(spec):
    from adabm_kernels.networks.convention import Convention

    return Convention(rgb_range=255) if spec.network in ("srvgg", "rrdb") else Convention()


def _published(state, network):
    names = network.state_dict().keys()
    return {key: value.float() for key, value in zip(names, state.values(), strict=True) if "num_batches" not in key}


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
def test_a_converted_model_is_that_of_the_checkpoint(half: bool, tmp_path: Path) -> None:
    spec, pictures = SPECS["srvgg"], [images(1, 3, 16, 17)]
    state = graph_state(network_of(spec))
    path = write_ncnn(tmp_path / "n.param", spec.graph(), state, half)
    named = [(key.split("."), value.half() if half and value.ndim == 4 else value) for key, value in state.items()]
    checkpoint = {f"body.{2 * int(part) + (kind == 'acts')}.{last}": value for (kind, part, last), value in named}
    settings = {"config": ConvertConfig(recipe="paper", batch=1), "check": False}
    want = convert_model(checkpoint, pictures, **settings)
    for given in (read_known(path)[0], read_network(path)):
        got = convert_model(given, pictures, **settings)
        assert got.spec == want.spec and same(got.state_dict(), want.state_dict())
        assert torch.equal(got(images(1, 3, 20, 18)), want(images(1, 3, 20, 18)))


def test_a_result_that_is_shrunk_at_the_end_is_told_and_left_out(tmp_path: Path) -> None:
    """As Real-ESRGAN's files for x2 and x3 do it with the result of the network for x4."""
    spec = SPECS["srvgg"]
    path = write_ncnn(tmp_path / "n.param", spec.graph(), graph_state(network_of(spec)))
    lines = path.read_text().splitlines()
    lines[1] = f"{len(lines) - 1} {int(lines[1].split()[1]) + 1}"
    last = lines[-1].split()[4 + int(lines[-1].split()[2])]
    path.write_text("\n".join([*lines, f"Interp shrunk 1 1 {last} out 0=3 1=5.000000e-01 2=5.000000e-01"]))
    with pytest.warns(UserWarning, match=r"n.param: read without its last layer, which resizes what the network makes by 0.5;"):
        assert detect(read_known(path)[0]).spec == spec


def test_the_bin_stands_for_both_and_is_asked_for(tmp_path: Path) -> None:
    spec = SPECS["srvgg_x1"]
    path = write_ncnn(tmp_path / "n.param", spec.graph(), graph_state(network_of(spec)))
    assert detect(read_known(tmp_path / "n.bin")[0]).spec == spec
    path.with_suffix(".bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"n.param: its weights are missing: 'n.bin' must lie beside it"):
        read_known(path)
    with pytest.raises(FileNotFoundError, match=r"no such file: .*other.param"):
        read_known(tmp_path / "other.param")


# ---- layers: after a convolution of 3 to 4 channels, as a network must have one


WEIGHT, BIAS = draw(4, 3, 3, 3), draw(4)
X = draw(1, 3, 8, 10)
Case = tuple[Callable[[Writer, str], object], Callable[[torch.Tensor], torch.Tensor]]
SLOPES, NORM, FACTORS = draw(4), (draw(4), draw(4), draw(4).abs() + 0.5, draw(4)), draw(4)
DEPTHWISE, UP, DENSE = draw(4, 1, 3, 3), draw(6, 4, 4, 4), (draw(2, 4), draw(2), draw(4, 2), draw(4))


def _conv(w: Writer, x: str, weight: torch.Tensor, kind: str = "Convolution", **settings: object) -> None:
    outputs = settings.pop("outputs", weight.shape[0])
    w.layer(kind, "c2", [x], ["y"], p0=outputs, p1=weight.shape[3], p6=weight.numel(), **settings)
    w.tagged(weight)


def _activated(kind: int, *values: float) -> Callable[[Writer, str], None]:
    return lambda w, x: _conv(w, x, DEPTHWISE, "ConvolutionDepthWise", p4=1, p7=4, p9=kind, **({"a10": values} if values else {}))


def _depthwise(x: torch.Tensor) -> torch.Tensor:
    return F.conv2d(x, DEPTHWISE, padding=1, groups=4)


def _attention(w: Writer, x: str) -> None:
    """A squeeze and excitation, as ncnn has it."""
    w.layer("Split", "s", [x], ["a", "b"])
    w.layer("Pooling", "pool", ["a"], ["p"], p0=1, p4=1)
    w.layer("InnerProduct", "d0", ["p"], ["q"], p0=2, p1=1, p2=8, p9=1)
    w.tagged(DENSE[0])
    w.plain(DENSE[1])
    w.layer("InnerProduct", "d1", ["q"], ["r"], p0=4, p1=1, p2=8, p9=4)
    w.tagged(DENSE[2])
    w.plain(DENSE[3])
    w.layer("BinaryOp", "m", ["b", "r"], ["y"], p0=2)


def _attended(x: torch.Tensor) -> torch.Tensor:
    hidden = F.relu(F.linear(x.mean((2, 3)), DENSE[0], DENSE[1]))
    return x * torch.sigmoid(F.linear(hidden, DENSE[2], DENSE[3]))[..., None, None]


def _parts(w: Writer, x: str) -> None:
    w.layer("Slice", "s", [x], ["a", "b", "c"], a0=(1, -233, -233))
    w.layer("Concat", "j", ["c", "a", "b"], ["y"], p0=0)


def _memory(w: Writer, x: str, operator: int) -> None:
    w.layer("MemoryData", "m", [], ["n"], p0=1, p1=1, p2=4)
    w.plain(FACTORS)
    w.layer("BinaryOp", "o", ["n", x], ["y"], p0=operator)


def _norm(w: Writer, x: str) -> None:
    w.layer("BatchNorm", "n", [x], ["y"], p0=4, p1=1e-3)
    for part in NORM:
        w.plain(part)


def _scale(w: Writer, x: str) -> None:
    w.layer("Scale", "n", [x], ["y"], p0=4, p1=1)
    w.plain(NORM[0])
    w.plain(NORM[1])


def _one(kind: str, **settings: object) -> Callable[[Writer, str], None]:
    return lambda w, x: w.layer(kind, "one", [x], ["y"], **settings)


def _twice(kind: str, **settings: object) -> Callable[[Writer, str], None]:
    def put(w: Writer, x: str) -> None:
        w.layer("Split", "s", [x], ["a", "b"])
        w.layer("Sigmoid", "g", ["b"], ["c"])
        w.layer(kind, "two", ["a", "c"], ["y"], **settings)

    return put


LAYERS: dict[str, Case] = {
    "relu": (_one("ReLU"), F.relu),
    "leaky": (_one("ReLU", p0=0.2), lambda x: F.leaky_relu(x, 0.2)),
    "prelu": (lambda w, x: (w.layer("PReLU", "p", [x], ["y"], p0=4), w.plain(SLOPES)), lambda x: F.prelu(x, SLOPES)),
    "tanh": (_one("TanH"), torch.tanh),
    "mish": (_one("Mish"), F.mish),
    "swish": (_one("Swish"), F.silu),
    "gelu": (_one("GELU", p0=1), lambda x: F.gelu(x, approximate="tanh")),
    "elu": (_one("ELU", p0=0.5), lambda x: F.elu(x, 0.5)),
    "clip": (_one("Clip", p0=-0.5, p1=1.5), lambda x: x.clamp(-0.5, 1.5)),
    "clip_below": (_one("Clip", p1=0.5), lambda x: x.clamp(max=0.5)),
    "relu6": (_one("Clip", p0=0.0, p1=6.0), F.relu6),
    "hard_swish": (_one("HardSwish", p0=1 / 6, p1=0.5), F.hardswish),
    "hard_sigmoid": (_one("HardSigmoid", p0=1 / 6, p1=0.5), F.hardsigmoid),
    "conv_relu": (_activated(1), lambda x: F.relu(_depthwise(x))),
    "conv_leaky": (_activated(2, 0.1), lambda x: F.leaky_relu(_depthwise(x), 0.1)),
    "conv_clip": (_activated(3, -1.0, 1.0), lambda x: _depthwise(x).clamp(-1, 1)),
    "conv_sigmoid": (_activated(4), lambda x: _depthwise(x).sigmoid()),
    "conv_mish": (_activated(5), lambda x: F.mish(_depthwise(x))),
    "conv_hard_swish": (_activated(6, 1 / 6, 0.5), lambda x: F.hardswish(_depthwise(x))),
    "uneven": (
        lambda w, x: _conv(w, x, WEIGHT[:, :1].expand(4, 4, 3, 3).contiguous(), p4=2, p15=0, p14=0, p16=2),
        lambda x: F.conv2d(F.pad(x, (2, 0, 0, 2)), WEIGHT[:, :1].expand(4, 4, 3, 3)),
    ),
    "same": (lambda w, x: _conv(w, x, DEPTHWISE, "ConvolutionDepthWise", p4=-233, p7=4), _depthwise),
    "transposed": (
        lambda w, x: _conv(w, x, UP, "Deconvolution", p3=2, p4=1),
        lambda x: F.conv_transpose2d(x, UP.swapaxes(0, 1), stride=2, padding=1),
    ),
    "add": (_twice("BinaryOp", p0=0), lambda x: x + x.sigmoid()),
    "sub": (_twice("BinaryOp", p0=1), lambda x: x - x.sigmoid()),
    "rsub": (_twice("BinaryOp", p0=7), lambda x: x.sigmoid() - x),
    "mul": (_twice("BinaryOp", p0=2), lambda x: x * x.sigmoid()),
    "div": (_twice("BinaryOp", p0=3), lambda x: x / x.sigmoid()),
    "number": (_one("BinaryOp", p0=3, p1=1, p2=4.0), lambda x: x / 4),
    "from_number": (_one("BinaryOp", p0=7, p1=1, p2=4.0), lambda x: 4 - x),
    "memory_add": (lambda w, x: _memory(w, x, 0), lambda x: x + FACTORS[:, None, None]),
    "memory_sub": (lambda w, x: _memory(w, x, 1), lambda x: FACTORS[:, None, None] - x),
    "eltwise_sum": (_twice("Eltwise", p0=1, a1=(0.5, -2.0)), lambda x: x * 0.5 - x.sigmoid() * 2),
    "eltwise_product": (_twice("Eltwise", p0=0), lambda x: x * x.sigmoid()),
    "parts": (_parts, lambda x: torch.cat([x[:, 2:], x[:, :1], x[:, 1:2]], 1)),
    "crop": (_one("Crop", a9=(1,), a10=(3,), a11=(0,)), lambda x: x[:, 1:3]),
    "old_crop": (_one("Crop", p2=1, p3=-233, p4=-233, p5=2), lambda x: x[:, 1:3]),
    "shuffle": (_one("PixelShuffle", p0=2), lambda x: F.pixel_shuffle(x, 2)),
    "reorg": (_one("Reorg", p0=2), lambda x: F.pixel_unshuffle(x, 2)),
    "nearest": (_one("Interp", p0=1, p1=2.0, p2=2.0), lambda x: F.interpolate(x, scale_factor=2)),
    "bilinear": (_one("Interp", p0=2, p1=2.0, p2=2.0), lambda x: F.interpolate(x, scale_factor=2, mode="bilinear")),
    "corners": (
        _one("Interp", p0=2, p1=2.0, p2=2.0, p6=1),
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True),
    ),
    "bicubic": (_one("Interp", p0=3, p1=2.0, p2=2.0), lambda x: F.interpolate(x, scale_factor=2, mode="bicubic")),
    "padding": (_one("Padding", p0=1, p1=2, p2=3, p3=4, p4=1), lambda x: F.pad(x, (3, 4, 1, 2), mode="replicate")),
    "reflected": (_one("Padding", p0=1, p1=1, p2=1, p3=1, p4=2), lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect")),
    "norm": (_norm, lambda x: F.batch_norm(x, NORM[1], NORM[2], NORM[0], NORM[3], eps=1e-3)),
    "scale": (_scale, lambda x: x * NORM[0][:, None, None] + NORM[1][:, None, None]),
    "max_pool": (_one("Pooling", p0=0, p1=2, p2=2, p5=1), lambda x: F.max_pool2d(x, 2)),
    "mean_pool": (_one("Pooling", p0=1, p1=2, p2=2, p5=1), lambda x: F.avg_pool2d(x, 2)),
    "attention": (_attention, _attended),
    "dropout": (_one("Dropout"), lambda x: x),
}


def _file(put: Callable[[Writer, str], object], folder: Path) -> Path:
    writer = Writer()
    writer.layer("Input", "data", [], ["data"], p0=0, p1=0, p2=3)
    writer.layer("Convolution", "c", ["data"], ["first"], p0=4, p1=3, p4=1, p5=1, p6=WEIGHT.numel())
    writer.tagged(WEIGHT)
    writer.plain(BIAS)
    put(writer, "first")
    return writer.write(folder / "n.param")


@pytest.mark.parametrize("name", LAYERS)
def test_layers_compute_what_the_formulas_of_torch_do(name: str, tmp_path: Path) -> None:
    put, formula = LAYERS[name]
    want = formula(F.conv2d(X, WEIGHT, BIAS, padding=1))
    got = computed(read_ncnn(_file(put, tmp_path)), X)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)  # sums of at most 64 products of numbers about 1


# ---- damage


def _edited(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new, 1)


DAMAGE: dict[str, tuple[Callable[[str], str], str]] = {
    "magic": (lambda t: _edited(t, "7767517", "7767518"), r"the first line of a .param must be 7767517, got '7767518'"),
    "layers": (lambda t: _edited(t, "3 3", "1000000000 3"), r"must have the 1000000000 layers that its second line says, got 3"),
    "blobs": (lambda t: _edited(t, "3 3", "3 1000000000"), r"must have the 1000000000 blobs that its second line says, got 3"),
    "negative": (lambda t: _edited(t, "3 3", "-3 3"), r"second line of a .param must be the numbers"),
    "inputs": (lambda t: _edited(t, "1 1 first y", "999999999 1 first y"), r"line 5 .*must name 999999999 inputs and 1 outputs"),
    "unknown": (lambda t: _edited(t, "ReLU", "Softplus"), r"layer 'one' \(Softplus\) is of a type that is not read"),
    "cycle": (lambda t: _edited(t, "1 1 first y", "1 1 y y"), r"line 5 of the .param: blob 'y' is read before a layer makes it"),
    "twice": (lambda t: _edited(t, "1 1 first y", "1 1 first first"), r"line 5 of the .param: blob 'first' is made twice"),
    "outputs": (
        lambda t: _edited(t, "6=108", "6=1080000000"),
        r"'c' \(Convolution\): it needs 4320000000 bytes .* has 448 left",
    ),
    "less": (lambda t: _edited(t, "6=108", "6=-108"), r"layer 'c' \(Convolution\): its -108 weights are no multiple"),
    "divides": (lambda t: _edited(t, "6=108", "6=107"), r"its 107 weights are no multiple of 4 outputs and a kernel of 3x3"),
    "none": (lambda t: _edited(t, "0=4 1=3", "0=0 1=3"), r"outputs must be a multiple of its 1 groups, got 0"),
    "kernel": (lambda t: _edited(t, "1=3", "1=0"), r"kernel must be from 1 to 255, got \(0, 0\)"),
    "channels": (lambda t: _edited(t, "2=3", "2=7"), r"weights are for 3 channels in and 4 out, in 1 groups, but the input has 7"),
    "many": (lambda t: _edited(t, "2=3", "2=1000000000"), r"channels of the input must be from 1 to 65536, got 1000000000"),
    "value": (lambda t: _edited(t, "1=3", "1=nan"), r"line 4 .*a value must be a finite number, got 'nan'"),
    "fraction": (lambda t: _edited(t, "1=3", "1=2.5"), r"setting 1 must be an integer, got 2.5"),
    "array": (lambda t: _edited(t, "1=3", "-23301=3,1"), r"an array must have the 3 values that it says, got 1"),
    "word": (lambda t: _edited(t, "1=3", "1:3"), r"a setting must be a number, '=' and a value, got '1:3'"),
    "two_inputs": (lambda t: _edited(t, "ReLU ", "Input "), r"the network must have one input, got 2"),
    "scale": (lambda t: _edited(t, "1 1 first y", "1 1 first y 0=1e300"), r"a value must be a finite number, got '1e300'"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_one_sentence(name: str, tmp_path: Path) -> None:
    edit, message = DAMAGE[name]
    path = _file(_one("ReLU"), tmp_path)
    path.write_text(edit(path.read_text()))
    with pytest.raises(ValueError, match=message):
        read_known(path)


BINS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", r"layer 'c' \(Convolution\): it needs 4 bytes of weights, but the .bin has 0 left"),
    "cut": (lambda data: data[:-1], r"it needs 16 bytes of weights, but the .bin has 15 left"),
    "longer": (lambda data: data + b"\0", r"the .bin must end with the last weights, but 1 bytes are left"),
    "int8": (lambda data: b"\x38\x4b\x0d\0" + data[4:], r"its weights are quantised \(int8, 0x000d4b38\)"),
    "table": (lambda data: b"\x01\x02\x03\x04" + data[4:], r"quantised \(a table of 256 values, 0x04030201\): only float32"),
    "nan": (lambda data: data[:4] + b"\xff\xff\xff\xff" + data[8:], r"layer 'c' \(Convolution\): it holds values that are NaN"),
}


@pytest.mark.parametrize("name", BINS)
def test_damaged_weights_are_one_sentence(name: str, tmp_path: Path) -> None:
    edit, message = BINS[name]
    path = _file(_one("ReLU"), tmp_path)
    path.with_suffix(".bin").write_bytes(edit(path.with_suffix(".bin").read_bytes()))
    with pytest.raises(ValueError, match=message):
        read_known(path)


def test_what_is_no_text_is_told(tmp_path: Path) -> None:
    path = tmp_path / "n.param"
    path.write_bytes(b"7767517\n\xff\xfe")
    with pytest.raises(ValueError, match=r"no .param in text: byte 8 is no UTF-8 \(a .param.bin is not read\)"):
        read_known(path)
