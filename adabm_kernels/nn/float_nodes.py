"""Computes those nodes of a graph that stay in floats beside the integer convolutions."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch.nn import functional as F

from ..graph.fold import Values, gain_and_shift
from ..graph.fuse import folds, why_not_integer
from ..graph.module import call_float, computed
from ..graph.nodes import (
    Activation,
    Add,
    Affine,
    BatchNorm,
    ColourShift,
    Concat,
    Conv,
    Crop,
    Float,
    Linear,
    Node,
    PixelShuffle,
    Slice,
    called,
)

_VIEWS = frozenset(
    "view reshape flatten unflatten permute transpose unsqueeze squeeze expand expand_as contiguous t T mT movedim swapaxes detach "
    "select slice chunk split split_with_sizes unbind narrow getitem view_as reshape_as alias clone to size numel".split()
)
_OF_NUMBERS = ("_operator.", "math.", "builtins.")  # on tensors, the recorded operator is torch's
_NONE: Mapping[str, str] = MappingProxyType({})


def evaluate(node: Node, inputs: list[Any], values: Values) -> Any:
    """The result of a node for its inputs, which are tensors [N, C, H, W] or whatever other nodes give. Raises TypeError for a node
    that this function does not know."""
    x = inputs[0]
    match node:
        case Conv():
            x = x.contiguous(memory_format=torch.channels_last)
            weight, bias = values(f"{node.key}.weight"), values(f"{node.key}.bias")
            return F.conv2d(x, weight, bias, node.stride, node.padding, node.dilation, node.groups)
        case BatchNorm():
            numbers = gain_and_shift(node, values)
            gain, shift = (value.float().view(1, -1, *[1] * (x.dim() - 2)) for value in numbers)
            return x * gain + shift
        case ColourShift():
            return x + values(colour_key(node)).view(1, -1, 1, 1)
        case Activation(function="prelu"):
            return F.prelu(x, values(f"{node.key}.weight"))
        case Linear():
            return F.linear(x, values(f"{node.key}.weight"), values(f"{node.key}.bias"))
        case Float():
            return call_float(node, inputs, values)
    return computed(node, inputs)


def may_share_memory(node: Node) -> bool:
    """Whether the result of a node may lie in the memory of what it reads."""
    if not isinstance(node, Float):
        return isinstance(node, (Crop, Slice))
    place, *parts = node.target.split(".")
    if (place, *parts[:2]) != ("torch", "ops", "aten"):
        return True
    schema = getattr(getattr(torch.ops.aten, parts[2]), parts[3])._schema
    return any(one.alias_info is not None for one in schema.returns)


def colour_key(node: ColourShift) -> str:
    """The key under which a network keeps the signed colour of a shift, float32 [3], on its device."""
    return f"{node.name}.shift"


def computes(node: Node) -> bool:
    """Whether a node computes values, rather than only saying how tensors are looked at or what sizes they have."""
    if not isinstance(node, Float):
        return True
    return called(node) not in _VIEWS and not node.target.startswith(_OF_NUMBERS) and not called(node).startswith("sym_")


def why_in_floats(node: Node, kept: Mapping[str, str] = _NONE) -> str:
    """Why no integer kernel computes a node, in the words of a report. kept: for each convolution that is left in floats, by name,
    the reason."""
    match node:
        case Conv() if node.role == "float":
            return "it is one of the few products of an attention or of a picture's colours"
        case Conv() if node.groups != 1:
            return "integer kernels have no convolution in groups"
        case Conv():
            usual = why_not_integer(node) or "the settings leave this convolution in floats (quantize='body')"
            return kept.get(node.key, usual)
        case Linear():
            return "a linear layer of a tensor of another number of dimensions than 2 to 4"
        case Float():
            return f"integer kernels have no {called(node)}"
        case Activation() if not folds(node):
            return f"integer kernels have no {node.function}"
        case Add():
            return "a sum that no convolution takes in as its residual"
        case Concat():
            return "its parts are put side by side for what reads them in floats"
        case Activation() | Affine() | BatchNorm() | ColourShift() | PixelShuffle():
            return "no convolution in integers stands right before it"
    return f"integer kernels have no {type(node).__name__}"
