"""Finds which channels of a graph can be multiplied by a factor without changing what the network computes, and which channels must
share one factor."""

from __future__ import annotations

from collections.abc import Mapping

from .nodes import (
    Activation,
    Add,
    Affine,
    Concat,
    Conv,
    Graph,
    Node,
    PixelShuffle,
    PixelUnshuffle,
    Pool,
    Resize,
    Slice,
)
from .properties import HOMOGENEOUS, extents

FIXED = 0  # the class of channels that have to stay as they are


def scalable_channels(graph: Graph, channels: Mapping[str, int] | None = None) -> dict[str, tuple[int, ...]]:
    """The class of each channel of every tensor. All channels of one class can be multiplied by the same positive factor; those of
    the class FIXED must stay as they are.

    A factor is put into the weights of the convolutions that make such channels, and is undone in the weights of the convolutions
    that read them. Between these, a network may only hold two kinds of nodes: nodes that give c times their output for c times
    their input, channel by channel, and nodes that add channels with the same factor. channels: the number of channels of each
    input, as `extents` takes them. A tensor whose channels are not known is left out, and the tensors that it is computed from are
    fixed.
    """
    ties = _Ties()
    found: dict[str, list[int]] = {}
    sizes = extents(graph, channels)
    keys = [node.key for node in graph.nodes if isinstance(node, Conv)]
    for name in graph.inputs:
        found[name] = [FIXED] * sizes[name].channels
    for node in graph.nodes:
        own = isinstance(node, Conv) and keys.count(node.key) == 1
        made = [ties.new() for _ in range(node.channels_out)] if own and isinstance(node, Conv) else _passed(node, found, ties)
        if made is None:
            for name in node.inputs:
                ties.fix(found.get(name, []))
            made = [FIXED] * sizes[node.name].channels if node.name in sizes else []
        found[node.name] = made
    for name in graph.outputs:
        ties.fix(found[name])
    return {name: tuple(map(ties.of, classes)) for name, classes in found.items() if classes}


def _passed(node: Node, found: Mapping[str, list[int]], ties: _Ties) -> list[int] | None:
    """The classes of a node's output channels where the node passes factors on; None where it does something else with its
    channels."""
    inputs = [found[name] for name in node.inputs]
    if not all(inputs):
        return None
    x = inputs[0]
    match node:
        case Activation() if node.function in HOMOGENEOUS:
            return x
        case Affine() if node.shift is None:
            return x
        case Resize() | Pool():
            return x
        case Add() if len({len(one) for one in inputs}) == 1:
            return [ties.tie(*same) for same in zip(*inputs, strict=True)]
        case Concat():
            return [one for part in inputs for one in part]
        case Slice():
            return x[node.start : node.stop]
        case PixelShuffle():
            parts = node.factor**2
            return [ties.tie(*x[i : i + parts]) for i in range(0, len(x), parts)]
        case PixelUnshuffle():
            return [one for one in x for _ in range(node.factor**2)]
    return None


class _Ties:
    """Classes of channels, numbered from 1, that become one where they are tied. Classes that are tied to FIXED become FIXED."""

    def __init__(self) -> None:
        self.parents = [FIXED]

    def new(self) -> int:
        self.parents.append(len(self.parents))
        return self.parents[-1]

    def of(self, one: int) -> int:
        while self.parents[one] != one:
            self.parents[one] = one = self.parents[self.parents[one]]
        return one

    def tie(self, *classes: int) -> int:
        least = min(map(self.of, classes))
        for one in classes:
            self.parents[self.of(one)] = least
        return least

    def fix(self, classes: list[int]) -> None:
        self.tie(FIXED, *classes)
