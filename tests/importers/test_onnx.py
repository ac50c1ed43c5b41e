"""ONNX: networks that torch exports come back as they were, operators compute what ONNX says, damage is one sentence."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from imported_networks import SPECS, Wrapped, computed, network_of
from onnx import ModelProto, TensorProto, helper, load, numpy_helper
from onnx.reference import ReferenceEvaluator
from small import images, one_thread, same  # noqa: F401
from torch import nn
from traced_modules import Compact, DenseBlock, UNet

from adabm_kernels import ConvertConfig, convert_model, read_network
from adabm_kernels.importers.onnx_operators import read_onnx
from adabm_kernels.importers.reading import read_known, read_weights
from adabm_kernels.networks.detect import detect, to_float_state

GENERATOR = np.random.default_rng(3)


def exported(network: nn.Module, path: Path, opset: int = 17, open_sizes: bool = True, channels: int = 3) -> Path:
    """What torch's exporter of scripts writes."""
    axes = {"dynamic_axes": {"x": {0: "n", 2: "h", 3: "w"}}} if open_sizes else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network, (torch.rand(1, channels, 12, 16),), path, dynamo=False, opset_version=opset, input_names=["x"], **axes
        )
    return path


def as_checkpoint(network: nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a network as they are read of its state dict, for pixels in 0..255."""
    state = network.state_dict()
    return to_float_state(state, detect(state))


# ---- networks


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize(("opset", "open_sizes"), [(11, False), (18, True)])
def test_known_networks_are_recognised(name: str, opset: int, open_sizes: bool, tmp_path: Path) -> None:
    spec, x = SPECS[name], images(1, 3, 10, 9)
    network = network_of(spec)
    path = exported(Wrapped(network).eval(), tmp_path / "n.onnx", opset, open_sizes)
    state, res_scale = read_known(path)
    found = detect(state, res_scale)
    assert found.spec == spec and res_scale == spec.res_scale
    read = read_network(path)
    with torch.no_grad():
        want, got = network(x), read(x)
    if spec.network == "srresnet":  # whose BatchNorms the exporter has folded into the convolutions
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-4)
    else:
        assert torch.equal(got, want)


def test_a_converted_model_is_that_of_the_checkpoint(tmp_path: Path) -> None:
    """Names of Real-ESRGAN in the file say that its pixels are in 0..1, as they do in a checkpoint."""
    network, pictures = Compact().eval(), [images(1, 3, 16, 17)]
    settings = {"config": ConvertConfig(recipe="paper", batch=1), "check": False}
    want = convert_model(network.state_dict(), pictures, **settings)
    path = exported(network, tmp_path / "n.onnx")
    for given in (read_known(path)[0], read_network(path)):
        got = convert_model(given, pictures, **settings)
        assert got.spec == want.spec and same(got.state_dict(), want.state_dict())


class In255(nn.Module):
    """A network of pixels in 0..1 for those of 0..255."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x / 255) * 255


class WithMean(nn.Module):
    """As BasicSR writes an EDSR: a mean colour in 0..1 and a range around a network without them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.mean = torch.tensor([0.4, 0.5, 0.3]).view(1, 3, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network((x - self.mean) * 255) / 255 + self.mean


def test_a_range_that_the_graph_says_is_folded_in(tmp_path: Path) -> None:
    network, x = Compact().eval(), images(1, 3, 9, 8)
    read = read_network(exported(In255(network), tmp_path / "n.onnx"))
    with torch.no_grad():
        torch.testing.assert_close(read(x), network(x / 255) * 255, rtol=0, atol=2e-3)  # as in test_srvgg.py


def test_a_mean_colour_that_the_graph_says_is_the_network_s_own(tmp_path: Path) -> None:
    spec, x = SPECS["edsr_single"], images(1, 3, 9, 8)
    whole = WithMean(network_of(spec))
    read = read_network(exported(whole.eval(), tmp_path / "n.onnx"))
    assert read.spec.mean_shift and read.spec.mean == pytest.approx((102, 127.5, 76.5))
    with torch.no_grad():
        torch.testing.assert_close(read(x), whole(x / 255) * 255, rtol=0, atol=2e-3)


@pytest.mark.parametrize("make", [UNet, DenseBlock], ids=["unet", "dense"])
def test_other_networks_are_modules_that_compute_the_same(make: type[nn.Module], tmp_path: Path) -> None:
    network = make().eval()
    channels = next(network.parameters()).shape[1]
    path = exported(network, tmp_path / "n.onnx", channels=channels)
    read, x = read_network(path), torch.rand(1, channels, 16, 24)
    with torch.no_grad():
        torch.testing.assert_close(read(x), network(x), rtol=1e-5, atol=1e-5)
    if channels == 3:
        torch.testing.assert_close(read_network(path, rgb_range=1)(x * 255), network(x) * 255, rtol=1e-5, atol=1e-3)
    with pytest.raises(ValueError, match=r"n.onnx: the graph, of \d+ nodes, is none of EDSR, RDN, .*; in Python convert_model"):
        read_known(path)
    with pytest.raises(ValueError, match="mean_shift must be left out for a graph that is no known network, got 'none'"):
        read_network(path, mean_shift="none")


def test_other_networks_convert_as_the_modules_they_were(tmp_path: Path) -> None:
    network, pictures = DenseBlock().eval(), [torch.rand(1, 6, 24, 20, generator=torch.Generator().manual_seed(0))]
    read = read_network(exported(network, tmp_path / "n.onnx", channels=6))
    settings = {"calibration": pictures, "config": ConvertConfig(batch=1, steps=0)}
    want, got = convert_model(network, **settings), convert_model(read, **settings)
    assert len(got.report["layers"]) == len(want.report["layers"]) == 3
    assert torch.equal(got(pictures[0]), want(pictures[0]))


def test_half_precision_and_values_in_a_file_of_their_own(tmp_path: Path) -> None:
    network = Compact().eval()
    model = load(exported(network, tmp_path / "n.onnx"))
    offset, data = 0, b""
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            raw = array.astype(np.float16).tobytes()
            tensor.CopyFrom(TensorProto(name=tensor.name, dims=tensor.dims, data_type=TensorProto.FLOAT16))
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", "n.data"), ("offset", offset), ("length", len(raw))):
                entry = tensor.external_data.add()
                entry.key, entry.value = key, str(value)
            offset, data = offset + len(raw), data + raw
    (tmp_path / "n.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "n.data").write_bytes(data)
    assert same(read_network(tmp_path / "n.onnx").state_dict(), as_checkpoint(network.half().float()))


@pytest.mark.parametrize("open_sizes", [False, True])
def test_torch_s_newer_exporter(open_sizes: bool, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="the package onnxscript is not installed")
    network = Compact().eval()
    sizes = {"dynamic_shapes": ({2: torch.export.Dim("h", min=4), 3: torch.export.Dim("w", min=4)},)} if open_sizes else {}
    torch.onnx.export(network, (torch.rand(1, 3, 12, 16),), str(tmp_path / "n.onnx"), dynamo=True, verbose=False, **sizes)
    assert same(read_network(tmp_path / "n.onnx").state_dict(), as_checkpoint(network))


def test_the_package_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "n.onnx").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ValueError, match=r"n.onnx: reading ONNX needs the package onnx: pip install onnx"):
        read_weights(tmp_path / "n.onnx")


@pytest.mark.parametrize("open_sizes", [False, True])
def test_sizes_that_are_no_multiples_of_the_picture_s_are_refused(open_sizes: bool, tmp_path: Path) -> None:
    """An attention over places, as RFDN has it: 12 rows become 5, which are resized to 12."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, stride=2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * nn.functional.interpolate(self.conv(x), x.shape[2:], mode="bilinear")

    path = exported(Attention(), tmp_path / "n.onnx", open_sizes=open_sizes)
    with pytest.raises(ValueError, match=r"node '/Resize' \(Resize\): its size must be that of the picture times a number"):
        read_onnx(path)


class Gathered(nn.Module):
    """Squares of pixels side by side, by torch's function or as BasicSR writes it."""

    def __init__(self, written_out: bool) -> None:
        super().__init__()
        self.conv, self.written_out = nn.Conv2d(12, 3, 3, padding=1), written_out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.written_out:
            return self.conv(torch.pixel_unshuffle(x, 2))
        n, c, rows, columns = x.size()
        squares = x.view(n, c, rows // 2, 2, columns // 2, 2).permute(0, 1, 3, 5, 2, 4)
        return self.conv(squares.reshape(n, c * 4, rows // 2, columns // 2))


@pytest.mark.parametrize("open_sizes", [False, True])
@pytest.mark.parametrize("written_out", [False, True])
def test_exported_squares_of_pixels_are_one_node(written_out: bool, open_sizes: bool, tmp_path: Path) -> None:
    network, x = Gathered(written_out).eval(), images(2, 3, 12, 16)
    read = read_onnx(exported(network, tmp_path / "n.onnx", open_sizes=open_sizes))
    assert [type(node).__name__ for node in read.graph.nodes] == ["PixelUnshuffle", "Conv"]
    with torch.no_grad():
        assert torch.equal(computed(read, x), network(x))


# ---- operators: behind a convolution of 3 to 4 channels, as a network must have one


def draw(*size: int) -> np.ndarray:
    return GENERATOR.standard_normal(size).astype(np.float32)


WEIGHT, BIAS, X = draw(4, 3, 3, 3), draw(4), draw(1, 3, 8, 12)


def model(nodes: list, constants: dict[str, np.ndarray], opset: int = 18, sides: tuple = ("h", "w")) -> ModelProto:
    """A model of these nodes, which read "c", [N, 4, H, W], and give "y"."""
    first = helper.make_node("Conv", ["x", "weight", "bias"], ["c"], pads=[1, 1, 1, 1])
    values = {"weight": WEIGHT, "bias": BIAS} | constants
    graph = helper.make_graph(
        [first, *nodes],
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, *sides])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def node(kind: str, *inputs: str, outputs: tuple[str, ...] = ("y",), **attributes: object):
    return helper.make_node(kind, ["c", *inputs], list(outputs), **attributes)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def chain(*kinds: tuple) -> list:
    """Nodes one behind the other: (kind, further inputs, attributes)."""
    names, nodes = ["c", *(f"t{i}" for i in range(len(kinds) - 1)), "y"], []
    for i, (kind, inputs, attributes) in enumerate(kinds):
        nodes.append(helper.make_node(kind, [names[i], *inputs], [names[i + 1]], **attributes))
    return nodes


SIZED = [  # the picture's own sizes times 2, as older exporters write them
    helper.make_node("Shape", ["x"], ["shape"]),
    helper.make_node("Gather", ["shape", "axes"], ["sides"]),
    helper.make_node("Mul", ["sides", "two"], ["doubled"]),
    helper.make_node("Concat", ["start", "doubled"], ["sizes"], axis=0),
]
NEAREST = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
SIX, BACK = ints(1, 1, 2, 2, 8, 12), ints(1, 1, 16, 24)
ATTENTION = [
    helper.make_node("GlobalAveragePool", ["c"], ["p"]),
    helper.make_node("Flatten", ["p"], ["f"]),
    helper.make_node("Gemm", ["f", "d0", "e0"], ["g"], transB=1),
    helper.make_node("Relu", ["g"], ["r"]),
    helper.make_node("Gemm", ["r", "d1", "e1"], ["s"]),
    helper.make_node("Sigmoid", ["s"], ["q"]),
    helper.make_node("Unsqueeze", ["q", "ends"], ["u"]),
    helper.make_node("Mul", ["c", "u"], ["y"]),
]

OPERATORS: dict[str, tuple[list, dict[str, np.ndarray]]] = {
    "relu": ([node("Relu")], {}),
    "leaky": ([node("LeakyRelu", alpha=0.2)], {}),
    "prelu": ([node("PRelu", "s")], {"s": draw(4, 1, 1)}),
    "relu6": ([node("Clip", "a", "b")], {"a": np.float32(0), "b": np.float32(6)}),
    "clip": ([node("Clip", "a", "b")], {"a": np.float32(-0.5), "b": np.float32(0.75)}),
    "clip_above": ([node("Clip", "a")], {"a": np.float32(0)}),
    "clip_below": ([node("Clip", "", "b")], {"b": np.float32(0.5)}),
    "sigmoid": ([node("Sigmoid")], {}),
    "tanh": ([node("Tanh")], {}),
    "elu": ([node("Elu", alpha=0.5)], {}),
    "softplus": ([node("Softplus")], {}),
    "hard_sigmoid": ([node("HardSigmoid", alpha=0.3, beta=0.4)], {}),
    "hard_swish": ([node("HardSwish")], {}),
    "abs": ([node("Abs")], {}),
    "negative": ([node("Neg")], {}),
    "softmax": ([node("Softmax", axis=1)], {}),
    "add": ([node("Add", "s")], {"s": draw(4, 1, 1)}),
    "sub": ([helper.make_node("Sub", ["s", "c"], ["y"])], {"s": draw(1, 4, 1, 1)}),
    "mul": ([node("Mul", "s")], {"s": np.float32(0.2)}),
    "div": ([node("Div", "s")], {"s": draw(4, 1, 1)}),
    "div_number": ([node("Div", "s")], {"s": np.array([3], np.float32)}),
    "sub_tensors": ([helper.make_node("Tanh", ["c"], ["t"]), node("Sub", "t")], {}),
    "div_tensors": ([helper.make_node("Exp", ["c"], ["t"]), node("Div", "t")], {}),
    "silu": ([helper.make_node("Sigmoid", ["c"], ["t"]), node("Mul", "t")], {}),
    "sum": ([helper.make_node("Tanh", ["c"], ["t"]), node("Sum", "t", "c")], {}),
    "norm": (
        [node("BatchNormalization", "a", "b", "m", "v", epsilon=1e-3)],
        {"a": draw(4), "b": draw(4), "m": draw(4), "v": np.abs(draw(4)) + 0.5},
    ),
    "instance_norm": ([node("InstanceNormalization", "a", "b")], {"a": draw(4), "b": draw(4)}),
    "grouped": ([node("Conv", "w", pads=[1, 1, 1, 1], group=2)], {"w": draw(4, 2, 3, 3)}),
    "uneven": ([node("Conv", "w", pads=[2, 1, 0, 1])], {"w": draw(5, 4, 3, 3)}),
    "same": ([node("Conv", "w", auto_pad="SAME_UPPER")], {"w": draw(5, 4, 2, 2)}),
    "dilated": ([node("Conv", "w", pads=[2, 2, 2, 2], dilations=[2, 2], strides=[2, 2])], {"w": draw(5, 4, 3, 3)}),
    "transposed": ([node("ConvTranspose", "w", "b", pads=[1, 1, 1, 1], strides=[2, 2])], {"w": draw(4, 5, 4, 4), "b": draw(5)}),
    "split": (
        [node("Split", "s", outputs=("p", "q"), axis=1), helper.make_node("Concat", ["q", "p"], ["y"], axis=1)],
        {"s": ints(1, 3)},
    ),
    "halves": (
        [node("Split", outputs=("p", "q"), axis=1, num_outputs=2), helper.make_node("Concat", ["q", "p"], ["y"], axis=-3)],
        {},
    ),
    "slice": ([node("Slice", "a", "b", "d", "e")], {"a": ints(1), "b": ints(2**31), "d": ints(1), "e": ints(1)}),
    "crd": ([node("DepthToSpace", blocksize=2, mode="CRD")], {}),
    "dcr": (
        [helper.make_node("Conv", ["c", "w"], ["d"]), helper.make_node("DepthToSpace", ["d"], ["y"], blocksize=2, mode="DCR")],
        {"w": draw(12, 4, 1, 1)},
    ),
    "space_to_depth": ([node("SpaceToDepth", blocksize=2)], {}),
    "reshaped_crd": (
        chain(("Reshape", ["six"], {}), ("Transpose", [], {"perm": [0, 1, 4, 2, 5, 3]}), ("Reshape", ["back"], {})),
        {"six": SIX, "back": BACK},
    ),
    "reshaped_dcr": (
        chain(
            ("Conv", ["w"], {}),
            ("Reshape", ["six"], {}),
            ("Transpose", [], {"perm": [0, 3, 4, 1, 5, 2]}),
            ("Reshape", ["back"], {}),
        ),
        {"w": draw(12, 4, 1, 1), "six": ints(1, 2, 2, 3, 8, 12), "back": ints(1, 3, 16, 24)},
    ),
    "gathered": (
        chain(("Reshape", ["six"], {}), ("Transpose", [], {"perm": [0, 1, 3, 5, 2, 4]}), ("Reshape", ["back"], {})),
        {"six": ints(1, 4, 4, 2, 6, 2), "back": ints(1, 16, 4, 6)},
    ),
    "nearest": ([node("Resize", "", "f", **NEAREST)], {"f": np.array([1, 1, 3, 3], np.float32)}),
    "nearest_centres": ([node("Resize", "", "f", mode="nearest")], {"f": np.array([1, 1, 4, 4], np.float32)}),
    "linear": ([node("Resize", "", "f", mode="linear")], {"f": np.array([1, 1, 2, 2], np.float32)}),
    "corners": (
        [node("Resize", "", "f", mode="linear", coordinate_transformation_mode="align_corners")],
        {"f": np.array([1, 1, 2, 2], np.float32)},
    ),
    "cubic": ([node("Resize", "", "f", mode="cubic")], {"f": np.array([1, 1, 2, 2], np.float32)}),
    "half": ([node("Resize", "", "f", mode="linear")], {"f": np.array([1, 1, 0.5, 0.5], np.float32)}),
    "sized": ([*SIZED, node("Resize", "", "", "sizes", **NEAREST)], {"axes": ints(2, 3), "two": ints(2, 2), "start": ints(1, 4)}),
    "max_pool": ([node("MaxPool", kernel_shape=[2, 2], strides=[2, 2])], {}),
    "mean_pool": ([node("AveragePool", kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])], {}),
    "mean": ([helper.make_node("ReduceMean", ["c", "ends"], ["m"], keepdims=1), node("Mul", "m")], {"ends": ints(2, 3)}),
    "attention": (ATTENTION, {"d0": draw(2, 4), "e0": draw(2), "d1": draw(2, 4), "e1": draw(4), "ends": ints(2, 3)}),
    "pad": ([node("Pad", "p", mode="reflect")], {"p": ints(0, 0, 1, 2, 0, 0, 3, 4)}),
    "pad_zeros": ([node("Pad", "p", "v")], {"p": ints(0, 0, 1, 1, 0, 0, 1, 1), "v": np.float32(0.5)}),
    "constants": (
        [
            helper.make_node("Constant", [], ["k"], value_floats=[1.0, 2.0, 3.0, 4.0]),
            helper.make_node("Unsqueeze", ["k", "ends"], ["l"]),
            helper.make_node("Mul", ["l", "n"], ["m"]),
            helper.make_node("Cast", ["m"], ["o"], to=TensorProto.FLOAT),
            node("Mul", "o"),
        ],
        {"ends": ints(1, 2), "n": np.float32(0.5)},
    ),
    "nothing": (chain(("Identity", [], {}), ("Dropout", [], {}), ("Relu", [], {})), {}),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_compute_what_onnx_says(name: str, tmp_path: Path) -> None:
    nodes, constants = OPERATORS[name]
    whole = model(nodes, constants)
    (tmp_path / "n.onnx").write_bytes(whole.SerializeToString())
    want = torch.from_numpy(ReferenceEvaluator(whole).run(None, {"x": X})[0])
    got = computed(read_onnx(tmp_path / "n.onnx"), torch.from_numpy(X))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)  # sums of at most 64 products of numbers about 1


# ---- damage

Edit = Callable[[ModelProto], object]


def _initializer(one: ModelProto, **fields: object) -> None:
    tensor = one.graph.initializer[0]
    for name, value in fields.items():
        if name == "dims":
            del tensor.dims[:]
            tensor.dims.extend(value)  # type: ignore[arg-type]
        else:
            setattr(tensor, name, value)


def _external(one: ModelProto, location: str, offset: str = "0", length: str = "432") -> None:
    tensor = one.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value


DAMAGE: dict[str, tuple[Edit, str]] = {
    "unknown": (lambda m: setattr(m.graph.node[1], "op_type", "LSTM"), r"node 'last' \(LSTM\) is of a kind that is not read"),
    "domain": (lambda m: setattr(m.graph.node[1], "domain", "own"), r"node 'last' \(own::Relu\) is of a kind that is not read"),
    "quantised": (lambda m: setattr(m.graph.node[0], "op_type", "QLinearConv"), r"\(QLinearConv\) is of a kind that is not read"),
    "old": (lambda m: setattr(m.opset_import[0], "version", 9), r"its operators must be of version 11 to 25, got 9"),
    "huge": (lambda m: _initializer(m, dims=[10**9, 10**9, 3, 3]), r"tensor 'weight': it must have 36\d+ bytes for its sizes"),
    "negative": (lambda m: _initializer(m, dims=[-4, -3, 3, 3]), r"tensor 'weight': it must have at most 6 sizes of at least 0"),
    "deep": (lambda m: _initializer(m, dims=[1] * 100 + [108]), r"tensor 'weight': it must have at most 6 sizes"),
    "type": (lambda m: _initializer(m, data_type=8), r"tensor 'weight': its values must be float16, .* got type 8 of ONNX"),
    "cut": (lambda m: _initializer(m, raw_data=b"1234"), r"it must have 432 bytes for its sizes \(4, 3, 3, 3\), got 4"),
    "nan": (lambda m: _initializer(m, raw_data=b"\xff" * 432), r"node 'conv_0' \(Conv\): it holds values that are NaN or infinite"),
    "axes": (lambda m: _initializer(m, dims=[4, 27]), r"node 'conv_0' \(Conv\): its input 1 must be floats with 4 axes"),
    "twice": (lambda m: m.graph.initializer.append(m.graph.initializer[0]), r"two tensors are called 'weight'"),
    "cycle": (lambda m: m.graph.node[1].input.__setitem__(0, "y"), r"node 'last' \(Relu\): it reads 'y' before a node makes it"),
    "again": (lambda m: m.graph.node[1].output.__setitem__(0, "c"), r"node 'last' \(Relu\): it makes 'c', which there is already"),
    "pads": (lambda m: m.graph.node[0].attribute[0].ints.__setitem__(0, -1), r"padding must be from 0 to 255, got \(-1, 1, 1, 1\)"),
    "pads_more": (lambda m: m.graph.node[0].attribute[0].ints.append(1), r"it must have two axes of rows and columns"),
    "output": (lambda m: setattr(m.graph.output[0], "name", "weight"), r"its output must be pictures that depend on the input"),
    "outputs": (lambda m: m.graph.output.append(m.graph.output[0]), r"must have one input and one output, got 1 and 2"),
    "channels": (
        lambda m: m.graph.input[0].type.tensor_type.shape.dim[1].Clear(),
        r"its input must say how many channels it has",
    ),
    "outside": (lambda m: _external(m, "../n.data"), r"its values must be in a file beside the model, got '../n.data'"),
    "absolute": (lambda m: _external(m, "/etc/passwd"), r"its values must be in a file beside the model, got '/etc/passwd'"),
    "link": (lambda m: _external(m, "link"), r"its values must be in a file beside the model, got 'link'"),
    "missing": (lambda m: _external(m, "nowhere"), r"its values are in 'nowhere', which is missing beside the model"),
    "short": (lambda m: _external(m, "n.data"), r"it must be 432 bytes of 'n.data', got 432 at 0 of 100"),
    "offset": (lambda m: _external(m, "n.data", "-1"), r"offset and length must be numbers of bytes, got -1 and 432"),
    "length": (lambda m: _external(m, "n.data", length="9" * 19), r"it must be 432 bytes of 'n.data', got 9+ at 0 of 100"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_one_sentence(name: str, tmp_path: Path) -> None:
    edit, message = DAMAGE[name]
    whole = model([node("Relu", name="last")], {})
    edit(whole)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "n.data").write_bytes(bytes(100))
    (tmp_path / "n.data").write_bytes(bytes(432))
    (folder / "link").symlink_to(tmp_path / "n.data")
    (folder / "n.onnx").write_bytes(whole.SerializeToString())
    with pytest.raises(ValueError, match=message):
        read_weights(folder / "n.onnx")


def test_parts_of_one_file_are_no_larger_than_it(tmp_path: Path) -> None:
    """A file of a megabyte must not become a thousand tensors of a megabyte."""
    whole = model([node("Relu")], {})
    _external(whole, "n.data")
    for i in range(3):
        more = whole.graph.initializer.add()
        more.CopyFrom(whole.graph.initializer[0])
        more.name = f"w{i}"
    (tmp_path / "n.data").write_bytes(bytes(1000))
    (tmp_path / "n.onnx").write_bytes(whole.SerializeToString())
    with pytest.raises(ValueError, match=r"tensor 'w1': tensors must be parts of 'n.data', and together they are larger"):
        read_weights(tmp_path / "n.onnx")


@pytest.mark.parametrize("data", [b"", b"\x08\x09", b"not a model", b"\xff" * 100])
def test_what_is_no_model_is_told(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "n.onnx").write_bytes(data)
    with pytest.raises(ValueError, match=r"n.onnx: it is damaged, or no ONNX model"):
        read_weights(tmp_path / "n.onnx")
