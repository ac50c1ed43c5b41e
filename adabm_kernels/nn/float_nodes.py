"""Nodes of a graph in floats, beside integer convolutions, and those that fold into them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from ..graph.fuse import FusedConv
from ..graph.nodes import (
    Activation,
    Add,
    Affine,
    BatchNorm,
    ColourShift,
    Concat,
    Conv,
    Multiply,
    Node,
    PixelShuffle,
    PixelUnshuffle,
    Pool,
    Resize,
)

Values = Callable[[str], Any]  # what a network learnt and keeps in floats, a tensor by key, or None


def evaluate(node: Node, inputs: Sequence[torch.Tensor], values: Values) -> torch.Tensor:
    """What a node computes of tensors [N, C, H, W]. Raises ValueError for a node that is not known here."""
    x = inputs[0]
    match node:
        case Conv():
            x = x.contiguous(memory_format=torch.channels_last)
            weight, bias = values(f"{node.key}.weight"), values(f"{node.key}.bias")
            return F.conv2d(x, weight, bias, node.stride, node.padding, node.dilation, node.groups)
        case BatchNorm():
            gain, shift = (value.float().view(1, -1, 1, 1) for value in gain_and_shift(node, values))
            return x * gain + shift
        case Affine():
            return _affine(node, x, values)
        case ColourShift():
            return x + constants(node, values)[1]
        case Activation(function="prelu"):
            return F.prelu(x, values(f"{node.key}.weight"))
        case Activation():
            return getattr(F, node.function)(x, **dict(node.settings))
        case Add():
            terms = [term if node.factor(i) == 1 else term * node.factor(i) for i, term in enumerate(inputs)]
            return sum(terms[1:], terms[0])
        case Multiply():
            return x * inputs[1]
        case Concat():
            return torch.cat(list(inputs), 1)
        case PixelShuffle():
            return F.pixel_shuffle(x, node.factor)
        case PixelUnshuffle():
            return F.pixel_unshuffle(x, node.factor)
        case Resize():
            return F.interpolate(x, scale_factor=node.factor, mode=node.mode, align_corners=node.align_corners)
        case Pool():
            return getattr(F, node.function)(x, **dict(node.settings))
    raise ValueError(f"evaluate: '{node.name}' is a {type(node).__name__}, which cannot be computed beside integer convolutions")


def _affine(node: Affine, x: torch.Tensor, values: Values) -> torch.Tensor:
    gain, shift = constants(node, values)
    if shift is not None and node.first == "shift":
        x = x + shift
    x = x if node.divisor is None else x / node.divisor
    x = x if gain is None else x * gain
    return x + shift if shift is not None and node.first == "gain" else x


def constants(node: Affine | ColourShift, values: Values) -> tuple[Any, Any]:
    """(gain, shift) of a node as floats take them: a number for all channels, a tensor that the network keeps, or None."""
    if isinstance(node, ColourShift):
        return None, values(f"{node.name}.shift").view(1, -1, 1, 1)
    parts = (("gain", node.gain), ("shift", node.shift))
    return tuple(
        None if part is None else part[0] if len(part) == 1 else values(f"{node.name}.{what}").view(1, -1, 1, 1)
        for what, part in parts
    )  # type: ignore[return-value]


def kept_constants(node: Node) -> dict[str, torch.Tensor]:
    """What `constants` asks a network for, float32 by key: it lies on the device of the network."""
    if isinstance(node, ColourShift):
        return {f"{node.name}.shift": node.sign * torch.tensor(node.mean, dtype=torch.float32)}
    parts = (("gain", node.gain), ("shift", node.shift)) if isinstance(node, Affine) else ()
    return {f"{node.name}.{what}": torch.tensor(part, dtype=torch.float32) for what, part in parts if part and len(part) > 1}


def gain_and_shift(node: Node, values: Values) -> tuple[torch.Tensor, torch.Tensor]:
    """x * gain + shift, which a BatchNorm, an Affine or a ColourShift is: float64, one number or one for each channel."""
    match node:
        case BatchNorm():
            parts = ("weight", "bias", "running_mean", "running_var")
            weight, bias, mean, var = (values(f"{node.key}.{part}").double() for part in parts)
            gain = weight / torch.sqrt(var + node.eps)
            return gain, bias - mean * gain
        case ColourShift():
            return torch.ones(1, dtype=torch.float64), node.sign * torch.tensor(node.mean, dtype=torch.float32).double()
        case Affine():
            gain = torch.tensor(node.gain or (1.0,), dtype=torch.float64) / (node.divisor or 1.0)
            shift = torch.tensor(node.shift or (0.0,), dtype=torch.float64)
            return gain, shift * gain if node.first == "shift" else shift
    raise TypeError(f"gain_and_shift: node must be a BatchNorm, an Affine or a ColourShift, got a {type(node).__name__}")


def folded(fused: FusedConv, values: Values) -> tuple[torch.Tensor, torch.Tensor]:
    """(gain, shift), float64 [K], of all that follows a convolution up to its activation: gain * y + shift."""
    k = fused.conv.channels_out
    gain, shift = torch.ones(k, dtype=torch.float64), torch.zeros(k, dtype=torch.float64)
    for node in fused.affine:
        own_gain, own_shift = (value.repeat_interleave(k // len(value)) for value in gain_and_shift(node, values))
        gain, shift = gain * own_gain, shift * own_gain + own_shift
    return gain * fused.factor, shift * fused.factor


def slopes(fused: FusedConv, values: Values) -> torch.Tensor | None:
    """Slopes of the PReLU that follows a convolution, [K]; None without one."""
    if fused.activation is None or fused.activation.function != "prelu":
        return None
    weight = values(f"{fused.activation.key}.weight")
    return weight.repeat_interleave(fused.conv.channels_out // len(weight))
