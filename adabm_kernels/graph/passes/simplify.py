"""Passes that change no value, to the last bit: what is not needed goes, and what says the same is said once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..nodes import Add, Affine, Concat, Graph, Node, PixelShuffle, PixelUnshuffle, Resize, Slice
from ..properties import extents, needed


def simplify(graph: Graph, channels: Mapping[str, int] | None = None) -> Graph:
    """All passes of this file, one after the other. channels: of the inputs, as `extents` takes them."""
    return remove_dead(common_reads(split_concats(merge_factors(remove_identities(graph)), channels)))


def remove_dead(graph: Graph) -> Graph:
    """Without the nodes that no output depends on."""
    return replace(graph, nodes=needed(graph, graph.outputs))


def remove_identities(graph: Graph) -> Graph:
    """Without the nodes that give what they read: factors of 1, shifts of 0, concatenations of one tensor."""
    return redirect(graph, {node.name: node.x for node in graph.nodes if _is_identity(node)})


def _is_identity(node: Node) -> bool:
    match node:
        case Affine():
            return set(node.gain or (1,)) == {1} and set(node.shift or (0,)) == {0} and node.divisor in (None, 1)
        case Add():
            return len(node.inputs) == 1 and node.factor(0) == 1
        case Concat():
            return len(node.inputs) == 1
        case PixelShuffle() | PixelUnshuffle():
            return node.factor == 1
        case Resize():
            return node.factor == 1 and node.mode == "nearest"
    return False


def merge_factors(graph: Graph) -> Graph:
    """With products by one number that an `Add` reads as its factors. The products stay for others that read them."""
    by_name = {node.name: node for node in graph.nodes}

    def merged(node: Node) -> Node:
        if not isinstance(node, Add):
            return node
        inputs, factors = list(node.inputs), [node.factor(i) for i in range(len(node.inputs))]
        for i, name in enumerate(inputs):
            product = by_name.get(name)
            if isinstance(product, Affine) and product.gain is not None and len(product.gain) == 1:
                only = product.shift is None and product.divisor is None
                if only and 1 in (abs(factors[i]), abs(product.gain[0])):  # the product of two others would be rounded
                    inputs[i], factors[i] = product.x, factors[i] * product.gain[0]
        return replace(node, inputs=tuple(inputs), factors=tuple(factors)) if factors != [node.factor(i) for i in range(len(inputs))] else node

    return remove_dead(replace(graph, nodes=tuple(map(merged, graph.nodes))))


def split_concats(graph: Graph, channels: Mapping[str, int] | None = None) -> Graph:
    """With the parts of a concatenation in the place of the whole, where that is read by another or cut along its parts.

    channels: of the inputs, as `extents` takes them.
    """
    sizes = extents(graph, channels)
    parts: dict[str, tuple[str, ...]] = {}  # of concatenations
    nodes: list[Node] = []
    instead: dict[str, str] = {}
    for node in graph.nodes:
        if isinstance(node, Concat):
            node = replace(node, inputs=tuple(part for name in node.inputs for part in parts.get(name, (name,))))
        elif isinstance(node, Slice) and all(part in sizes for part in parts.get(node.x, (node.x,))):
            node = _cut(node, {part: sizes[part].channels for part in parts.get(node.x, (node.x,))})
        parts |= {node.name: node.inputs} if isinstance(node, Concat) else {}
        nodes.append(node)
    return remove_dead(redirect(replace(graph, nodes=tuple(nodes)), instead))
