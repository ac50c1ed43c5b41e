"""ONNX Runtime and OpenVINO on the same weights: in float32, and in int8 as quantize-dequantize pairs with a scale per channel.

ONNX Runtime's own static quantisation makes the int8 model, which both run. OpenVINO's int8 was the fastest rival that was found.
`collapse` gives the rivals this project's collapsed tail as well. It has only the inner kernel, so that two pixels at the border
are not exact.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from baselines import Forward

from adabm_kernels.graph.nodes import Activation, Add, Concat, Conv, PixelShuffle, Resize
from adabm_kernels.networks.collapse import RADIUS, collapse
from adabm_kernels.networks.edsr import EDSR
from adabm_kernels.networks.float_network import FloatNetwork
from adabm_kernels.networks.srresnet import SRResNet


class _Graph:
    """An ONNX graph that is being built on a network's weights. Every method returns the name of its result."""

    def __init__(self, model: torch.nn.Module):
        self.state = {key: value.detach().numpy() for key, value in model.state_dict().items()}
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []

    def add(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        from onnx import helper

        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: np.ndarray) -> str:
        from onnx import numpy_helper

        self.tensors.append(numpy_helper.from_array(np.ascontiguousarray(value, dtype=np.float32), name))
        return name

    def conv(self, x: str, name: str, weight: np.ndarray | None = None, bias: np.ndarray | None = None) -> str:
        weight = self.state[f"{name}.weight"] if weight is None else weight
        bias = self.state.get(f"{name}.bias", np.zeros(len(weight))) if bias is None else bias
        pad = weight.shape[2] // 2
        return self.add("Conv", [x, self.constant(f"{name}.w", weight), self.constant(f"{name}.b", bias)], pads=[pad] * 4)

    def shuffle(self, x: str, factor: int) -> str:
        return self.add("DepthToSpace", [x], blocksize=factor, mode="CRD") if factor > 1 else x

    def prelu(self, x: str, name: str) -> str:
        return self.add("PRelu", [x, self.constant(f"{name}.slope", self.state[f"{name}.weight"].reshape(-1, 1, 1))])

    def affine(self, x: str, name: str, factor: float, offset: float) -> str:
        scaled = self.add("Mul", [x, self.constant(f"{name}.factor", np.array(factor))])
        return self.add("Add", [scaled, self.constant(f"{name}.offset", np.array(offset))])


def _edsr(graph: _Graph, model: EDSR, collapsed: bool) -> str:
    spec, x = model.spec, "x"
    if spec.mean_shift:
        x = graph.add("Add", [x, graph.constant("minus_mean", graph.state["sub_mean.bias"].reshape(1, 3, 1, 1))])
    x = skip = graph.conv(x, "head.0")
    for i in range(spec.blocks):
        y = graph.conv(graph.add("Relu", [graph.conv(x, f"body.{i}.body.0")]), f"body.{i}.body.2")
        x = graph.add("Add", [x, y])
    x = graph.add("Add", [skip, graph.conv(x, f"body.{spec.blocks}")])
    names = [f"tail.0.{2 * i}" for i in range(len(spec.shuffles))] + (["tail.1"] if spec.tail == "staged" else [])
    if collapsed and spec.tail == "staged":
        tail = collapse([(model.state_dict()[f"{n}.weight"], model.state_dict()[f"{n}.bias"]) for n in names], spec.shuffles)
        inner = tail.weight[RADIUS, RADIUS].numpy(), tail.bias[RADIUS, RADIUS].numpy()
        x = graph.shuffle(graph.conv(x, "collapsed", *inner), spec.scale)
    else:
        for name, factor in zip(names, [*spec.shuffles, 1], strict=False):
            x = graph.shuffle(graph.conv(x, name), factor)
    if spec.mean_shift:
        x = graph.add("Add", [x, graph.constant("plus_mean", graph.state["add_mean.bias"].reshape(1, 3, 1, 1))])
    return x


def _srresnet(graph: _Graph, model: SRResNet) -> str:
    """Adds an SRResNet, with each BatchNorm folded into the convolution before it, as runtimes do."""
    spec, body = model.spec, list(model.body)

    def normed(x: str, name: str, conv: torch.nn.Conv2d, norm: torch.nn.BatchNorm2d) -> str:
        fused = torch.nn.utils.fuse_conv_bn_eval(conv.eval(), norm.eval())
        return graph.conv(x, name, fused.weight.detach().numpy(), fused.bias.detach().numpy())

    x = graph.affine("x", "to_range", 1 / 255, 0.0) if spec.unit_range else "x"
    x = skip = graph.prelu(graph.conv(x, "head.0"), "head.1")
    for i, block in enumerate(body[:-2]):
        y = graph.prelu(normed(x, f"{i}.1", block.conv1, block.bn1), f"body.{i}.act")
        y = normed(y, f"{i}.2", block.conv2, block.bn2)
        x = graph.add("Add", [x, y if spec.res_scale == 1 else graph.affine(y, f"{i}.scale", spec.res_scale, 0.0)])
    x = graph.add("Add", [skip, normed(x, "last", body[-2], body[-1])])
    for i, factor in enumerate(spec.shuffles):
        x = graph.prelu(graph.shuffle(graph.conv(x, f"tail.0.{3 * i}"), factor), f"tail.0.{3 * i + 2}")
    x = graph.conv(x, "tail.1")
    return graph.affine(x, "from_range", 127.5, 127.5) if spec.unit_range else x


def _by_nodes(graph: _Graph, model: FloatNetwork) -> str:
    """Adds a SRVGGNetCompact or an RRDBNet, node by node of its graph."""
    made = {"x": "x"}
    for node in model.spec.graph().nodes:
        x = made[node.x]
        match node:
            case Conv():
                y = graph.conv(x, model.spec.published(node.key))
            case Activation(function="prelu"):
                y = graph.prelu(x, model.spec.published(node.key))
            case Activation(function="leaky_relu"):
                y = graph.add("LeakyRelu", [x], alpha=dict(node.settings)["negative_slope"])
            case Concat():
                y = graph.add("Concat", [made[name] for name in node.inputs], axis=1)
            case PixelShuffle():
                y = graph.shuffle(x, node.factor)
            case Resize(mode="nearest"):
                scales = graph.constant(f"{node.name}.scales", np.array([1, 1, node.factor, node.factor]))
                settings = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
                y = graph.add("Resize", [x, "", scales], mode="nearest", **settings)
            case Add():
                terms = [made[name] for name in node.inputs]
                for i, term in enumerate(terms):
                    if node.factor(i) != 1:
                        terms[i] = graph.add("Mul", [term, graph.constant(f"{node.name}.factor{i}", np.array(node.factor(i)))])
                y = graph.add("Add", terms)
            case _:
                raise TypeError(f"no ONNX form of '{node.name}', a {type(node).__name__}, is written here")
        made[node.name] = y
    return made[model.spec.graph().outputs[0]]


def onnx_graph(model: FloatNetwork, size: int | tuple[int, int], collapsed: bool) -> bytes:
    """The network as an ONNX model with the input "x", [1, 3, rows, columns] in 0..255. size: rows and columns, or one number for
    both."""
    from onnx import TensorProto, checker, helper

    graph = _Graph(model)
    if isinstance(model, SRResNet):
        y = _srresnet(graph, model)
    else:
        y = _edsr(graph, model, collapsed) if isinstance(model, EDSR) else _by_nodes(graph, model)
    rows, columns = (size, size) if isinstance(size, int) else size
    scale = model.spec.scale
    made = helper.make_graph(
        graph.nodes,
        model.spec.network,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, rows, columns])],
        [helper.make_tensor_value_info(y, TensorProto.FLOAT, [1, 3, rows * scale, columns * scale])],
        graph.tensors,
    )
    result = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    checker.check_model(result)
    return result.SerializeToString()


def quantized(model: bytes, calibration: torch.Tensor) -> bytes:
    """The model with quantize-dequantize pairs: unsigned activations, and signed weights with a scale for each output channel.

    calibration: images [N, 3, rows, columns] of the size of the model.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter([{"x": image.numpy()} for image in calibration.split(1)])

        def get_next(self) -> dict | None:
            return next(self.batches, None)

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(model)
        quantize_static(
            source,
            target,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return target.read_bytes()


def onnxruntime_forward(model: bytes, threads: int) -> Forward:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


def openvino_forward(model: bytes, threads: int, shape: tuple[int, ...] = ()) -> Forward:
    """A function that runs the model in OpenVINO. shape: the shape of the input, where it differs from the model's."""
    import openvino

    core = openvino.Core()
    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    network = core.read_model(model)
    if shape:
        network.reshape(shape)
    compiled = core.compile_model(network, "CPU", options)
    request = compiled.create_infer_request()
    return lambda x: torch.from_numpy(next(iter(request.infer({"x": x.numpy()}).values())))


RUNTIMES = {"onnxruntime": onnxruntime_forward, "openvino": openvino_forward}


@functools.cache
def onnx_bytes(model: EDSR | SRResNet, size: int, int8: bool, collapsed: bool) -> bytes:
    graph = onnx_graph(model, size, collapsed)
    if not int8:
        return graph
    g = torch.Generator().manual_seed(1)
    return quantized(graph, torch.rand(1, 3, size, size, generator=g) * 255)
