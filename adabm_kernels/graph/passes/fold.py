"""Passes that move constants into the weights beside them. They compute in float64 and round to the dtype of the weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from ..fold import gain_and_shift
from ..nodes import Affine, BatchNorm, ColourShift, Conv, Graph, Linear, Node, PixelShuffle
from ..properties import readers
from .simplify import redirect

State = Mapping[str, torch.Tensor]
Numbers = tuple[torch.Tensor, torch.Tensor]  # a gain and a shift, float64, one for each channel


def fold_batch_norm(graph: Graph, state: State) -> tuple[Graph, dict[str, torch.Tensor]]:
    """A graph in which each BatchNorm that alone reads a convolution or a linear layer is folded into its weights.

    w' = w * weight / sqrt(running_var + eps), b' = (b - running_mean) * weight / sqrt(running_var + eps) + bias.
    """
    edit = _Edit(graph, state)
    for norm in graph.nodes:
        if isinstance(norm, BatchNorm) and edit.only_reader(norm):
            layer = edit.nodes.get(norm.x)
            if isinstance(layer, (Conv, Linear)):
                edit.scale_outputs(layer, *gain_and_shift(norm, state.__getitem__))
                edit.instead[norm.name] = layer.name
    return edit.result()


def fold_affine(graph: Graph, state: State) -> tuple[Graph, dict[str, torch.Tensor]]:
    """A graph in which scales and shifts, including mean colours, are folded into the convolutions before or behind them.

    A node is folded into the convolution before it where it alone reads that convolution, or the PixelShuffle that alone reads one.
    It is folded into the convolutions behind it where only convolutions read it. These pad with zeros, not with shifted zeros. So a
    shift goes into convolutions without padding only, and stays before the others; where a node scales and then shifts, its scale
    is folded all the same.
    """
    while True:
        edit = _Edit(graph, state)
        for node in graph.nodes:
            numbers = _numbers(node, state)
            free = edit.touched.isdisjoint((node.name, *node.inputs))
            if numbers is not None and free and not edit.fold_before(node, *numbers):
                edit.fold_behind(node, *numbers)
        if not edit.touched:
            return graph, dict(state)
        graph, state = edit.result()


def _numbers(node: Node, state: State) -> Numbers | None:
    """The gain and the shift with which a node multiplies and adds, each one number or one for each channel; None where the node
    does something else."""
    if isinstance(node, ColourShift):
        weight, bias = (state[f"{node.key}.{part}"].double() for part in ("weight", "bias"))
        mean = node.sign * torch.tensor(node.mean, dtype=torch.float64)
        if not (torch.equal(weight.flatten(1), torch.eye(3).to(weight)) and torch.equal(bias, mean.to(bias))):
            return None
    return gain_and_shift(node, state.__getitem__) if isinstance(node, (Affine, ColourShift)) else None


class _Edit:
    """A graph and its state while a pass changes them.

    instead: for each node that is removed, the tensor that is read in its place. touched: the nodes that have been folded, and
    those into which others have been folded.
    """

    def __init__(self, graph: Graph, state: State) -> None:
        self.graph, self.state = graph, dict(state)
        self.nodes = {node.name: node for node in graph.nodes}
        self.readers = readers(graph)
        self.users = Counter(key for node in graph.nodes for key in node.parameters())
        self.instead: dict[str, str] = {}
        self.touched: set[str] = set()

    def only_reader(self, node: Node) -> bool:
        """Returns whether a node is the only reader of its input."""
        return self.readers[node.x] == (node.name,) and node.x not in self.graph.outputs

    def fold_before(self, node: Node, gain: torch.Tensor, shift: torch.Tensor) -> bool:
        """Folds a node into the convolution before it where that is possible. Returns whether it was."""
        source = self.nodes.get(node.x)
        if not self.only_reader(node) or source is None:
            return False
        conv: Node | None = source
        times = 1
        if isinstance(source, PixelShuffle) and self.only_reader(source):
            conv, times = self.nodes.get(source.x), source.factor**2
        if not isinstance(conv, Conv) or conv.name in self.touched:
            return False
        self.scale_outputs(conv, *(one if len(one) == 1 else one.repeat_interleave(times) for one in (gain, shift)))
        self.instead[node.name] = source.name
        self.touched |= {node.name, source.name, conv.name}
        return True

    def fold_behind(self, node: Node, gain: torch.Tensor, shift: torch.Tensor) -> bool:
        """Folds a node into the convolutions behind it, or only its scale where these are padded. Returns whether it was folded."""
        convs = [conv for name in self.readers[node.name] if isinstance(conv := self.nodes[name], Conv)]
        if not convs or len(convs) < len(self.readers[node.name]) or node.name in self.graph.outputs:
            return False
        if self.touched.intersection(conv.name for conv in convs):
            return False
        if shift.any() and any(conv.padding != (0, 0) for conv in convs):
            if not (isinstance(node, Affine) and node.first == "shift" and (node.gain or node.divisor)):
                return False
            self.nodes[node.name], shift = Affine(node.name, node.inputs, shift=node.shift), torch.zeros(1, dtype=torch.float64)
        else:
            self.instead[node.name] = node.x
        for conv in convs:
            self.scale_inputs(conv, gain, shift)
        self.touched |= {node.name, *(conv.name for conv in convs)}
        return True

    def scale_outputs(self, layer: Conv | Linear, gain: torch.Tensor, shift: torch.Tensor) -> None:
        def changed(weight: torch.Tensor, bias: torch.Tensor) -> Numbers:
            scale = gain.to(weight.device)
            return weight * scale.view(-1, *[1] * (weight.ndim - 1)), bias * scale + shift.to(weight.device)

        self._change(layer, changed)

    def scale_inputs(self, conv: Conv, gain: torch.Tensor, shift: torch.Tensor) -> None:
        def changed(weight: torch.Tensor, bias: torch.Tensor) -> Numbers:
            def shaped(numbers: torch.Tensor) -> torch.Tensor:
                """[C] -> [K, C / groups, 1, 1]: each group of outputs reads channels of its own."""
                groups = numbers.to(weight.device).expand(conv.channels_in).view(conv.groups, -1)
                return groups.repeat_interleave(conv.channels_out // conv.groups, 0)[..., None, None]

            return weight * shaped(gain), bias + (weight * shaped(shift)).sum((1, 2, 3))

        self._change(conv, changed)

    def _change(self, layer: Conv | Linear, changed: Callable[[torch.Tensor, torch.Tensor], Numbers]) -> None:
        """Gives a layer new weights, under keys of its own where others use the old ones too."""
        weight, key = self.state[f"{layer.key}.weight"], layer.key
        old = self.state[f"{key}.bias"] if layer.bias else weight.new_zeros(layer.channels_out)
        if any(self.users[name] > (name in layer.parameters()) for name in (f"{key}.weight", f"{key}.bias")):
            names = (f"{layer.name}_folded{i or ''}" for i in range(len(self.state) + 1))
            key = next(name for name in names if f"{name}.weight" not in self.state)
        values = changed(weight.double(), old.double())
        self.users.subtract(layer.parameters().keys())
        for part, value in zip(("weight", "bias"), values, strict=True):
            self.state[f"{key}.{part}"] = value.to(weight.dtype)
        self.nodes[layer.name] = replace(layer, key=key, bias=True)
        self.users.update(self.nodes[layer.name].parameters().keys())

    def result(self) -> tuple[Graph, dict[str, torch.Tensor]]:
        """The graph without the nodes that have been folded, and the state without the values that it no longer reads."""
        graph = redirect(replace(self.graph, nodes=tuple(self.nodes[node.name] for node in self.graph.nodes)), self.instead)
        gone = self.graph.parameters().keys() - graph.parameters().keys()
        return graph, {key: value for key, value in self.state.items() if key not in gone}
