"""The rules that turn recorded calls into nodes: one for each kind of call that a node describes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils import _pytree as pytree

from .calls import Call, Constant, Value
from .nodes import (
    Activation,
    Add,
    Affine,
    BatchNorm,
    ColourShift,
    Concat,
    Conv,
    Linear,
    Multiply,
    Node,
    PixelShuffle,
    PixelUnshuffle,
    Pool,
    Resize,
)

# Settings of element-wise functions, with the values that they have where a call does not give them.
ACTIVATIONS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("relu", "relu6", "silu", "sigmoid", "tanh", "hardswish", "hardsigmoid", "mish", "softsign"), {}),
    "leaky_relu": {"negative_slope": 0.01},
    "elu": {"alpha": 1.0},
    "gelu": {"approximate": "none"},
    "softplus": {"beta": 1.0, "threshold": 20.0},
    "hardtanh": {"min_val": -1.0, "max_val": 1.0},
}
SLICES = ("chunk", "split", "narrow", "slice")
COMMUTING = ("add", "sub", "rsub", "mul", "cat")  # functions whose first argument may be a constant


class MakesNodes(Protocol):
    """What the rules need of the graph that is being made."""

    @property
    def module(self) -> nn.Module:
        """The module whose calls were recorded."""

    @property
    def own(self) -> Mapping[str, torch.Tensor]:
        """The parameters and buffers of the module, by key."""

    @property
    def state(self) -> dict[str, torch.Tensor]:
        """The values that the nodes read so far, by key; a rule adds to them."""

    def name(self, call: Call, kind: type[Node]) -> str:
        """A free name for a node of this kind that computes the result of the call."""

    def key(self, name: str, **parts: torch.Tensor | None) -> str:
        """Puts values into the state, under the keys of the layer that has all of them, or else under `name`. Returns what comes
        before the name of the part in these keys."""

    def add(self, kind: type[Node], call: Call, *inputs: Value, name: str = "", **fields: Any) -> Value:
        """Adds a node that computes the result of the call. fields: the fields of the node except its name and inputs."""

    def slice(self, call: Call, x: Value, start: int, stop: int) -> Value:
        """Adds a node that takes the channels `start` to `stop` - 1 of x."""

    def other(self, call: Call, function: str = "", arguments: tuple[Any, ...] | None = None) -> Value:
        """Adds the call as it is, as a `Float`. function, arguments: used in place of the call's own function and arguments."""


_Rule = Callable[[MakesNodes, Call], Any]
RULES: dict[str, _Rule] = {}


def _rule(*names: str) -> Callable[[_Rule], _Rule]:
    """Registers a function that makes nodes for calls with these names. The function returns None for a call that stays a
    `Float`."""

    def register(rule: _Rule) -> _Rule:
        RULES.update(dict.fromkeys(names, rule))
        return rule

    return register


def _pair(sizes: Any) -> tuple[int, int]:
    """The numbers for rows and for columns of a setting, which is one number for both or two numbers."""
    return (sizes, sizes) if isinstance(sizes, int) else (sizes[0], sizes[-1])


def _plain(value: Any) -> Any:
    """A setting in the form in which a node holds it: lists become tuples."""
    return tuple(value) if isinstance(value, (list, tuple)) else value


def _learned(*parts: Any) -> bool:
    """Returns whether each of these arguments is a value of the module or is absent."""
    return all(part is None or isinstance(part, Constant) for part in parts)


def _tensor(part: Constant | None) -> torch.Tensor | None:
    return None if part is None else part.tensor


@_rule("conv2d")
def _conv(to: MakesNodes, call: Call) -> Value | None:
    x, weight, bias = call.input, call.get("weight"), call.get("bias")
    if not _learned(weight, bias) or x.channels is None:
        return None
    kernel, dilation, padding = tuple(weight.tensor.shape[2:]), _pair(call.get("dilation", 1)), call.get("padding", 0)
    if padding == "same":
        total = [(size - 1) * step for size, step in zip(kernel, dilation, strict=True)]
        padding = tuple(both // 2 for both in total)
        if any(both % 2 for both in total):  # torch adds an odd row or column at the end
            x = to.other(call, "torch.nn.functional.pad", (x, (0, total[1] % 2, 0, total[0] % 2)))
    if kernel == (1, 1) and bias is not None and _is_colour_shift(call, weight.tensor):
        return _colour_shift(to, call, weight.tensor, bias.tensor)
    name, groups = to.name(call, Conv), call.get("groups", 1)
    return to.add(
        Conv,
        call,
        x,
        name=name,
        key=to.key(name, weight=weight.tensor, bias=_tensor(bias)),
        channels_in=weight.tensor.shape[1] * groups,
        channels_out=weight.tensor.shape[0],
        kernel=kernel,
        stride=_pair(call.get("stride", 1)),
        dilation=dilation,
        padding=(0, 0) if padding == "valid" else _pair(padding),
        groups=groups,
        bias=bias is not None,
    )


def _is_colour_shift(call: Call, weight: torch.Tensor) -> bool:
    plain = _pair(call.get("stride", 1)) == (1, 1) and not any(_pair(call.get("padding", 0)))
    return plain and weight.shape[:2] == (3, 3) and torch.equal(weight.flatten(1), torch.eye(3).to(weight))


def _colour_shift(to: MakesNodes, call: Call, weight: torch.Tensor, bias: torch.Tensor) -> Value:
    """A ColourShift for the convolution that adds a mean colour, as published networks have it."""
    name, sign = to.name(call, ColourShift), 1 if bias.sum() > 0 else -1
    key = to.key(name, weight=weight, bias=bias)
    mean = tuple((sign * bias.detach().double()).tolist())
    return to.add(ColourShift, call, call.input, name=name, key=key, sign=sign, mean=mean)


@_rule("linear")
def _linear(to: MakesNodes, call: Call) -> Value | None:
    weight, bias = call.get("weight"), call.get("bias")
    if not _learned(weight, bias):
        return None
    name, (channels_out, channels_in) = to.name(call, Linear), weight.tensor.shape
    key = to.key(name, weight=weight.tensor, bias=_tensor(bias))
    dims = len(call.input.shape or ())
    fields = {"key": key, "channels_in": channels_in, "channels_out": channels_out, "bias": bias is not None, "dims": dims}
    return to.add(Linear, call, call.input, name=name, **fields)


@_rule("batch_norm")
def _batch_norm(to: MakesNodes, call: Call) -> Value | None:
    parts, eps = {part: call.get(part) for part in ("weight", "bias", "running_mean", "running_var")}, call.get("eps", 1e-5)
    if call.node.op == "call_module":
        norm = to.module.get_submodule(call.place)
        parts = {part: None if getattr(norm, part) is None else Constant(getattr(norm, part)) for part in parts}
        eps = norm.eps
    if call.get("training") or parts["running_mean"] is None or not _learned(*parts.values()):
        return None
    like, name = parts["running_mean"].tensor, to.name(call, BatchNorm)
    key = to.key(name, **{part: _tensor(value) for part, value in parts.items()})
    for part, value in (
        ("weight", torch.ones_like(like)),
        ("bias", torch.zeros_like(like)),
        ("num_batches_tracked", torch.tensor(0)),
    ):
        to.state.setdefault(f"{key}.{part}", to.own.get(f"{key}.{part}", value))
    return to.add(BatchNorm, call, call.input, name=name, key=key, channels=like.numel(), eps=eps)


@_rule(*ACTIVATIONS)
def _activation(to: MakesNodes, call: Call) -> Value | None:
    settings = {name: call.get(name, value) for name, value in ACTIVATIONS[call.name].items()}
    # torch computes some functions with these settings like an elu
    if call.get("scale", 1) != 1 or call.get("input_scale", 1) != 1:
        return None
    function = "relu6" if call.name == "hardtanh" and tuple(settings.values()) == (0, 6) else call.name
    return to.add(Activation, call, call.input, function=function, settings=() if function == "relu6" else tuple(settings.items()))


@_rule("clamp")
def _clamp(to: MakesNodes, call: Call) -> Value | None:
    least, most = call.get("min"), call.get("max")
    if least == 0 and most is None:
        return to.add(Activation, call, call.input, function="relu")
    if not (_is_number(least) and _is_number(most)):
        return None
    return to.add(Activation, call, call.input, function="hardtanh", settings=(("min_val", least), ("max_val", most)))


@_rule("prelu")
def _prelu(to: MakesNodes, call: Call) -> Value | None:
    slopes = call.get("weight")
    if not _learned(slopes):
        return None
    name = to.name(call, Activation)
    key = to.key(name, weight=slopes.tensor)
    return to.add(Activation, call, call.input, name=name, function="prelu", key=key, slopes=slopes.tensor.numel())


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _numbers(value: Any, x: Value, call: Call) -> tuple[float, ...] | None:
    """A constant as one number for all channels of x, or as one for each channel; None where it is neither."""
    if _is_number(value):
        return (float(value),)
    if not isinstance(value, Constant) or x.shape is None or call.node.meta["val"].dtype != x.dtype:
        return None
    shape, rank = value.tensor.shape, len(x.shape)
    channels = (1,) * (rank - len(shape)) + tuple(shape) == (1, x.channels, 1, 1)
    if len(shape) > rank or not (value.tensor.numel() == 1 or channels):
        return None
    return tuple(value.tensor.detach().double().flatten().tolist())


def _alike(a: Value, b: Value, call: Call) -> bool:
    """Returns whether two tensors that a call reads have the same type and the same sizes, so that neither is broadcast.

    Sizes that are written differently are the same where the module can run with no others: for example, features of an eighth of
    the picture's size, and features of a sixteenth that were enlarged.
    """
    if a.shape is None or b.shape is None or a.dtype != b.dtype or len(a.shape) != len(b.shape):
        return False
    if a.shape == b.shape:
        return True
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # this imports sympy

    given = [node.meta["val"].shape for node in call.node.all_input_nodes]
    return len(given) == 2 and all(statically_known_true(one == other) for one, other in zip(*given, strict=True))


@_rule("add", "sub", "rsub")
def _sum(to: MakesNodes, call: Call) -> Value | None:
    a, b, alpha = call.args[0], call.get("other", call.args[1]), call.get("alpha", 1)
    signs = {"add": (1.0, 1.0), "sub": (1.0, -1.0), "rsub": (-1.0, 1.0)}[call.name]
    if alpha != 1:
        if not (isinstance(a, Value) and isinstance(b, Value)) or call.name == "rsub":
            return None
        signs = (1.0, signs[1] * alpha)
    if isinstance(a, Value) and isinstance(b, Value):
        if not _alike(a, b, call):
            return None
        return to.add(Add, call, a, b, factors=() if signs == (1.0, 1.0) else signs)
    x, constant, sign, other = (a, b, *signs) if isinstance(a, Value) else (b, a, *signs[::-1])
    numbers = _numbers(constant, x, call)
    if numbers is None or x.shape is None:
        return None
    return to.add(Affine, call, x, gain=None if sign == 1 else (sign,), shift=tuple(other * one for one in numbers))


@_rule("neg")
def _negative(to: MakesNodes, call: Call) -> Value | None:
    return to.add(Affine, call, call.input, gain=(-1.0,))


@_rule("mul")
def _product(to: MakesNodes, call: Call) -> Value | None:
    a, b = call.args[0], call.get("other", call.args[1])
    if isinstance(a, Value) and isinstance(b, Value):
        return to.add(Multiply, call, a, b) if _alike(a, b, call) else None
    x, constant = (a, b) if isinstance(a, Value) else (b, a)
    numbers = _numbers(constant, x, call)
    return None if numbers is None or x.shape is None else to.add(Affine, call, x, gain=numbers)


@_rule("div")
def _quotient(to: MakesNodes, call: Call) -> Value | None:
    x, other = call.args[0], call.get("other", call.args[1])
    numbers = _numbers(other, x, call) if isinstance(x, Value) and x.shape is not None else None
    if numbers is None or len(numbers) > 1 or call.get("rounding_mode") is not None:
        return None
    return to.add(Affine, call, x, divisor=numbers[0])


@_rule("cat")
def _concat(to: MakesNodes, call: Call) -> Value | None:
    parts, dim = call.get("tensors", call.args[0] if call.args else ()), call.get("dim", 0)
    if not all(isinstance(part, Value) and part.channels for part in parts) or dim not in (1, -3):
        return None
    return to.add(Concat, call, *parts)


@_rule(*SLICES)
def _slices(to: MakesNodes, call: Call) -> Any:
    x, channels = call.input, call.input.channels
    if channels is None or call.get("dim", 0) not in (1, -3):
        return None
    if call.name == "narrow":
        start, length = call.get("start"), call.get("length")
        if not _is_number(start):
            return None
        return to.slice(call, x, start % channels, start % channels + length)
    if call.name == "slice":
        start, stop, step = slice(call.get("start"), call.get("end")).indices(channels)
        return to.slice(call, x, start, stop) if call.get("step", 1) == 1 and start < stop else None
    sizes = call.get("split_size", call.get("split_sizes"))
    if call.name == "chunk":
        sizes = -(-channels // call.get("chunks"))
    if isinstance(sizes, int):
        sizes = [min(sizes, channels - start) for start in range(0, channels, sizes)]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return tuple(to.slice(call, x, start, start + size) for start, size in zip(starts, sizes, strict=True))


@_rule("pixel_shuffle")
def _shuffle(to: MakesNodes, call: Call) -> Value | None:
    return to.add(PixelShuffle, call, call.input, factor=call.get("upscale_factor")) if call.input.channels else None


@_rule("pixel_unshuffle")
def _unshuffle(to: MakesNodes, call: Call) -> Value | None:
    return to.add(PixelUnshuffle, call, call.input, factor=call.get("downscale_factor")) if call.input.channels else None


@_rule("interpolate", "upsample_nearest2d", "upsample_bilinear2d")
def _resize(to: MakesNodes, call: Call) -> Value | None:
    mode = call.get("mode", "nearest") if call.name == "interpolate" else call.name.removeprefix("upsample_").removesuffix("2d")
    factors = call.get("scale_factor", call.get("scale_factors"))
    factors = (factors, factors) if _is_number(factors) else tuple(factors or ())
    other_size = call.get("recompute_scale_factor") or call.get("antialias")
    if mode not in ("nearest", "bilinear") or len(set(factors)) != 1 or other_size or call.input.channels is None:
        return None
    corners = bool(call.get("align_corners")) if mode == "bilinear" else None
    return to.add(Resize, call, call.input, factor=factors[0], mode=mode, align_corners=corners)


@_rule("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d")
def _pool(to: MakesNodes, call: Call) -> Value | None:
    if call.get("return_indices") or call.input.channels is None:
        return None
    settings = {name: _plain(value) for name, value in call.arguments.items() if name not in ("input", "return_indices")}
    settings = {name: value for name, value in settings.items() if value is not None}
    if any(isinstance(one, Value) for one in pytree.tree_leaves(settings)):
        return None
    return to.add(Pool, call, call.input, function=call.name, settings=tuple(settings.items()))
