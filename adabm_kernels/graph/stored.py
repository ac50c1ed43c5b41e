"""Turns a graph into plain values that JSON holds, and back. It is for files, which are not trusted.

The function that a `Float` calls is looked up by its name, and so are the functions of activations and pools. Only the names that
are listed here are accepted.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from . import nodes as kinds
from .nodes import (
    Activation,
    Add,
    Affine,
    Conv,
    Crop,
    Float,
    Graph,
    Key,
    Node,
    PixelShuffle,
    PixelUnshuffle,
    Pool,
    Ref,
    Resize,
    Slice,
)
from .rules import ACTIVATIONS

_KINDS: dict[str, type[Node]] = {
    name: kind for name, kind in vars(kinds).items() if isinstance(kind, type) and issubclass(kind, Node) and kind is not Node
}
_MODES = ("nearest", "bilinear", "bicubic")
_POOLS = ("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d")
# Functions that do nothing besides returning a result. Operators, functions and methods of torch have the same names.
_FUNCTIONS = frozenset(
    """
    _log_softmax _native_batch_norm_legit_no_training _softmax _to_copy abs adaptive_avg_pool1d adaptive_avg_pool2d
    adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d add addcdiv addcmul addmm alias amax amin arange argmax argmin
    atan atan2 avg_pool1d avg_pool2d avg_pool3d baddbmm batch_norm bitwise_and bitwise_not bitwise_or bmm broadcast_to cat ceil
    celu channel_shuffle chunk clamp clamp_max clamp_min clip clone concat constant_pad_nd contiguous conv1d conv2d conv3d
    conv_transpose1d conv_transpose2d conv_transpose3d convolution cos cosine_similarity cumprod cumsum detach diagonal diff div
    einsum elu embedding eq erf exp expand expand_as expm1 flatten flip float floor floor_divide floordiv fmod full full_like
    gather ge gelu getitem glu greater grid_sample grid_sampler grid_sampler_2d group_norm gt hardshrink hardsigmoid hardswish
    hardtanh index index_select instance_norm interpolate isinf isnan layer_norm le leaky_relu lerp less linear linspace log
    log10 log1p log2 log_softmax logical_and logical_not logical_or logsigmoid logsumexp lt masked_fill matmul max max_pool1d
    max_pool2d max_pool2d_with_indices max_pool3d maximum mean min minimum mish mm mod movedim mul multi_head_attention_forward
    nan_to_num narrow native_group_norm native_layer_norm ne neg new_full new_ones new_zeros norm normalize numel one_hot ones
    ones_like pad permute pixel_shuffle pixel_unshuffle pow prelu prod reciprocal reflection_pad1d reflection_pad2d relu relu6
    remainder repeat repeat_interleave replication_pad1d replication_pad2d reshape reshape_as roll round rsqrt rsub
    scalar_tensor scaled_dot_product_attention select select_scatter selu sigmoid sign silu sin size slice slice_scatter softmax
    softmin softplus softshrink softsign split split_with_sizes sqrt square squeeze stack std std_mean sub sum swapaxes sym_max
    sym_min sym_numel sym_size t tan tanh tensor_split threshold tile to topk transpose tril triu true_divide truediv type_as
    unbind unflatten unfold unsqueeze upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d
    upsample_nearest2d upsample_nearest3d upsample_nearest_exact2d upsample_trilinear3d var var_mean vector_norm view view_as
    where zeros zeros_like
    """.split()
)
_PLACES = ("torch.", "torch.nn.functional.", "torch.Tensor.", "torch._C._nn.", "torch.linalg.", "torch.functional.")
_OPERATORS = frozenset(
    "add sub mul truediv floordiv mod neg pow getitem eq ne lt le gt ge and_ or_ not_ invert abs pos matmul".split()
)
_NUMBERS = {"math": {"ceil", "floor", "trunc", "sqrt"}, "builtins": {"max", "min", "int", "float", "round", "abs", "bool"}}
_ATTRIBUTES = ("shape", "T", "mT", "ndim", "dtype", "device")
_NAMED: dict[str, type] = {"dtype": torch.dtype, "memory_format": torch.memory_format, "layout": torch.layout}


def why_not_stored(target: str, arguments: tuple[Any, ...] = ()) -> str:
    """The reason why a file cannot hold a call of this `Float` target; empty where it can."""
    known = False
    if target.startswith("torch.ops.aten."):
        parts = target.removeprefix("torch.ops.aten.").split(".")
        known = len(parts) == 2 and parts[0] in _FUNCTIONS and parts[1].isidentifier()
    elif target.startswith("_operator."):
        known = target.removeprefix("_operator.") in _OPERATORS
    elif target == "builtins.getattr":
        known = len(arguments) > 1 and arguments[1] in _ATTRIBUTES
    elif target.partition(".")[0] in _NUMBERS:
        place, _, name = target.partition(".")
        known = name in _NUMBERS[place]
    elif target.startswith("."):
        known = target[1:] in _FUNCTIONS
    else:
        known = any(target.removeprefix(place) in _FUNCTIONS for place in _PLACES if target.startswith(place))
    return "" if known else f"{target!r} is no call that files hold"


def to_plain(graph: Graph) -> dict[str, Any]:
    """A graph as dicts, lists, strings and numbers. Raises ValueError for a call that a file cannot hold."""

    def of(node: Node) -> dict[str, Any]:
        if isinstance(node, Float) and (why := why_not_stored(node.target, node.arguments)):
            raise ValueError(f"'{node.name}': {why}")
        fields = {field.name: _plain(getattr(node, field.name)) for field in dataclasses.fields(node)}
        return {"kind": type(node).__name__} | fields

    return {
        "nodes": [of(node) for node in graph.nodes],
        "inputs": list(graph.inputs),
        "outputs": list(graph.outputs),
        "buffers": {key: list(shape) for key, shape in graph.buffers.items()},
    }


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"number": str(value)}
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    if isinstance(value, list):
        return {"list": [_plain(one) for one in value]}
    if isinstance(value, Ref):
        return {"ref": value.index}
    if isinstance(value, Key):
        return {"key": value.name}
    if isinstance(value, slice):
        return {"slice": [_plain(one) for one in (value.start, value.stop, value.step)]}
    if value is Ellipsis:
        return {"ellipsis": True}
    if isinstance(value, torch.device):
        return {"device": value.type}
    for name, kind in _NAMED.items():
        if isinstance(value, kind):
            return {name: str(value).removeprefix("torch.")}
    raise ValueError(f"a value of type {type(value).__name__} is none that files hold")


def from_plain(value: Any) -> Graph:
    """The graph that `to_plain` turned into `value`. Raises ValueError, KeyError or TypeError for any other value, and for calls
    that are not listed."""
    _require(
        isinstance(value, dict) and set(value) == {"nodes", "inputs", "outputs", "buffers"}, "a graph must be an object", value
    )
    _require(isinstance(value["nodes"], list), "nodes must be a list", value["nodes"])
    buffers = value["buffers"]
    _require(isinstance(buffers, dict), "buffers must be an object", buffers)
    return Graph(
        tuple(map(_node, value["nodes"])),
        _names(value["inputs"]),
        _names(value["outputs"]),
        {key: _whole_numbers(shape) for key, shape in buffers.items()},
    )


def _node(value: Any) -> Node:
    _require(isinstance(value, dict) and value.get("kind") in _KINDS, "a node must be an object of a known kind", value)
    kind = _KINDS[value["kind"]]
    fields = {field.name: str(field.type) for field in dataclasses.fields(kind)}
    _require(set(value) == {"kind", *fields}, f"a {kind.__name__} must have the fields {sorted(fields)}", sorted(value))
    node = kind(**{name: _CHECKS[of](value[name]) for name, of in fields.items()})
    shapes = node.parameters().values()
    held = all(size >= 0 for shape in shapes for size in shape) and all(math.prod(shape) < 1 << 48 for shape in shapes)
    _require(held, f"'{node.name}' must have sizes from 0 on that memory can hold", value)
    _check_numbers(node)
    if isinstance(node, Float):
        _require(not (why := why_not_stored(node.target, node.arguments)), f"'{node.name}': {why}", node.target)
        refs = [one.index for one in _leaves((node.arguments, node.settings)) if isinstance(one, Ref)]
        _require(all(0 <= index < len(node.inputs) for index in refs), f"'{node.name}' must refer to inputs that it has", refs)
        keys = {one.name for one in _leaves((node.arguments, node.settings)) if isinstance(one, Key)}
        _require(keys <= set(dict(node.shapes)), f"'{node.name}' must say the shapes of its values", sorted(keys))
    if isinstance(node, Activation):
        _require(node.function in (*ACTIVATIONS, "relu", "prelu"), "an activation must be one that is known", node.function)
    if isinstance(node, Pool):
        _require(node.function in _POOLS, f"a pool must be one of {_POOLS}", node.function)
    return node


def _finite(number: float) -> bool:
    """Returns whether a number is finite in float32."""
    return abs(number) <= torch.finfo(torch.float32).max


def _check_numbers(node: Node) -> None:
    """Raises ValueError for a number in a node that its kind does not take."""
    match node:
        case Conv():
            least = (*node.kernel, *node.stride, *node.dilation, node.groups, node.channels_in, node.channels_out)
            holds = min(least) >= 1 and min(node.padding) >= 0 and node.channels_in % node.groups == 0
            _require(holds, f"'{node.name}' must be a convolution of sizes, strides and groups from 1 on", node)
        case PixelShuffle() | PixelUnshuffle() | Crop():
            _require(node.factor >= 1, f"the factor of '{node.name}' must be at least 1", node.factor)
        case Resize():
            known = node.mode in _MODES and math.isfinite(node.factor) and node.factor > 0
            _require(known, f"'{node.name}' must enlarge by a finite factor, {', '.join(_MODES)}", (node.factor, node.mode))
        case Slice():
            _require(
                0 <= node.start < node.stop, f"'{node.name}' must begin at a channel and end behind it", (node.start, node.stop)
            )
        case Affine():
            numbers = (*(node.gain or ()), *(node.shift or ()), node.divisor or 1.0)
            holds = all(map(_finite, numbers)) and node.divisor != 0 and () not in (node.gain, node.shift)
            _require(holds, f"'{node.name}' must have finite numbers and a divisor that is not 0", node)
        case Add():
            _require(all(map(_finite, node.factors)), f"the factors of '{node.name}' must be finite", node.factors)


def _leaves(value: Any) -> list[Any]:
    return [leaf for one in value for leaf in _leaves(one)] if isinstance(value, (tuple, list)) else [value]


def _require(holds: bool, rule: str, seen: object) -> None:
    if not holds:
        raise ValueError(f"{rule}, got {str(seen)[:200]!r}")


def _value(value: Any) -> Any:
    """A value among the arguments of a call."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, list):
        return tuple(map(_value, value))
    _require(isinstance(value, dict) and len(value) == 1, "a value must be plain, or an object of one entry", value)
    (name, held), *_ = value.items()
    if name == "list" and isinstance(held, list):
        return [_value(one) for one in held]
    if name == "ref" and type(held) is int:
        return Ref(held)
    if name == "key" and isinstance(held, str):
        return Key(held)
    if name == "slice" and isinstance(held, list) and len(held) == 3:
        return slice(*map(_value, held))
    if name == "ellipsis":
        return ...
    if name == "number" and held in ("inf", "-inf", "nan"):
        return float(held)
    if name == "device" and held in ("cpu", "cuda", "meta"):
        return torch.device(held)
    if name in _NAMED and isinstance(held, str) and held.isidentifier():
        found = vars(torch).get(held)
        if isinstance(found, _NAMED[name]):
            return found
    raise ValueError(f"a value must be one that files hold, got {str(value)[:200]}")


def _of(kind: type, name: str, optional: bool = False) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if optional and value is None:
            return None
        allowed = (int, float) if kind is float else (kind,)
        value = float(value["number"]) if kind is float and isinstance(value, dict) else value
        _require(type(value) in allowed, f"a value must be {name}", value)
        return value

    return check


def _tuple(of: Callable[[Any], Any], count: int | None = None, optional: bool = False) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if optional and value is None:
            return None
        _require(isinstance(value, list) and count in (None, len(value)), f"a value must be a list of {count or 'some'}", value)
        return tuple(map(of, value))

    return check


def _pairs(of: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        good = isinstance(value, list) and all(isinstance(one, list) and len(one) == 2 and isinstance(one[0], str) for one in value)
        _require(good, "a value must be a list of names with values", value)
        return tuple((name, of(held)) for name, held in value)

    return check


_text, _whole, _number = _of(str, "text"), _of(int, "a whole number"), _of(float, "a number")
_names, _whole_numbers = _tuple(_text), _tuple(_whole)
# The values that a field of a node may have, by the annotation of the field.
_CHECKS: Mapping[str, Callable[[Any], Any]] = {
    "str": _text,
    "int": _whole,
    "bool": _of(bool, "true or false"),
    "float": _number,
    "bool | None": _of(bool, "true, false or null", optional=True),
    "float | None": _of(float, "a number or null", optional=True),
    "tuple[str, ...]": _names,
    "tuple[int, int]": _tuple(_whole, 2),
    "tuple[float, ...]": _tuple(_number),
    "tuple[float, ...] | None": _tuple(_number, optional=True),
    "tuple[float, float, float]": _tuple(_number, 3),
    "tuple[Any, ...]": _tuple(_value),
    "tuple[tuple[str, Any], ...]": _pairs(_value),
    "tuple[tuple[str, Shape], ...]": _pairs(_whole_numbers),
}
