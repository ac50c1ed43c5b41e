"""Compares two graphs node by node. The names of the nodes and the order in which sums are written do not matter."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

from ..graph.fold import gain_and_shift
from ..graph.nodes import Activation, Add, Affine, BatchNorm, Concat, Conv, Crop, Graph, Multiply, Node, Pad, Pool, Resize
from ..graph.passes import merge_affines, merge_factors, remove_dead, split_concats
from ..graph.passes.simplify import redirect
from ..graph.properties import readers

MOST_PARTS = 100_000  # the most parts of all concatenations together, once nested ones are flattened
_SLOPED = ("relu", "leaky_relu", "prelu")


def normal(graph: Graph, channels: int) -> Graph | None:
    """The graph in the form in which it is compared: with constants merged and nested concatenations flattened. None where the
    concatenations have too many parts."""
    parts: dict[str, int] = {}
    total = 0
    for node in graph.nodes:
        if isinstance(node, Concat):
            parts[node.name] = sum(parts.get(name, 1) for name in node.inputs)
            total += parts[node.name]
            if total > MOST_PARTS:
                return None
    # Networks that shuffle pixels into channels pad sides that do not divide and cut the padding off again. Files lack it.
    graph = redirect(graph, {node.name: node.x for node in graph.nodes if isinstance(node, (Crop, Pad))})
    return remove_dead(split_concats(merge_affines(merge_factors(graph)), {name: channels for name in graph.inputs}))


def without_batch_norms(graph: Graph) -> tuple[Graph, dict[str, str]]:
    """Returns the graph without the BatchNorms that alone read a convolution, and for the name of each such convolution the name of
    its BatchNorm.

    This is the graph once each BatchNorm has been folded into the weights: the convolution then has a bias.
    """
    reading, by_name = readers(graph), {node.name: node for node in graph.nodes}
    norms = {
        node.x: node.name
        for node in graph.nodes
        if isinstance(node, BatchNorm) and isinstance(by_name.get(node.x), Conv) and reading[node.x] == (node.name,)
    }
    instead = {norm: conv for conv, norm in norms.items()}
    nodes = []
    for node in graph.nodes:
        if node.name in instead:
            continue
        node = replace(node, inputs=tuple(instead.get(name, name) for name in node.inputs))
        nodes.append(replace(node, bias=True) if isinstance(node, Conv) and node.name in norms else node)
    outputs = tuple(instead.get(name, name) for name in graph.outputs)
    return replace(graph, nodes=tuple(nodes), outputs=outputs), norms


class Numbering:
    """Gives every tensor a number. Two tensors have the same number where they are computed in the same way, whatever the nodes
    have learnt.

    Only graphs that were numbered by the same `Numbering` can be compared.
    """

    def __init__(self) -> None:
        self._known: dict[Hashable, int] = {}

    def numbers(self, graph: Graph) -> dict[str, int]:
        """The number of every tensor of a graph, by name."""
        found = {name: self._number(("input", i)) for i, name in enumerate(graph.inputs)}
        for node in graph.nodes:
            found[node.name] = self._number((_kind(node), tuple(_ordered(node, found))))
        return found

    def _number(self, what: Hashable) -> int:
        return self._known.setdefault(what, len(self._known))

    def pairs(self, a: Graph, b: Graph) -> dict[str, str] | None:
        """For the name of each node of `a`, the name of the same node of `b`; None where the graphs are different networks."""
        of_a, of_b = self.numbers(a), self.numbers(b)
        if len(a.nodes) != len(b.nodes) or [of_a[name] for name in a.outputs] != [of_b[name] for name in b.outputs]:
            return None
        nodes_a, nodes_b = ({node.name: node for node in graph.nodes} for graph in (a, b))
        found: dict[str, str] = {}
        waiting = list(zip(a.outputs, b.outputs, strict=True))
        while waiting:
            mine, other = waiting.pop()
            if mine in found:
                if found[mine] != other:
                    return None
                continue
            found[mine] = other
            if mine in nodes_a:
                inputs = (_sorted(nodes_a[mine], of_a), _sorted(nodes_b[other], of_b))
                waiting += zip(*inputs, strict=True)
        nodes = {mine: other for mine, other in found.items() if mine in nodes_a}
        return nodes if len(nodes) == len(a.nodes) == len(set(nodes.values())) else None


def _kind(node: Node) -> Hashable:
    """What a node is and does, without its names, the values that it learns, and the role of a convolution."""
    match node:
        case Conv():
            sizes = (node.kernel, node.stride, node.dilation, node.padding)
            return ("conv", node.channels_in, node.channels_out, *sizes, node.groups)
        case Activation() if node.function in _SLOPED:
            return "slopes"  # all are one kind, because slopes are values, which the caller of `pairs` compares
        case Activation():
            return (node.function, tuple((name, _rounded(value)) for name, value in node.settings))
        case Add():
            return "add"  # its factors stand beside its inputs
        case Affine():
            numbers = (values.tolist() for values in gain_and_shift(node, lambda key: None))
            return ("affine", *(tuple(map(_rounded, values[:1] if len(set(values)) == 1 else values)) for values in numbers))
        case BatchNorm():
            return ("norm", node.channels, _rounded(node.eps))
        case Pool():
            usual = {"padding": (0, 0), "ceil_mode": False, "count_include_pad": True}
            given = {"stride": dict(node.settings).get("kernel_size")} | usual | dict(node.settings)
            both = {name: (value, value) if type(value) is int else value for name, value in given.items()}
            return (node.function, tuple(sorted(both.items())))
        case Resize():
            return ("resize", float(node.factor), node.mode, bool(node.align_corners))
    return (type(node).__name__, repr(replace(node, name="", inputs=tuple("" for _ in node.inputs))))


def _rounded(value: object) -> object:
    """A number rounded to float32, the precision that other formats have."""
    return f"{value:.6g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _places(node: Node, numbers: dict[str, int]) -> list[tuple[int, object, str]]:
    """The inputs of a node. Those of sums and products are in the order of their numbers."""
    factors = [_rounded(node.factor(i)) if isinstance(node, Add) else "" for i in range(len(node.inputs))]
    found = [(numbers[name], factor, name) for name, factor in zip(node.inputs, factors, strict=True)]
    return sorted(found, key=lambda one: one[:2]) if isinstance(node, (Add, Multiply)) else found  # type: ignore[type-var]


def _ordered(node: Node, numbers: dict[str, int]) -> list[tuple[int, object]]:
    return [(number, factor) for number, factor, _ in _places(node, numbers)]


def _sorted(node: Node, numbers: dict[str, int]) -> list[str]:
    return [name for _, _, name in _places(node, numbers)]
