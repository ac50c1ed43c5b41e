"""Recorded calls of torch as nodes of a graph: one rule for each kind of call that a node describes; the others become a `Float`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from .nodes import Activation, Add, Affine, BatchNorm, ColourShift, Concat, Conv, Float, Key, Linear, Multiply, Node
from .nodes import PixelShuffle, PixelUnshuffle, Pool, Ref, Resize, Slice
from .recording import Recording, tensors

# Arguments of functions, in order, where torch.fx records calls; those of operators are in their schemas.
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

# Settings of element-wise functions, and what they are where a call does not say.
ACTIVATIONS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("relu", "relu6", "silu", "sigmoid", "tanh", "hardswish", "hardsigmoid", "mish", "softsign"), {}),
    "leaky_relu": {"negative_slope": 0.01},
    "elu": {"alpha": 1.0},
    "gelu": {"approximate": "none"},
    "softplus": {"beta": 1.0, "threshold": 20.0},
    "hardtanh": {"min_val": -1.0, "max_val": 1.0},
}
# These give the tensor that they are given, unless they change its dtype.
IDENTITIES = {"dropout", "feature_dropout", "alpha_dropout", "contiguous", "detach", "clone", "alias", "to", "_to_copy", "float"}
IDENTITIES |= {"type_as", "lift_fresh_copy", "identity", "requires_grad"}
COPIES = {"clone", "lift_fresh_copy", "_to_copy"}
SLICES = ("chunk", "split", "narrow", "slice")
COMMUTING = ("add", "sub", "rsub", "mul", "cat")  # what may take a constant first


@dataclass(eq=False)
class _Value:
    """A value that depends on the picture: what the node `name` computes.

    shape: of floating-point tensors, sizes as text; None for all else. channels: of [N, C, H, W]. memory: what it shares with views.
    """

    name: str
    dtype: torch.dtype | None = None
    shape: tuple[str, ...] | None = None
    channels: int | None = None
    memory: object = field(default_factory=object)


@dataclass(eq=False)
class _Constant:
    """A value of the module, or one that only depends on such. key: in its state dict, "" for none."""

    tensor: torch.Tensor
    key: str = ""


@dataclass
class _Call:
    """One recorded call.

    place, leaf: path of the module that makes it, and whether that is a module of torch. name: of the function, without what tells its
    variants apart. arguments: by name, as far as those are known. writes: whether it changes its first argument.
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


def _call_of(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call:
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
    return _Call(node, place, "torch.nn.modules" in str(kind), bare, args, kwargs, arguments, writes)


def _is_view(call: fx.Node, unknown: bool) -> bool:
    """Whether what a call gives may share memory with what it is given. unknown: what it is where no schema tells."""
    schema = getattr(call.target, "_schema", None)
    return unknown if schema is None else any(one.alias_info is not None for one in schema.returns)


_Rule = Callable[["Lowering", _Call], Any]
RULES: dict[str, _Rule] = {}


def _rule(*names: str) -> Callable[[_Rule], _Rule]:
    """Registers what makes nodes of calls of these names; it returns None for those that stay a `Float`."""

    def register(rule: _Rule) -> _Rule:
        RULES.update(dict.fromkeys(names, rule))
        return rule

    return register


class Lowering:
    """Makes the nodes of a graph of recorded calls, one after the other.

    nodes: by name. state: the values that they read. finer: names of tensors with more rows than the picture.
    """

    def __init__(self, module: nn.Module, recording: Recording) -> None:
        self.module, self.recording = module, recording
        self.nodes: dict[str, Node] = {}
        self.state: dict[str, torch.Tensor] = {}
        self.finer: set[str] = set()
        self.own = tensors(module)
        self.keys: dict[int, list[str]] = {}
        self.own_prefixes = list(dict.fromkeys(key.rpartition(".")[0] for key in self.own))
        for key, tensor in self.own.items():
            self.keys.setdefault(id(tensor), []).append(key)
        self.values: dict[fx.Node, Any] = {node: _Constant(tensor, key) for node, (key, tensor) in recording.constants.items()}
        self.rows = _hint(recording.x.meta["val"].shape[2])
        self.values[recording.x] = x = self._value("x", recording.x.meta["val"])
        self.holders: dict[int, list[fx.Node]] = {id(x.memory): [recording.x]}  # who has which memory

    def run(self) -> tuple[str, ...]:
        """Make the nodes that the outputs depend on; returns the names of the outputs."""
        calls = [node for node in self.recording.nodes if node.op.startswith("call") or node.op == "get_attr"]
        for node in self._needed(calls):
            if node not in self.values:
                self.values[node] = self._lower(node)
        outputs = [self.values.get(one) if isinstance(one, fx.Node) else one for one in self.recording.outputs]
        for i, one in enumerate(outputs):
            if not isinstance(one, _Value) or one.shape is None:
                what = "no floating-point tensor that depends on the input"
                raise ValueError(f"trace: outputs of {type(self.module).__name__} must be tensors, but number {i} is {what}")
        return tuple(one.name for one in outputs)

    def _needed(self, calls: list[fx.Node]) -> list[fx.Node]:
        """Calls that the outputs depend on, and those that write in place what these read."""
        wanted, needed = {one for one in self.recording.outputs if isinstance(one, fx.Node)}, set()
        for node in reversed(calls):
            if node in wanted or _call_of(node, node.args, dict(node.kwargs)).writes:
                needed.add(node)
                wanted.update(node.all_input_nodes)
        return [node for node in calls if node in needed]

    def _lower(self, node: fx.Node) -> Any:
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            where = _call_of(node, (), {}).where
            raise ValueError(f"trace: {where}: torch.export keeps it as control flow, which a graph has not")
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda one: self.values[one])
        call = _call_of(node, args, kwargs)
        if _random(call):
            raise ValueError(f"trace: {call.where} draws random numbers")
        given = [one for one in pytree.tree_leaves((args, kwargs)) if isinstance(one, (_Value, _Constant))]
        if not any(isinstance(one, _Value) for one in given):
            return self._constant(call, given)
        if call.name == "getitem" and isinstance(args[0], (tuple, list)):
            made = args[0][args[1]]
        else:
            made = self._identity(call) or self._by_rule(call, given) or self.other(call)
        if call.writes:
            self._written(call, made)
        if isinstance(made, _Value):
            self.holders.setdefault(id(made.memory), []).append(node)
        return made

    def _constant(self, call: _Call, given: list[_Constant]) -> Any:
        """What a call gives that reads values of the module alone."""
        if call.name in IDENTITIES and call.node.meta["val"].dtype == given[0].tensor.dtype:
            return _Constant(given[0].tensor.clone()) if call.name in COPIES else given[0]
        if call.writes and given and given[0].key:
            raise ValueError(f"trace: {call.where} changes '{given[0].key}', so that every call gives something else")
        args, kwargs = pytree.tree_map_only(_Constant, lambda one: one.tensor, (call.args, call.kwargs))
        target = call.node.target
        made = getattr(args[0], target)(*args[1:], **kwargs) if isinstance(target, str) else target(*args, **kwargs)
        return pytree.tree_map_only(torch.Tensor, lambda one: _Constant(one.detach()), made)

    def _identity(self, call: _Call) -> _Value | None:
        """What a call is given, where it gives just that."""
        x = call.args[0] if call.args else None
        if not isinstance(x, _Value) or x.shape is None:
            return None
        same = call.name in IDENTITIES and call.node.meta["val"].dtype == x.dtype
        if call.name == "slice":
            same = call.get("start") in (None, 0) and call.get("end") in (None, 2**63 - 1) and call.get("step", 1) == 1
        if not same:
            return None
        return replace(x, memory=object()) if call.name in COPIES else replace(x)

    def _by_rule(self, call: _Call, given: list[_Value | _Constant]) -> Any:
        """What a rule makes of a call on floating-point tensors."""
        if call.name not in RULES or any(isinstance(one, _Value) and one.shape is None for one in given):
            return None
        if call.name not in COMMUTING and not isinstance(call.input, _Value):
            return None
        made = RULES[call.name](self, call)
        if made is not None and _is_view(call.node, call.name in SLICES):
            for one in pytree.tree_leaves(made):
                one.memory = call.args[0].memory
        return made

    def _written(self, call: _Call, made: _Value) -> None:
        """Whoever reads later what a call writes in place reads what the call gives; what shares its memory would not know."""
        old = call.args[0]
        if not isinstance(old, _Value):
            raise ValueError(f"trace: {call.where} writes in place into a constant")
        made.memory = object()
        for node in self.holders.pop(id(old.memory), []):
            if self.values[node] is old:
                self.values[node] = made
                self.holders.setdefault(id(made.memory), []).append(node)
            elif any(later > call.node for later in node.users):
                raise ValueError(f"trace: {call.where} writes in place into memory that other tensors share")

    def _value(self, name: str, val: Any) -> _Value:
        if not isinstance(val, torch.Tensor):
            return _Value(name)
        if not val.is_floating_point():
            return _Value(name, val.dtype)
        channels = val.shape[1] if val.ndim == 4 and isinstance(val.shape[1], int) else None
        if val.ndim == 4 and _hint(val.shape[2]) > self.rows:
            self.finer.add(name)
        return _Value(name, val.dtype, tuple(map(str, val.shape)), channels)

    def name(self, call: _Call, kind: type[Node]) -> str:
        """The path of the module that makes the call, with the name of the function where it makes several."""
        path = call.place if call.leaf and kind is not Float else f"{call.place}.{call.name}".strip(".")
        return _free(path, lambda name: name in self.nodes or name == "x")

    def add(self, kind: type[Node], call: _Call, *inputs: _Value, name: str = "", **fields: Any) -> _Value:
        """A node that computes what the call gives."""
        name = name or self.name(call, kind)
        self.nodes[name] = kind(name, tuple(one.name for one in inputs), **fields)
        return self._value(name, call.node.meta.get("val"))

    def slice(self, call: _Call, x: _Value, start: int, stop: int) -> _Value:
        """Channels start..stop of x."""
        assert x.shape is not None
        name = self.name(call, Slice)
        self.nodes[name] = Slice(name, (x.name,), start, stop)
        if x.name in self.finer:
            self.finer.add(name)
        return _Value(name, x.dtype, (x.shape[0], str(stop - start), *x.shape[2:]), stop - start)

    def key(self, call: _Call, name: str, **parts: torch.Tensor | None) -> str:
        """Puts values into the state under the names of a module that has them all (`call`'s own if it can), else of the node."""
        given = {part: tensor for part, tensor in parts.items() if tensor is not None}
        owners: set[str] | None = None
        for part, tensor in given.items():
            found = {key[: -len(part) - 1] for key in self.keys.get(id(tensor), ()) if key.endswith(f".{part}")}
            owners = found if owners is None else owners & found
        if owners:
            key = next(key for key in self.own_prefixes if key in owners)  # the first of several names of a layer
        else:
            key = _free(name, lambda key: any(f"{key}.{part}" in self.own or f"{key}.{part}" in self.state for part in given))
        self.state.update({f"{key}.{part}": tensor for part, tensor in given.items()})
        return key

    def other(self, call: _Call, function: str = "", arguments: tuple[Any, ...] | None = None) -> _Value:
        """A call as it is: a `Float`. function, arguments: others in its place."""
        name = self.name(call, Float)
        inputs: dict[str, int] = {}
        shapes: dict[str, tuple[int, ...]] = {}

        def plain(value: Any) -> Any:
            if isinstance(value, _Value):
                return Ref(inputs.setdefault(value.name, len(inputs)))
            if isinstance(value, _Constant):
                key = value.key or _free(f"{name}.constant", lambda key: key in self.own or key in self.state)
                self.state[key] = value.tensor if value.key else value.tensor.clone()  # a later call may write into it
                shapes[key] = tuple(value.tensor.shape)
                return Key(key)
            return tuple(map(plain, value)) if isinstance(value, (list, tuple)) else value

        values = tuple(map(plain, call.args if arguments is None else arguments))
        named = () if arguments is not None else call.kwargs.items()
        settings = tuple((key, plain(value)) for key, value in named if key != "inplace")
        self.nodes[name] = Float(name, tuple(inputs), function or _target(call.node), values, settings, tuple(shapes.items()))
        made = self._value(name, call.node.meta.get("val"))
        if _is_view(call.node, True) and call.args and isinstance(call.args[0], _Value):
            made.memory = call.args[0].memory
        return made


def _free(name: str, taken: Callable[[str], bool]) -> str:
    """The name, or with a number behind it where that is taken."""
    names = (name if i == 0 else f"{name}_{i}" for i in range(1 << 30))
    return next(one for one in names if not taken(one))


def _hint(size: int | torch.SymInt) -> int:
    return size if isinstance(size, int) else int(size.node.hint)


def _random(call: _Call) -> bool:
    if call.name == "dropout":
        return bool(call.get("train", call.get("training", True)))
    return torch.Tag.nondeterministic_seeded in getattr(call.node.target, "tags", ())


def _target(node: fx.Node) -> str:
    """How a `Float` calls it: a function by its dotted name, a method by "." and its name; what writes in place by its other form."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        space, name = target._schema.name.split("::")
        name = name[:-1] if target._schema.is_mutable and name.endswith("_") else name
        return f"torch.ops.{space}.{name}.{target._overloadname}"
    if isinstance(target, str):
        return "." + (target.rstrip("_") if not target.endswith("__") else target)
    name = fx.node._get_qualified_name(target)
    return name if "." in name else f"builtins.{name}"


def _pair(sizes: Any) -> tuple[int, int]:
    """Rows and columns of a setting that is one number for both, or two."""
    return (sizes, sizes) if isinstance(sizes, int) else (sizes[0], sizes[-1])


def _plain(value: Any) -> Any:
    """A setting as a node holds it; lists become tuples."""
    return tuple(value) if isinstance(value, (list, tuple)) else value


def _learned(*parts: Any) -> bool:
    """Whether a call takes these from the module, or goes without them."""
    return all(part is None or isinstance(part, _Constant) for part in parts)


def _tensor(part: _Constant | None) -> torch.Tensor | None:
    return None if part is None else part.tensor


@_rule("conv2d")
def _conv(to: Lowering, call: _Call) -> _Value | None:
    x, weight, bias = call.input, call.get("weight"), call.get("bias")
    if not _learned(weight, bias) or x.channels is None:
        return None
    kernel, dilation, padding = tuple(weight.tensor.shape[2:]), _pair(call.get("dilation", 1)), call.get("padding", 0)
    if padding == "same":
        total = [(size - 1) * step for size, step in zip(kernel, dilation, strict=True)]
        padding = tuple(both // 2 for both in total)
        if any(both % 2 for both in total):  # torch puts the odd row and column behind
            x = to.other(call, "torch.nn.functional.pad", (x, (0, total[1] % 2, 0, total[0] % 2)))
    if kernel == (1, 1) and bias is not None and _is_colour_shift(call, weight.tensor):
        return _colour_shift(to, call, weight.tensor, bias.tensor)
    name, groups = to.name(call, Conv), call.get("groups", 1)
    return to.add(
        Conv,
        call,
        x,
        name=name,
        key=to.key(call, name, weight=weight.tensor, bias=_tensor(bias)),
        channels_in=weight.tensor.shape[1] * groups,
        channels_out=weight.tensor.shape[0],
        kernel=kernel,
        stride=_pair(call.get("stride", 1)),
        dilation=dilation,
        padding=(0, 0) if padding == "valid" else _pair(padding),
        groups=groups,
        bias=bias is not None,
    )


def _is_colour_shift(call: _Call, weight: torch.Tensor) -> bool:
    plain = _pair(call.get("stride", 1)) == (1, 1) and not any(_pair(call.get("padding", 0)))
    return plain and weight.shape[:2] == (3, 3) and torch.equal(weight.flatten(1), torch.eye(3).to(weight))


def _colour_shift(to: Lowering, call: _Call, weight: torch.Tensor, bias: torch.Tensor) -> _Value:
    """The convolution that adds a mean colour, as published networks do."""
    name, sign = to.name(call, ColourShift), 1 if bias.sum() > 0 else -1
    key = to.key(call, name, weight=weight, bias=bias)
    mean = tuple((sign * bias.detach().double()).tolist())
    return to.add(ColourShift, call, call.input, name=name, key=key, sign=sign, mean=mean)


@_rule("linear")
def _linear(to: Lowering, call: _Call) -> _Value | None:
    weight, bias = call.get("weight"), call.get("bias")
    if not _learned(weight, bias):
        return None
    name, (channels_out, channels_in) = to.name(call, Linear), weight.tensor.shape
    key = to.key(call, name, weight=weight.tensor, bias=_tensor(bias))
    fields = {"key": key, "channels_in": channels_in, "channels_out": channels_out, "bias": bias is not None}
    return to.add(Linear, call, call.input, name=name, **fields)


@_rule("batch_norm")
def _batch_norm(to: Lowering, call: _Call) -> _Value | None:
    parts, eps = {part: call.get(part) for part in ("weight", "bias", "running_mean", "running_var")}, call.get("eps", 1e-5)
    if call.node.op == "call_module":
        norm = to.module.get_submodule(call.place)
        parts = {part: None if getattr(norm, part) is None else _Constant(getattr(norm, part)) for part in parts}
        eps = norm.eps
    if call.get("training") or parts["running_mean"] is None or not _learned(*parts.values()):
        return None
    like, name = parts["running_mean"].tensor, to.name(call, BatchNorm)
    key = to.key(call, name, **{part: _tensor(value) for part, value in parts.items()})
    for part, value in (("weight", torch.ones_like(like)), ("bias", torch.zeros_like(like)), ("num_batches_tracked", torch.tensor(0))):
        to.state.setdefault(f"{key}.{part}", to.own.get(f"{key}.{part}", value))
    return to.add(BatchNorm, call, call.input, name=name, key=key, channels=like.numel(), eps=eps)


@_rule(*ACTIVATIONS)
def _activation(to: Lowering, call: _Call) -> _Value | None:
    settings = {name: call.get(name, value) for name, value in ACTIVATIONS[call.name].items()}
    if call.get("scale", 1) != 1 or call.get("input_scale", 1) != 1:  # of what torch computes like an elu
        return None
    function = "relu6" if call.name == "hardtanh" and tuple(settings.values()) == (0, 6) else call.name
    return to.add(Activation, call, call.input, function=function, settings=() if function == "relu6" else tuple(settings.items()))


@_rule("clamp")
def _clamp(to: Lowering, call: _Call) -> _Value | None:
    least, most = call.get("min"), call.get("max")
    if least == 0 and most is None:
        return to.add(Activation, call, call.input, function="relu")
    if not (_is_number(least) and _is_number(most)):
        return None
    return to.add(Activation, call, call.input, function="hardtanh", settings=(("min_val", least), ("max_val", most)))


@_rule("prelu")
def _prelu(to: Lowering, call: _Call) -> _Value | None:
    slopes = call.get("weight")
    if not _learned(slopes):
        return None
    name = to.name(call, Activation)
    key = to.key(call, name, weight=slopes.tensor)
    return to.add(Activation, call, call.input, name=name, function="prelu", key=key, slopes=slopes.tensor.numel())


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _numbers(value: Any, x: _Value, call: _Call) -> tuple[float, ...] | None:
    """One number for all channels of x, or one for each, where a constant is that."""
    if _is_number(value):
        return (float(value),)
    if not isinstance(value, _Constant) or x.shape is None or call.node.meta["val"].dtype != x.dtype:
        return None
    shape, rank = value.tensor.shape, len(x.shape)
    channels = (1,) * (rank - len(shape)) + tuple(shape) == (1, x.channels, 1, 1)
    if len(shape) > rank or not (value.tensor.numel() == 1 or channels):
        return None
    return tuple(value.tensor.detach().double().flatten().tolist())


@_rule("add", "sub", "rsub")
def _sum(to: Lowering, call: _Call) -> _Value | None:
    a, b, alpha = call.args[0], call.get("other", call.args[1]), call.get("alpha", 1)
    signs = {"add": (1.0, 1.0), "sub": (1.0, -1.0), "rsub": (-1.0, 1.0)}[call.name]
    if alpha != 1:
        if not (isinstance(a, _Value) and isinstance(b, _Value)) or call.name == "rsub":
            return None
        signs = (1.0, signs[1] * alpha)
    if isinstance(a, _Value) and isinstance(b, _Value):
        if a.shape is None or a.shape != b.shape or a.dtype != b.dtype:
            return None
        return to.add(Add, call, a, b, factors=() if signs == (1.0, 1.0) else signs)
    x, constant, sign, other = (a, b, *signs) if isinstance(a, _Value) else (b, a, *signs[::-1])
    numbers = _numbers(constant, x, call)
    if numbers is None or x.shape is None:
        return None
    return to.add(Affine, call, x, gain=None if sign == 1 else (sign,), shift=tuple(other * one for one in numbers))


@_rule("neg")
def _negative(to: Lowering, call: _Call) -> _Value | None:
    return to.add(Affine, call, call.input, gain=(-1.0,))


@_rule("mul")
def _product(to: Lowering, call: _Call) -> _Value | None:
    a, b = call.args[0], call.get("other", call.args[1])
    if isinstance(a, _Value) and isinstance(b, _Value):
        same = a.shape is not None and a.shape == b.shape and a.dtype == b.dtype
        return to.add(Multiply, call, a, b) if same else None
    x, constant = (a, b) if isinstance(a, _Value) else (b, a)
    numbers = _numbers(constant, x, call)
    return None if numbers is None or x.shape is None else to.add(Affine, call, x, gain=numbers)


@_rule("div")
def _quotient(to: Lowering, call: _Call) -> _Value | None:
    x, other = call.args[0], call.get("other", call.args[1])
    numbers = _numbers(other, x, call) if isinstance(x, _Value) and x.shape is not None else None
    if numbers is None or len(numbers) > 1 or call.get("rounding_mode") is not None:
        return None
    return to.add(Affine, call, x, divisor=numbers[0])


@_rule("cat")
def _concat(to: Lowering, call: _Call) -> _Value | None:
    parts, dim = call.get("tensors", call.args[0] if call.args else ()), call.get("dim", 0)
    if not all(isinstance(part, _Value) and part.channels for part in parts) or dim not in (1, -3):
        return None
    return to.add(Concat, call, *parts)


@_rule(*SLICES)
def _slices(to: Lowering, call: _Call) -> Any:
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
def _shuffle(to: Lowering, call: _Call) -> _Value | None:
    return to.add(PixelShuffle, call, call.input, factor=call.get("upscale_factor")) if call.input.channels else None


@_rule("pixel_unshuffle")
def _unshuffle(to: Lowering, call: _Call) -> _Value | None:
    return to.add(PixelUnshuffle, call, call.input, factor=call.get("downscale_factor")) if call.input.channels else None


@_rule("interpolate", "upsample_nearest2d", "upsample_bilinear2d")
def _resize(to: Lowering, call: _Call) -> _Value | None:
    mode = call.get("mode", "nearest") if call.name == "interpolate" else call.name.removeprefix("upsample_").removesuffix("2d")
    factors = call.get("scale_factor", call.get("scale_factors"))
    factors = (factors, factors) if _is_number(factors) else tuple(factors or ())
    other_size = call.get("recompute_scale_factor") or call.get("antialias")
    if mode not in ("nearest", "bilinear") or len(set(factors)) != 1 or other_size or call.input.channels is None:
        return None
    corners = bool(call.get("align_corners")) if mode == "bilinear" else None
    return to.add(Resize, call, call.input, factor=factors[0], mode=mode, align_corners=corners)


@_rule("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d")
def _pool(to: Lowering, call: _Call) -> _Value | None:
    if call.get("return_indices") or call.input.channels is None:
        return None
    settings = {name: _plain(value) for name, value in call.arguments.items() if name not in ("input", "return_indices")}
    settings = {name: value for name, value in settings.items() if value is not None}
    if any(isinstance(one, _Value) for one in pytree.tree_leaves(settings)):
        return None
    return to.add(Pool, call, call.input, function=call.name, settings=tuple(settings.items()))
