"""Decides which convolutions are adaptive and which are ends."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from ..nodes import Activation, Affine, BatchNorm, Conv, Graph, Node, PixelShuffle

ROLES = ("adaptive", "fixed", "end")


def with_roles(graph: Graph, finer: Collection[str], given: Mapping[str, str]) -> Graph:
    """A graph in which each convolution has the role that the rule of `trace` gives it, or the role that `given` has for the name
    of its node.

    finer: the names of tensors with more rows than the input. Raises ValueError for other roles, and for names that belong to no
    convolution.
    """
    convs = {node.name for node in graph.nodes if isinstance(node, Conv)}
    if unknown := set(given) - convs:
        raise ValueError(f"roles must name convolutions of the graph, got {sorted(unknown)}")
    if wrong := [role for role in given.values() if role not in ROLES]:
        raise ValueError(f"a role must be one of {', '.join(ROLES)}, got {wrong[0]!r}")
    made: set[str] = set()  # tensors that are computed from the output of a convolution
    for node in graph.nodes:
        if node.name in convs or not made.isdisjoint(node.inputs):
            made.add(node.name)
    read: set[str] = set()  # tensors that a convolution reads, and tensors from which these are computed
    spread: set[str] = set()  # tensors that a PixelShuffle spreads, value by value
    for node in reversed(graph.nodes):
        if node.name in convs or node.name in read:
            read.update(node.inputs)
        if isinstance(node, PixelShuffle) and node.name in finer:
            spread.add(node.x)
        elif isinstance(node, (Activation, Affine, BatchNorm)) and node.name in spread:
            spread.add(node.x)

    def with_role(node: Node) -> Node:
        if not isinstance(node, Conv):
            return node
        inner = node.x in made and node.name in read
        usual = "adaptive" if inner and node.name not in finer and node.name not in spread else "end"
        role = given.get(node.name, usual)
        return replace(node, role=role, body=role != "end")

    return replace(graph, nodes=tuple(map(with_role, graph.nodes)))
