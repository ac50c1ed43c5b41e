"""What a network is made of: nodes, each of which computes one tensor from tensors that others have computed.

Nodes hold no values. What a node learns lies in a state dict beside the graph, under keys that begin with the node's `key`. The
same graph is read with the weights of a teacher, of a simulation or of a converted network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Node:
    """One tensor of a network, and how it is computed.

    name: the name of the node and of the tensor that it computes; no other node has it. inputs: the names of the tensors that the
    node reads.
    """

    name: str
    inputs: tuple[str, ...]

    arity: ClassVar[int | None] = 1  # how many tensors the node reads; None for any number from 1 on

    def __post_init__(self) -> None:
        if not isinstance(self.inputs, tuple) or not all(isinstance(name, str) for name in self.inputs):
            raise TypeError(f"{type(self).__name__}: inputs of '{self.name}' must be a tuple of names, got {self.inputs!r}")
        if len(self.inputs) != self.arity and not (self.arity is None and self.inputs):
            wanted = "at least 1" if self.arity is None else str(self.arity)
            raise ValueError(f"{type(self).__name__}: inputs of '{self.name}' must be {wanted}, got {len(self.inputs)}")

    @property
    def x(self) -> str:
        """The name of the first input."""
        return self.inputs[0]

    def parameters(self) -> dict[str, Shape]:
        """What the node learns: the keys of a state dict, and the shape of the value under each key."""
        return {}


@dataclass(frozen=True)
class Conv(Node):
    """A convolution of [N, C, H, W] with zeros around it: `key`.weight [K, C / groups, R, S] and, with `bias`, `key`.bias [K].

    kernel, stride, dilation, padding: two numbers each, for rows, then for columns. role: how the bits of the convolution's input
    are chosen: "adaptive" where the image and the layer decide them, "fixed" where they are the base bits, "end" (first, last,
    upsampler) where they are 8, "float" where the input is never quantised. body: true for a convolution that is quantised even
    when only the body is.
    """

    key: str
    channels_in: int
    channels_out: int
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    groups: int = 1
    bias: bool = True
    role: str = "adaptive"
    body: bool = False

    def parameters(self) -> dict[str, Shape]:
        shapes: dict[str, Shape] = {f"{self.key}.weight": (self.channels_out, self.channels_in // self.groups, *self.kernel)}
        return shapes | ({f"{self.key}.bias": (self.channels_out,)} if self.bias else {})


@dataclass(frozen=True)
class BorderConv(Node):
    """A convolution whose kernel depends on how near to the border a pixel lies, followed by a PixelShuffle. It computes an
    upsampler that has been collapsed into one convolution (networks/collapse.py).

    scale: the factor of the PixelShuffle. classes: the number of border classes along rows, and along columns: some for the first
    pixels, one for all inner pixels, and some for the last pixels. The kernels have as many rows and columns.
    """

    key: str
    channels_in: int
    channels_out: int
    scale: int
    classes: int = 5

    def parameters(self) -> dict[str, Shape]:
        first = (self.classes, self.classes, self.channels_out * self.scale**2)
        return {f"{self.key}.weight": (*first, self.channels_in, self.classes, self.classes), f"{self.key}.bias": first}


@dataclass(frozen=True)
class Linear(Node):
    """A linear layer: x [..., C] times `key`.weight [K, C], plus `key`.bias [K] where `bias` is true. dims: the number of
    dimensions of x; 0 where it is not known."""

    key: str
    channels_in: int
    channels_out: int
    bias: bool = True
    dims: int = 0

    def parameters(self) -> dict[str, Shape]:
        shapes: dict[str, Shape] = {f"{self.key}.weight": (self.channels_out, self.channels_in)}
        return shapes | ({f"{self.key}.bias": (self.channels_out,)} if self.bias else {})


@dataclass(frozen=True)
class BatchNorm(Node):
    """A BatchNorm in eval mode, which computes (x - running_mean) / sqrt(running_var + eps) * weight + bias for each channel."""

    key: str
    channels: int
    eps: float = 1e-5

    def parameters(self) -> dict[str, Shape]:
        parts = ("weight", "bias", "running_mean", "running_var")
        return {f"{self.key}.{part}": (self.channels,) for part in parts} | {f"{self.key}.num_batches_tracked": ()}


@dataclass(frozen=True)
class Affine(Node):
    """Computes x * gain + shift with constants. Each is one number for all channels or one number for each channel; None stands for
    a gain of 1 or a shift of 0.

    divisor: where the published formula divides, x / divisor + shift is computed instead, because a float division does not round
    like a product with the reciprocal. first: "gain" for the order above, or "shift" for (x + shift) * gain.
    """

    gain: tuple[float, ...] | None = None
    shift: tuple[float, ...] | None = None
    divisor: float | None = None
    first: str = "gain"


@dataclass(frozen=True)
class ColourShift(Node):
    """Adds (`sign` = 1) or subtracts (`sign` = -1) a mean colour in 0..255. State dicts hold it as the 1x1 convolution of published
    weights: `key`.weight is the identity [3, 3, 1, 1], and `key`.bias [3] is the shift."""

    key: str
    sign: int
    mean: tuple[float, float, float]

    def parameters(self) -> dict[str, Shape]:
        return {f"{self.key}.weight": (3, 3, 1, 1), f"{self.key}.bias": (3,)}


@dataclass(frozen=True)
class Activation(Node):
    """An element-wise function, given by its name in torch.nn.functional: "relu", "leaky_relu", "prelu", "relu6", "silu",
    "sigmoid", ...

    settings: the keyword arguments of the function, in order. slopes: the number of slopes of a PReLU, which `key`.weight [slopes]
    holds: one for all channels, or one for each channel. It is 0 for all other functions.
    """

    function: str
    settings: tuple[tuple[str, Any], ...] = ()
    key: str = ""
    slopes: int = 0

    def parameters(self) -> dict[str, Shape]:
        return {f"{self.key}.weight": (self.slopes,)} if self.slopes else {}


@dataclass(frozen=True)
class Add(Node):
    """The sum of the inputs, each multiplied by its factor, added in their order. factors: one for each input; () where all are
    1."""

    factors: tuple[float, ...] = ()

    arity: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factors and len(self.factors) != len(self.inputs):
            raise ValueError(f"Add: factors of '{self.name}' must be one for each of {len(self.inputs)} inputs, got {self.factors}")

    def factor(self, index: int) -> float:
        return self.factors[index] if self.factors else 1.0


@dataclass(frozen=True)
class Multiply(Node):
    """The product of two inputs, element by element."""

    arity: ClassVar[int | None] = 2


@dataclass(frozen=True)
class Concat(Node):
    """The inputs side by side along the channels, in their order."""

    arity: ClassVar[int | None] = None


@dataclass(frozen=True)
class Slice(Node):
    """The channels `start` to `stop` - 1 of the input."""

    start: int
    stop: int


@dataclass(frozen=True)
class PixelShuffle(Node):
    """Turns [N, C r^2, H, W] into [N, C, r H, r W] as torch does. factor: r."""

    factor: int = 2


@dataclass(frozen=True)
class PixelUnshuffle(Node):
    """Turns [N, C, r H, r W] into [N, C r^2, H, W] as torch does. factor: r."""

    factor: int = 2


@dataclass(frozen=True)
class Resize(Node):
    """Turns [N, C, H, W] into [N, C, factor H, factor W]. mode: "nearest", "bilinear" or "bicubic" (the last two with
    `align_corners`).

    antialias: the setting of torch's `interpolate`. With it, "bicubic" is the kernel of MATLAB and Pillow (Keys, a = -0.5); without
    it, a is -0.75.
    """

    factor: float = 2
    mode: str = "nearest"
    align_corners: bool | None = None
    antialias: bool = False


@dataclass(frozen=True)
class ResizeLike(Node):
    """The first input [N, C, h, w], resized to the rows and columns of the second input, bilinear without `align_corners`."""

    arity: ClassVar[int | None] = 2


@dataclass(frozen=True)
class Pad(Node):
    """Adds mirrored rows below and columns to the right of the picture, so that both sides are multiples of `multiple` and at least
    `least`.

    Where a picture is too small to be mirrored, its last row or column is repeated.
    """

    multiple: int = 1
    least: int = 1


@dataclass(frozen=True)
class Crop(Node):
    """The first `factor` H rows and `factor` W columns of the first input, where the second input is [N, C, H, W]."""

    factor: int = 1

    arity: ClassVar[int | None] = 2


@dataclass(frozen=True)
class Deviation(Node):
    """The standard deviation of each channel over the picture, without Bessel's correction: [N, C, H, W] -> [N, C, 1, 1]."""


@dataclass(frozen=True)
class Pool(Node):
    """A pooling, given by the name of its function in torch.nn.functional: "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d". The
    settings are the function's keyword arguments, in order."""

    function: str = "max_pool2d"
    settings: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Float(Node):
    """Any other call that stays in floats, or that computes a size of a tensor for such a call.

    target: the full name of the function that is called ("torch.flatten", "torch.ops.aten.mean.dim", "_operator.floordiv"), or the
    name of a method of the first input (".mean"), which is then left out of the arguments. arguments, settings: the arguments by
    position and by keyword. In them `Ref(i)` stands for input i, and `Key(k)` for a value of the state dict. shapes: the keys that
    the call reads, each with the shape of its value.
    """

    target: str = ""
    arguments: tuple[Any, ...] = ()
    settings: tuple[tuple[str, Any], ...] = ()
    shapes: tuple[tuple[str, Shape], ...] = ()

    arity: ClassVar[int | None] = None

    def parameters(self) -> dict[str, Shape]:
        return dict(self.shapes)


def called(node: Float) -> str:
    """The function that a node calls, without its module and without the part that tells its variants apart: "mean"."""
    parts = node.target.split(".")
    return parts[3] if node.target.startswith("torch.ops.") else parts[-1]


@dataclass(frozen=True)
class Ref:
    """Stands in the arguments of a `Float` for input `index` of the node."""

    index: int


@dataclass(frozen=True)
class Key:
    """Stands in the arguments of a `Float` for a value of the state dict."""

    name: str


@dataclass(frozen=True)
class Graph:
    """A network as a list of nodes. Each node reads only inputs of the network and tensors that earlier nodes have computed.

    inputs: the names of the tensors that the network is given. outputs: the names of the tensors that it returns. buffers: further
    keys of its state dict that no node reads (marks such as "unit_range"), with their shapes. Raises ValueError where two tensors
    have one name, and for a name that no tensor has.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...] = ("x",)
    outputs: tuple[str, ...] = ()
    buffers: Mapping[str, Shape] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = set(self.inputs)
        for node in self.nodes:
            if missing := [name for name in node.inputs if name not in known]:
                raise ValueError(f"Graph: '{node.name}' reads {missing}, which no node before it computes")
            if node.name in known:
                raise ValueError(f"Graph: two tensors are called '{node.name}'")
            known.add(node.name)
        if not self.outputs or not set(self.outputs) <= known:
            raise ValueError(f"Graph: outputs must name tensors of the graph, got {self.outputs}")

    def __getitem__(self, name: str) -> Node:
        return self._by_name()[name]

    def _by_name(self) -> dict[str, Node]:
        found: dict[str, Node] | None = self.__dict__.get("_names")
        if found is None:
            found = {node.name: node for node in self.nodes}
            object.__setattr__(self, "_names", found)
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> Graph:
        return self

    def readers(self, name: str) -> tuple[Node, ...]:
        """The nodes that read a tensor, in order."""
        return tuple(node for node in self.nodes if name in node.inputs)

    def parameters(self) -> dict[str, Shape]:
        """The keys and shapes of everything that the nodes learn, each key once, in the order of the nodes; then those of the
        buffers."""
        shapes: dict[str, Shape] = {}
        for node in self.nodes:
            shapes |= {key: shape for key, shape in node.parameters().items() if key not in shapes}
        return shapes | dict(self.buffers)
