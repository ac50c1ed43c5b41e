"""Passes that change no value, to the last bit: they remove nodes that are not needed, and merge nodes that compute the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..nodes import Add, Affine, Concat, Graph, Node, PixelShuffle, PixelUnshuffle, Resize, Slice
from ..properties import extents, needed, readers


def simplify(graph: Graph, channels: Mapping[str, int] | None = None) -> Graph:
    """Applies all passes of this file, one after the other. channels: the number of channels of each input, as `extents` takes
    them."""
    return remove_dead(common_reads(split_concats(merge_affines(merge_factors(remove_identities(graph))), channels)))


def remove_dead(graph: Graph) -> Graph:
    """A graph without the nodes that no output depends on."""
    return replace(graph, nodes=needed(graph, graph.outputs))


def remove_identities(graph: Graph) -> Graph:
    """A graph without the nodes that return their input unchanged: factors of 1, shifts of 0, concatenations of one tensor."""
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
    """A graph in which a product by one number that an `Add` reads becomes a factor of the `Add`, except where two factors would
    have to be multiplied."""

    def number(name: str) -> float | None:
        product = by_name.get(name)
        if not isinstance(product, Affine) or product.gain is None or len(product.gain) > 1:
            return None
        return product.gain[0] if product.shift is None and product.divisor is None else None

    def merged(node: Node) -> Node:
        if not isinstance(node, Add):
            return node
        inputs, factors = list(node.inputs), [node.factor(i) for i in range(len(node.inputs))]
        for i, name in enumerate(node.inputs):
            gain = number(name)
            if gain is not None and 1 in (abs(gain), abs(factors[i])):
                inputs[i], factors[i] = by_name[name].x, factors[i] * gain
        return replace(node, inputs=tuple(inputs), factors=tuple(factors)) if tuple(inputs) != node.inputs else node

    by_name = {node.name: node for node in graph.nodes}
    return remove_dead(replace(graph, nodes=tuple(map(merged, graph.nodes))))


def merge_affines(graph: Graph) -> Graph:
    """A graph with one `Affine` in place of a scale and a shift, or of a shift and a scale, where the second of the two is the only
    reader of the first."""
    nodes = {node.name: node for node in graph.nodes}
    reading = readers(graph)
    for node in graph.nodes:
        before, after = nodes.get(node.inputs[0]), nodes[node.name]
        if not isinstance(before, Affine) or not isinstance(after, Affine):
            continue
        if len(reading[before.name]) > 1 or before.name in graph.outputs:
            continue
        if before.shift is None and after.gain is None and after.divisor is None:
            nodes[node.name] = replace(before, name=node.name, shift=after.shift, first="gain")
        elif before.gain is None and before.divisor is None and after.shift is None and after.divisor is None:
            nodes[node.name] = Affine(node.name, before.inputs, gain=after.gain, shift=before.shift, first="shift")
    return remove_dead(replace(graph, nodes=tuple(nodes.values())))


def split_concats(graph: Graph, channels: Mapping[str, int] | None = None) -> Graph:
    """A graph in which the parts of a concatenation are read in place of the whole, where the whole is concatenated again or cut
    along its parts.

    channels: the number of channels of each input, as `extents` takes them.
    """
    sizes = extents(graph, channels)
    parts: dict[str, tuple[str, ...]] = {}  # the parts of each concatenation
    nodes: list[Node] = []
    for node in graph.nodes:
        if isinstance(node, Concat):
            node = replace(node, inputs=tuple(part for name in node.inputs for part in parts.get(name, (name,))))
            parts[node.name] = node.inputs
        elif isinstance(node, Slice) and node.x in parts and all(part in sizes for part in parts[node.x]):
            node = _cut(node, {part: sizes[part].channels for part in parts[node.x]}, parts[node.x])
        nodes.append(node)
    return remove_dead(remove_identities(replace(graph, nodes=tuple(nodes))))


def _cut(node: Slice, channels: Mapping[str, int], parts: tuple[str, ...]) -> Node:
    """A slice of a concatenation, turned into a slice of one part or into a concatenation of the parts that it consists of."""
    start, inside = 0, []
    for part in parts:
        stop = start + channels[part]
        if start <= node.start and node.stop <= stop and (start, stop) != (node.start, node.stop):
            return Slice(node.name, (part,), node.start - start, node.stop - start)
        if node.start <= start and stop <= node.stop:
            inside.append((part, stop - start))
        start = stop
    whole = sum(width for _, width in inside) == node.stop - node.start
    return Concat(node.name, tuple(part for part, _ in inside)) if whole else node


def common_reads(graph: Graph) -> Graph:
    """A graph with one node in place of all nodes that compute the same of the same inputs, so that fewer tensors are read."""
    first: dict[str, str] = {}
    instead: dict[str, str] = {}
    for node in graph.nodes:
        inputs = tuple(instead.get(name, name) for name in node.inputs)
        same = first.setdefault(repr(replace(node, name="", inputs=inputs)), node.name)
        if same != node.name:
            instead[node.name] = same
    return redirect(graph, instead)


def redirect(graph: Graph, instead: Mapping[str, str]) -> Graph:
    """A graph without the nodes in `instead`. A reader of one of them reads the tensor that is named in its place, which is equal.

    Where a removed node is an output, the node in its place takes its name. It stays where that node is an input of the network or
    an output too.
    """

    def last(name: str) -> str:
        while name in instead:
            name = instead[name]
        return name

    renamed: dict[str, str] = {}
    kept = set(graph.inputs) | {name for name in graph.outputs if name not in instead}
    staying: set[str] = set()
    for output in dict.fromkeys(name for name in graph.outputs if name in instead):
        if last(output) in kept or last(output) in renamed:
            staying.add(output)
        else:
            renamed[last(output)] = output

    def now(name: str) -> str:
        return renamed.get(last(name), last(name))

    nodes = []
    for node in graph.nodes:
        if node.name not in instead or node.name in staying:
            name = renamed.get(node.name, node.name)
            nodes.append(replace(node, name=name, inputs=tuple(map(now, node.inputs))))
    return replace(graph, nodes=tuple(nodes))
