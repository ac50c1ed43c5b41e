"""Writes the nodes of a graph that compute in floats as operators of ONNX, by a rule for each kind."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ..graph.nodes import (
    Activation,
    Add,
    Affine,
    BatchNorm,
    ColourShift,
    Concat,
    Conv,
    Crop,
    Deviation,
    Float,
    Linear,
    Multiply,
    Node,
    Pad,
    PixelShuffle,
    PixelUnshuffle,
    Pool,
    Resize,
    ResizeLike,
    Slice,
)
from .float_calls import write_call
from .writing import Writing, pads

Values = Callable[[str], Any]  # a function from a key to a tensor that the network learnt, or None
_SAME_NAMES = {
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "softsign": "Softsign",
    "hardswish": "HardSwish",
    "mish": "Mish",
}
_MODES = {"nearest": "nearest", "bilinear": "linear", "bicubic": "cubic"}


def write_node(to: Writing, node: Node, inputs: list[str], values: Values) -> str:
    """Writes a node, and returns the name of the tensor that it computes.

    inputs: the names of its tensors in the file. values: gives what the network learnt by key, or None. Raises ValueError with the
    node's name and the reason where ONNX has nothing that computes it.
    """
    if isinstance(node, Float):
        return write_call(to, node, inputs, values)
    y = _written(to, node, inputs, values)
    ranks = [to.ranks[x] for x in inputs if x in to.ranks]
    if ranks:  # all of these nodes keep the axes of what they read
        to.ranks[y] = max(ranks)
    return y


def _written(to: Writing, node: Node, inputs: list[str], values: Values) -> str:
    x, name = inputs[0], node.name
    match node:
        case Conv():
            weight = to.floats(_array(values(f"{node.key}.weight")), f"{node.key}.weight")
            bias = values(f"{node.key}.bias") if node.bias else None
            given = [x, weight] if bias is None else [x, weight, to.floats(_array(bias), f"{node.key}.bias")]
            return to.op("Conv", *given, name=name, **geometry(node))
        case BatchNorm():
            parts = [f"{node.key}.{part}" for part in ("weight", "bias", "running_mean", "running_var")]
            given = [x, *(to.floats(_array(values(part)), part) for part in parts)]
            return to.op("BatchNormalization", *given, name=name, epsilon=node.eps)
        case ColourShift():
            # The form of published networks, by which readers of ONNX recognise it.
            weight = to.floats(np.eye(3).reshape(3, 3, 1, 1), f"{node.key}.weight")
            bias = values(f"{node.key}.bias")
            shift = node.sign * np.array(node.mean) if bias is None else _array(bias)
            return to.op("Conv", x, weight, to.floats(shift, f"{node.key}.bias"), name=name, kernel_shape=[1, 1])
        case Linear():
            weight = to.floats(_array(values(f"{node.key}.weight")).T, f"{node.key}.weight")
            y = to.op("MatMul", x, weight, name="" if node.bias else name)
            return to.op("Add", y, to.floats(_array(values(f"{node.key}.bias")), f"{node.key}.bias"), name=name) if node.bias else y
        case Affine():
            return _affine(to, node, x)
        case Activation():
            return _activation(to, node, x, values)
        case Add():
            return _sum(to, node, inputs)
        case Multiply():
            return to.op("Mul", *inputs, name=name)
        case Concat():
            return to.op("Concat", *inputs, name=name, axis=1)
        case Slice():
            return to.op("Slice", x, *(to.integers([at]) for at in (node.start, node.stop, 1)), name=name)
        case PixelShuffle():
            return to.op("DepthToSpace", x, name=name, blocksize=node.factor, mode="CRD")
        case PixelUnshuffle():
            return _unshuffle(to, node, x)
        case Resize():
            return _resize(to, node, x)
        case ResizeLike():
            sizes = to.sizes(to.side(x, 0), to.side(x, 1), to.side(inputs[1], 2), to.side(inputs[1], 3))
            places = {"coordinate_transformation_mode": "half_pixel"}
            return to.op("Resize", x, "", "", sizes, name=name, mode="linear", **places)
        case Pad():
            return _pad(to, node, x)
        case Crop():
            ends = [to.op("Mul", to.side(inputs[1], axis), to.integers([node.factor])) for axis in (2, 3)]
            return to.op("Slice", x, to.integers([0, 0]), to.sizes(*ends), to.integers([2, 3]), name=name)
        case Deviation():
            axes = to.integers([2, 3])
            apart = to.op("Sub", x, to.op("ReduceMean", x, axes))
            return to.op("Sqrt", to.op("ReduceMean", to.op("Mul", apart, apart), axes), name=name)
        case Pool():
            return _pool(to, node, x)
    raise ValueError(f"'{name}' is a {type(node).__name__}, which is not written as ONNX")


def geometry(node: Conv) -> dict[str, Any]:
    """The attributes of a convolution."""
    around = pads(node.padding)
    settings = {"kernel_shape": list(node.kernel), "strides": list(node.stride), "dilations": list(node.dilation)}
    return settings | {"pads": around, "group": node.groups}


def _array(value: torch.Tensor) -> np.ndarray:
    return value.detach().cpu().numpy()


def _affine(to: Writing, node: Affine, x: str) -> str:
    steps: list[tuple[str, tuple[float, ...]]] = []
    if node.divisor is not None:
        steps.append(("Div", (node.divisor,)))
    if node.gain is not None:
        steps.append(("Mul", node.gain))
    if node.shift is not None:
        steps.insert(0 if node.first == "shift" else len(steps), ("Add", node.shift))
    for i, (kind, numbers) in enumerate(steps, 1):
        x = to.op(kind, x, to.channels_of(numbers, node.name), name=node.name if i == len(steps) else "")
    return x if steps else to.op("Identity", x, name=node.name)


def _activation(to: Writing, node: Activation, x: str, values: Values) -> str:
    settings, name, function = dict(node.settings), node.name, node.function
    if function in _SAME_NAMES:
        return to.op(_SAME_NAMES[function], x, name=name)
    match function:
        case "prelu":
            weight = _array(values(f"{node.key}.weight")).reshape(-1, 1, 1)
            return to.op("PRelu", x, to.floats(weight, f"{node.key}.weight"), name=name)
        case "leaky_relu":
            return to.op("LeakyRelu", x, name=name, alpha=float(settings.get("negative_slope", 0.01)))
        case "elu":
            return to.op("Elu", x, name=name, alpha=float(settings.get("alpha", 1.0)))
        case "relu6" | "hardtanh":
            bounds = (0, 6) if function == "relu6" else (settings.get("min_val", -1.0), settings.get("max_val", 1.0))
            return to.op("Clip", x, *map(to.floats, bounds), name=name)
        case "hardsigmoid":
            return to.op("HardSigmoid", x, name=name, alpha=1 / 6, beta=0.5)
        case "silu":
            return to.op("Mul", x, to.op("Sigmoid", x), name=name)
        case "gelu":
            return _gelu(to, x, name, settings.get("approximate", "none") == "tanh")
        case "softplus":
            # torch takes x itself above the threshold, where the two differ by less than a float32 tells.
            beta = float(settings.get("beta", 1.0))
            inner = x if beta == 1 else to.op("Mul", x, to.floats(beta))
            y = to.op("Softplus", inner, name=name if beta == 1 else "")
            return y if beta == 1 else to.op("Div", y, to.floats(beta), name=name)
    raise ValueError(f"'{name}': ONNX has no {function}")


def _gelu(to: Writing, x: str, name: str, by_tanh: bool) -> str:
    if by_tanh:
        cube = to.op("Mul", to.op("Mul", x, x), x)
        inner = to.op("Add", x, to.op("Mul", cube, to.floats(0.044715)))
        curve = to.op("Tanh", to.op("Mul", inner, to.floats(math.sqrt(2 / math.pi))))
    else:
        curve = to.op("Erf", to.op("Div", x, to.floats(math.sqrt(2))))
    return to.op("Mul", to.op("Mul", x, to.op("Add", curve, to.floats(1.0))), to.floats(0.5), name=name)


def _sum(to: Writing, node: Add, inputs: list[str]) -> str:
    terms = [x if node.factor(i) == 1 else to.op("Mul", x, to.floats(node.factor(i))) for i, x in enumerate(inputs)]
    if len(terms) == 1:
        return to.op("Identity", terms[0], name=node.name)
    total = terms[0]
    for i, term in enumerate(terms[1:], 2):
        total = to.op("Add", total, term, name=node.name if i == len(terms) else "")
    return total


def _unshuffle(to: Writing, node: PixelUnshuffle, x: str) -> str:
    """PixelUnshuffle by reshaping: the SpaceToDepth of ONNX has the channels in another order."""
    factor = to.integers([node.factor])
    rows, columns = (to.op("Div", to.side(x, axis), factor) for axis in (2, 3))
    batch, channels = to.side(x, 0), to.side(x, 1)
    spread = to.op("Reshape", x, to.sizes(batch, channels, rows, node.factor, columns, node.factor))
    ordered = to.op("Transpose", spread, perm=[0, 1, 3, 5, 2, 4])
    whole = to.op("Mul", channels, to.integers([node.factor**2]))
    return to.op("Reshape", ordered, to.sizes(batch, whole, rows, columns), name=node.name)


def _resize(to: Writing, node: Resize, x: str) -> str:
    if node.antialias and node.mode == "bicubic" and node.factor > 1 and node.factor == int(node.factor):
        return _enlarged(to, node, x)
    settings: dict[str, Any] = {"mode": _MODES[node.mode], "coordinate_transformation_mode": "half_pixel"}
    if node.mode == "nearest":
        settings |= {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    elif node.align_corners:
        settings["coordinate_transformation_mode"] = "align_corners"
    if node.mode == "bicubic":
        settings["cubic_coeff_a"] = -0.5 if node.antialias else -0.75
    if node.antialias:
        settings |= {"antialias": 1, "exclude_outside": 1}  # weights of pixels outside are given to those inside, as torch does
    scales = to.floats([1, 1, node.factor, node.factor])
    return to.op("Resize", x, "", scales, name=node.name, **settings)


def _enlarged(to: Writing, node: Resize, x: str) -> str:
    """Bicubic enlargement of a whole factor as torch has it with antialiasing, and MATLAB: Keys' kernel with a = -0.5, whose
    weights are divided by their sum inside the picture. It is a convolution, because OpenVINO's resizing ignores that setting."""
    factor = int(node.factor)
    sides = [to.side(x, axis) for axis in range(4)]
    places = (np.arange(factor) + 0.5) / factor - 0.5  # of the outputs of one pixel, in pixels from its middle
    apart = np.abs(np.arange(-2, 3)[None] - places[:, None])
    inner, outer = 1.5 * apart**3 - 2.5 * apart**2 + 1, -0.5 * apart**3 + 2.5 * apart**2 - 4 * apart + 2
    taps = np.where(apart <= 1, inner, np.where(apart < 2, outer, 0.0))
    kernels = np.einsum("ir,js->ijrs", taps, taps).reshape(factor**2, 1, 5, 5)
    weight, around = to.floats(kernels, f"{node.name}/cubic"), [2, 2, 2, 2]
    single = to.op("Reshape", x, to.sizes(-1, 1, *sides[2:]))
    ones = to.op("Expand", to.floats([[[[1.0]]]]), to.sizes(1, 1, *sides[2:]))
    summed = to.op("Div", to.op("Conv", single, weight, pads=around), to.op("Conv", ones, weight, pads=around))
    y = to.op("DepthToSpace", summed, blocksize=factor, mode="CRD")
    larger = [to.op("Mul", side, to.integers([factor])) for side in sides[2:]]
    return to.op("Reshape", y, to.sizes(*sides[:2], *larger), name=node.name)


def _pad(to: Writing, node: Pad, x: str) -> str:
    """Mirrored rows and columns, or repeated ones where the picture is too small to be mirrored: each is taken by its number."""
    one = to.integers(1)
    for axis in (2, 3):
        side = to.op("Squeeze", to.side(x, axis), to.integers([0]))
        multiple = to.integers(node.multiple)
        least = to.op("Max", side, to.integers(node.least))
        more = to.op("Div", to.op("Add", least, to.op("Sub", multiple, one)), multiple)
        whole = to.op("Mul", more, multiple)
        places = to.op("Range", to.integers(0), whole, one)
        last = to.op("Sub", side, one)
        mirrored = to.op("Sub", to.op("Mul", last, to.integers(2)), places)
        fits = to.op("Less", to.op("Sub", whole, side), side)
        outside = to.op("Where", fits, mirrored, last)
        taken = to.op("Where", to.op("Less", places, side), places, outside)
        x = to.op("Gather", x, taken, axis=axis, name=node.name if axis == 3 else "")
    return x


def _pool(to: Writing, node: Pool, x: str) -> str:
    settings = dict(node.settings)

    def pair(key: str, usual: Any) -> list[int]:
        value = settings.get(key)
        value = usual if value is None or value == () else value
        return [value, value] if isinstance(value, int) else [value[0], value[-1]]

    if node.function == "adaptive_avg_pool2d":
        if pair("output_size", 0) != [1, 1]:
            raise ValueError(f"'{node.name}': ONNX has no {node.function} to {settings.get('output_size')}, only to one pixel")
        return to.op("GlobalAveragePool", x, name=node.name)
    if settings.get("divisor_override") is not None:
        raise ValueError(f"'{node.name}': ONNX has no {node.function} with a divisor of its own")
    kernel = pair("kernel_size", 1)
    given: dict[str, Any] = {"kernel_shape": kernel, "strides": pair("stride", kernel), "pads": pads(pair("padding", 0))}
    given["ceil_mode"] = int(bool(settings.get("ceil_mode")))
    if node.function == "max_pool2d":
        return to.op("MaxPool", x, name=node.name, dilations=pair("dilation", 1), **given)
    return to.op("AveragePool", x, name=node.name, count_include_pad=int(bool(settings.get("count_include_pad", True))), **given)
