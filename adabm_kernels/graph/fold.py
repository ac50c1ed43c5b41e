"""Turns the nodes that follow a convolution into numbers for each of its outputs: gains, shifts and slopes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .fuse import FusedConv
from .nodes import Activation, Affine, BatchNorm, ColourShift, Node

Values = Callable[[str], Any]  # a function from a key to a tensor that the network learnt, or None


def gain_and_shift(node: Node, values: Values) -> tuple[torch.Tensor, torch.Tensor]:
    """The gain and the shift with which a BatchNorm, an Affine or a ColourShift computes x * gain + shift. Each is float64: one
    number for all channels, or one for each."""
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
    """The gain and the shift, float64 [K] each, of all nodes between a convolution and its activation. Together these nodes compute
    gain * y + shift from the convolution's output y."""
    k = fused.conv.channels_out
    gain, shift = torch.ones(k, dtype=torch.float64), torch.zeros(k, dtype=torch.float64)
    for node in fused.affine:
        own_gain, own_shift = (value.repeat_interleave(k // len(value)) for value in gain_and_shift(node, values))
        gain, shift = gain * own_gain, shift * own_gain + own_shift
    return gain * fused.factor, shift * fused.factor


def leaky_slope(node: Activation) -> float:
    """The slope of a leaky ReLU below zero, which is torch's default where the node says nothing."""
    return float(dict(node.settings).get("negative_slope", 0.01))


def slopes(fused: FusedConv, values: Values) -> torch.Tensor | None:
    """The slopes [K] of the PReLU or leaky ReLU that follows a convolution; a leaky ReLU has the same slope for all outputs. None
    where neither follows."""
    node, k = fused.activation, fused.conv.channels_out
    if node is None or fused.function != "prelu":
        return None
    if node.function == "leaky_relu":
        return torch.full((k,), leaky_slope(node), dtype=torch.float32)
    weight = values(f"{node.key}.weight")
    return weight.repeat_interleave(k // len(weight))
