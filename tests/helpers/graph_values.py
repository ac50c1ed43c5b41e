"""The tensors of a graph, computed node by node with the functions of torch."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional as F

from adabm_kernels.graph.nodes import (
    Activation,
    Add,
    Affine,
    BatchNorm,
    BorderConv,
    ColourShift,
    Concat,
    Conv,
    Float,
    Graph,
    Key,
    Linear,
    Multiply,
    Node,
    PixelShuffle,
    PixelUnshuffle,
    Pool,
    Ref,
    Resize,
    Slice,
)
from adabm_kernels.networks.collapse import border_conv


def evaluate(graph: Graph, state: Mapping[str, torch.Tensor], *inputs: torch.Tensor) -> list[torch.Tensor]:
    """The outputs of a graph; its values become those of the dtype of the inputs."""
    values: dict[str, Any] = dict(zip(graph.inputs, inputs, strict=True))
    state = {key: value.to(inputs[0].dtype) if value.is_floating_point() else value for key, value in state.items()}
    for node in graph.nodes:
        values[node.name] = compute(node, [values[name] for name in node.inputs], state)
    return [values[name] for name in graph.outputs]


def compute(node: Node, inputs: list[Any], state: Mapping[str, torch.Tensor]) -> Any:
    x = inputs[0]
    match node:
        case Conv():
            bias = state[f"{node.key}.bias"] if node.bias else None
            return F.conv2d(x, state[f"{node.key}.weight"], bias, node.stride, node.padding, node.dilation, node.groups)
        case BorderConv():
            return border_conv(x, state[f"{node.key}.weight"], state[f"{node.key}.bias"], node.scale)
        case Linear():
            return F.linear(x, state[f"{node.key}.weight"], state[f"{node.key}.bias"] if node.bias else None)
        case BatchNorm():
            mean, variance, weight, bias = (
                state[f"{node.key}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
            )
            return F.batch_norm(x, mean, variance, weight, bias, eps=node.eps)
        case ColourShift():
            return F.conv2d(x, state[f"{node.key}.weight"], state[f"{node.key}.bias"])
        case Affine():
            gain, shift = (None if one is None else x.new_tensor(one).view(-1, 1, 1) for one in (node.gain, node.shift))
            x = x if node.divisor is None else x / node.divisor
            x = x + shift if shift is not None and node.first == "shift" else x
            x = x if gain is None else x * gain
            return x + shift if shift is not None and node.first == "gain" else x
        case Activation():
            slopes = (state[f"{node.key}.weight"],) if node.slopes else ()
            return getattr(F, node.function)(x, *slopes, **dict(node.settings))
        case Add():
            total = inputs[0] * node.factor(0)
            for i, one in enumerate(inputs[1:], 1):
                total = total + one * node.factor(i)
            return total
        case Multiply():
            return x * inputs[1]
        case Concat():
            return torch.cat(inputs, 1)
        case Slice():
            return x[:, node.start : node.stop]
        case PixelShuffle():
            return F.pixel_shuffle(x, node.factor)
        case PixelUnshuffle():
            return F.pixel_unshuffle(x, node.factor)
        case Resize():
            return F.interpolate(x, scale_factor=node.factor, mode=node.mode, align_corners=node.align_corners)
        case Pool():
            return getattr(F, node.function)(x, **dict(node.settings))
        case Float():
            return _call(node, inputs, state)
    raise AssertionError(node)


def _call(node: Float, inputs: list[Any], state: Mapping[str, torch.Tensor]) -> Any:
    def given(value: Any) -> Any:
        if isinstance(value, Ref):
            return inputs[value.index]
        if isinstance(value, Key):
            return state[value.name]
        return tuple(map(given, value)) if isinstance(value, tuple) else value

    arguments, settings = given(node.arguments), {name: given(value) for name, value in node.settings}
    if node.target.startswith("."):
        return getattr(arguments[0], node.target[1:])(*arguments[1:], **settings)
    place, *parts = node.target.split(".")
    function: Any = importlib.import_module(place)
    for part in parts:
        function = getattr(function, part)
    return function(*arguments, **settings)
