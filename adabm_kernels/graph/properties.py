"""What the structure of a graph tells about a network: the sizes of its tensors, the work, the reach, the residual blocks and the
upsampler. The names of nodes play no part."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from .fuse import why_not_integer
from .nodes import (
    Activation,
    Add,
    Affine,
    BatchNorm,
    BorderConv,
    ColourShift,
    Concat,
    Conv,
    Deviation,
    Float,
    Graph,
    Linear,
    Multiply,
    Node,
    PixelShuffle,
    PixelUnshuffle,
    Pool,
    Resize,
    ResizeLike,
    Slice,
)

# Nodes that do not read the neighbours of a value: they change each value by itself, or by a constant of the picture or channel.
POINTWISE = (Activation, Affine, BatchNorm, ColourShift)
HOMOGENEOUS = ("relu", "leaky_relu", "prelu")  # activations for which act(c v) = c act(v), with c above 0
# The radius, in pixels, of the kernel of a collapsed upsampler (networks/collapse.py): two 3x3 stages and one at each finer
# resolution reach no further.
COLLAPSED_RADIUS = 2


@dataclass(frozen=True)
class Extent:
    """The size of a tensor [N, channels, scale * H, scale * W] in a network of pictures [N, C, H, W].

    scale: the rows of the tensor for each row of the picture; 0 where rows and columns do not grow with the picture.
    """

    channels: int
    scale: Fraction = Fraction(1)


@dataclass(frozen=True)
class ConvSpec:
    """One convolution of a network that can be quantised.

    name: its key in AdaBM state dicts. channels_in, channels_out: how many channels it reads and makes. kernel: the rows of its
    kernel, and also the columns unless `columns` is given. role: how the bits of its input are chosen: "adaptive" where the image
    and the layer decide them, "fixed" where they are the base bits, "end" (first, last, upsampler) where they are 8. scale: its
    resolution relative to the low-resolution image. bias: true where it has a bias. body: true where it is quantised even when only
    the body is. stride, dilation, padding: two numbers each, for rows and for columns; a padding of None stands for half the
    kernel.
    """

    name: str
    channels_in: int
    channels_out: int
    kernel: int
    role: str
    scale: int | Fraction = 1
    bias: bool = True
    body: bool = False
    columns: int | None = None
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int] | None = None
    groups: int = 1

    @property
    def sizes(self) -> tuple[int, int]:
        """Rows and columns of the kernel."""
        return self.kernel, self.kernel if self.columns is None else self.columns

    @property
    def products(self) -> int | Fraction:
        """The number of multiplications for each pixel of the low-resolution image."""
        return self.channels_in // self.groups * self.channels_out * math.prod(self.sizes) * self.scale**2


@dataclass(frozen=True)
class ResidualBlock:
    """A sum that computes output = entry + factor * f(entry).

    entry: the name of the tensor that f reads. inner: the names of the nodes of f, in order. output: the name of the `Add`.
    """

    entry: str
    inner: tuple[str, ...]
    output: str


def extents(graph: Graph, channels: Mapping[str, int] | None = None) -> dict[str, Extent]:
    """The size of every tensor whose size the graph tells. Three kinds are left out: tensors that a `Float` makes, tensors whose
    rows and columns have become smaller by different factors, and tensors that are computed from such tensors alone.

    channels: the number of channels of each input; by default 3.
    """
    found = {name: Extent((channels or {}).get(name, 3)) for name in graph.inputs}
    for node in graph.nodes:
        if known := [found[name] for name in node.inputs if name in found]:
            extent = extent_of(node, known)
            if extent is not None:
                found[node.name] = extent
    return found


def extent_of(node: Node, inputs: list[Extent]) -> Extent | None:
    x = inputs[0]
    match node:
        case Conv():
            return _smaller(node.channels_out, x, node.stride)
        case BorderConv():
            return Extent(node.channels_out, x.scale * node.scale)
        case Linear():
            return Extent(node.channels_out, x.scale)
        case Add() | Multiply():
            return Extent(max(one.channels for one in inputs), max(one.scale for one in inputs))
        case Concat():
            whole = len(inputs) == len(node.inputs)
            return Extent(sum(one.channels for one in inputs), x.scale) if whole else None
        case Slice():
            return Extent(node.stop - node.start, x.scale)
        case PixelShuffle():
            return Extent(x.channels // node.factor**2, x.scale * node.factor)
        case PixelUnshuffle():
            return Extent(x.channels * node.factor**2, x.scale / node.factor)
        case Resize():
            return Extent(x.channels, x.scale * Fraction(node.factor))
        case ResizeLike():
            return Extent(x.channels, inputs[-1].scale)
        case Deviation():
            return Extent(x.channels, Fraction(0))
        case Pool():
            settings = dict(node.settings)
            if node.function.startswith("adaptive"):
                return Extent(x.channels, Fraction(0))
            return _smaller(x.channels, x, settings.get("stride") or settings["kernel_size"])
        case Float():
            return None
    return x


def _smaller(channels: int, x: Extent, strides: int | tuple[int, ...]) -> Extent | None:
    """The extent of a tensor that has one row and one column for every `strides` of x; None where `strides` is two different
    numbers."""
    both = (strides,) if isinstance(strides, int) else strides
    return Extent(channels, x.scale / both[0]) if len(set(both)) == 1 else None


def convs(graph: Graph, channels: Mapping[str, int] | None = None) -> tuple[ConvSpec, ...]:
    """The convolutions that can be quantised, in the order they run. Convolutions with the role "float" are left out.

    channels: the number of channels of each input, as `extents` takes them.
    """
    sizes = extents(graph, channels)
    return tuple(
        ConvSpec(
            node.key,
            node.channels_in,
            node.channels_out,
            node.kernel[0],
            node.role,
            _whole(sizes[node.name].scale) if node.name in sizes else 1,
            node.bias,
            node.body,
            node.kernel[1],
            node.stride,
            node.dilation,
            node.padding,
            node.groups,
        )
        for node in graph.nodes
        if isinstance(node, Conv) and node.role != "float" and not why_not_integer(node)
    )


def keeps_size(node: Conv) -> bool:
    """Returns whether a convolution keeps the size of its input and can be quantised. It then has stride 1, one group, and a square
    kernel with the padding that this needs."""
    rows, columns = node.kernel
    plain = node.stride == node.dilation == (1, 1) and node.groups == 1
    return plain and rows == columns and rows % 2 == 1 and node.padding == (rows // 2, rows // 2)


def _whole(value: Fraction) -> int | Fraction:
    return int(value) if value.denominator == 1 else value


def products(graph: Graph) -> int | Fraction:
    """The number of multiplications in convolutions and linear layers for each pixel of the input."""
    sizes, total = extents(graph), Fraction(0)
    for node in graph.nodes:
        if isinstance(node, (Conv, Linear)) and node.name in sizes:
            taps = math.prod(node.kernel) if isinstance(node, Conv) else 1
            groups = node.groups if isinstance(node, Conv) else 1
            total += node.channels_in // groups * node.channels_out * taps * sizes[node.name].scale ** 2
    return _whole(total)


def radius(graph: Graph, apart: Collection[str] = ()) -> int:
    """The receptive field's radius: the number of input pixels on each side that an output pixel depends on.

    apart: the names of nodes that are taken to read no further than their inputs do. Raises ValueError where another node reads the
    whole picture, or where the reach of one is not known.
    """
    sizes, reach = extents(graph), {name: Fraction(0) for name in graph.inputs}
    for node in graph.nodes:
        reach[node.name] = max(reach[name] for name in node.inputs)
        steps = Fraction(0) if node.name in apart else reach_of(node)
        if steps is None:
            raise ValueError(f"radius: what '{node.name}' reads of its input cannot be told from the graph")
        if steps:
            reach[node.name] += steps / sizes[node.x].scale
    return math.ceil(max(reach[name] for name in graph.outputs))


def reach_of(node: Node) -> Fraction | None:
    """The number of pixels of its first input that a node reads on each side; None where the node reads all of them, or where the
    reach is unknown."""
    match node:
        case Conv():
            axes = zip(node.kernel, node.dilation, node.stride, strict=True)
            return Fraction(max(size // 2 * dilation + stride - 1 for size, dilation, stride in axes))
        case BorderConv():
            return Fraction(node.classes // 2)
        case PixelUnshuffle():
            return Fraction(node.factor - 1)
        case Resize():
            return Fraction({"nearest": 0, "bilinear": 1, "bicubic": 2}[node.mode])
        case ResizeLike():
            return Fraction(1)
        case Pool():
            sizes = dict(node.settings).get("kernel_size")
            if node.function.startswith("adaptive") or sizes is None:
                return None
            return Fraction(sizes if isinstance(sizes, int) else max(sizes)) - 1
        case Float() | Deviation():
            return None
    return Fraction(0)


def grid(graph: Graph) -> int:
    """The side, in pixels, of the groups of input pixels that a network handles together. A picture must be cut at multiples of
    it."""
    return math.prod(node.factor for node in graph.nodes if isinstance(node, PixelUnshuffle))


def readers(graph: Graph) -> dict[str, tuple[str, ...]]:
    """For each tensor, the names of the nodes that read it, in order."""
    found: dict[str, tuple[str, ...]] = dict.fromkeys([*graph.inputs, *(node.name for node in graph.nodes)], ())
    for node in graph.nodes:
        for name in dict.fromkeys(node.inputs):
            found[name] += (node.name,)
    return found


def needed(graph: Graph, names: Iterable[str], given: Iterable[str] = ()) -> tuple[Node, ...]:
    """The nodes that compute the tensors `names` from the tensors `given`, in order."""
    wanted, given, found = set(names), set(given), []
    for node in reversed(graph.nodes):
        if node.name in wanted and node.name not in given:
            found.append(node)
            wanted |= set(node.inputs)
    return tuple(reversed(found))


class Ancestry:
    """Tells which tensors depend on which others. For each tensor it holds a set of bits, with one bit for each tensor by its place
    among the nodes."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.place = {node.name: i for i, node in enumerate(graph.nodes)}
        # for each tensor, the tensors that it is computed from, itself included
        self.above: dict[str, int] = dict.fromkeys(graph.inputs, 0)
        for i, node in enumerate(graph.nodes):
            bits = 1 << i
            for name in node.inputs:
                bits |= self.above[name]
            self.above[node.name] = bits

    def depends(self, name: str, on: str) -> bool:
        """Returns whether the tensor `name` is the tensor `on`, or is computed from it."""
        return on in self.place and bool(self.above[name] >> self.place[on] & 1)

    def between(self, entry: str, last: str) -> tuple[str, ...]:
        """The nodes that depend on `entry` and on which `last` depends, in order. The result contains `last` but not `entry`."""
        start, stop = self.place[entry] + 1, self.place[last] + 1
        nodes = self.graph.nodes[start:stop]
        return tuple(node.name for node in nodes if self.depends(node.name, entry) and self.depends(last, node.name))


@dataclass(frozen=True)
class ResidualSum:
    """A sum of features and of a tensor that was computed from them. skip: the name of the features. inner: the name of the other
    tensor. output: the name of the `Add`."""

    skip: str
    inner: str
    output: str


def residual_sums(graph: Graph, ancestry: Ancestry) -> list[ResidualSum]:
    """Every `Add` of two tensors of which one is computed from the other. This other tensor is added as it is, and it is not the
    picture: it comes after a convolution."""
    conv_bits = sum(1 << i for i, node in enumerate(graph.nodes) if isinstance(node, Conv))
    found = []
    for node in graph.nodes:
        if not isinstance(node, Add) or len(node.inputs) != 2:
            continue
        for i, skip in enumerate(node.inputs):
            inner = node.inputs[1 - i]
            features = bool(ancestry.above[skip] & conv_bits)
            if inner != skip and features and node.factor(i) == 1 and ancestry.depends(inner, skip):
                found.append(ResidualSum(skip, inner, node.name))
                break
    return found


def takes_any_range(graph: Graph) -> bool:
    """Returns whether the network gives c times its output for c times its input, once all constants that it adds are multiplied by
    c too. Weights for pixels in 0..1 are then weights for 0..255, except for a factor on those constants."""
    return not any(
        isinstance(node, (Multiply, Float)) or (isinstance(node, Activation) and node.function not in HOMOGENEOUS)
        for node in graph.nodes
    )


def stream(graph: Graph) -> frozenset[str]:
    """The features that bypass the residual blocks: the tensors that residual sums add as they are, and the results of these sums.

    The result is empty where they cannot be held in one buffer: where one of them is also a part of wider features (`Concat`),
    where they are not all of one size, or where no convolution computes one of them together with the nodes that follow it, as with
    an activation after a sum.
    """
    sums = residual_sums(graph, Ancestry(graph))
    names = {name for one in sums for name in (one.skip, one.output)}
    sizes, reading = extents(graph), readers(graph)
    concatenated = any(isinstance(graph[reader], Concat) for name in names for reader in reading[name])
    apart = concatenated or len({sizes.get(name) for name in names}) > 1 or not all(_of_conv(graph, name) for name in names)
    return frozenset() if apart else frozenset(names)


def _of_conv(graph: Graph, name: str) -> bool:
    """Returns whether a convolution makes a tensor. Between the two there may be nodes that change each value by itself or add to
    it."""
    node = graph[name]
    made = node.inputs if isinstance(node, Add) else (name,)
    return any(isinstance(graph[_before(graph, one)], Conv) for one in made if one not in graph.inputs)


def _before(graph: Graph, name: str) -> str:
    """The tensor that another tensor is computed from, value by value."""
    while isinstance(graph[name], POINTWISE) and graph[name].x not in graph.inputs:
        name = graph[name].x
    return name


def residual_blocks(graph: Graph) -> tuple[ResidualBlock, ...]:
    """The innermost residual sums of a graph, in the order they run. A sum that contains other residual sums is not a block."""
    ancestry = Ancestry(graph)
    sums = residual_sums(graph, ancestry)
    outputs = {one.output for one in sums}
    found = (ResidualBlock(one.skip, ancestry.between(one.skip, one.inner), one.output) for one in sums)
    return tuple(block for block in found if outputs.isdisjoint(block.inner))


def upsampler_input(graph: Graph) -> str:
    """The name of the features that the upsampler begins with. Everything that follows is computed from them and from the picture.

    They are the input of the convolution before a `PixelShuffle`, or the input of a `Resize`: of the first such node for which this
    holds. Where there is no such node, they are the input of the last convolution.
    """
    features: set[str] = set()  # tensors that are computed after a convolution
    last = graph.inputs[0]
    for node in graph.nodes:
        behind = not features.isdisjoint(node.inputs)
        if behind and (isinstance(node, PixelShuffle) or (isinstance(node, Resize) and node.factor > 1)):
            entry = _before_conv(graph, node.x) if isinstance(node, PixelShuffle) else node.x
            after = {node.name for node in needed(graph, graph.outputs, (entry,))}
            if not any(node.name in after and node.name in features for node in needed(graph, (entry,))):
                return entry
        if behind or isinstance(node, Conv):
            features.add(node.name)
        last = node.x if isinstance(node, Conv) else last
    return last


def _before_conv(graph: Graph, name: str) -> str:
    """The input of the convolution from which a tensor is computed value by value."""
    name = _before(graph, name)
    return graph[name].x if isinstance(graph[name], Conv) else name


def linear_upsampler(graph: Graph) -> tuple[tuple[str, ...], tuple[int, ...]] | None:
    """The convolutions of an upsampler that can be computed as one: several 3x3 convolutions without activations between them.
    Returns the names of these convolutions, and the factor of the `PixelShuffle` after each but the last; None for any other
    upsampler."""
    x = upsampler_input(graph)
    names: list[str] = []
    factors: list[int] = []
    reach, scale, ended = Fraction(0), 1, False
    for node in needed(graph, graph.outputs, (x,)):
        stage = len(names) - len(factors)
        if node.inputs != (x,) or ended:
            return None
        x = node.name
        if isinstance(node, Conv) and stage == 0:
            if node.kernel != (3, 3) or not node.bias or not keeps_size(node):
                return None
            names.append(node.key)
            reach += Fraction(1, scale)
        elif isinstance(node, PixelShuffle) and stage == 1:
            factors.append(node.factor)
            scale *= node.factor
        elif isinstance(node, ColourShift) and stage == 1:
            ended = True
        else:
            return None
    whole = len(names) == len(factors) + 1 > 1 and reach <= COLLAPSED_RADIUS
    return (tuple(names), tuple(factors)) if whole else None
