"""A module that is none of the known networks becomes a specification, which is checked against the module on calibration data."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from ..graph.trace import trace
from ..networks.float_network import float_network
from ..networks.traced import GraphSpec

TOLERANCE = 1e-3  # as a share of an output's largest value: convolutions that are fused or ordered otherwise round otherwise


def traced_spec(module: nn.Module, data: list[torch.Tensor]) -> tuple[GraphSpec, dict[str, torch.Tensor]]:
    """The specification of a module and its values, for tensors like those in `data`, float32 [C, h, w].

    Raises TypeError and ValueError for what cannot be traced (`graph.trace`), and for a graph that computes something else than the
    module.
    """
    module = _in_float32(module)
    example = data[0][None]
    traced = trace(module, example, any_size=False)
    settings = {name: getattr(traced, name) for name in ("multiple", "size", "layout", "finer", "smallest")}
    spec, state = GraphSpec.of_graph(traced.graph, traced.state, channels=example.shape[1], **settings)
    spec = replace(spec, kept_float=_kept_float(spec, state, module, torch.cat([example, example])))
    return spec, state


def _in_float32(module: nn.Module) -> nn.Module:
    """The module itself, or a copy on the CPU and in float32 where it is not there or not of that dtype."""
    if not isinstance(module, nn.Module):
        return module
    tensors = [*module.parameters(), *module.buffers()]
    usual = all(one.device.type == "cpu" and (one.dtype == torch.float32 or not one.is_floating_point()) for one in tensors)
    return module if usual else copy.deepcopy(module).cpu().float()


def _kept_float(spec: GraphSpec, state: dict[str, torch.Tensor], module: nn.Module, x: torch.Tensor) -> dict[str, str]:
    """Convolutions that cannot be quantised, each with the reason: their input is no batch of as many images as x, so that bits
    cannot be given by image. Raises ValueError where the graph computes something else than the module."""
    network: Any = float_network(spec)
    network.load_state_dict(state)
    found: dict[str, str] = {}

    def look(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
            if len(given[0]) != len(x):
                found[name] = (
                    f"its input has {len(given[0]) / len(x):g} times as many images as the network's: bits are those of images"
                )

        return hook

    for conv in spec.convs():
        network.layer_named(conv.name).register_forward_pre_hook(look(conv.name))
    with torch.no_grad():
        ours, theirs = tree_leaves(network(x)), tree_leaves(module(x.clone()))
    for one, other in zip(ours, theirs, strict=True):
        alike = one.shape == other.shape
        if alike and other.numel() and other.isfinite().all():  # calibration raises an error for outputs that are not finite
            alike = float((one - other).abs().max()) <= TOLERANCE * max(float(other.abs().max()), 1e-30)
        if not alike:
            raise ValueError(f"trace: the graph of {type(module).__name__} computes something else than the module")
    return found
