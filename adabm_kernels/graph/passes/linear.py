"""Replaces linear layers by convolutions of one pixel, which compute the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from ..nodes import Conv, Float, Graph, Linear, Node, Ref

State = Mapping[str, torch.Tensor]
# The calls of methods, with their arguments, by which [N, C], [N, L, C] and [N, H, W, C] become [N, C, H, W], and by which results
# get the first form again. They move no value.
_TO_PICTURE = {
    2: (("unsqueeze", (-1,)), ("unsqueeze", (-1,))),
    3: (("transpose", (1, 2)), ("unsqueeze", (-1,))),
    4: (("permute", (0, 3, 1, 2)),),
}
_FROM_PICTURE = {
    2: (("flatten", (1,)),),
    3: (("squeeze", (-1,)), ("transpose", (1, 2))),
    4: (("permute", (0, 2, 3, 1)),),
}


def linears_as_convs(graph: Graph, state: State) -> tuple[Graph, dict[str, torch.Tensor]]:
    """A graph with 1x1 convolutions in place of the linear layers whose tensors have two to four dimensions, of which the first is
    the batch."""
    nodes: list[Node] = []
    state, taken = dict(state), {node.name for node in graph.nodes} | set(graph.inputs)
    instead: dict[str, str] = {}

    def moved(name: str, x: str, calls: tuple[tuple[str, tuple[int, ...]], ...]) -> str:
        for function, arguments in calls:
            free = f"{name}.{function}"
            while free in taken:
                free += "_"
            taken.add(free)
            target = f"torch.Tensor.{function}"
            nodes.append(Float(free, (x,), target, (Ref(0), *arguments)))
            x = free
        return x

    for node in graph.nodes:
        node = replace(node, inputs=tuple(instead.get(name, name) for name in node.inputs))
        if not isinstance(node, Linear) or node.dims not in _TO_PICTURE:
            nodes.append(node)
            continue
        x = moved(node.name, node.x, _TO_PICTURE[node.dims])
        sizes = {"kernel": (1, 1), "padding": (0, 0), "bias": node.bias}
        nodes.append(Conv(node.name, (x,), node.key, node.channels_in, node.channels_out, **sizes))  # type: ignore[arg-type]
        instead[node.name] = moved(node.name, node.name, _FROM_PICTURE[node.dims])
        weight = state[f"{node.key}.weight"]
        state[f"{node.key}.weight"] = weight.reshape(node.channels_out, node.channels_in, 1, 1)
    outputs = tuple(instead.get(name, name) for name in graph.outputs)
    return replace(graph, nodes=tuple(nodes), outputs=outputs), state
