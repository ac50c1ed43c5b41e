"""Finds the residual blocks that tiles of a picture can go without, and how far around the tiles with blocks the other layers are
read."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from .fuse import FusedConv, fuse
from .nodes import Activation, Add, Affine, BatchNorm, ColourShift, Concat, Conv, Graph, Multiply, Node, Slice
from .properties import (
    COLLAPSED_RADIUS,
    Ancestry,
    Extent,
    ResidualBlock,
    ResidualSum,
    extents,
    keeps_size,
    linear_upsampler,
    reach_of,
    readers,
    residual_sums,
    upsampler_input,
)

# The nodes that a block may contain besides convolutions. Each computes a pixel only from the same pixel of its inputs.
_IN_PLACE = (Activation, Add, Affine, BatchNorm, ColourShift, Concat, Multiply, Slice)


@dataclass(frozen=True)
class Trunk:
    """Residual blocks that follow one another: each adds to the output of the block before it, and nothing else reads that output.

    blocks: the blocks in their order; a block may contain others. A network without its blocks is computed by using the entry of
    the first block in place of the output of the last.
    """

    blocks: tuple[ResidualBlock, ...]

    @property
    def entry(self) -> str:
        """The tensor that the first block adds to."""
        return self.blocks[0].entry

    @property
    def inner(self) -> frozenset[str]:
        """The names of all nodes within the blocks, except the nodes that end them."""
        return frozenset(name for block in self.blocks for name in block.inner)

    @property
    def outputs(self) -> dict[str, ResidualBlock]:
        """For each tensor that a block gives, the block."""
        return {block.output: block for block in self.blocks}


def trunk(graph: Graph) -> tuple[Trunk | None, str]:
    """The blocks that a part of a picture can go without, or None; and the reason why there are none, as a sentence, or "".

    The blocks are the outermost residual sums that follow one another. A single outermost sum is a body, and the blocks are the
    sums within it, where it contains several such sums, or one that adds to the same tensor, and a convolution besides.
    """
    chain, beside = _chain(graph)
    if not chain:
        return None, "it has no residual blocks"
    if beside >= len(chain):
        return None, "its residual blocks do not follow one another"
    return (None, why) if (why := _why_not(graph, chain)) else (Trunk(chain), "")


def _chain(graph: Graph) -> tuple[tuple[ResidualBlock, ...], int]:
    """The blocks, and the number of other outermost sums."""
    ancestry = Ancestry(graph)
    sums = residual_sums(graph, ancestry)
    inner = {one.output: ancestry.between(one.skip, one.inner) for one in sums}
    around = {one.output: {other.output for other in sums if one.output in inner[other.output]} for one in sums}
    level = [one for one in sums if not around[one.output]]
    chain = _longest(level)
    while len(chain) == 1:
        outer, ends = chain[0], around[chain[0].output] | {chain[0].output}
        inside = [one for one in sums if around[one.output] == ends]
        within = _longest(inside)
        besides = set(inner[outer.output]).difference(*([*inner[one.output], one.output] for one in within))
        closed = any(isinstance(graph[name], Conv) for name in besides)
        if not within or not closed or (len(within) == 1 and within[0].skip != outer.skip):
            break
        chain, level = within, inside
    return tuple(ResidualBlock(one.skip, inner[one.output], one.output) for one in chain), len(level) - len(chain)


def _longest(sums: Sequence[ResidualSum]) -> list[ResidualSum]:
    """The longest chain of sums in which each sum adds the result of the one before it unchanged."""
    best: list[ResidualSum] = []
    chains: dict[str, list[ResidualSum]] = {}  # the key is the tensor that a chain ends with
    for one in sums:
        chains[one.output] = [*chains.get(one.skip, []), one]
        if len(chains[one.output]) > len(best):
            best = chains[one.output]
    return best


def _why_not(graph: Graph, blocks: tuple[ResidualBlock, ...]) -> str:
    sizes, reading = extents(graph), readers(graph)
    if sizes.get(blocks[0].entry, Extent(0, Fraction(0))).scale != 1:
        return "its blocks compute at another resolution than the picture's"
    for block, following in pairwise(blocks):
        if not set(reading[block.output]) <= {*following.inner, following.output}:
            return "it uses what every block makes at the end"
    for block in blocks:
        inner = set(block.inner)
        for node in map(graph.__getitem__, block.inner):
            if not (keeps_size(node) if isinstance(node, Conv) else isinstance(node, _IN_PLACE)):
                return f"'{node.name}' in a block is neither a convolution that can be quantised nor computed pixel by pixel"
            if not set(node.inputs) <= {block.entry, *inner}:
                return f"'{node.name}' in a block reads what was made outside of it"
            if not set(reading[node.name]) <= {*inner, block.output}:
                return f"'{node.name}' in a block is read outside of it"
        if set(reading[block.inner[-1]]) != {block.output}:
            return f"'{block.inner[-1]}', which a block adds, is read by others, too"
    inside = {name for block in blocks for name in (*block.inner, block.output)}
    for node in graph.nodes:
        if node.name in inside:
            continue
        if node.name not in sizes or sizes[node.name].scale < 1 or sizes[node.name].scale.denominator != 1:
            return f"'{node.name}' is not computed at a multiple of the picture's resolution"
        if reach_of(node) is None:
            return f"what '{node.name}' reads of the picture cannot be told"
    return ""


def reaches(graph: Graph, found: Trunk) -> Mapping[str, Fraction]:
    """For each tensor behind a convolution, how far around the tiles with blocks it is read, in pixels of the picture; 0 where it
    is read in these tiles alone.

    Within blocks, convolutions compute in these tiles alone and give nothing elsewhere; there the sum that ends a block is the
    tensor that it adds to. Layers before and after the blocks are computed as far as they are read.
    """
    sizes, need = extents(graph), {name: Fraction(0) for name in (*graph.inputs, *(node.name for node in graph.nodes))}
    inner, outputs = found.inner, found.outputs

    def read(name: str, far: Fraction) -> None:
        need[name] = max(need[name], far)

    if linear_upsampler(graph) is not None:  # the upsampler may be computed as one convolution with this radius
        read(upsampler_input(graph), Fraction(COLLAPSED_RADIUS))
    for node in reversed(graph.nodes):
        if node.name in outputs:
            read(outputs[node.name].entry, need[node.name])
            continue
        for name in node.inputs:
            read(name, _read_of(node, sizes[name].scale, Fraction(0) if _stops(node, inner) else need[node.name]))
    features: set[str] = set()
    for node in graph.nodes:
        if isinstance(node, Conv) or not features.isdisjoint(node.inputs):
            features.add(node.name)
    return {name: far for name, far in need.items() if name in features}


def stopped(graph: Graph, found: Trunk, quantized: Collection[str]) -> frozenset[str]:
    """The tensors that are zero where blocks are not computed: the output of a block's convolution, together with the nodes that
    are computed with it (`fuse`) but before a residual is added, and the tensor that a block adds.

    quantized: the keys of the convolutions that are computed in integers.
    """
    names = {block.inner[-1] for block in found.blocks}
    for item in fuse(graph, quantized):
        if isinstance(item, FusedConv) and item.conv.name in found.inner:
            own = [name for name in graph[item.name].inputs if name != item.residual]
            names.add(item.name if item.residual is None else own[0])
    return frozenset(names)


def _stops(node: Node, inner: frozenset[str]) -> bool:
    """Returns whether a node computes only in tiles with blocks."""
    return isinstance(node, Conv) and node.name in inner


def _read_of(node: Node, scale: Fraction, far: Fraction) -> Fraction:
    """How far a node reads its input, which has this scale, where its output is read as far as `far`. The result is a whole number
    of pixels of the input."""
    steps = reach_of(node)
    assert steps is not None
    return (math.ceil(far * scale) + math.ceil(steps)) / scale


def least_tile(graph: Graph, found: Trunk) -> int:
    """The least side of tiles, in pixels, with which everything that is read around a tile lies in its neighbours."""
    return max(1, math.ceil(max(reaches(graph, found).values())))


__all__ = ["Trunk", "least_tile", "reaches", "stopped", "trunk"]
