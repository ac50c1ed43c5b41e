"""Recorded calls of torch, with the values that they read and the values that they return."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

# The arguments of functions, in order, for calls that torch.fx records. Operators have theirs in their schemas.
ARGUMENTS = {
    "conv2d": "input weight bias stride padding dilation groups",
    "linear": "input weight bias",
    "batch_norm": "input running_mean running_var weight bias training momentum eps",
    "prelu": "input weight",
    "leaky_relu": "input negative_slope inplace",
    "elu": "input alpha inplace",
    "gelu": "input approximate",
    "softplus": "input beta threshold",
    "hardtanh": "input min_val max_val inplace",
    "clamp": "input min max",
    "pixel_shuffle": "input upscale_factor",
    "pixel_unshuffle": "input downscale_factor",
    "interpolate": "input size scale_factor mode align_corners recompute_scale_factor antialias",
    "max_pool2d": "input kernel_size stride padding dilation ceil_mode return_indices",
    "avg_pool2d": "input kernel_size stride padding ceil_mode count_include_pad divisor_override",
    "adaptive_avg_pool2d": "input output_size",
    "cat": "tensors dim",
    "chunk": "input chunks dim",
    "split": "input split_size dim",
    "narrow": "input dim start length",
    "dropout": "input p training inplace",
} | dict.fromkeys(("relu", "relu6", "silu", "hardswish", "hardsigmoid", "mish"), "input inplace")
ARGUMENTS |= dict.fromkeys(("add", "sub", "mul", "div"), "input other")
OTHER_NAMES = {"truediv": "div", "true_divide": "div", "iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "div"}
OTHER_NAMES |= {"subtract": "sub", "multiply": "mul", "divide": "div", "concat": "cat", "concatenate": "cat"}
OTHER_NAMES |= {"split_with_sizes": "split", "clamp_min": "clamp", "clip": "clamp", "dropout2d": "dropout"}


@dataclass(eq=False)
class Value:
    """A value that depends on the picture and is computed by the node `name`.

    shape: the sizes of a floating-point tensor, as text; None for any other value. channels: C where the value is [N, C, H, W].
    memory: an object that all views of the same memory share.
    """

    name: str
    dtype: torch.dtype | None = None
    shape: tuple[str, ...] | None = None
    channels: int | None = None
    memory: object = field(default_factory=object)


@dataclass(eq=False)
class Constant:
    """A value of the module, or a value that depends only on such values. key: its key in the module's state dict; "" where it has
    none."""

    tensor: torch.Tensor
    key: str = ""


@dataclass
class Call:
    """One recorded call.

    place: the path of the module that makes the call. leaf: true where that module is one of torch's own. name: the name of the
    function, without the part that tells its variants apart. arguments: the arguments by name, as far as the names are known.
    writes: true where the call changes its first argument.
    """

    node: fx.Node
    place: str
    leaf: bool
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    arguments: dict[str, Any]
    writes: bool

    def get(self, name: str, default: Any = None) -> Any:
        return self.arguments.get(name, default)

    @property
    def input(self) -> Any:
        return self.arguments.get("input")

    @property
    def where(self) -> str:
        return f"'{self.place}' ({self.name})"


def call_of(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """A recorded call. args, kwargs: its arguments, or the values that stand in their place."""
    place, kind = list((node.meta.get("nn_module_stack") or {"": ("", "")}).values())[-1]
    place = "" if place.startswith("_empty") else re.sub(r"@\d+", "", place)
    schema = getattr(node.target, "_schema", None)
    if node.op == "call_module":
        place, name = str(node.target), "batch_norm"
    elif schema is not None:
        name = schema.name.split("::")[1]
    else:
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    bare = name.rstrip("_")
    bare = OTHER_NAMES.get(bare, bare)
    if schema is not None:
        names = [{"self": "input"}.get(argument.name, argument.name) for argument in schema.arguments]
    else:
        names = ARGUMENTS.get(bare, "input").split()
    arguments = dict(zip(names, args, strict=False)) | kwargs
    writes = schema.is_mutable if schema is not None else name != bare and name.endswith("_") or arguments.get("inplace") is True
    return Call(node, place, "torch.nn.modules" in str(kind), bare, args, kwargs, arguments, writes)
