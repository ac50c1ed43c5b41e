"""Turns the layers of ncnn into nodes, by a rule for each type. The settings have the numbers of ncnn's documentation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from .making import Imported, Making, Window, shown
from .ncnn_file import Layer, Weights, read_layers

_SAME_UPPER, _SAME_LOWER = -233, -234
_REST = -233  # a size that stands for the rest, and in a list of slices for an equal share of the rest
_RESIZES = {1: "nearest", 2: "bilinear", 3: "bicubic"}
_PADS = ("constant", "replicate", "reflect")


def read_ncnn(path: Path) -> Imported:
    """The network of a .param and the .bin beside it.

    Raises FileNotFoundError where the .bin is missing, and ValueError, with the layer, for layers that are not known here, for
    quantised weights, and for damaged files.
    """
    layers = read_layers(path)
    unknown = list(dict.fromkeys(layer.kind for layer in layers if layer.kind not in _RULES))
    if unknown:
        first = next(layer for layer in layers if layer.kind in unknown)
        more = f"; nor are {', '.join(map(shown, unknown[1:8]))}" if unknown[1:] else ""
        raise ValueError(f"{first} is of a type that is not read{more}")
    if not bin_of(path).is_file():
        raise FileNotFoundError(f"its weights are missing: '{bin_of(path).name}' must lie beside it")
    return _Reader(layers, Weights(bin_of(path).read_bytes())).read()


def bin_of(path: Path) -> Path:
    """The file of the weights that belong to a .param."""
    return path.with_suffix(".BIN" if path.suffix == ".PARAM" else ".bin")


class _Reader:
    """Makes a network of layers. blobs: for the name of each blob, the tensor that it is, or the constant, [C, H, W] or [C]."""

    def __init__(self, layers: list[Layer], weights: Weights) -> None:
        self.layers, self.weights = layers, weights
        self.making = Making(_input_channels(layers))
        self.blobs: dict[str, str | np.ndarray] = {}

    def read(self) -> Imported:
        for layer in self.layers:
            try:
                made = _RULES[layer.kind](self, layer)
                if len(made) != len(layer.outputs):
                    raise ValueError(f"it must have {len(made)} outputs, got {len(layer.outputs)}")
            except ValueError as error:
                raise ValueError(f"{layer}: {error}") from error
            self.blobs.update(zip(layer.outputs, made, strict=True))
        self.weights.check_end()
        read = {blob for layer in self.layers for blob in layer.inputs}
        ends = [blob for blob in self.blobs if blob not in read]
        outputs = [tensor for blob in ends if isinstance(tensor := self.blobs[blob], str) and tensor != "x"]
        if len(outputs) != 1:
            raise ValueError(f"the network must have one output, got {len(outputs)}: {', '.join(map(shown, ends[:8]))}")
        return replace(self.making.result(outputs[0]), names={})  # the names of ncnn's layers are not those of state dicts

    def tensor(self, layer: Layer, index: int = 0) -> str:
        """The tensor of a layer's input. Raises ValueError where the input does not depend on the picture."""
        if index >= len(layer.inputs):
            raise ValueError(f"it must have {index + 1} inputs or more, got {len(layer.inputs)}")
        value = self.blobs[layer.inputs[index]]
        if not isinstance(value, str):
            raise ValueError(f"its input '{shown(layer.inputs[index])}' is a constant")
        return value

    def tensors(self, layer: Layer) -> list[str]:
        if not layer.inputs:
            raise ValueError("it must have inputs, got none")
        return [self.tensor(layer, i) for i in range(len(layer.inputs))]

    def activated(self, layer: Layer, x: str) -> str:
        """x after the activation that a convolution has in its settings."""
        kind, values = layer.integer(9), layer.numbers(10)
        wanted = (0, 0, 1, 2, 0, 0, 2)
        if not 0 <= kind < len(wanted) or len(values) < wanted[kind]:
            raise ValueError(f"its activation must be one of ncnn's types 0 to 6 with its settings, got {kind} with {len(values)}")
        name = f"{layer.name}.act"
        match kind:
            case 1:
                return self.making.activation(name, x, "relu")
            case 2:
                return self.making.activation(name, x, "leaky_relu", negative_slope=values[0])
            case 3:
                return self.making.clamp(name, x, values[0], values[1])
            case 4:
                return self.making.activation(name, x, "sigmoid")
            case 5:
                return self.making.activation(name, x, "mish")
            case 6:
                return _hard_swish(self, name, x, values[0], values[1])
        return x


_Rule = Callable[[_Reader, Layer], list[str | np.ndarray]]
_RULES: dict[str, _Rule] = {}


def _rule(*kinds: str) -> Callable[[_Rule], _Rule]:
    def register(rule: _Rule) -> _Rule:
        _RULES.update(dict.fromkeys(kinds, rule))
        return rule

    return register


def _input_channels(layers: list[Layer]) -> int:
    """The channels of the picture. Where the input does not say their number, it is what the first convolution that reads the
    picture takes, or else 3."""
    inputs = [layer for layer in layers if layer.kind == "Input"]
    if len(inputs) != 1:
        raise ValueError(f"the network must have one input, got {len(inputs)}")
    said = inputs[0].integer(2)
    return 3 if said == 0 else said


@_rule("Input")
def _input(to: _Reader, layer: Layer) -> list[str | np.ndarray]:
    return ["x"]


@_rule("Split")
def _split(to: _Reader, layer: Layer) -> list[str | np.ndarray]:
    return [to.tensor(layer)] * len(layer.outputs)


@_rule("Dropout", "Noop")
def _identity(to: _Reader, layer: Layer) -> list[str | np.ndarray]:
    if layer.kind == "Dropout" and layer.number(0, 1.0) != 1:
        return [to.making.affine(layer.name, to.tensor(layer), gain=np.array([layer.number(0)]))]
    return list(to.tensors(layer))


def _window(layer: Layer) -> Window:
    """The kernel, stride, dilation and padding of a convolution."""
    width, step, left = layer.integer(1), layer.integer(3, 1), layer.integer(4)
    dilation = layer.integer(2, 1)
    size, dilations = (layer.integer(11, width), width), (layer.integer(12, dilation), dilation)
    stride = (layer.integer(13, step), step)
    right, top = layer.integer(15, left), layer.integer(14, left)
    padding = (top, layer.integer(16, top), left, right)
    if left in (_SAME_UPPER, _SAME_LOWER):
        if stride != (1, 1):
            raise ValueError(f"padding to the same size must have stride 1, got {stride}")
        both = [(one - 1) * step for one, step in zip(size, dilations, strict=True)]
        less, more = [one // 2 for one in both], [-(-one // 2) for one in both]
        first, last = (less, more) if left == _SAME_UPPER else (more, less)
        padding = (first[0], last[0], first[1], last[1])
    return Window(size, stride, dilations, padding)


def _convolution_weights(to: _Reader, layer: Layer, window: Window, groups: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns the weight [K, C / groups, R, S] and the bias [K], or None for the bias."""
    outputs, total, (rows, columns) = layer.integer(0), layer.integer(6), window.kernel
    if outputs < 1 or groups < 1 or outputs % groups:
        raise ValueError(f"its outputs must be a multiple of its {groups} groups, got {outputs}")
    if layer.integer(8):
        raise ValueError("its weights are quantised (int8): only float32 and float16 are read")
    if layer.integer(19):
        raise ValueError("its weights come from another layer (dynamic_weight)")
    if total < 1 or total % (outputs * rows * columns):
        raise ValueError(f"its {total} weights are no multiple of {outputs} outputs and a kernel of {rows}x{columns}")
    weight = to.weights.tagged(total).reshape(outputs, -1, rows, columns)
    return weight, to.weights.plain(outputs) if layer.integer(5) else None


@_rule("Convolution", "ConvolutionDepthWise")
def _convolution(to: _Reader, layer: Layer) -> list[str | np.ndarray]:
    groups = layer.integer(7, 1) if layer.kind == "ConvolutionDepthWise" else 1
    window = _window(layer)
    if layer.number(18):
        raise ValueError(f"it must pad with zeros, got {layer.number(18):g}")
    weight, bias = _convolution_weights(to, layer, window, groups)
    return [to.activated(layer, to.making.conv(layer.name, to.tensor(layer), weight, bias, window, groups))]


@_rule("Deconvolution")
def _deconvolution(to: _Reader, layer: Layer) -> list[str | np.ndarray]:
    window, more = _window(layer), layer.integer(18)
    if layer.integer(19, more) != more or not 0 <= more <= 255 or layer.integer(20) or layer.integer(21):
        raise ValueError("its output must have the size that its stride says")
    weight, bias = _convolution_weights(to, layer, window, 1)
    weight = np.ascontiguousarray(weight.swapaxes(0, 1))
    return [to.activated(layer, to.making.transposed_conv(layer.name, to.tensor(layer), weight, bias, window, more=more))]


@_rule("PReLU")
def _prelu(to: _Reader, layer: Layer) -> list[str | np.ndarray]:
    return [to.making.prelu(layer.name, to.tensor(layer), to.weights.plain(layer.integer(0)))]


@_rule("ReLU")
def _relu(to: _Reader, layer: Layer) -> list[str | np.ndarray]:
    slope = layer.number(0)
    if slope == 0:
        return [to.making.activation(layer.name, to.tensor(layer), "relu")]
    return [to.making.activation(layer.name, to.tensor(layer), "leaky_relu", negative_slope=slope)]


@_rule("Sigmoid", "TanH", "Mish", "Swish", "GELU")
def _element_wise(to: _Reader, layer: Layer) -> list[str | np.ndarray]:
    name = {"Sigmoid": "sigmoid", "TanH": "tanh", "Mish": "mish", "Swish": "silu", "GELU": "gelu"}[layer.kind]
    settings = {"approximate": "tanh" if layer.integer(0) else "none"} if layer.kind == "GELU" else {}
    return [to.making.activation(layer.name, to.tensor(layer), name, **settings)]


@_rule("ELU")
def _elu(to: _Reader, layer: Layer) -> list[str | np.ndarray]:
    return [to.making.activation(layer.name, to.tensor(layer), "elu", alpha=layer.number(0, 0.1))]


@_rule("Clip")
def _clip(to: _Reader, layer: Layer) -> list[str | np.ndarray]:
    least, most = layer.number(0, -np.inf), layer.number(1, np.inf)
    return [to.making.clamp(layer.name, to.tensor(layer), _open(least), _open(most))]


def _open(end: float) -> float:
    """The end of a range, or infinity where it is the largest float32."""
    return float(np.copysign(np.inf, end)) if abs(end) > 3e38 else end


def _hard_swish(to: _Reader, name: str, x: str, alpha: float, beta: float) -> str:
    """Adds x times clip(alpha x + beta, 0, 1)."""
    scaled = to.making.affine(f"{name}.scaled", x, np.array([alpha]), np.array([beta]))
    return to.making.multiply(name, x, to.making.clamp(f"{name}.clamped", scaled, 0.0, 1.0))


@_rule("HardSwish")
def _hard_swish_layer(to: _Reader, layer: Layer) -> list[str | np.ndarray]:
    return [_hard_swish(to, layer.name, to.tensor(layer), layer.number(0, 0.2), layer.number(1, 0.5))]


@_rule("HardSigmoid")
def _hard_sigmoid(to: _Reader, layer: Layer) -> list[str | np.ndarray]:
    alpha, beta = np.array([layer.number(0, 0.2)]), np.array([layer.number(1, 0.5)])
    return [to.making.clamp(layer.name, to.making.affine(f"{layer.name}.scaled", to.tensor(layer), alpha, beta), 0.0, 1.0)]


@_rule("MemoryData")
def _constant(to: _Reader, layer: Layer) -> list[str | np.ndarray]:
    width, height, channels = (layer.integer(key) for key in (0, 1, 2))
    if not all(0 <= size <= 1 << 24 for size in (width, height, channels)) or layer.integer(11):
        raise ValueError(f"its sizes must be from 0 to {1 << 24}, got {width}, {height} and {channels}")
    shape = [size for size in (channels, height, width) if size]
    count = int(np.prod(shape, dtype=object)) if shape else 0
    values = to.weights.plain(count) if layer.integer(21, 1) == 1 else to.weights.tagged(count)
    if count != 1 and (len(shape) == 2 or shape[1:] not in ([], [1, 1])):
        raise ValueError(f"a constant must have one value, or one for each channel, got {' x '.join(map(str, shape))}")
    return [values.ravel()]


@_rule("BinaryOp")
def _binary(to: _Reader, layer: Layer) -> list[str | np.ndarray]:
    operator = layer.integer(0)
    names = ("add", "sub", "mul", "div", "", "", "", "rsub")
    name = names[operator] if 0 <= operator < len(names) else ""
    if not name:
        raise ValueError(f"its operator must be one of 0 to 3 and 7, which add, subtract, multiply and divide, got {operator}")
    a = to.blobs[layer.inputs[0]] if layer.inputs else ""
    b = np.array([layer.number(2)], np.float32) if layer.integer(1) else to.blobs[layer.inputs[1]] if layer.inputs[1:] else ""
    if isinstance(a, str) and isinstance(b, str):
        if not a or not b:
            raise ValueError("it must have two inputs, or one and a number")
        if name == "rsub":
            a, b, name = b, a, "sub"
        match name:
            case "add":
                return [to.making.add(layer.name, (a, b))]
            case "sub":
                return [to.making.add(layer.name, (a, b), (1.0, -1.0))]
            case "mul":
                return [to.making.multiply(layer.name, a, b)]
        return [to.making.divide(layer.name, a, b)]
    return [to.making.with_constant(layer.name, name, a, b)]


@_rule("Eltwise")
def _eltwise(to: _Reader, layer: Layer) -> list[str | np.ndarray]:
    operator, factors, tensors = layer.integer(0), layer.numbers(1), to.tensors(layer)
    if operator == 1:
        return [to.making.add(layer.name, tensors, factors)]
    if operator == 0:
        product = tensors[0]
        for i, other in enumerate(tensors[1:]):
            product = to.making.multiply(layer.name if i == len(tensors) - 2 else f"{layer.name}.{i}", product, other)
        return [product]
    raise ValueError(f"its operator must be 0 or 1, a product or a sum, got {operator}")


@_rule("Concat")
def _concat(to: _Reader, layer: Layer) -> list[str | np.ndarray]:
    if layer.integer(0) not in (0, -3):
        raise ValueError(f"it must put channels side by side (axis 0), got axis {layer.integer(0)}")
    return [to.making.concat(layer.name, to.tensors(layer))]


@_rule("Slice")
def _slice(to: _Reader, layer: Layer) -> list[str | np.ndarray]:
    x, sizes = to.tensor(layer), [int(one) if float(one).is_integer() else 0 for one in layer.numbers(0)]
    if layer.integer(1) not in (0, -3):
        raise ValueError(f"it must cut channels (axis 0), got axis {layer.integer(1)}")
    channels = to.making.extent(x).channels
    if layer.numbers(2):
        places = [int(one) % channels for one in layer.numbers(2)]
        edges = [0, *places, channels]
        sizes = [stop - start for start, stop in zip(edges, edges[1:], strict=False)]
    for i, size in enumerate(sizes):
        if size == _REST:
            sizes[i] = (channels - sum(sizes[:i])) // (len(sizes) - i)
    return list(to.making.slices(layer.name, x, sizes))


@_rule("Crop")
def _crop(to: _Reader, layer: Layer) -> list[str | np.ndarray]:
    """Takes a part of the channels; rows and columns must stay as they are."""
    x = to.tensor(layer)
    channels = to.making.extent(x).channels
    if len(layer.inputs) > 1:
        raise ValueError("it must be cut to sizes that it says, and not to those of another blob")
    starts, ends, axes = layer.numbers(9), layer.numbers(10), layer.numbers(11)
    if starts:
        axes = axes or tuple(range(len(starts)))
        if not len(starts) == len(ends) == len(axes) or [axis % 3 for axis in axes] != [0]:
            raise ValueError(f"it must cut channels alone (axis 0), got axes {[f'{axis:g}' for axis in axes[:4]]}")
        start, stop, _ = slice(int(starts[0]), int(ends[0])).indices(channels)
        return [to.making.slice(layer.name, x, start, stop)]
    places = {key: layer.integer(key) for key in (0, 1, 6, 7)}
    if any(places.values()) or any(layer.integer(key) != _REST for key in (3, 4)):
        raise ValueError("it must cut channels alone, and not rows or columns")
    start, size, stop = layer.integer(2), layer.integer(5), channels - layer.integer(8)
    stop = stop if size == _REST else min(start + size, stop)
    return [to.making.slice(layer.name, x, start, stop)]


@_rule("PixelShuffle")
def _shuffle(to: _Reader, layer: Layer) -> list[str | np.ndarray]:
    return [to.making.shuffle(layer.name, to.tensor(layer), layer.integer(0, 1), layer.integer(1) == 1)]


@_rule("Reorg")
def _reorg(to: _Reader, layer: Layer) -> list[str | np.ndarray]:
    return [to.making.unshuffle(layer.name, to.tensor(layer), layer.integer(0, 1), layer.integer(1) == 1)]


@_rule("Interp")
def _interp(to: _Reader, layer: Layer) -> list[str | np.ndarray]:
    kind, height, width = layer.integer(0), layer.number(1, 1.0), layer.number(2, 1.0)
    if kind not in _RESIZES or height != width or len(layer.inputs) != 1 or layer.integer(3) or layer.integer(4):
        raise ValueError(
            "it must resize rows and columns by one factor, to the nearest pixel, bilinear or bicubic, got type "
            f"{kind}, factors {height:g} and {width:g}, size {layer.integer(3)} x {layer.integer(4)}"
        )
    if not 0 < height < 1e6:
        raise ValueError(f"it must resize by a factor above 0, got {height:g}")
    corners = bool(layer.integer(6)) if kind > 1 else None
    factor = Fraction(height).limit_denominator(1000)
    return [to.making.resize(layer.name, to.tensor(layer), factor, _RESIZES[kind], corners)]


@_rule("Padding")
def _padding(to: _Reader, layer: Layer) -> list[str | np.ndarray]:
    kind = layer.integer(4)
    if not 0 <= kind < len(_PADS) or layer.integer(6) or layer.integer(7) or layer.integer(8):
        raise ValueError("it must pad rows and columns, with a number, the nearest pixel or reflected ones")
    top, bottom, left, right = (layer.integer(key) for key in range(4))
    return [to.making.pad(layer.name, to.tensor(layer), (top, bottom, left, right), _PADS[kind], layer.number(5))]


@_rule("BatchNorm")
def _batch_norm(to: _Reader, layer: Layer) -> list[str | np.ndarray]:
    parts = {part: to.weights.plain(layer.integer(0)) for part in ("weight", "running_mean", "running_var", "bias")}
    return [to.making.batch_norm(layer.name, to.tensor(layer), parts, layer.number(1))]


@_rule("Scale")
def _scale(to: _Reader, layer: Layer) -> list[str | np.ndarray]:
    count = layer.integer(0)
    if count == _REST:
        if layer.integer(1):
            raise ValueError("it must have no bias where another layer gives its factors")
        return [to.making.multiply(layer.name, to.tensor(layer), to.tensor(layer, 1))]
    gain = to.weights.plain(count)
    shift = to.weights.plain(count) if layer.integer(1) else None
    return [to.making.affine(layer.name, to.tensor(layer), gain, shift)]


@_rule("Pooling")
def _pooling(to: _Reader, layer: Layer) -> list[str | np.ndarray]:
    kind, x = layer.integer(0), to.tensor(layer)
    if kind not in (0, 1) or (layer.integer(7) and not (layer.integer(8) == layer.integer(18, layer.integer(8)) == 1)):
        raise ValueError(f"it must take the largest or the mean of a window or of all, got type {kind}")
    if layer.integer(4) or layer.integer(7):
        if kind == 0:
            raise ValueError("it takes the largest of a whole picture")
        return [to.making.mean(layer.name, x)]
    width, step, left = layer.integer(1), layer.integer(2, 1), layer.integer(3)
    top = layer.integer(13, left)
    window = Window(
        (layer.integer(11, width), width),
        (layer.integer(12, step), step),
        padding=(top, layer.integer(15, top), left, layer.integer(14, left)),
    )
    if layer.integer(5) not in (0, 1):
        raise ValueError(f"its mode of padding must be 0 or 1, got {layer.integer(5)}")
    function = ("max_pool2d", "avg_pool2d")[kind]
    return [to.making.pool(layer.name, x, function, window, layer.integer(5) == 0, bool(layer.integer(6)))]


@_rule("InnerProduct")
def _linear(to: _Reader, layer: Layer) -> list[str | np.ndarray]:
    """A linear layer, which ncnn has after a mean of channels. It becomes a 1x1 convolution of a tensor with one row and one
    column."""
    x, outputs, total = to.tensor(layer), layer.integer(0), layer.integer(2)
    extent = to.making.extent(x)
    if extent.scale or layer.integer(8) or outputs < 1 or total != outputs * extent.channels:
        raise ValueError(f"it must take one value of each channel with float weights, got {total} weights for {outputs} outputs")
    weight = to.weights.tagged(total).reshape(outputs, extent.channels, 1, 1)
    bias = to.weights.plain(outputs) if layer.integer(1) else None
    return [to.activated(layer, to.making.conv(layer.name, x, weight, bias, Window((1, 1))))]
