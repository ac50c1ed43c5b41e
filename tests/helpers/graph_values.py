"""Computes the tensors that a graph gives."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from adabm_kernels.graph.module import GraphModule, layer_of
from adabm_kernels.graph.nodes import BatchNorm, Graph, Node


class _Norm(nn.BatchNorm2d):
    """A BatchNorm that takes [N, C] as well."""

    def _check_input_dim(self, input: torch.Tensor) -> None:
        pass


def _layer(node: Node) -> nn.Module | None:
    return _Norm(node.channels, node.eps) if isinstance(node, BatchNorm) else layer_of(node)


def evaluate(graph: Graph, state: Mapping[str, torch.Tensor], *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The outputs of a graph with these values, in the dtype of the inputs."""
    module = GraphModule(graph, layer=_layer).eval().to(inputs[0].dtype)
    module.load_state_dict({key: state[key] for key in graph.parameters()})
    with torch.no_grad():
        given = module(*inputs)
    return given if isinstance(given, tuple) else (given,)
