"""Nodes of a graph in floats, beside integer convolutions."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ..graph.fold import Values, gain_and_shift
from ..graph.fuse import folds
from ..graph.module import computed
from ..graph.nodes import Activation, Add, Affine, BatchNorm, ColourShift, Concat, Conv, Node, PixelShuffle


def evaluate(node: Node, inputs: list[torch.Tensor], values: Values) -> torch.Tensor:
    """What a node computes of tensors [N, C, H, W]. Raises TypeError for a node that is not known here."""
    x = inputs[0]
    match node:
        case Conv():
            x = x.contiguous(memory_format=torch.channels_last)
            weight, bias = values(f"{node.key}.weight"), values(f"{node.key}.bias")
            return F.conv2d(x, weight, bias, node.stride, node.padding, node.dilation, node.groups)
        case BatchNorm():
            gain, shift = (value.float().view(1, -1, 1, 1) for value in gain_and_shift(node, values))
            return x * gain + shift
        case ColourShift():
            return x + values(colour_key(node)).view(1, -1, 1, 1)
        case Activation(function="prelu"):
            return F.prelu(x, values(f"{node.key}.weight"))
    return computed(node, inputs)


def colour_key(node: ColourShift) -> str:
    """The key of what a network keeps of a shift, on its device: the signed colour, float32 [3]."""
    return f"{node.name}.shift"


def why_in_floats(node: Node) -> str:
    """Why no integer kernel computes a node, as what a report says of it."""
    match node:
        case Conv() if node.role == "float":
            return "it is one of the few products of an attention or of a picture's colours"
        case Conv() if node.groups != 1:
            return "integer kernels have no convolution in groups"
        case Conv():
            return "the settings leave this convolution in floats (quantize='body')"
        case Activation() if not folds(node):
            return f"integer kernels have no {node.function}"
        case Add():
            return "a sum that no convolution takes in as its residual"
        case Concat():
            return "its parts are put side by side for what reads them in floats"
        case Activation() | Affine() | BatchNorm() | ColourShift() | PixelShuffle():
            return "no convolution in integers stands right before it"
    return f"integer kernels have no {type(node).__name__}"
