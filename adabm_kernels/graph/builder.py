"""Builds a graph by adding nodes one after the other, as a network computes them."""

from __future__ import annotations

from typing import Any

from .nodes import Activation, Add, Conv, Graph, Node, PixelShuffle


class Builder:
    """Collects the nodes of a graph. Each method returns the name of the tensor that it adds."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []

    def add(self, node: Node) -> str:
        self.nodes.append(node)
        return node.name

    def conv(self, name: str, x: str, channels: tuple[int, int], kernel: int = 3, **settings: Any) -> str:
        """Adds a convolution of stride 1 that keeps the size. channels: the numbers of channels of the input and of the output.
        settings: further fields of `Conv`."""
        sizes, padding = (kernel, kernel), (kernel // 2, kernel // 2)
        return self.add(Conv(name, (x,), name, channels[0], channels[1], sizes, padding=padding, **settings))

    def relu(self, name: str, x: str) -> str:
        return self.add(Activation(name, (x,), "relu"))

    def sum(self, name: str, inner: str, skip: str, factor: float = 1.0) -> str:
        """Adds the sum inner * factor + skip."""
        return self.add(Add(name, (inner, skip), (factor, 1.0)))

    def shuffle(self, name: str, x: str, factor: int) -> str:
        return self.add(PixelShuffle(name, (x,), factor))

    def graph(self, output: str, buffers: dict[str, tuple[int, ...]] | None = None) -> Graph:
        """The graph of all nodes so far, with the input "x" and the output `output`."""
        return Graph(tuple(self.nodes), outputs=(output,), buffers=buffers or {})
