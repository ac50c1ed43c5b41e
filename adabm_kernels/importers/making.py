"""What the readers of other formats have in common: they add nodes one after the other, and the values and sizes of each node are
checked."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from ..graph.nodes import (
    Activation,
    Add,
    Affine,
    BatchNorm,
    Concat,
    Conv,
    Float,
    Graph,
    Key,
    Linear,
    Multiply,
    Node,
    PixelShuffle,
    PixelUnshuffle,
    Pool,
    Ref,
    Resize,
    Slice,
)
from ..graph.passes import merge_affines, merge_factors, remove_dead
from ..graph.properties import Extent, extent_of
from ..networks.layouts import MAX_CHANNELS, shortened

MAX_NODES = 5_000  # an RRDBNet of 23 blocks, the largest known network, has a thousand nodes, and two thousand lines in ncnn
MAX_CONSTANTS = 1 << 20  # the most factors and shifts of channels, which become Python numbers
MAX_SCALE = 64  # the largest scale of a tensor to the picture, and of the picture to a tensor
MAX_KERNEL = 255
_TAKEN = frozenset(dir(torch.nn.Module)) | {"graph"}


@dataclass(frozen=True)
class Imported:
    """A network as a file holds it.

    graph, state: the nodes of the network, and the values that they learnt, as float32 under their keys. channels: the number of
    channels of the input. names: for some keys, the name that the file gives to the layer of the key, where this is a name as in
    state dicts.
    """

    graph: Graph
    state: dict[str, torch.Tensor]
    channels: int
    names: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Window:
    """The rows and columns that a convolution or a pooling reads. Each field has two numbers, for rows and for columns, except
    `padding`, which has four: top, bottom, left, right."""

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)

    def __post_init__(self) -> None:
        for name, values, least in (("kernel", self.kernel, 1), ("stride", self.stride, 1), ("dilation", self.dilation, 1)):
            if not all(least <= value <= MAX_KERNEL for value in values):
                raise ValueError(f"{name} must be from {least} to {MAX_KERNEL}, got {values}")
        if not all(0 <= value <= MAX_KERNEL for value in self.padding):
            raise ValueError(f"padding must be from 0 to {MAX_KERNEL}, got {self.padding}")

    @property
    def even(self) -> tuple[int, int] | None:
        """The rows and columns of padding, where they are the same on both sides; None where they differ."""
        top, bottom, left, right = self.padding
        return (top, left) if (top, left) == (bottom, right) else None


class Making:
    """Collects the nodes of a network. Each method returns the name of the tensor that it adds.

    Raises ValueError, without the name of the file or of the layer, for sizes that do not fit one another and for values that are
    NaN or infinite.
    """

    def __init__(self, channels: int) -> None:
        self.nodes: dict[str, Node] = {}
        self.state: dict[str, torch.Tensor] = {}
        self.names: dict[str, str] = {}
        self.channels = _within("the channels of the input", channels, 1, MAX_CHANNELS)
        self.extents: dict[str, Extent] = {"x": Extent(channels)}
        self.inexact: set[str] = set()  # tensors whose sides are the picture's times a number, plus or minus some pixels
        self._constants = 0
        self._read, self._copied = 0, 0  # the bytes of weights that were read, and of weights that were put into another order
        self._counts: dict[str, int] = {}  # for each name that was taken, the last number that was appended
        self._finite: dict[int, np.ndarray] = {}  # checked arrays, held so that no other gets their id

    # ---- nodes

    def conv(self, name: str, x: str, weight: np.ndarray, bias: np.ndarray | None, window: Window, groups: int = 1) -> str:
        """Adds a convolution. weight: [K, C / groups, R, S]. bias: [K]."""
        outputs, inputs = weight.shape[0], weight.shape[1] * groups
        if inputs != self.extent(x).channels or outputs % groups:
            what = f"{inputs} channels in and {outputs} out, in {groups} groups"
            raise ValueError(f"weights are for {what}, but the input has {self.extent(x).channels}")
        padding = window.even
        if padding is None:
            x, padding = self.pad(f"{name}.pad", x, window.padding), (0, 0)
        return self._add(
            Conv(
                self._free(name),
                (x,),
                self.learn(name, weight=weight, bias=bias),
                inputs,
                outputs,
                window.kernel,
                window.stride,
                window.dilation,
                padding,
                groups,
                bias is not None,
            )
        )

    def transposed_conv(
        self, name: str, x: str, weight: np.ndarray, bias: np.ndarray | None, window: Window, groups: int = 1, more: int = 0
    ) -> str:
        """Adds a transposed convolution, which is computed in floats. weight: [C, K / groups, R, S]. more: the rows and columns
        that are added at the end."""
        inputs, outputs = weight.shape[0], weight.shape[1] * groups
        padding = window.even
        if inputs != self.extent(x).channels or inputs % groups:
            raise ValueError(f"weights are for {inputs} channels in {groups} groups, but the input has {self.extent(x).channels}")
        if padding is None or window.stride[0] != window.stride[1]:
            raise ValueError(f"a transposed convolution must have even padding and one stride, got {window}")
        reach = [d * (k - 1) + 1 - 2 * p + more for k, d, p in zip(window.kernel, window.dilation, padding, strict=True)]
        if reach != [window.stride[0]] * 2:
            raise ValueError(f"a transposed convolution must make {window.stride[0]} rows of each row of its input, got {window}")
        key = self.learn(name, weight=weight, bias=bias)
        given = {"stride": window.stride, "padding": padding, "output_padding": more, "groups": groups, "dilation": window.dilation}
        keys = (f"{key}.weight", *([f"{key}.bias"] if bias is not None else []))
        return self.other(
            name,
            (x,),
            "torch.nn.functional.conv_transpose2d",
            (Ref(0), *map(Key, keys)),
            given,
            Extent(outputs, self.extent(x).scale * window.stride[0]),
            keys,
        )

    def linear(self, name: str, x: str, weight: np.ndarray, bias: np.ndarray | None) -> str:
        """Adds a linear layer [N, C] -> [N, K] with weight [K, C]."""
        if weight.shape[1] != self.extent(x).channels:
            raise ValueError(f"weights are for {weight.shape[1]} channels, but the input has {self.extent(x).channels}")
        key = self.learn(name, weight=weight, bias=bias)
        return self._add(Linear(self._free(name), (x,), key, weight.shape[1], weight.shape[0], bias is not None))

    def batch_norm(self, name: str, x: str, parts: dict[str, np.ndarray], eps: float) -> str:
        """Adds a BatchNorm. parts: weight, bias, running_mean and running_var, [C] each."""
        channels = self.extent(x).channels
        for part, values in parts.items():
            if values.shape != (channels,):
                raise ValueError(f"{part} must hold {channels} values, one for each channel, got {values.size}")
        if not (0 <= eps < 1) or bool((parts["running_var"] < 0).any()):
            raise ValueError(f"variances must be at least 0, and eps from 0 to below 1, got {eps:g}")
        key = self.learn(name, **parts)
        self.state[f"{key}.num_batches_tracked"] = torch.tensor(0)
        return self._add(BatchNorm(self._free(name), (x,), key, channels, eps))

    def activation(self, name: str, x: str, function: str, **settings: Any) -> str:
        if not all(isinstance(value, str) or math.isfinite(value) for value in settings.values()):
            raise ValueError(f"its settings must be finite, got {settings}")
        return self._add(Activation(self._free(name), (x,), function, tuple(settings.items())))

    def clamp(self, name: str, x: str, least: float, most: float) -> str:
        """Adds a clamp of x to `least`..`most`, either of which may be infinite."""
        if (least, most) == (0, math.inf):
            return self.activation(name, x, "relu")
        if (least, most) == (0, 6):
            return self.activation(name, x, "relu6")
        if not least <= most or math.isinf(least) and math.isinf(most):
            raise ValueError(f"it must hold its input above a number, below one, or between two, got {least:g} and {most:g}")
        if math.isinf(least) or math.isinf(most):
            ends = {side: end for side, end in (("min", least), ("max", most)) if math.isfinite(end)}
            return self.other(name, (x,), "torch.clamp", (Ref(0),), ends, self.extent(x))
        return self.activation(name, x, "hardtanh", min_val=least, max_val=most)

    def prelu(self, name: str, x: str, slopes: np.ndarray) -> str:
        """Adds a PReLU. slopes: [1] or [C]."""
        if slopes.size not in (1, self.extent(x).channels):
            raise ValueError(f"slopes must be 1 or {self.extent(x).channels}, the channels of the input, got {slopes.size}")
        key = self.learn(name, weight=slopes)
        return self._add(Activation(self._free(name), (x,), "prelu", key=key, slopes=slopes.size))

    def add(self, name: str, inputs: Iterable[str], factors: tuple[float, ...] = ()) -> str:
        """Adds a sum of tensors, each multiplied by its factor."""
        inputs = tuple(inputs)
        if not all(math.isfinite(factor) for factor in factors) or (factors and len(factors) != len(inputs)):
            raise ValueError(f"a sum must have a finite factor for each of its {len(inputs)} inputs, got {factors}")
        if len({self.extent(one) for one in inputs}) == 1:
            return self._add(Add(self._free(name), inputs, () if set(factors) <= {1.0} else factors))
        if set(map(abs, factors)) <= {1.0} and len(inputs) == 2:
            function = "torch.sub" if factors == (1.0, -1.0) else "torch.add"
            if factors in ((), (1.0, 1.0), (1.0, -1.0)):
                return self._broadcast(name, inputs, function)
        raise ValueError(f"it adds tensors of different sizes, {self._sizes(inputs)}")

    def multiply(self, name: str, a: str, b: str) -> str:
        for x, factor in ((a, self.nodes.get(b)), (b, self.nodes.get(a))):
            if isinstance(factor, Activation) and factor.function == "sigmoid" and factor.x == x:
                return self.activation(name, x, "silu")
        if self.extent(a) == self.extent(b):
            return self._add(Multiply(self._free(name), (a, b)))
        return self._broadcast(name, (a, b), "torch.mul")

    def divide(self, name: str, a: str, b: str) -> str:
        return self._broadcast(name, (a, b), "torch.div")

    def affine(
        self, name: str, x: str, gain: np.ndarray | None = None, shift: np.ndarray | None = None, divisor: float | None = None
    ) -> str:
        """Adds x * gain + shift, or x / divisor. Each is one number for all channels, or one for each."""
        given = {}
        for part, values in (("gain", gain), ("shift", shift)):
            if values is not None:
                if values.size not in (1, self.extent(x).channels):
                    raise ValueError(
                        f"numbers must be 1 or {self.extent(x).channels}, the channels of the input, got {values.size}"
                    )
                numbers = tuple(map(shortest, self._checked(values).ravel()))
                given[part] = numbers[:1] if len(set(numbers)) == 1 else numbers
                self._constants += len(given[part])
        if self._constants > MAX_CONSTANTS:
            raise ValueError(f"factors and shifts of all channels must be {MAX_CONSTANTS} at most")
        if divisor is not None and not (math.isfinite(divisor) and divisor):
            raise ValueError(f"it must divide by a finite number other than 0, got {divisor:g}")
        if set(given.get("gain", (1.0,))) == {1.0} and set(given.get("shift", (0.0,))) == {0.0} and divisor in (None, 1.0):
            return x
        return self._add(Affine(self._free(name), (x,), given.get("gain"), given.get("shift"), divisor))

    def with_constant(self, name: str, operator: str, a: str | np.ndarray, b: str | np.ndarray) -> str:
        """Adds an operation on a tensor and a constant, which has one value, or one for each channel.

        operator: "add", "sub" (a - b), "rsub" (b - a), "mul" or "div".
        """
        if isinstance(a, np.ndarray):
            if isinstance(b, np.ndarray):
                raise ValueError("its inputs are constants")
            if operator == "div":
                raise ValueError("it divides a constant")
            a, b, operator = b, a, {"sub": "rsub", "rsub": "sub"}.get(operator, operator)
        assert isinstance(b, np.ndarray)
        minus = np.array([-1.0])
        match operator:
            case "add":
                return self.affine(name, a, shift=b)
            case "sub":
                return self.affine(name, a, shift=-b)
            case "rsub":
                return self.affine(name, a, gain=minus, shift=b)
            case "mul":
                return self.affine(name, a, gain=b)
        if b.size == 1:
            return self.affine(name, a, divisor=shortest(b.ravel()[0]))
        if not b.all():
            raise ValueError("it divides by 0")
        return self.affine(name, a, gain=1 / b.astype(np.float64))

    def concat(self, name: str, inputs: Iterable[str]) -> str:
        inputs = tuple(inputs)
        if len({self.extent(one).scale for one in inputs}) > 1:
            raise ValueError(f"it puts tensors of different sizes side by side, {self._sizes(inputs)}")
        return inputs[0] if len(inputs) == 1 else self._add(Concat(self._free(name), inputs))

    def slice(self, name: str, x: str, start: int, stop: int) -> str:
        """Adds a node that takes the channels `start` to `stop` - 1."""
        channels = self.extent(x).channels
        if not 0 <= start < stop <= channels:
            raise ValueError(f"channels must be some of the {channels} of the input, got {start} to {stop}")
        return x if (start, stop) == (0, channels) else self._add(Slice(self._free(name), (x,), start, stop))

    def slices(self, name: str, x: str, sizes: Iterable[int]) -> list[str]:
        """Adds nodes that split the channels of x into parts of these sizes, one after the other."""
        sizes = list(sizes)
        if any(size < 1 for size in sizes) or sum(sizes) != self.extent(x).channels:
            raise ValueError(f"parts must have {self.extent(x).channels} channels together, got {sizes[:8]}")
        starts = np.cumsum([0, *sizes]).tolist()
        return [
            self.slice(f"{name}.{i}", x, start, start + size) for i, (start, size) in enumerate(zip(starts, sizes, strict=False))
        ]

    def shuffle(self, name: str, x: str, factor: int, blocks_first: bool = False) -> str:
        """Adds a shuffle [N, C r^2, H, W] -> [N, C, r H, r W]. blocks_first: true where the input's channels are numbered by the
        place within a square first, and by C second."""
        channels = self.extent(x).channels
        if not 1 <= factor <= MAX_SCALE or channels % factor**2:
            raise ValueError(f"a shuffle by {factor} needs channels that {factor}^2 divides, but the input has {channels}")
        if factor == 1:
            return x
        if blocks_first and channels > factor**2:
            x = self._reordered(x, np.arange(channels).reshape(factor**2, -1).T.ravel())
        return self._add(PixelShuffle(self._free(name), (x,), factor))

    def unshuffle(self, name: str, x: str, factor: int, blocks_first: bool = False) -> str:
        """Adds a shuffle [N, C, r H, r W] -> [N, C r^2, H, W]. blocks_first: as in `shuffle`, for the output's channels."""
        if not 1 <= factor <= MAX_SCALE:
            raise ValueError(f"it must gather squares of 1 to {MAX_SCALE} pixels a side, got {factor}")
        channels = self.extent(x).channels
        if factor == 1:
            return x
        y = self._add(PixelUnshuffle(self._free(name), (x,), factor))
        if not blocks_first or channels == 1:
            return y
        if channels * factor**2 > MAX_SCALE:
            raise ValueError(
                f"channels that are numbered by their place first must be {MAX_SCALE} at most, got {channels * factor**2}"
            )
        order = np.arange(channels * factor**2).reshape(channels, -1).T.ravel().tolist()
        return self.concat(f"{name}.ordered", [self.slice(f"{name}.{i}", y, i, i + 1) for i in order])

    def resize(self, name: str, x: str, factor: Fraction, mode: str = "nearest", align_corners: bool | None = None) -> str:
        """Adds a resizing [N, C, H, W] -> [N, C, factor H, factor W]. mode: "nearest", "bilinear" or "bicubic"; the last is
        computed in floats."""
        if not Fraction(1, MAX_SCALE) <= factor <= MAX_SCALE:
            raise ValueError(f"it must resize by 1/{MAX_SCALE} to {MAX_SCALE}, got {float(factor):g}")
        number: float = int(factor) if factor.denominator == 1 else float(factor)
        if factor == 1:
            return x
        if mode != "bicubic":
            return self._add(Resize(self._free(name), (x,), number, mode, align_corners))
        settings = {"scale_factor": number, "mode": mode, "align_corners": align_corners}
        extent = self.extent(x)
        extent = replace(extent, scale=extent.scale * factor)
        return self.other(name, (x,), "torch.nn.functional.interpolate", (Ref(0),), settings, extent)

    def pool(self, name: str, x: str, function: str, window: Window, ceil: bool = False, counts_padding: bool = True) -> str:
        padding = window.even
        if padding is None or any(2 * p > k for p, k in zip(padding, window.kernel, strict=True)):
            raise ValueError(f"a pooling must have even padding of half its window at most, got {window}")
        if window.stride[0] != window.stride[1] or window.dilation != (1, 1):
            raise ValueError(f"a pooling must have one stride for rows and columns and no dilation, got {window}")
        settings: dict[str, Any] = {"kernel_size": window.kernel, "stride": window.stride, "padding": padding, "ceil_mode": ceil}
        settings |= {"count_include_pad": counts_padding} if function == "avg_pool2d" else {}
        return self._add(Pool(self._free(name), (x,), function, tuple(settings.items())))

    def mean(self, name: str, x: str) -> str:
        """Adds the mean of each channel, [N, C, 1, 1]."""
        return self._add(Pool(self._free(name), (x,), "adaptive_avg_pool2d", (("output_size", 1),)))

    def pad(self, name: str, x: str, padding: tuple[int, int, int, int], mode: str = "constant", value: float = 0.0) -> str:
        """Adds rows and columns around x, in floats. padding: how many at the top, bottom, left and right.

        The size is then no multiple of the picture's; later nodes must take off as much.
        """
        if not all(0 <= one <= MAX_KERNEL for one in padding) or not math.isfinite(value):
            raise ValueError(f"padding must be from 0 to {MAX_KERNEL}, and its value finite, got {padding} and {value:g}")
        top, bottom, left, right = padding
        if not any(padding):
            return x
        settings = {"mode": mode} | ({"value": value} if mode == "constant" else {})
        arguments = (Ref(0), (left, right, top, bottom))
        return self.other(name, (x,), "torch.nn.functional.pad", arguments, settings, self.extent(x))

    def other(
        self,
        name: str,
        inputs: tuple[str, ...],
        target: str,
        arguments: tuple[Any, ...],
        settings: dict[str, Any],
        extent: Extent,
        keys: Iterable[str] = (),
    ) -> str:
        """Adds a call of torch that stays in floats. extent: the extent of its result. keys: the keys of the values that it
        reads."""
        shapes = tuple((key, tuple(self.state[key].shape)) for key in keys)
        return self._add(Float(self._free(name), inputs, target, arguments, tuple(settings.items()), shapes), extent)

    # ---- the parts of nodes

    def extent(self, name: str) -> Extent:
        return self.extents[name]

    def result(self, output: str) -> Imported:
        """The network that computes this tensor, after the passes that every traced network goes through."""
        if not self.nodes:
            raise ValueError("the network computes nothing")
        nodes = tuple(self.nodes.values())
        graph = merge_affines(merge_factors(remove_dead(Graph(nodes, outputs=(output,)))))
        if not any(isinstance(node, Conv) for node in graph.nodes):
            raise ValueError("the network has no convolution on the way to its output")
        state = {key: self.state[key] for key in graph.parameters()}
        names = {key: name for key, name in self.names.items() if any(full in state for full in _parts(key))}
        return Imported(graph, state, self.channels, names)

    def _add(self, node: Node, extent: Extent | None = None) -> str:
        if len(self.nodes) >= MAX_NODES:
            raise ValueError(f"a network must have {MAX_NODES} nodes at most")
        extent = extent or extent_of(node, [self.extents[name] for name in node.inputs])
        if extent is None:
            raise ValueError("its rows and columns must change by the same factor")
        _within("channels of a tensor", extent.channels, 1, MAX_CHANNELS)
        if extent.scale and not Fraction(1, MAX_SCALE) <= extent.scale <= MAX_SCALE:
            raise ValueError(f"sizes must be 1/{MAX_SCALE} to {MAX_SCALE} times the picture's, got {float(extent.scale):g}")
        self.nodes[node.name] = node
        self.extents[node.name] = extent
        if extent.scale and (not _keeps_multiples(node) or not self.inexact.isdisjoint(node.inputs)):
            self.inexact.add(node.name)
        return node.name

    def _broadcast(self, name: str, inputs: tuple[str, ...], function: str) -> str:
        """Adds an operation on two tensors, element by element. One of them may have a single value for each channel, or a single
        channel."""
        a, b = map(self.extent, inputs)
        channels, scale = max(a.channels, b.channels), max(a.scale, b.scale)
        if not all(one.channels in (1, channels) and one.scale in (0, scale) for one in (a, b)):
            raise ValueError(f"it takes tensors of different sizes, {self._sizes(inputs)}")
        return self.other(name, inputs, function, (Ref(0), Ref(1)), {}, Extent(channels, scale))

    def _sizes(self, inputs: Iterable[str]) -> str:
        found = [self.extent(one) for one in inputs]
        return ", ".join(f"{one.channels} channels x{float(one.scale):g}" for one in found[:4])

    def _reordered(self, x: str, order: np.ndarray) -> str:
        """Puts the channels of x into another order, by reordering the outputs of the convolution that makes them."""
        conv = self.nodes.get(x)
        if not isinstance(conv, Conv) or conv.groups != 1:
            raise ValueError("channels that are numbered by their place first must come from a convolution")
        self._copied += 4 * self.state[f"{conv.key}.weight"].numel()
        if self._copied > self._read:
            raise ValueError("weights of one convolution are put into other orders too often")
        parts = {
            part: self.state[f"{conv.key}.{part}"].numpy()[order] for part in (("weight", "bias") if conv.bias else ("weight",))
        }
        name = self._free(f"{conv.name}_ordered")
        return self._add(replace(conv, name=name, key=self.learn(name, **parts)))

    def learn(self, name: str, **parts: np.ndarray | None) -> str:
        """Puts values into the state, and returns the key with which their names begin."""
        key = self._numbered(_plain(name), lambda tried: any(full in self.state for full in _parts(tried)))
        for part, values in parts.items():
            if values is not None:
                self.state[f"{key}.{part}"] = torch.from_numpy(self._checked(values))
        self.names[key] = name
        return key

    def _checked(self, values: np.ndarray) -> np.ndarray:
        if id(values) not in self._finite:
            if not np.isfinite(values).all():
                raise ValueError("it holds values that are NaN or infinite")
            self._finite[id(values)] = values
            self._read += values.nbytes
        return values

    def _free(self, name: str) -> str:
        return self._numbered(shown(name), lambda tried: tried in self.nodes or tried == "x")

    def _numbered(self, name: str, taken: Callable[[str], bool]) -> str:
        """The name, or the name with a number appended where it is taken: a file may give the same name to all its layers."""
        tried = name
        while taken(tried):
            self._counts[name] = self._counts.get(name, 0) + 1
            tried = f"{name}_{self._counts[name]}"
        return tried


def _keeps_multiples(node: Node) -> bool:
    """Returns whether a node turns sides that are multiples of its stride into exactly these sides divided by the stride."""
    if isinstance(node, Conv):
        axes = zip(node.kernel, node.stride, node.dilation, node.padding, strict=True)
        return all(-stride <= 2 * pad - dilation * (size - 1) - 1 <= -1 for size, stride, dilation, pad in axes)
    if isinstance(node, Pool) and not node.function.startswith("adaptive"):
        given = dict(node.settings)
        ends = zip(given["kernel_size"], given["stride"], given["padding"], strict=True)
        left = [(2 * pad - size, stride) for size, stride, pad in ends]
        return all(-2 * stride < over <= -stride if given["ceil_mode"] else -stride <= over <= -1 for over, stride in left)
    return not (isinstance(node, Float) and node.target == "torch.nn.functional.pad")


def shortest(value: Any) -> float:
    """The shortest decimal number that a float32 stands for: 0.2, not 0.20000000298. Other numbers stay as they are."""
    return float(str(value)) if isinstance(value, np.float32) else float(value)


def shown(name: str | bytes) -> str:
    """A name from a file for messages: on one line and not too long. Names that are no UTF-8 come as bytes."""
    name = name.decode("utf-8", "replace") if isinstance(name, bytes) else name
    return shortened("".join(letter if letter.isprintable() else "?" for letter in name[:200]))


def _parts(key: str) -> tuple[str, ...]:
    return tuple(f"{key}.{part}" for part in ("weight", "bias", "running_mean"))


def _plain(name: str) -> str:
    """A name that a module may have, made of the name that the file gives."""
    name = re.sub(r"\W+", "_", shown(name), flags=re.ASCII).strip("_")
    return f"layer_{name}" if not name or name in _TAKEN or not name[0].isalpha() else name


def _within(what: str, value: int, least: int, most: int) -> int:
    if not least <= value <= most:
        raise ValueError(f"{what} must be from {least} to {most}, got {value}")
    return value
