"""Joins each convolution with the nodes that one kernel computes together with it."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace

from .nodes import Activation, Add, Affine, BatchNorm, ColourShift, Conv, Graph, Node, PixelShuffle

# the most products of one output whose sum fits int32, with codes of 8 bits and weights of 8 bits and a sign
MOST_PRODUCTS = (2**31 - 1) // 255**2
# For the activation of a node, the function that an epilogue computes, and the settings that the node may have.
_EPILOGUES: dict[str, tuple[str, frozenset[str]]] = {
    "relu": ("relu", frozenset()),
    "prelu": ("prelu", frozenset()),
    "leaky_relu": ("prelu", frozenset({"negative_slope"})),
}


@dataclass(frozen=True)
class FusedConv:
    """A convolution with the nodes that follow it: activation(factor * affine(convolution)), shuffled, plus a residual, clamped.

    name: the name of the tensor that it computes. inputs: its input and, where it has one, the residual. before: the node between
    an input of the network and the convolution, whose work the codes of the pixels do; None where there is none. affine: the
    BatchNorm, Affine and ColourShift nodes, in their order. shuffle: the factor of the PixelShuffle, wherever it follows the
    convolution.
    """

    name: str
    inputs: tuple[str, ...]
    conv: Conv
    before: Node | None = None
    affine: tuple[Node, ...] = ()
    activation: Activation | None = None
    shuffle: int = 1
    factor: float = 1.0
    clamp: tuple[float, float] | None = None

    @property
    def residual(self) -> str | None:
        """The name of the tensor that is added to the result; None where there is none."""
        return self.inputs[1] if len(self.inputs) > 1 else None

    @property
    def function(self) -> str:
        """The name of the activation for the operators: "none", "relu" or "prelu". A leaky ReLU is "prelu" with one slope for all
        outputs."""
        return "none" if self.activation is None else _EPILOGUES[self.activation.function][0]


Item = FusedConv | Node


def fuse(
    graph: Graph, quantized: Collection[str], without_residual: Collection[str] = (), clamps: bool = False
) -> tuple[Item, ...]:
    """The nodes of a graph in an order in which they can be computed, with the convolutions whose keys are in `quantized` fused.

    A node is joined with the convolution before it unless another node reads a tensor between the two. without_residual: the
    convolutions that no Add is joined with. clamps: whether clamps are joined too. Raises ValueError for a convolution that the
    integer kernels do not compute.
    """
    reads = [name for node in graph.nodes for name in node.inputs] + list(graph.outputs)
    items: dict[str, Item] = {}  # the key is the tensor that an item computes
    for node in graph.nodes:
        if isinstance(node, Conv) and node.key in quantized:
            _check(node)
            items[node.name] = _after_pixels(graph, FusedConv(node.name, node.inputs, node))
            continue
        order = list(items)
        alone = [name for name in node.inputs if name in items and reads.count(name) == 1]
        # of two convolutions that are added, the one computed last takes the sum
        for name in sorted(alone, key=order.index, reverse=True):
            item = items[name]
            joined = _joined(item, node, name, without_residual) if isinstance(item, FusedConv) else None
            if joined is None and clamps and isinstance(item, FusedConv):
                joined = _clamped(item, node)
            if joined is not None:
                del items[name]
                items[node.name] = joined
                break
        else:
            items[node.name] = node
    read = {name for item in items.values() for name in item.inputs} | set(graph.outputs)
    return tuple(item for name, item in items.items() if name in read)  # without the nodes whose work the codes of the pixels do


def _check(conv: Conv) -> None:
    if why := why_not_integer(conv):
        raise ValueError(f"fuse: a quantised convolution must be one that integer kernels compute, got '{conv.name}': {why}")


def why_not_integer(conv: Conv) -> str:
    """The reason why no integer kernel computes a convolution; empty where one does."""
    products = math.prod(conv.kernel) * conv.channels_in // conv.groups
    if products > MOST_PRODUCTS:
        return f"sums of {products} products of 8 bits could overflow 32 bits: integer kernels add up at most {MOST_PRODUCTS}"
    return ""


def _after_pixels(graph: Graph, conv: FusedConv) -> FusedConv:
    """The convolution, changed to read the network's input itself where the only node between the two is one whose work the codes
    of the pixels can do."""
    name = conv.inputs[0]
    node = None if name in graph.inputs else graph[name]
    plain = isinstance(node, Affine) and node.gain is None and node.first == "gain"
    if node is None or node.inputs[0] not in graph.inputs or not (plain or isinstance(node, ColourShift)):
        return conv
    return replace(conv, before=node, inputs=node.inputs)


def folds(node: Activation) -> bool:
    """Returns whether kernels compute an activation together with the convolution before it."""
    return node.function in _EPILOGUES and _EPILOGUES[node.function][1].issuperset(dict(node.settings))


def _joined(conv: FusedConv, node: Node, name: str, without_residual: Collection[str]) -> FusedConv | None:
    """The convolution that computes `name`, joined with a node that reads it; None where kernels do not compute the two
    together."""
    changes: dict[str, object] = {}
    if conv.residual is not None or conv.clamp is not None:
        return None
    if isinstance(node, (BatchNorm, Affine, ColourShift)) and conv.activation is None:
        changes["affine"] = (*conv.affine, node)
    elif isinstance(node, Activation) and conv.activation is None and folds(node):
        changes["activation"] = node
    elif isinstance(node, PixelShuffle) and conv.shuffle == 1:
        changes["shuffle"] = node.factor
    elif isinstance(node, Add) and len(node.inputs) == 2 and conv.conv.key not in without_residual:
        own = node.inputs.index(name)
        factor = node.factor(own)
        if node.factor(1 - own) != 1 or (factor != 1 and conv.activation is not None):
            return None
        changes |= {"inputs": (*conv.inputs, node.inputs[1 - own]), "factor": factor}
    else:
        return None
    return replace(conv, name=node.name, **changes)  # type: ignore[arg-type]


def _clamped(conv: FusedConv, node: Node) -> FusedConv | None:
    """The convolution with the bounds of the node that reads and clamps its result; None where the node is not a clamp."""
    if not isinstance(node, Activation) or conv.clamp is not None:
        return None
    settings = dict(node.settings)
    match node.function:
        case "relu":
            bounds = (0.0, math.inf)
        case "relu6":
            bounds = (0.0, 6.0)
        case "hardtanh":
            bounds = (float(settings.get("min_val", -1.0)), float(settings.get("max_val", 1.0)))
        case _:
            return None
    return replace(conv, name=node.name, clamp=bounds)


def residual_pairs(items: tuple[Item, ...]) -> list[tuple[FusedConv, FusedConv]]:
    """The residual blocks of two convolutions, in their order. In each pair only the second convolution reads the result of the
    first, and it adds the first one's input."""
    reads = [name for item in items for name in item.inputs]
    pairs = []
    for first, second in zip(items, items[1:], strict=False):
        if not (isinstance(first, FusedConv) and isinstance(second, FusedConv)):
            continue
        plain = (
            first.residual is None
            and first.clamp is None
            and second.clamp is None
            and second.activation is None
            and first.shuffle == second.shuffle == 1
        )
        if plain and second.inputs == (first.name, first.inputs[0]) and reads.count(first.name) == 1 and first.before is None:
            pairs.append((first, second))
    return pairs
