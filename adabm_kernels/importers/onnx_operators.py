"""Turns the operators of ONNX into nodes, by a rule for each. Operators that compute sizes, or that read only constants, are
computed here."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..graph.nodes import Key, Ref
from .making import Imported, Making, Window, shortest, shown
from .onnx_file import Values, read_model

_FLOATS = (1, 10, 11, 16)  # types of ONNX: float32, float16, float64, bfloat16
_SMALL = 4096  # the most values of a constant that arithmetic is done with
_ACTIVATIONS = {
    "Relu": "relu",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "Mish": "mish",
    "HardSwish": "hardswish",
    "Softsign": "softsign",
}
_IN_FLOATS = {"Abs": "torch.abs", "Exp": "torch.exp", "Log": "torch.log", "Sqrt": "torch.sqrt", "Erf": "torch.erf"}
_RESIZES = {"nearest": "nearest", "linear": "bilinear", "cubic": "bicubic"}
_PADS = {"constant": "constant", "edge": "replicate", "reflect": "reflect"}


@dataclass(frozen=True)
class Dim:
    """One size of a tensor: `factor` times the picture's rows "H" or columns "W" or the number of pictures "N", or a plain number
    where symbol is "".

    Other symbols stand for the sides of tensors that are no multiples of the picture's.
    """

    symbol: str
    factor: Fraction


Sizes = tuple[Dim, ...]


@dataclass(frozen=True)
class _Spread:
    """A tensor that has been reshaped to five or six axes on the way to a shuffle of pixels. x: the tensor. sizes: its sizes with
    these axes. order: the order of the axes once they are transposed."""

    x: str
    sizes: Sizes
    order: tuple[int, ...] = ()


_Any = str | np.ndarray | tuple | _Spread


def read_onnx(path: Path) -> Imported:
    """The network of an ONNX file and of the values that lie beside it.

    Raises ValueError where the package onnx is missing and, with the node, for operators that are not known here and for damaged
    files.
    """
    model = read_model(path)
    unknown: dict[str, str] = {}
    for node in model.graph.node:
        kind = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
        if kind not in _RULES:
            unknown.setdefault(kind, node.name)
    if unknown:
        (kind, name), *more = unknown.items()
        others = f"; nor are {', '.join(shown(one) for one, _ in more[:8])}" if more else ""
        raise ValueError(f"node '{shown(name)}' ({shown(kind)}) is of a kind that is not read{others}")
    return _Reader(model, Values(path)).read()


class _Node:
    """A node of the file, with its attributes by name."""

    def __init__(self, node: Any, number: int) -> None:
        self.kind, self.name = node.op_type, node.name or f"{node.op_type.lower()}_{number}"
        self.inputs, self.outputs = list(node.input), list(node.output)
        self.attributes = {attribute.name: attribute for attribute in node.attribute}

    def __str__(self) -> str:
        return f"node '{shown(self.name)}' ({self.kind})"

    def integer(self, name: str, default: int = 0) -> int:
        return int(self.attributes[name].i) if name in self.attributes else default

    def number(self, name: str, default: float = 0.0) -> float:
        return shortest(np.float32(self.attributes[name].f)) if name in self.attributes else default

    def text(self, name: str, default: str) -> str:
        return self.attributes[name].s.decode("utf-8", "replace") if name in self.attributes else default

    def integers(self, name: str) -> tuple[int, ...]:
        """The integers of an attribute; empty where it is left out."""
        return tuple(self.attributes[name].ints) if name in self.attributes else ()

    def has(self, index: int) -> bool:
        """Returns whether the node is given the input with this number."""
        return index < len(self.inputs) and bool(self.inputs[index])


class _Reader:
    """Makes a network of the nodes of a file. values: the value of each name in the file. ranks: the number of axes of tensors that
    do not have four. origins: the names of constants, by the id of the array."""

    def __init__(self, model: Any, files: Values) -> None:
        graph = model.graph
        if graph.sparse_initializer:
            raise ValueError("it has sparse values, which are not read")
        self.graph, self.files = graph, files
        constants = files.all(graph.initializer)
        self.values: dict[str, _Any] = dict(constants)
        self.origins = {id(value): name for name, value in constants.items()}
        self.room = sum(value.nbytes for value in constants.values()) + (1 << 20)  # bytes left for computed constants
        self.held: list[np.ndarray] = []  # constants that are held so that no other array gets their id
        inputs = [one for one in graph.input if one.name not in constants]
        if len(inputs) != 1 or len(graph.output) != 1:
            raise ValueError(f"the network must have one input and one output, got {len(inputs)} and {len(graph.output)}")
        kind = inputs[0].type.tensor_type
        sizes = [size.dim_value for size in kind.shape.dim]
        if kind.elem_type not in _FLOATS or len(sizes) != 4:
            raise ValueError(f"its input must be pictures of floats with 4 axes, got type {kind.elem_type} with {len(sizes)}")
        if sizes[1] < 1:
            raise ValueError("its input must say how many channels it has, as its second size")
        self.sides = {"H": sizes[2], "W": sizes[3]}  # 0 where the file does not say them
        self.making = Making(sizes[1])
        self.values[inputs[0].name] = "x"
        self.ranks: dict[str, int] = {}

    def read(self) -> Imported:
        for number, proto in enumerate(self.graph.node):
            node = _Node(proto, number)
            try:
                if missing := [name for name in node.inputs if name and name not in self.values]:
                    raise ValueError(f"it reads '{shown(missing[0])}' before a node makes it")
                made = _RULES[node.kind](self, node)
                if len(made) < len([name for name in node.outputs if name]):
                    raise ValueError(f"it has {len(made)} outputs here, got {len(node.outputs)}")
                for name, value in zip(node.outputs, made, strict=False):
                    if name in self.values:
                        raise ValueError(f"it makes '{shown(name)}', which there is already")
                    if name:
                        self.values[name] = value
            except (ValueError, IndexError, OverflowError, ZeroDivisionError) as error:
                raise ValueError(f"{node}: {error}") from error
        output = self.values.get(self.graph.output[0].name)
        if not isinstance(output, str) or output == "x" or self.ranks.get(output, 4) != 4:
            raise ValueError("its output must be pictures that depend on the input")
        return self.making.result(output)

    # ---- the inputs of nodes

    def value(self, node: _Node, index: int) -> _Any:
        if not node.has(index):
            raise ValueError(f"it must have {index + 1} inputs or more, got {len(node.inputs)}")
        return self.values[node.inputs[index]]

    def tensor(self, node: _Node, index: int = 0, rank: int = 4) -> str:
        """The tensor of an input that depends on the picture and has `rank` axes. Raises ValueError for any other input."""
        value = self.value(node, index)
        if not isinstance(value, str):
            raise ValueError(f"its input {index} must depend on the picture, and be neither a constant nor a size")
        if self.ranks.get(value, 4) != rank:
            raise ValueError(f"its input {index} must have {rank} axes, got {self.ranks.get(value, 4)}")
        return value

    def constant(self, node: _Node, index: int) -> np.ndarray:
        value = self.value(node, index)
        if not isinstance(value, np.ndarray):
            raise ValueError(f"its input {index} must be a constant")
        return value

    def numbers(self, node: _Node, index: int, name: str = "") -> list[int]:
        """The whole numbers of an input, or those of the attribute `name`, which older versions have instead; none where both are
        left out."""
        if name and name in node.attributes:
            return list(node.integers(name))
        if not node.has(index):
            return []
        values = self.constant(node, index).ravel()
        if values.dtype.kind != "i" or values.size > _SMALL:
            raise ValueError(f"its input {index} must be a few whole numbers, got {values.size} of {values.dtype}")
        return values.tolist()

    def number(self, node: _Node, index: int, default: float) -> float:
        """The number in an input; `default` where the input is left out."""
        if not node.has(index):
            return default
        value = self.constant(node, index)
        if value.size != 1:
            raise ValueError(f"its input {index} must be one number, got {value.size}")
        return shortest(value.ravel()[0])

    def floats(self, node: _Node, index: int, rank: int) -> np.ndarray:
        """The floats of a constant input that has `rank` axes."""
        value = self.constant(node, index)
        if value.ndim != rank or value.dtype != np.float32 or not value.size:
            raise ValueError(f"its input {index} must be floats with {rank} axes, got {value.dtype} {value.shape}")
        return value

    def layer(self, node: _Node, index: int) -> str:
        """The name of a layer: the name that the file gives to its values, where that ends in ".weight", or else the node's own."""
        name, ending = self.origins.get(id(self.values.get(node.inputs[index])), ""), ".weight"
        return name[: -len(ending)] if name.endswith(ending) and len(name) > len(ending) else node.name

    def by_channel(self, x: str, values: np.ndarray) -> np.ndarray:
        """A constant that is combined with x element by element: one value, or one for each channel."""
        channels, axis = self.making.extent(x).channels, 3 if self.ranks.get(x, 4) == 4 else 1
        fits = values.size == channels and values.ndim >= axis and values.shape[-axis] == channels
        if values.size != 1 and not (fits and values.ndim <= axis + 1):
            raise ValueError(f"a constant must have one value, or one for each of {channels} channels, got sizes {values.shape}")
        return values.ravel()

    # ---- constants and sizes

    def made(self, value: np.ndarray, of: np.ndarray | None = None) -> list[_Any]:
        """A constant that is computed from others. of: the constant whose name it keeps."""
        self.room -= value.nbytes
        if self.room < 0:
            raise ValueError("constants are made into others too often")
        self.held.append(value)
        if of is not None and id(of) in self.origins:
            self.origins[id(value)] = self.origins[id(of)]
        return [value]

    def sizes(self, value: _Any) -> Sizes | None:
        """The sizes that a value holds: sizes, or a few whole numbers; None for all else."""
        if isinstance(value, tuple):
            return value
        if isinstance(value, np.ndarray) and value.size <= 64 and value.dtype != np.bool_ and np.isfinite(value).all():
            return tuple(Dim("", Fraction(float(one)).limit_denominator(1 << 20)) for one in value.ravel())
        return None

    def shape(self, x: str) -> Sizes:
        extent = self.making.extent(x)
        sides = (f"H of {x}", f"W of {x}") if x in self.making.inexact else ("H", "W")
        ends = [Dim(side, extent.scale) for side in sides] if extent.scale else [Dim("", Fraction(1))] * 2
        return (Dim("N", Fraction(1)), Dim("", Fraction(extent.channels)), *(ends if self.ranks.get(x, 4) == 4 else ()))

    def factor(self, size: Dim, axis: int, x: str) -> Fraction:
        """The factor by which a tensor's own size along an axis must be multiplied to give `size`."""
        symbol, scale = self.shape(x)[axis].symbol, self.making.extent(x).scale
        whole = Fraction(self.sides.get(symbol, 0)) * scale
        if size.symbol == symbol and scale:
            return size.factor / scale
        if size.symbol == "" and whole > 0:
            return size.factor / whole
        raise ValueError("its size must be that of the picture times a number")


_Rule = Callable[[_Reader, _Node], list[Any]]
_RULES: dict[str, _Rule] = {}


def _rule(*kinds: str) -> Callable[[_Rule], _Rule]:
    def register(rule: _Rule) -> _Rule:
        _RULES.update(dict.fromkeys(kinds, rule))
        return rule

    return register


# ---- layers


def _window(to: _Reader, node: _Node, kernel: tuple[int, ...]) -> Window:
    """The kernel, stride, dilation and padding of a convolution or a pooling with this kernel."""
    stride, dilation = node.integers("strides") or (1, 1), node.integers("dilations") or (1, 1)
    pads, mode = node.integers("pads") or (0, 0, 0, 0), node.text("auto_pad", "NOTSET")
    if not len(kernel) == len(stride) == len(dilation) == 2 or len(pads) != 4:
        raise ValueError(f"it must have two axes of rows and columns, got a kernel of {kernel}, strides {stride} and pads {pads}")
    padding = (pads[0], pads[2], pads[1], pads[3])
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        if tuple(stride) != (1, 1):
            raise ValueError(f"padding to the same size must have stride 1, got {stride}")
        rows, columns = ((size - 1) * step for size, step in zip(kernel, dilation, strict=True))
        less = (rows // 2, rows - rows // 2, columns // 2, columns - columns // 2)
        padding = less if mode == "SAME_UPPER" else (less[1], less[0], less[3], less[2])
    elif mode == "VALID":
        padding = (0, 0, 0, 0)
    return Window((kernel[0], kernel[1]), (stride[0], stride[1]), (dilation[0], dilation[1]), padding)


def _weights(to: _Reader, node: _Node) -> tuple[np.ndarray, np.ndarray | None, Window, int]:
    weight = to.floats(node, 1, 4)
    bias = to.floats(node, 2, 1) if node.has(2) else None
    groups = node.integer("group", 1)
    if not 1 <= groups <= weight.shape[0]:
        raise ValueError(f"its groups must be from 1 to its {weight.shape[0]} channels, got {groups}")
    if said := node.integers("kernel_shape"):
        if said != weight.shape[2:]:
            raise ValueError(f"its kernel must be that of its weights, {weight.shape[2:]}, got {said}")
    return weight, bias, _window(to, node, weight.shape[2:]), groups


@_rule("Conv")
def _conv(to: _Reader, node: _Node) -> list[Any]:
    x, (weight, bias, window, groups) = to.tensor(node), _weights(to, node)
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"it must have {weight.shape[0]} biases, got {bias.size}")
    return [to.making.conv(to.layer(node, 1), x, weight, bias, window, groups)]


@_rule("ConvTranspose")
def _transposed_conv(to: _Reader, node: _Node) -> list[Any]:
    x, (weight, bias, window, groups) = to.tensor(node), _weights(to, node)
    more = node.integers("output_padding") or (0, 0)
    if node.integers("output_shape") or len(set(more)) > 1 or not 0 <= more[0] <= 255:
        raise ValueError("its output must have the size that its strides and pads say")
    if bias is not None and bias.shape != (weight.shape[1] * groups,):
        raise ValueError(f"it must have {weight.shape[1] * groups} biases, got {bias.size}")
    return [to.making.transposed_conv(to.layer(node, 1), x, weight, bias, window, groups, more[0])]


@_rule("Gemm")
def _gemm(to: _Reader, node: _Node) -> list[Any]:
    x, weight = to.tensor(node, rank=2), to.floats(node, 1, 2)
    bias = to.floats(node, 2, 1) if node.has(2) else None
    if node.number("alpha", 1.0) != 1 or node.number("beta", 1.0) != 1 or node.integer("transA"):
        raise ValueError("it must multiply its input by a matrix, with factors of 1")
    weight = weight if node.integer("transB") else to.made(np.ascontiguousarray(weight.T))[0]  # type: ignore[assignment]
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"it must have {weight.shape[0]} biases, got {bias.size}")
    return [_with_rank(to, to.making.linear(to.layer(node, 1), x, weight, bias), 2)]


def _with_rank(to: _Reader, x: str, rank: int) -> str:
    to.ranks[x] = rank
    return x


def _like(to: _Reader, made: str, x: str) -> list[Any]:
    """A tensor, recorded with the same number of axes as x."""
    if (rank := to.ranks.get(x, 4)) != 4 and made != x:
        to.ranks[made] = rank
    return [made]


def _one(to: _Reader, node: _Node) -> str:
    """The input of a node that computes each value by itself."""
    value = to.value(node, 0)
    return to.tensor(node, rank=to.ranks.get(value, 4) if isinstance(value, str) else 4)


@_rule("BatchNormalization")
def _batch_norm(to: _Reader, node: _Node) -> list[Any]:
    if node.integer("training_mode"):
        raise ValueError("it takes the mean of the pictures that it is given (training_mode)")
    parts = {part: to.floats(node, i, 1) for i, part in enumerate(("weight", "bias", "running_mean", "running_var"), 1)}
    return [to.making.batch_norm(to.layer(node, 1), to.tensor(node), parts, node.number("epsilon", 1e-5))]


@_rule("InstanceNormalization")
def _instance_norm(to: _Reader, node: _Node) -> list[Any]:
    x, weight, bias = to.tensor(node), to.floats(node, 1, 1), to.floats(node, 2, 1)
    extent = to.making.extent(x)
    if weight.size != extent.channels or bias.size != extent.channels:
        raise ValueError(f"it must have {extent.channels} factors and shifts, got {weight.size} and {bias.size}")
    key = to.making.learn(to.layer(node, 1), weight=weight, bias=bias)
    keys = (f"{key}.weight", f"{key}.bias")
    arguments, settings = (Ref(0), None, None, *map(Key, keys)), {"eps": node.number("epsilon", 1e-5)}
    return [to.making.other(node.name, (x,), "torch.nn.functional.instance_norm", arguments, settings, extent, keys)]


# ---- element by element


@_rule(*_ACTIVATIONS)
def _activation(to: _Reader, node: _Node) -> list[Any]:
    x = _one(to, node)
    return _like(to, to.making.activation(node.name, x, _ACTIVATIONS[node.kind]), x)


@_rule("LeakyRelu", "Elu", "Gelu", "Softplus", "HardSigmoid")
def _activation_with_settings(to: _Reader, node: _Node) -> list[Any]:
    x, alpha = _one(to, node), node.number("alpha", 0.01 if node.kind == "LeakyRelu" else 1.0)
    match node.kind:
        case "LeakyRelu":
            made = to.making.activation(node.name, x, "leaky_relu", negative_slope=alpha)
        case "Elu":
            made = to.making.activation(node.name, x, "elu", alpha=alpha)
        case "Gelu":
            made = to.making.activation(node.name, x, "gelu", approximate=node.text("approximate", "none"))
        case "Softplus":
            made = to.making.activation(node.name, x, "softplus", beta=1.0, threshold=20.0)
        case _:
            gain, shift = (np.array([node.number(one, value)]) for one, value in (("alpha", 0.2), ("beta", 0.5)))
            made = to.making.clamp(node.name, to.making.affine(f"{node.name}.scaled", x, gain, shift), 0.0, 1.0)
    return _like(to, made, x)


@_rule("PRelu")
def _prelu(to: _Reader, node: _Node) -> list[Any]:
    x, slopes = to.tensor(node), to.constant(node, 1)
    return [to.making.prelu(to.layer(node, 1), x, to.by_channel(x, slopes))]


@_rule("Clip")
def _clip(to: _Reader, node: _Node) -> list[Any]:
    x = _one(to, node)
    least, most = to.number(node, 1, node.number("min", -math.inf)), to.number(node, 2, node.number("max", math.inf))
    return _like(to, to.making.clamp(node.name, x, least if least > -3e38 else -math.inf, most if most < 3e38 else math.inf), x)


@_rule(*_IN_FLOATS)
def _in_floats(to: _Reader, node: _Node) -> list[Any]:
    x = _one(to, node)
    return _like(to, to.making.other(node.name, (x,), _IN_FLOATS[node.kind], (Ref(0),), {}, to.making.extent(x)), x)


@_rule("Neg")
def _negative(to: _Reader, node: _Node) -> list[Any]:
    x = _one(to, node)
    return _like(to, to.making.affine(node.name, x, gain=np.array([-1.0])), x)


@_rule("Softmax")
def _softmax(to: _Reader, node: _Node) -> list[Any]:
    x, axis = _one(to, node), node.integer("axis", -1)
    if not -4 <= axis < 4:
        raise ValueError(f"its axis must be from -4 to 3, got {axis}")
    return _like(to, to.making.other(node.name, (x,), "torch.softmax", (Ref(0), axis), {}, to.making.extent(x)), x)


@_rule("Add", "Sub", "Mul", "Div")
def _arithmetic(to: _Reader, node: _Node) -> list[Any]:
    a, b = to.value(node, 0), to.value(node, 1)
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and max(a.size, b.size) <= _SMALL:
        with np.errstate(all="ignore"):
            function = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}[node.kind]
            if node.kind == "Div" and a.dtype.kind == b.dtype.kind == "i":
                function = np.floor_divide
            if np.broadcast_shapes(a.shape, b.shape) not in (a.shape, b.shape):
                raise ValueError(f"its constants must be of one size, got {a.shape} and {b.shape}")
            return to.made(function(a, b).astype(a.dtype))
    if isinstance(a, tuple) or isinstance(b, tuple):
        return [_of_sizes(node.kind, to.sizes(a), to.sizes(b))]
    tensors = [one for one in (a, b) if isinstance(one, str)]
    if not tensors or isinstance(a, _Spread) or isinstance(b, _Spread):
        raise ValueError("its inputs must be tensors that depend on the picture, or one of them a constant")
    x = tensors[0]
    if len(tensors) == 1:
        a, b = (to.by_channel(x, one) if isinstance(one, np.ndarray) else one for one in (a, b))
        operator = {"Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div"}[node.kind]
        return _like(to, to.making.with_constant(node.name, operator, a, b), x)  # type: ignore[arg-type]
    assert isinstance(a, str) and isinstance(b, str)
    if to.ranks.get(a, 4) != to.ranks.get(b, 4):
        raise ValueError("its inputs must have as many axes as one another")
    match node.kind:
        case "Add":
            made = to.making.add(node.name, (a, b))
        case "Sub":
            made = to.making.add(node.name, (a, b), (1.0, -1.0))
        case "Mul":
            made = to.making.multiply(node.name, a, b)
        case _:
            made = to.making.divide(node.name, a, b)
    return _like(to, made, x)


@_rule("Sum")
def _sum(to: _Reader, node: _Node) -> list[Any]:
    return [to.making.add(node.name, [to.tensor(node, i) for i in range(len(node.inputs))])]


# ---- channels and pixels


@_rule("Concat")
def _concat(to: _Reader, node: _Node) -> list[Any]:
    values = [to.value(node, i) for i in range(len(node.inputs))]
    if values and all(isinstance(one, np.ndarray) for one in values):
        return to.made(np.concatenate(values, node.integer("axis")))  # type: ignore[arg-type]
    if any(isinstance(one, tuple) for one in values):
        parts = [to.sizes(one) for one in values]
        if not all(part is not None for part in parts) or sum(map(len, parts)) > 64:  # type: ignore[arg-type]
            raise ValueError("it puts sizes beside what are none")
        return [tuple(one for part in parts if part is not None for one in part)]
    if node.integer("axis") not in (1, -3):
        raise ValueError(f"it must put channels side by side (axis 1), got axis {node.integer('axis')}")
    return [to.making.concat(node.name, [to.tensor(node, i) for i in range(len(values))])]


@_rule("Split")
def _split(to: _Reader, node: _Node) -> list[Any]:
    x, sizes = to.tensor(node), to.numbers(node, 1, "split")
    if node.integer("axis") not in (1, -3):
        raise ValueError(f"it must cut channels (axis 1), got axis {node.integer('axis')}")
    channels, count = to.making.extent(x).channels, node.integer("num_outputs", len(node.outputs))
    if not sizes and 1 <= count <= channels:
        each = -(-channels // count)
        sizes = [each] * (count - 1) + [channels - each * (count - 1)]
    return list(to.making.slices(node.name, x, sizes))


@_rule("Slice")
def _slice(to: _Reader, node: _Node) -> list[Any]:
    value, starts = to.value(node, 0), to.numbers(node, 1)
    axes, steps = to.numbers(node, 3) or list(range(len(starts))), to.numbers(node, 4) or [1] * len(starts)
    if isinstance(value, np.ndarray | tuple):
        stops = to.numbers(node, 2)
        if not len(starts) == len(stops) == len(axes) == len(steps) == 1:
            raise ValueError("it must cut sizes along their one axis")
        cut = value[slice(starts[0], stops[0], steps[0])]
        return [cut] if isinstance(cut, tuple) else to.made(np.array(cut))
    x = to.tensor(node)
    ends = to.sizes(to.value(node, 2))
    if ends is None or not len(starts) == len(ends) == len(axes) == len(steps) or set(steps) > {1}:
        raise ValueError(f"it must take all channels from one to another, got axes {axes[:4]} and steps {steps[:4]}")
    for axis, start, end in zip(axes, starts, ends, strict=True):
        if axis % 4 == 1 and not end.symbol:
            begin, stop, _ = slice(start, int(end.factor)).indices(to.making.extent(x).channels)
            x = to.making.slice(node.name, x, begin, stop)
        elif not (start == 0 and axis % 4 and (end == to.shape(x)[axis % 4] or (not end.symbol and end.factor >= 2**31 - 1))):
            raise ValueError("it must cut channels alone, and no rows or columns")
    return [x]


@_rule("DepthToSpace")
def _depth_to_space(to: _Reader, node: _Node) -> list[Any]:
    mode = node.text("mode", "DCR")
    if mode not in ("DCR", "CRD"):
        raise ValueError(f"its mode must be DCR or CRD, got '{shown(mode)}'")
    return [to.making.shuffle(node.name, to.tensor(node), node.integer("blocksize"), mode == "DCR")]


@_rule("SpaceToDepth")
def _space_to_depth(to: _Reader, node: _Node) -> list[Any]:
    return [to.making.unshuffle(node.name, to.tensor(node), node.integer("blocksize"), True)]


@_rule("Transpose")
def _transpose(to: _Reader, node: _Node) -> list[Any]:
    value, order = to.value(node, 0), node.integers("perm")
    if isinstance(value, np.ndarray):
        return to.made(np.ascontiguousarray(np.transpose(value, order or None)), value)
    if not isinstance(value, _Spread) or value.order or len(value.sizes) != 6 or sorted(order) != list(range(6)):
        raise ValueError("it exchanges axes otherwise than a shuffle of pixels does")
    return [replace(value, order=tuple(order))]


@_rule("Reshape")
def _reshape(to: _Reader, node: _Node) -> list[Any]:
    value, wanted = to.value(node, 0), to.sizes(to.value(node, 1))
    if wanted is None or any(size.factor.denominator > 1 and not size.symbol for size in wanted):
        raise ValueError("its sizes must be a few whole numbers, or those of the picture")
    if isinstance(value, np.ndarray):
        if any(size.symbol for size in wanted):
            raise ValueError("a constant must have sizes that are numbers")
        return to.made(np.ascontiguousarray(value).reshape([int(size.factor) for size in wanted]), value)
    if isinstance(value, _Spread):
        if value.order:
            return [_gathered(to, node, value, wanted)]
        own = value.sizes
        return [_Spread(value.x, tuple(own[i] if size == Dim("", Fraction(0)) else size for i, size in enumerate(wanted)))]
    if isinstance(value, tuple):
        return [value]
    rank = to.ranks.get(value, 4)
    wanted = tuple(to.shape(value)[i] if size == Dim("", Fraction(0)) and i < rank else size for i, size in enumerate(wanted))
    if len(wanted) == 6 and rank == 4:
        return [_Spread(value, wanted)]
    return [_other_axes(to, node, value, wanted)]


def _other_axes(to: _Reader, node: _Node, x: str, wanted: Sizes) -> str:
    """A tensor after a reshape that changes nothing, or a tensor with one value for each channel, which gets two axes or four."""
    extent, rest = to.making.extent(x), Dim("", Fraction(-1))
    own, rank = to.shape(x), to.ranks.get(x, 4)
    if len(wanted) == rank and all(_same(to, a, b, i) for i, (a, b) in enumerate(zip(wanted, own, strict=True))):
        return x
    if extent.scale == 0 and len(wanted) in (2, 4) and wanted[1] in (rest, Dim("", Fraction(extent.channels))):
        if all(size in (rest, Dim("", Fraction(1))) for size in wanted[2:]) and sum(size == rest for size in wanted[1:]) <= 1:
            shape = (-1, extent.channels, *[1] * (len(wanted) - 2))
            return _with_rank(to, to.making.other(node.name, (x,), "torch.reshape", (Ref(0), shape), {}, extent), len(wanted))
    raise ValueError("it changes axes otherwise than a shuffle of pixels does")


def _same(to: _Reader, size: Dim, own: Dim, axis: int) -> bool:
    """Returns whether a size that is asked for is a tensor's own size along an axis."""
    if size in (own, Dim("", Fraction(-1))):
        return True
    if own.symbol == "N":
        return size == Dim("", Fraction(1))
    return not size.symbol and own.symbol in to.sides and size.factor == to.sides[own.symbol] * own.factor > 0


# For each order into which six axes are brought, the axes of the square's sides.
_SHUFFLES: dict[tuple[int, ...], tuple[int, int]] = {
    (0, 1, 4, 2, 5, 3): (2, 3),
    (0, 3, 4, 1, 5, 2): (1, 2),
    (0, 1, 3, 5, 2, 4): (3, 5),
}


def _gathered(to: _Reader, node: _Node, spread: _Spread, wanted: Sizes) -> str:
    """The shuffle of pixels, in either direction, of which this node is the last step."""
    one = Dim("", Fraction(1))
    if len(wanted) == 6 and wanted[2:4] == (one, one):  # a later node removes these axes
        return _with_rank(to, _gathered(to, node, spread, (*wanted[:2], *wanted[4:])), 6)
    sides = _SHUFFLES.get(spread.order)
    factors = {spread.sizes[axis] for axis in sides or ()}
    if sides is None or len(factors) != 1 or len(wanted) != 4 or not spread.sizes[sides[0]].symbol == wanted[1].symbol == "":
        raise ValueError("it changes axes otherwise than a shuffle of pixels does")
    factor, x = int(factors.pop().factor), spread.x
    channels = to.making.extent(x).channels
    if not 1 <= factor <= 64 or (sides != (3, 5) and channels % factor**2):
        raise ValueError(f"a shuffle by {factor} needs channels that its square divides, got {channels}")
    outputs, axis = (channels * factor**2, 1) if sides == (3, 5) else (channels // factor**2, 3 if sides == (1, 2) else 1)
    inside = channels if sides == (3, 5) else outputs
    if int(wanted[1].factor) not in (outputs, -1) or spread.sizes[axis] not in (Dim("", Fraction(inside)), Dim("", Fraction(-1))):
        raise ValueError(f"a shuffle by {factor} of {channels} channels must give {outputs}")
    if sides == (3, 5):
        return to.making.unshuffle(node.name, x, factor)
    return to.making.shuffle(node.name, x, factor, sides == (1, 2))


@_rule("Flatten")
def _flatten(to: _Reader, node: _Node) -> list[Any]:
    x = to.tensor(node)
    extent = to.making.extent(x)
    if extent.scale or node.integer("axis", 1) != 1:
        raise ValueError("it must flatten what has one value for each channel")
    return [_with_rank(to, to.making.other(node.name, (x,), "torch.flatten", (Ref(0), 1), {}, extent), 2)]


@_rule("Pad")
def _pad(to: _Reader, node: _Node) -> list[Any]:
    x, pads, mode = to.tensor(node), to.numbers(node, 1, "pads"), node.text("mode", "constant")
    value = to.number(node, 2, node.number("value"))
    axes = [axis % 4 for axis in to.numbers(node, 3)] or list(range(4))
    if len(pads) != 2 * len(axes) or mode not in _PADS:
        raise ValueError(f"it must pad with a number, the nearest pixel or reflected ones, got mode '{shown(mode)}'")
    sides = {axis: (pads[i], pads[i + len(axes)]) for i, axis in enumerate(axes)}
    if any(any(sides.get(axis, (0, 0))) for axis in (0, 1)):
        raise ValueError("it must pad rows and columns alone")
    return [to.making.pad(node.name, x, (*sides.get(2, (0, 0)), *sides.get(3, (0, 0))), _PADS[mode], value)]


@_rule("Resize", "Upsample")
def _resize(to: _Reader, node: _Node) -> list[Any]:
    x, mode = to.tensor(node), node.text("mode", "nearest")
    if mode not in _RESIZES or node.integer("antialias") or node.integer("exclude_outside"):
        raise ValueError(f"it must resize to nearest, linear or cubic, without antialiasing, got mode '{shown(mode)}'")
    place = 1 if node.kind == "Upsample" else 2
    axes = list(node.integers("axes")) or list(range(4))
    if node.has(3):
        wanted = to.sizes(to.value(node, 3)) or ()
        named = dict(zip([axis % 4 for axis in axes], wanted, strict=False))
        rows, columns = (to.factor(named[axis], axis, x) if axis in named else Fraction(1) for axis in (2, 3))
        others = len(wanted) == len(axes) and all(
            named.get(axis) in (None, to.shape(x)[axis], Dim("", Fraction(1))) for axis in (0, 1)
        )
    else:
        scales = to.constant(node, place).ravel().tolist()
        if not all(math.isfinite(one) and 0 < one < 1e6 for one in scales):
            raise ValueError(f"its factors must be above 0, got {scales[:4]}")
        factors = dict(zip([axis % 4 for axis in axes], scales, strict=False))
        rows, columns = (Fraction(factors.get(axis, 1)).limit_denominator(1000) for axis in (2, 3))
        others = all(factors.get(axis, 1) == 1 for axis in (0, 1)) and len(scales) == len(axes)
    if rows != columns or not others:
        raise ValueError(f"it must resize rows and columns by one factor, got {float(rows):g} and {float(columns):g}")
    _check_places(node, mode, rows)
    corners = None if mode == "nearest" else node.text("coordinate_transformation_mode", "") == "align_corners"
    return [to.making.resize(node.name, x, rows, _RESIZES[mode], corners)]


def _check_places(node: _Node, mode: str, factor: Fraction) -> None:
    """Raises ValueError for a resizing that reads its pixels at other places than torch does."""
    places = node.text("coordinate_transformation_mode", "half_pixel")
    if node.kind == "Upsample":
        places = "asymmetric"
    if mode == "nearest":
        rounding = "floor" if node.kind == "Upsample" else node.text("nearest_mode", "round_prefer_floor")
        whole = factor.denominator == 1
        centres = places in ("half_pixel", "pytorch_half_pixel") and rounding.startswith("round_prefer") and whole
        if (places, rounding) == ("asymmetric", "floor") or centres:
            return
        if (places, rounding, factor) == ("asymmetric", "round_prefer_floor", 2):
            return
        raise ValueError(f"it takes other pixels than the nearest ones of torch (places '{places}', rounding '{rounding}')")
    if places not in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        raise ValueError(f"its places must be 'half_pixel' or 'align_corners', got '{shown(places)}'")
    if mode == "cubic" and not math.isclose(node.number("cubic_coeff_a", -0.75), -0.75):
        raise ValueError(f"its cubic must be that of torch, of -0.75, got {node.number('cubic_coeff_a'):g}")


@_rule("MaxPool", "AveragePool")
def _pool(to: _Reader, node: _Node) -> list[Any]:
    x, window = to.tensor(node), _window(to, node, node.integers("kernel_shape"))
    if node.kind == "MaxPool":
        return [to.making.pool(node.name, x, "max_pool2d", window, bool(node.integer("ceil_mode")))]
    counts = bool(node.integer("count_include_pad"))
    return [to.making.pool(node.name, x, "avg_pool2d", window, bool(node.integer("ceil_mode")), counts)]


@_rule("GlobalAveragePool", "ReduceMean")
def _mean(to: _Reader, node: _Node) -> list[Any]:
    x = to.tensor(node)
    if node.kind == "ReduceMean":
        axes = sorted(axis % 4 for axis in to.numbers(node, 1, "axes"))
        if axes != [2, 3] or not node.integer("keepdims", 1):
            raise ValueError(f"it must take the mean of all rows and columns and keep their axes, got axes {axes[:4]}")
    return [to.making.mean(node.name, x)]


# ---- operators that change nothing, constants, and sizes


@_rule("Identity", "Dropout", "Cast")
def _identity(to: _Reader, node: _Node) -> list[Any]:
    value = to.value(node, 0)
    if node.kind == "Cast":
        kind = node.integer("to")
        if isinstance(value, np.ndarray):
            if kind not in (*_FLOATS, 6, 7, 9):
                raise ValueError(f"it must make floats or whole numbers, got type {kind} of ONNX")
            wanted = np.float32 if kind in _FLOATS else np.bool_ if kind == 9 else np.int64
            if value.dtype != wanted:
                with np.errstate(invalid="ignore"):
                    return to.made(value.astype(wanted), value)
        elif not isinstance(value, tuple) and kind not in _FLOATS:
            raise ValueError(f"it must keep floats, got type {kind} of ONNX")
    if node.kind == "Dropout" and node.has(2) and to.constant(node, 2).any():
        raise ValueError("it drops values at random (training_mode)")
    return [value]


@_rule("Constant")
def _constant(to: _Reader, node: _Node) -> list[Any]:
    if "value" in node.attributes:
        return to.made(to.files.array(node.attributes["value"].t))
    for name, kind in (
        ("value_int", np.int64),
        ("value_ints", np.int64),
        ("value_float", np.float32),
        ("value_floats", np.float32),
    ):
        if name in node.attributes:
            attribute = node.attributes[name]
            given: Any = {"value_int": attribute.i, "value_ints": list(attribute.ints), "value_float": attribute.f}.get(name)
            return to.made(np.array(list(attribute.floats) if given is None else given, kind))
    raise ValueError("its value must be numbers")


@_rule("ConstantOfShape")
def _constant_of_shape(to: _Reader, node: _Node) -> list[Any]:
    shape = to.numbers(node, 0)
    count = math.prod(shape)
    if not 0 <= count <= _SMALL or any(size < 0 for size in shape) or len(shape) > 6:
        raise ValueError(f"it must make {_SMALL} values at most, got sizes {shape[:8]}")
    value = to.files.array(node.attributes["value"].t) if "value" in node.attributes else np.zeros(1, np.float32)
    if value.size != 1:
        raise ValueError(f"it must repeat one value, got {value.size}")
    return to.made(np.full(shape, value.ravel()[0]))


@_rule("Shape")
def _shape(to: _Reader, node: _Node) -> list[Any]:
    value = to.value(node, 0)
    if isinstance(value, np.ndarray):
        return to.made(np.array(value.shape, np.int64))
    if not isinstance(value, str):
        raise ValueError("it must be given a tensor")
    sizes = to.shape(value)
    return [sizes[node.integer("start") : node.integer("end", len(sizes))]]


@_rule("Gather")
def _gather(to: _Reader, node: _Node) -> list[Any]:
    value, index = to.value(node, 0), to.constant(node, 1)
    if node.integer("axis") or index.size > 64 or index.dtype != np.int64:
        raise ValueError("it must take a few numbers of a list")
    if isinstance(value, tuple):
        return [tuple(value[i] for i in index.ravel().tolist())]
    if not isinstance(value, np.ndarray) or value.ndim != 1:
        raise ValueError("it must take a few numbers of a list")
    return to.made(value[index])


@_rule("Unsqueeze", "Squeeze")
def _axes(to: _Reader, node: _Node) -> list[Any]:
    value, axes = to.value(node, 0), to.numbers(node, 1, "axes")
    if isinstance(value, tuple):
        return [value]
    if isinstance(value, str) and (to.ranks.get(value, 4), node.kind, axes) == (4, "Unsqueeze", [3]):
        own = to.shape(value)
        return [_Spread(value, (*own[:3], Dim("", Fraction(1)), own[3]))]
    if isinstance(value, str) and (to.ranks.get(value, 4), node.kind, axes) == (6, "Squeeze", [2, 3]):
        return [_with_rank(to, value, 4)]
    if len(axes) > 6 or isinstance(value, _Spread):
        raise ValueError("it changes axes otherwise than is read here")
    if isinstance(value, np.ndarray):
        if node.kind == "Squeeze":
            return to.made(np.squeeze(value, tuple(axes) or None), value)
        return to.made(np.expand_dims(value, tuple(axes)), value)
    rank, extent = to.ranks.get(value, 4), to.making.extent(value)
    wanted = 4 if node.kind == "Unsqueeze" else 2
    if extent.scale or sorted(axis % 4 for axis in axes) != [2, 3] or rank == wanted:
        raise ValueError("it changes axes otherwise than is read here")
    shape = (-1, extent.channels, *[1] * (wanted - 2))
    return [_with_rank(to, to.making.other(node.name, (value,), "torch.reshape", (Ref(0), shape), {}, extent), wanted)]


@_rule("Floor", "Ceil")
def _rounded(to: _Reader, node: _Node) -> list[Any]:
    value = to.value(node, 0)
    if not isinstance(value, tuple):
        raise ValueError("it rounds what is no size")
    return [value]


def _of_sizes(kind: str, a: Sizes | None, b: Sizes | None) -> Sizes:
    """Does arithmetic on sizes, where the result is again a number times the picture's."""
    if a is None or b is None or not (len(a) == len(b) or 1 in (len(a), len(b))):
        raise ValueError("it computes sizes of what are none")
    longest = max(len(a), len(b))
    return tuple(_of_two(kind, x, y) for x, y in zip(a * (longest // len(a)), b * (longest // len(b)), strict=True))


def _of_two(kind: str, a: Dim, b: Dim) -> Dim:
    if kind == "Mul" and "" in (a.symbol, b.symbol):
        return _bounded(Dim(a.symbol or b.symbol, a.factor * b.factor))
    if kind == "Div" and b.factor and b.symbol in ("", a.symbol):
        return _bounded(Dim("" if b.symbol else a.symbol, a.factor / b.factor))
    if kind in ("Add", "Sub") and a.symbol == b.symbol:
        return _bounded(Dim(a.symbol, a.factor + (b.factor if kind == "Add" else -b.factor)))
    raise ValueError("it computes a size that is no number times the picture's")


def _bounded(size: Dim) -> Dim:
    if size.factor.numerator.bit_length() > 128 or size.factor.denominator.bit_length() > 128:
        raise ValueError("it computes a size that no picture has")
    return size
