"""ONNX Runtime and OpenVINO on the same weights: float32, and int8 as quantize-dequantize pairs with a scale per channel.

The int8 model is made by ONNX Runtime's own static quantisation and given to both; OpenVINO's int8 was the fastest rival found.
`collapse` hands the rival this project's collapsed tail as well (inner kernel only: its two border pixels are then not exact).
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np
import torch
from baselines import Forward

from adabm_kernels.networks.collapse import RADIUS, collapse
from adabm_kernels.networks.edsr import EDSR


def onnx_graph(model: EDSR, size: int, collapsed: bool) -> bytes:
    """The network as an ONNX model with input "x" [1, 3, size, size] in 0..255."""
    from onnx import TensorProto, checker, helper, numpy_helper

    spec, state = model.spec, {key: value.detach().numpy() for key, value in model.state_dict().items()}
    nodes, tensors, count = [], [], 0

    def add(kind: str, inputs: list[str], **attributes) -> str:
        nonlocal count
        count += 1
        nodes.append(helper.make_node(kind, inputs, [f"v{count}"], name=f"{kind}_{count}", **attributes))
        return f"v{count}"

    def constant(name: str, value: np.ndarray) -> str:
        tensors.append(numpy_helper.from_array(np.ascontiguousarray(value, dtype=np.float32), name))
        return name

    def conv(x: str, name: str, weight: np.ndarray | None = None, bias: np.ndarray | None = None) -> str:
        weight = state[f"{name}.weight"] if weight is None else weight
        bias = state[f"{name}.bias"] if bias is None else bias
        pad = weight.shape[2] // 2
        return add("Conv", [x, constant(f"{name}.w", weight), constant(f"{name}.b", bias)], pads=[pad] * 4)

    def shuffle(x: str, factor: int) -> str:
        return add("DepthToSpace", [x], blocksize=factor, mode="CRD") if factor > 1 else x

    x = "x"
    if spec.mean_shift:
        x = add("Add", [x, constant("minus_mean", state["sub_mean.bias"].reshape(1, 3, 1, 1))])
    x = skip = conv(x, "head.0")
    for i in range(spec.blocks):
        y = conv(add("Relu", [conv(x, f"body.{i}.body.0")]), f"body.{i}.body.2")
        x = add("Add", [x, y])
    x = add("Add", [skip, conv(x, f"body.{spec.blocks}")])
    names = [f"tail.0.{2 * i}" for i in range(len(spec.shuffles))] + (["tail.1"] if spec.tail == "staged" else [])
    if collapsed and spec.tail == "staged":
        convs = [(model.state_dict()[f"{n}.weight"], model.state_dict()[f"{n}.bias"]) for n in names]
        tail = collapse(convs, spec.shuffles)
        inner = tail.weight[RADIUS, RADIUS].numpy(), tail.bias[RADIUS, RADIUS].numpy()
        x = shuffle(conv(x, "collapsed", *inner), spec.scale)
    else:
        for name, factor in zip(names, [*spec.shuffles, 1], strict=False):
            x = shuffle(conv(x, name), factor)
    if spec.mean_shift:
        x = add("Add", [x, constant("plus_mean", state["add_mean.bias"].reshape(1, 3, 1, 1))])
    shape = [1, 3, size, size]
    graph = helper.make_graph(
        nodes,
        "edsr",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, [1, 3, size * spec.scale, size * spec.scale])],
        tensors,
    )
    result = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    checker.check_model(result)
    return result.SerializeToString()


def quantized(model: bytes, calibration: torch.Tensor) -> bytes:
    """The same with QDQ pairs: unsigned activations, signed weights with a scale for each output channel."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter([{"x": calibration.numpy()}])

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


def openvino_forward(model: bytes, threads: int) -> Forward:
    import openvino

    core = openvino.Core()
    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(model), "CPU", options)
    request = compiled.create_infer_request()
    return lambda x: torch.from_numpy(next(iter(request.infer({"x": x.numpy()}).values())))


RUNTIMES = {"onnxruntime": onnxruntime_forward, "openvino": openvino_forward}


@functools.cache
def onnx_bytes(model: EDSR, size: int, int8: bool, collapsed: bool) -> bytes:
    graph = onnx_graph(model, size, collapsed)
    if not int8:
        return graph
    g = torch.Generator().manual_seed(1)
    return quantized(graph, torch.rand(1, 3, size, size, generator=g) * 255)
