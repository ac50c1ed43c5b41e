"""A graph as an `nn.Module`, with parameters under the names of published state dicts, which computes the nodes in turn."""

from __future__ import annotations

import builtins
import importlib
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .nodes import (
    Activation,
    Add,
    Affine,
    BatchNorm,
    BorderConv,
    ColourShift,
    Concat,
    Conv,
    Crop,
    Deviation,
    Float,
    Graph,
    Key,
    Linear,
    Multiply,
    Node,
    Pad,
    PixelShuffle,
    PixelUnshuffle,
    Pool,
    Ref,
    Resize,
    ResizeLike,
    Slice,
)

# Where the functions that `Float` nodes call are looked up; torch.compile follows no import.
_ROOTS: Mapping[str, Any] = {"torch": torch, "_operator": operator, "math": math, "builtins": builtins}
_ALL_FLOATS: Mapping[str, str] = MappingProxyType({})
Step = tuple[Node, tuple[str, ...]]  # a node, and the tensors that nothing reads after it


class Parts(nn.Module):
    """Modules by name, as in `nn.ModuleDict`. Those with a number as name can also be read by it, as in `nn.ModuleList`, even with
    gaps."""

    def __getitem__(self, key: str | int | slice) -> Any:
        if isinstance(key, slice) or (isinstance(key, int) and key < 0):
            return list(self)[key]
        return self._modules[str(key)]

    def __iter__(self) -> Iterator[nn.Module]:
        return self.children()

    def __len__(self) -> int:
        return len(self._modules)


class MeanShift(nn.Module):
    """Adds (`sign=1`) or subtracts (`sign=-1`) a colour in 0..255, stored as the 1x1 convolution that published weights hold."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, sign: int, mean: tuple[float, ...]):
        super().__init__()
        # Plain numbers are used here: on the meta device, where shapes are taken, arithmetic on tensors would import torch's whole
        # compiler.
        identity = [[float(i == j) for j in range(3)] for i in range(3)]
        self.register_buffer("weight", torch.tensor(identity).view(3, 3, 1, 1))
        self.register_buffer("bias", torch.tensor([sign * value for value in mean]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.weight, self.bias)


class Norm(nn.BatchNorm2d):
    """A BatchNorm of tensors [N, C, ...] with any number of dimensions."""

    def _check_input_dim(self, input: torch.Tensor) -> None:
        pass


class BorderConv2d(nn.Module):
    """Computes a `BorderConv`: [N, C, H, W], both sides at least `classes`, becomes [N, channels_out, scale*H, scale*W].

    It computes every pixel with every kernel, and keeps the result of the kernel for the pixel's own border class.
    """

    def __init__(self, node: BorderConv):
        super().__init__()
        self.scale, self.classes = node.scale, node.classes
        weight, bias = node.parameters().values()
        self.weight, self.bias = nn.Parameter(torch.zeros(weight)), nn.Parameter(torch.zeros(bias))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, columns = (self._classes(size).to(x.device) for size in x.shape[2:])
        y = x.new_zeros(x.shape[0], self.weight.shape[2], *x.shape[2:])
        for i in range(self.classes):
            for j in range(self.classes):
                computed = F.conv2d(x, self.weight[i, j], self.bias[i, j], padding=self.classes // 2)
                y = torch.where((rows == i)[:, None] & (columns == j), computed, y)
        return F.pixel_shuffle(y, self.scale)

    def _classes(self, size: int) -> torch.Tensor:
        """The class of each of `size` rows or columns."""
        border = self.classes // 2
        return torch.tensor([min(i, border) if i < size - border else i - size + self.classes for i in range(size)])


def layer_of(node: Node) -> nn.Module | None:
    """The layer of torch for a node, with fresh parameters; None for a node that learns nothing, or whose values belong to no
    layer."""
    match node:
        case Conv():
            sizes = (node.kernel, node.stride, node.padding, node.dilation)
            return nn.Conv2d(node.channels_in, node.channels_out, *sizes, groups=node.groups, bias=node.bias)
        case BorderConv():
            return BorderConv2d(node)
        case Linear():
            return nn.Linear(node.channels_in, node.channels_out, node.bias)
        case BatchNorm():
            return Norm(node.channels, node.eps)
        case ColourShift():
            return MeanShift(node.sign, node.mean)
        case Activation() if node.slopes:
            return nn.PReLU(node.slopes)
    return None


def steps(nodes: Iterable[Node], outputs: Iterable[str]) -> list[Step]:
    """The nodes, each with the tensors that can be released after it: tensors that no later node reads and that are not outputs."""
    nodes, kept, found = list(nodes), set(outputs), []
    for node in reversed(nodes):
        found.append((node, tuple(name for name in dict.fromkeys(node.inputs) if name not in kept)))
        kept.update(node.inputs)
    return found[::-1]


class GraphModule(nn.Module):
    """A graph with its parameters, which computes the output, or a tuple of several outputs, from the graph's inputs.

    names: gives the name of a module, with which its parameters begin, for the key of a node; by default the key itself. layer:
    gives the module of a node, see `layer_of`. dtypes: the dtypes of the values of `Float` nodes that are not floats, by key; these
    values are buffers. Modules are declared in an order that makes state dicts like published ones: mean shifts first, then
    convolutions, activations and norms; numbered modules follow their numbers. The methods of this class have long names, because
    modules may be called `layer` or `run`.
    """

    def __init__(
        self,
        graph: Graph,
        names: Callable[[str], str] = str,
        layer: Callable[[Node], nn.Module | None] = layer_of,
        dtypes: Mapping[str, str] = _ALL_FLOATS,
    ) -> None:
        super().__init__()
        self.graph = graph
        self._steps = steps(graph.nodes, graph.outputs)
        self._paths: dict[str, list[str]] = {}  # the paths of the layers, by the name of their node
        self._values: dict[str, str] = {}  # by key, the names of the parameters of nodes that have no layer
        for key, shape in graph.buffers.items():
            self.register_buffer(key, torch.ones(shape))
        known: set[str] = set()
        made: dict[str, Any]
        for node in sorted(graph.nodes, key=_declared):
            made = {}
            if isinstance(node, Float):
                self._values |= {key: names(key) for key, _ in node.shapes}
                made = {names(key): _value(shape, dtypes.get(key)) for key, shape in node.shapes if names(key) not in known}
            elif node.parameters():
                name = names(node.key)  # type: ignore[attr-defined]  # every node that learns has a key
                self._paths[node.name] = name.split(".")
                made = {} if name in known else {name: layer(node)}
            for name, value in made.items():
                self._register(name, value)
            known |= made.keys()

    def _register(self, name: str, value: nn.Module | torch.Tensor) -> None:
        """Puts a module, parameter or buffer at a dotted name, and makes the containers that do not exist yet.

        It bypasses the methods of nn.Module, which refuse names that are also attributes of containers, such as "keys" and "graph".
        """
        *parents, leaf = name.split(".")
        place: nn.Module = self
        for part in parents:
            if part not in place._modules:
                _put(place, part, Parts())
            place = place._modules[part]  # type: ignore[assignment]
        if isinstance(value, nn.Module):
            _put(place, leaf, value)
        elif isinstance(value, nn.Parameter):
            place._parameters[leaf] = value
        else:
            place._buffers[leaf] = value

    def _value_named(self, name: str) -> torch.Tensor:
        """A parameter or buffer by its dotted name."""
        *parents, leaf = name.split(".")
        place: Any = self
        for part in parents:
            place = place._modules[part]
        found = place._parameters.get(leaf)
        return place._buffers[leaf] if found is None else found

    def layer_named(self, name: str) -> Any:
        """The module of a node. Raises KeyError where the node has none."""
        found: Any = self
        for part in self._paths[name]:
            found = found._modules[part]  # takes a tenth of the time of getattr
        return found

    def forward(self, *inputs: torch.Tensor) -> Any:
        values = dict(zip(self.graph.inputs, inputs, strict=True))
        self.run_steps(values, self._steps, self.compute_node)
        outputs = tuple(values[name] for name in self.graph.outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    @staticmethod
    def run_steps(
        values: dict[str, torch.Tensor], plan: list[Step], compute: Callable[[Node, list[torch.Tensor]], torch.Tensor]
    ) -> None:
        """Computes the nodes of a plan (`steps`) from the tensors in `values`, which afterwards holds the tensors that are kept."""
        for node, unread in plan:
            values[node.name] = compute(node, [values[name] for name in node.inputs])
            for name in unread:
                del values[name]

    def compute_node(self, node: Node, inputs: list[torch.Tensor]) -> torch.Tensor:
        """Computes the tensor of a node from its inputs."""
        if node.name in self._paths:
            return self.layer_named(node.name)(*inputs)
        if isinstance(node, Float):
            return call_float(node, inputs, lambda key: self._value_named(self._values[key]))
        return computed(node, inputs)


def call_float(node: Float, inputs: Sequence[Any], values: Callable[[str], Any]) -> Any:
    """The result of a `Float` for its inputs. values: gives the value of the state dict for a key."""

    def given(value: Any) -> Any:
        if isinstance(value, Ref):
            return inputs[value.index]
        if isinstance(value, Key):
            return values(value.name)
        return type(value)(given(one) for one in value) if isinstance(value, (tuple, list)) else value

    settings = {name: given(value) for name, value in node.settings}
    if node.target.startswith("."):
        return getattr(inputs[0], node.target[1:])(*given(node.arguments), **settings)
    place, *parts = node.target.split(".")
    function: Any = _ROOTS[place] if place in _ROOTS else importlib.import_module(place)
    for part in parts:
        function = getattr(function, part)
    return function(*given(node.arguments), **settings)


def computed(node: Node, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """The tensor of a node that learns nothing. Raises TypeError for a node that learns, and for a `Float`."""
    x = inputs[0]
    match node:
        case Add():
            terms = [one if node.factor(i) == 1 else one * node.factor(i) for i, one in enumerate(inputs)]
            return sum(terms[1:], terms[0])
        case Concat():
            return torch.cat(list(inputs), 1)
        case Activation() | Pool():
            return getattr(F, node.function)(x, **dict(node.settings))
        case Slice():
            return x[:, node.start : node.stop]
        case PixelShuffle():
            return F.pixel_shuffle(x, node.factor)
        case PixelUnshuffle():
            return F.pixel_unshuffle(x, node.factor)
        case Affine():
            return _affine(node, x)
        case Multiply():
            return x * inputs[1]
        case Resize():
            corners, smooth = node.align_corners, node.antialias
            return F.interpolate(x, scale_factor=node.factor, mode=node.mode, align_corners=corners, antialias=smooth)
        case ResizeLike():
            return F.interpolate(x, inputs[1].shape[2:], mode="bilinear", align_corners=False)
        case Pad():
            return _padded(node, x)
        case Crop():
            rows, columns = (node.factor * side for side in inputs[1].shape[2:])
            return x[:, :, :rows, :columns]
        case Deviation():
            # The bound is not quite 0, where the gradient would be infinite.
            return x.var((2, 3), correction=0, keepdim=True).clamp(min=1e-30).sqrt()
    raise TypeError(f"computed: '{node.name}' is a {type(node).__name__}, which no function of its inputs alone computes")


def _affine(node: Affine, x: torch.Tensor) -> torch.Tensor:
    def constants(values: tuple[float, ...]) -> Any:
        return values[0] if len(values) == 1 else x.new_tensor(values).view(-1, 1, 1)

    if node.first == "shift" and node.shift is not None:
        x = x + constants(node.shift)
    x = x if node.divisor is None else x / node.divisor
    x = x if node.gain is None else x * constants(node.gain)
    return x if node.first == "shift" or node.shift is None else x + constants(node.shift)


def _padded(node: Pad, x: torch.Tensor) -> torch.Tensor:
    for axis, side in ((3, x.shape[3]), (2, x.shape[2])):
        more = -(-max(side, node.least) // node.multiple) * node.multiple - side
        if more:
            edges = (0, more, 0, 0) if axis == 3 else (0, 0, 0, more)
            x = F.pad(x, edges, mode="reflect" if more < side else "replicate")
    return x


def _declared(node: Node) -> int:
    """The rank of a node in the order in which modules are declared."""
    kinds: tuple[tuple[type[Node], ...], ...] = ((ColourShift,), (Conv, BorderConv, Linear, Float), (Activation,), (BatchNorm,))
    return next((i for i, kind in enumerate(kinds) if isinstance(node, kind)), len(kinds))


def _value(shape: tuple[int, ...], dtype: str | None) -> torch.Tensor:
    """A parameter into which a value of a `Float` can be loaded, or a buffer where the dtype is not a float."""
    return nn.Parameter(torch.zeros(shape)) if dtype is None else torch.zeros(shape, dtype=getattr(torch, dtype))


def _put(place: nn.Module, name: str, module: nn.Module) -> None:
    """Adds a module, and keeps numbered modules in the order of their numbers."""
    before = next(reversed(place._modules), "")
    place._modules[name] = module
    if before.isdecimal() and name.isdecimal() and int(name) < int(before):
        numbered = sorted((key for key in place._modules if key.isdecimal()), key=int)
        for key in numbered:
            place._modules[key] = place._modules.pop(key)
