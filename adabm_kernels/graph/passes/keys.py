"""Gives every layer a key of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch

from ..nodes import Conv, Graph, Linear, Node

State = Mapping[str, torch.Tensor]


def own_keys(graph: Graph, state: State) -> tuple[Graph, dict[str, torch.Tensor]]:
    """A graph in which every convolution and linear layer has a key of its own, which is also the name of its node.

    A layer that is used several times becomes several layers, each with a copy of its weights. Any other node whose name is one of
    these keys gets another name.
    """
    taken, state = {one.name for one in graph.nodes} | set(graph.inputs), dict(state)
    keys: dict[str, str] = {}  # for the name of each layer's node, the key of the layer
    for node in graph.nodes:
        if isinstance(node, (Conv, Linear)):
            # An input keeps its name.
            first = node.key not in keys.values() and node.key not in graph.inputs
            key = node.key if first else next(one for one in _numbered(node.key) if one not in taken | set(keys.values()))
            keys[node.name] = key
            if not first:
                parts = ("weight", "bias") if node.bias else ("weight",)
                state |= {f"{key}.{part}": state[f"{node.key}.{part}"].clone() for part in parts}
    used = taken | set(keys.values())
    renamed: dict[str, str] = {}
    for node in graph.nodes:
        if node.name in keys:
            renamed[node.name] = keys[node.name]
        elif node.name in keys.values():
            renamed[node.name] = next(one for one in _numbered(node.name) if one not in used)
            used.add(renamed[node.name])

    def now(name: str) -> str:
        return renamed.get(name, name)

    def changed(node: Node) -> Node:
        fields = {"key": keys[node.name]} if node.name in keys else {}
        return replace(node, name=now(node.name), inputs=tuple(map(now, node.inputs)), **fields)  # type: ignore[arg-type]

    nodes = tuple(map(changed, graph.nodes))
    return replace(graph, nodes=nodes, outputs=tuple(map(now, graph.outputs))), state


def _numbered(name: str) -> Iterator[str]:
    """Yields name_1, name_2, ..."""
    number = 1
    while True:
        yield f"{name}_{number}"
        number += 1
