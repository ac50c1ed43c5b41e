"""Writes calls of torch that stay in floats (`Float`) as operators of ONNX, by a rule for each function.

Sizes that a call reads or computes are int64 [1] in the file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ..graph.nodes import Float, Key, Ref, called
from .writing import Writing, pads

Values = Callable[[str], Any]
_Rule = Callable[["_Call"], str]
_RULES: dict[str, _Rule] = {}
_LAST = np.iinfo(np.int64).max  # as the end of a slice: the end of the axis
_ELEMENTWISE = {
    **{name: name.capitalize() for name in ("abs", "neg", "exp", "log", "sqrt", "sigmoid", "tanh", "relu", "erf", "floor", "ceil")},
    **{"round": "Round", "reciprocal": "Reciprocal", "sin": "Sin", "cos": "Cos"},
}
_TWO = {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "truediv": "Div", "maximum": "Max", "minimum": "Min", "pow": "Pow"}
_COMPARISONS = {"gt": "Greater", "lt": "Less", "ge": "GreaterOrEqual", "le": "LessOrEqual", "eq": "Equal"}
_REDUCTIONS = {"mean": "ReduceMean", "sum": "ReduceSum", "amax": "ReduceMax", "amin": "ReduceMin"}
_UNCHANGED = ("contiguous", "clone", "alias", "detach", "to", "dropout")
_MODES = {"nearest": "nearest", "bilinear": "linear", "bicubic": "cubic"}
_PADS = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}


def write_call(to: Writing, node: Float, inputs: list[str], values: Values) -> str:
    """Writes a call, and returns the name of the tensor, or of the tuple of tensors (`Writing.several`), that it computes. Raises
    ValueError with the node's name for a call that no rule writes."""
    rule = _RULES.get(called(node))
    if rule is None:
        raise ValueError(f"'{node.name}': no operators of ONNX are written for the call {called(node)} ({node.target})")
    return rule(_Call(to, node, inputs, values))


class _Call:
    """A call with its arguments: tensors and sizes by name, everything else as values."""

    def __init__(self, to: Writing, node: Float, inputs: list[str], values: Values) -> None:
        self.to, self.node, self.inputs, self.values, self.name = to, node, inputs, values, node.name
        self.arguments = [self._given(one) for one in node.arguments]
        if node.target.startswith("."):
            self.arguments.insert(0, inputs[0])
        self.settings = {key: self._given(value) for key, value in node.settings}

    def _given(self, value: Any) -> Any:
        if isinstance(value, Ref):
            return self.inputs[value.index]
        if isinstance(value, Key):
            held: torch.Tensor = self.values(value.name)
            array = held.detach().cpu().numpy()
            return (
                self.to.floats(array, value.name) if held.is_floating_point() else self.to.constant(array, array.dtype, value.name)
            )
        return tuple(self._given(one) for one in value) if isinstance(value, (tuple, list)) else value

    @property
    def x(self) -> str:
        return self.tensor(0)

    def get(self, index: int, name: str, usual: Any = None) -> Any:
        """An argument by position or by name."""
        return self.arguments[index] if index < len(self.arguments) else self.settings.get(name, usual)

    def tensor(self, index: int, name: str = "") -> str:
        """An argument that is a tensor. A number becomes a constant."""
        value = self.get(index, name)
        if isinstance(value, (int, float)):
            return self.to.floats(float(value))
        if not isinstance(value, str):
            raise self.refused(f"argument {index} must be a tensor or a number, got {value!r}")
        return value

    def refused(self, why: str) -> ValueError:
        return ValueError(f"'{self.name}': {called(self.node)} is not written as ONNX: {why}")

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """The operator that computes the result."""
        return self.to.op(kind, *inputs, name=self.name, **attributes)

    def rank(self, x: str) -> int:
        return self.to.ranks.get(x, 4)

    def with_rank(self, y: str, rank: int) -> str:
        self.to.ranks[y] = rank
        return y

    def like(self, y: str, *inputs: str) -> str:
        """A result that has as many axes as the inputs."""
        return self.with_rank(y, max(self.rank(one) for one in inputs))

    def size(self, value: Any) -> str:
        """A size as int64 [1]."""
        return value if isinstance(value, str) else self.to.integers([int(value)])

    def sizes(self, values: Any) -> str:
        """A list of sizes."""
        values = values if isinstance(values, tuple) else (values,)
        if all(isinstance(one, int) for one in values):
            return self.to.integers(list(values))
        return self.to.sizes(*values)


def _rule(*names: str) -> Callable[[_Rule], _Rule]:
    def register(rule: _Rule) -> _Rule:
        _RULES.update(dict.fromkeys(names, rule))
        return rule

    return register


# ---- sizes


@_rule("sym_size", "size")
def _size(call: _Call) -> str:
    axis = call.get(1, "dim")
    if not isinstance(axis, int):
        raise call.refused("it must ask for the size along one axis")
    found = call.to.side(call.x, axis % call.rank(call.x))
    call.to.numbers.add(found)
    return found


@_rule("floordiv", "floor_divide", "mod")
def _whole(call: _Call) -> str:
    return _of_numbers(call, "Mod" if called(call.node) == "mod" else "Div")


def _of_numbers(call: _Call, kind: str) -> str:
    """Arithmetic on sizes."""
    if not all(one in call.to.numbers for one in call.inputs):
        raise call.refused("it is written for sizes alone")
    found = call.op(kind, *map(call.size, call.arguments))
    call.to.numbers.add(found)
    return found


# ---- each value by itself


@_rule(*_UNCHANGED)
def _unchanged(call: _Call) -> str:
    return call.like(call.op("Identity", call.x), call.x)


@_rule(*_ELEMENTWISE)
def _elementwise(call: _Call) -> str:
    if call.inputs[0] in call.to.numbers:
        return _of_numbers(call, _ELEMENTWISE[called(call.node)])
    return call.like(call.op(_ELEMENTWISE[called(call.node)], call.x), call.x)


@_rule("square")
def _square(call: _Call) -> str:
    return call.like(call.op("Mul", call.x, call.x), call.x)


@_rule("rsqrt")
def _reciprocal_root(call: _Call) -> str:
    return call.like(call.op("Reciprocal", call.to.op("Sqrt", call.x)), call.x)


@_rule(*_TWO)
def _of_two(call: _Call) -> str:
    name = called(call.node)
    if call.inputs[0] in call.to.numbers:
        return _of_numbers(call, _TWO[name])
    if call.get(2, "alpha", 1) != 1 or call.settings.get("rounding_mode") is not None:
        raise call.refused("alpha must be 1, and there must be no rounding_mode")
    a, b = call.tensor(0), call.tensor(1, "other")
    return call.like(call.op(_TWO[name], a, b), a, b)


@_rule(*_COMPARISONS)
def _compared(call: _Call) -> str:
    a, b = call.tensor(0), call.tensor(1, "other")
    return call.like(call.op(_COMPARISONS[called(call.node)], a, b), a, b)


@_rule("where")
def _where(call: _Call) -> str:
    parts = [call.tensor(i) for i in range(3)]
    return call.like(call.op("Where", *parts), *parts)


@_rule("clamp", "clip", "clamp_min", "clamp_max")
def _clamp(call: _Call) -> str:
    least, most = call.get(1, "min"), call.get(2, "max")
    if called(call.node) == "clamp_max":
        least, most = None, call.get(1, "max")
    if any(isinstance(one, str) for one in (least, most)):
        raise call.refused("its bounds must be numbers")
    ends = ["" if one is None else call.to.floats(float(one)) for one in (least, most)]
    return call.like(call.op("Clip", call.x, *ends), call.x)


# ---- along axes


@_rule("softmax", "_softmax")
def _softmax(call: _Call) -> str:
    return call.like(call.op("Softmax", call.x, axis=int(call.get(1, "dim", -1))), call.x)


@_rule("layer_norm")
def _layer_norm(call: _Call) -> str:
    shape, weight, bias, eps = (call.get(i, name) for i, name in enumerate(("normalized_shape", "weight", "bias", "eps"), 1))
    weight = call.to.floats(np.ones(shape)) if weight is None else weight
    given = [call.x, weight] + ([] if bias is None else [bias])
    eps = 1e-5 if eps is None else float(eps)
    return call.like(call.op("LayerNormalization", *given, axis=-len(shape), epsilon=eps), call.x)


@_rule(*_REDUCTIONS)
def _reduced(call: _Call) -> str:
    axes, keep = call.get(1, "dim"), bool(call.get(2, "keepdim", False))
    rank = call.rank(call.x)
    axes = tuple(range(rank)) if axes is None or axes == () else axes if isinstance(axes, tuple) else (axes,)
    y = call.op(_REDUCTIONS[called(call.node)], call.x, call.to.integers(list(axes)), keepdims=int(keep))
    return call.with_rank(y, rank if keep else rank - len(axes))


@_rule("matmul", "bmm", "mm")
def _product(call: _Call) -> str:
    a, b = call.tensor(0), call.tensor(1)
    return call.like(call.op("MatMul", a, b), a, b)


@_rule("slice")
def _slice(call: _Call) -> str:
    axis, start, end, step = (call.get(i, name) for i, name in enumerate(("dim", "start", "end", "step"), 1))
    ends = [call.size(0 if start is None else start), call.size(_LAST if end is None else end)]
    axes = call.to.integers([int(axis or 0) % call.rank(call.x)])
    return call.like(call.op("Slice", call.x, *ends, axes, call.to.integers([step or 1])), call.x)


@_rule("select")
def _select(call: _Call) -> str:
    axis, index = call.get(1, "dim"), call.get(2, "index")
    if not isinstance(index, int):
        raise call.refused("its index must be a number")
    return call.with_rank(call.op("Gather", call.x, call.to.integers(index), axis=axis), call.rank(call.x) - 1)


@_rule("chunk", "split", "split_with_sizes")
def _parts(call: _Call) -> str:
    parts, axis = call.get(1, "chunks"), int(call.get(2, "dim", 0))
    by_size = called(call.node) != "chunk"
    if by_size and not isinstance(parts, tuple):
        raise call.refused("the sizes of its parts must be a list")
    count = len(parts) if by_size else parts
    given = [call.x, call.sizes(parts)] if by_size else [call.x]
    made = call.to.ops("Split", count, *given, name=call.name, axis=axis, num_outputs=None if by_size else count)
    for one in made:
        call.like(one, call.x)
    call.to.several[call.name] = made
    return call.name


@_rule("getitem")
def _item(call: _Call) -> str:
    parts, index = call.to.several.get(call.inputs[0]), call.get(1, "")
    if parts is None or not isinstance(index, int):
        raise call.refused("it must take a part of what was split")
    return parts[index]


# ---- axes themselves


@_rule("flatten")
def _flatten(call: _Call) -> str:
    rank = call.rank(call.x)
    start, end = int(call.get(1, "start_dim", 0)) % rank, int(call.get(2, "end_dim", -1)) % rank
    if end != rank - 1:
        raise call.refused("it must flatten all axes behind the first of them")
    return call.with_rank(call.op("Reshape", call.x, call.to.integers([0] * start + [-1])), start + 1)


@_rule("reshape", "view")
def _reshape(call: _Call) -> str:
    shape = call.get(1, "shape")
    shape = shape if isinstance(shape, tuple) else tuple(call.arguments[1:])
    return call.with_rank(call.op("Reshape", call.x, call.sizes(shape)), len(shape))


@_rule("permute")
def _permute(call: _Call) -> str:
    order = call.get(1, "dims")
    rank = call.rank(call.x)
    return call.with_rank(call.op("Transpose", call.x, perm=[axis % rank for axis in order]), rank)


@_rule("transpose", "t")
def _transpose(call: _Call) -> str:
    rank = call.rank(call.x)
    a, b = (int(call.get(i, f"dim{i - 1}", i - 1)) % rank for i in (1, 2))
    order = list(range(rank))
    order[a], order[b] = order[b], order[a]
    return call.with_rank(call.op("Transpose", call.x, perm=order), rank)


@_rule("unsqueeze", "squeeze")
def _axis(call: _Call) -> str:
    axis, adds = call.get(1, "dim"), called(call.node) == "unsqueeze"
    if not isinstance(axis, int):
        raise call.refused("it must name one axis")
    y = call.op("Unsqueeze" if adds else "Squeeze", call.x, call.to.integers([axis]))
    return call.with_rank(y, call.rank(call.x) + (1 if adds else -1))


# ---- pictures


@_rule("pad", "constant_pad_nd", "reflection_pad2d", "replication_pad2d")
def _pad(call: _Call) -> str:
    around, name = call.get(1, "pad", ()), called(call.node)
    mode = {"reflection_pad2d": "reflect", "replication_pad2d": "replicate"}.get(name, "constant")
    value = call.get(2, "value", 0)
    if name == "pad":
        mode, value = call.get(2, "mode", "constant"), call.get(3, "value", 0)
    if mode not in _PADS or len(around) % 2:
        raise call.refused(f"its mode must be one of {', '.join(_PADS)}, got {mode!r}")
    count = len(around) // 2
    sides = [*around[::2][::-1], *around[1::2][::-1]]  # torch begins with the last axis
    axes = call.to.integers([axis - count for axis in range(count)])
    filled = call.to.floats(float(value or 0)) if mode == "constant" else ""
    return call.like(call.op("Pad", call.x, call.sizes(tuple(sides)), filled, axes, mode=_PADS[mode]), call.x)


@_rule("conv_transpose2d")
def _transposed(call: _Call) -> str:
    names = ("weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
    weight, bias, *rest = (call.get(i, name) for i, name in enumerate(names, 1))
    stride, padding, more, groups, dilation = rest

    def pair(value: Any, usual: int) -> list[int]:
        value = usual if value is None else value
        return [value, value] if isinstance(value, int) else [value[0], value[-1]]

    given = [call.x, weight] + ([] if bias is None else [bias])
    settings: dict[str, Any] = {"strides": pair(stride, 1), "pads": pads(pair(padding, 0)), "group": groups or 1}
    settings |= {"output_padding": pair(more, 0), "dilations": pair(dilation, 1)}
    return call.like(call.op("ConvTranspose", *given, **settings), call.x)


@_rule("interpolate", "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d")
def _resize(call: _Call) -> str:
    name, to = called(call.node), call.to
    mode = call.get(3, "mode", "nearest") if name == "interpolate" else name.removeprefix("upsample_").removesuffix("2d")
    size = call.get(1, "size", call.settings.get("output_size"))
    if name == "interpolate":
        factors, corners, smooth = call.get(2, "scale_factor"), call.get(4, "align_corners"), call.settings.get("antialias")
    else:
        place = 2 if mode == "nearest" else 3
        corners = None if mode == "nearest" else call.get(2, "align_corners")
        factors, smooth = call.get(place, "scale_factors"), False
    if mode not in _MODES or smooth:
        raise call.refused(f"its mode must be one of {', '.join(_MODES)} without antialiasing, got {mode!r}")
    settings: dict[str, Any] = {"mode": _MODES[mode], "coordinate_transformation_mode": "half_pixel"}
    if mode == "nearest":
        settings |= {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    elif corners:
        settings["coordinate_transformation_mode"] = "align_corners"
    if mode == "bicubic":
        settings["cubic_coeff_a"] = -0.75
    if size is not None:
        wanted = size if isinstance(size, tuple) else (size, size)
        sizes = to.sizes(to.side(call.x, 0), to.side(call.x, 1), *wanted)
        return call.op("Resize", call.x, "", "", sizes, **settings)
    both = factors if isinstance(factors, tuple) else (factors, factors)
    if not all(isinstance(one, (int, float)) for one in both):
        raise call.refused("it must say its sizes or factors")
    return call.op("Resize", call.x, "", to.floats([1, 1, *both]), **settings)
