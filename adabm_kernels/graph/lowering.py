"""Turns recorded calls of torch into nodes of a graph, by the rules of rules.py. A call that has no rule becomes a `Float`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from .calls import Call, Constant, Value, call_of
from .nodes import Float, Key, Node, Ref, Slice
from .recording import Recording, tensors
from .rules import COMMUTING, RULES, SLICES

# Calls that return the tensor that they are given, unless they change its dtype.
IDENTITIES = {"dropout", "feature_dropout", "alpha_dropout", "contiguous", "detach", "clone", "alias", "to", "_to_copy", "float"}
IDENTITIES |= {"type_as", "lift_fresh_copy", "identity", "requires_grad"}
COPIES = {"clone", "lift_fresh_copy", "_to_copy"}


class Lowering:
    """Makes the nodes of a graph from recorded calls, one after the other.

    nodes: the nodes by name. state: the values that the nodes read, by key. finer: the names of tensors with more rows than the
    picture.
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
        self.values: dict[fx.Node, Any] = {node: Constant(tensor, key) for node, (key, tensor) in recording.constants.items()}
        self.rows = _hint(recording.x.meta["val"].shape[2])
        self.values[recording.x] = x = self._value("x", recording.x.meta["val"])
        self.holders: dict[int, list[fx.Node]] = {id(x.memory): [recording.x]}  # for each memory, the calls whose results lie in it

    def run(self) -> tuple[str, ...]:
        """Makes the nodes that the outputs depend on, and returns the names of the outputs."""
        calls = [node for node in self.recording.nodes if node.op.startswith("call") or node.op == "get_attr"]
        for node in self._needed(calls):
            if node not in self.values:
                self.values[node] = self._lower(node)
        names = []
        for i, node in enumerate(self.recording.outputs):
            one = self.values.get(node) if isinstance(node, fx.Node) else node
            if not isinstance(one, Value) or one.shape is None:
                what = "no floating-point tensor that depends on the input"
                raise ValueError(f"trace: outputs of {type(self.module).__name__} must be tensors, but number {i} is {what}")
            names.append(one.name)
        return tuple(names)

    def _needed(self, calls: list[fx.Node]) -> list[fx.Node]:
        """The calls that the outputs depend on, and the calls that write in place what these read."""
        needed: set[fx.Node] = set()
        wanted = {one for one in self.recording.outputs if isinstance(one, fx.Node)}
        for node in reversed(calls):
            if node in wanted or call_of(node, node.args, dict(node.kwargs)).writes:
                needed.add(node)
                wanted.update(node.all_input_nodes)
        return [node for node in calls if node in needed]

    def _lower(self, node: fx.Node) -> Any:
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            where = call_of(node, (), {}).where
            raise ValueError(f"trace: {where}: torch.export keeps it as control flow, which a graph has not")
        args, kwargs = pytree.tree_map_only(fx.Node, lambda one: self.values[one], (tuple(node.args), dict(node.kwargs)))
        call = call_of(node, args, kwargs)
        if _random(call):
            raise ValueError(f"trace: {call.where} draws random numbers")
        given = [one for one in pytree.tree_leaves((args, kwargs)) if isinstance(one, (Value, Constant))]
        if not any(isinstance(one, Value) for one in given):
            return self._constant(call)
        made: Any
        if call.name == "getitem" and isinstance(call.args[0], (tuple, list)):
            made = call.args[0][call.args[1]]
        else:
            made = self._identity(call) or self._by_rule(call, given) or self.other(call)
        if call.writes:
            self._written(call, made)
        if isinstance(made, Value):
            self.holders.setdefault(id(made.memory), []).append(node)
        return made

    def _constant(self, call: Call) -> Any:
        """The result of a call that reads only values of the module."""
        first = call.args[0] if call.args else None
        if isinstance(first, Constant):
            if call.name in IDENTITIES and call.node.meta["val"].dtype == first.tensor.dtype:
                return Constant(first.tensor.clone()) if call.name in COPIES else first
            if call.writes and first.key:
                raise ValueError(f"trace: {call.where} changes '{first.key}', so that every call gives something else")
        args, kwargs = pytree.tree_map_only(Constant, lambda one: one.tensor, (call.args, call.kwargs))
        target = call.node.target
        made = getattr(args[0], target)(*args[1:], **kwargs) if isinstance(target, str) else target(*args, **kwargs)
        return pytree.tree_map_only(torch.Tensor, lambda one: Constant(one.detach()), made)

    def _identity(self, call: Call) -> Value | None:
        """The argument of a call that returns this argument unchanged; None for another call."""
        x = call.args[0] if call.args else None
        if not isinstance(x, Value) or x.shape is None:
            return None
        same = call.name in IDENTITIES and call.node.meta["val"].dtype == x.dtype
        if call.name == "slice":
            same = call.get("start") in (None, 0) and call.get("end") in (None, 2**63 - 1) and call.get("step", 1) == 1
        if not same:
            return None
        return replace(x, memory=object()) if call.name in COPIES else replace(x)

    def _by_rule(self, call: Call, given: Iterable[Value | Constant]) -> Any:
        """The result of the rule for a call on floating-point tensors; None where no rule applies."""
        if call.name not in RULES or any(isinstance(one, Value) and one.shape is None for one in given):
            return None
        if call.name not in COMMUTING and not isinstance(call.input, Value):
            return None
        made = RULES[call.name](self, call)
        if made is not None and _is_view(call.node, call.name in SLICES):
            for one in made if isinstance(made, tuple) else (made,):
                one.memory = call.args[0].memory
        return made

    def _written(self, call: Call, made: Value) -> None:
        """Makes later readers of a tensor that a call writes in place read the call's result. Raises ValueError where other tensors
        in the same memory are read later, because they would not change with it, and for a constant."""
        old = call.args[0]
        if not isinstance(old, Value):
            raise ValueError(f"trace: {call.where} writes in place into a constant")
        made.memory = object()
        for node in self.holders.pop(id(old.memory), []):
            if self.values[node] is old:
                self.values[node] = made
                self.holders.setdefault(id(made.memory), []).append(node)
            elif any(later > call.node for later in node.users):
                raise ValueError(f"trace: {call.where} writes in place into memory that other tensors share")

    def _value(self, name: str, val: Any) -> Value:
        if not isinstance(val, torch.Tensor):
            return Value(name)
        if not val.is_floating_point():
            return Value(name, val.dtype)
        channels = val.shape[1] if val.ndim == 4 and isinstance(val.shape[1], int) else None
        if val.ndim == 4 and _hint(val.shape[2]) > self.rows:
            self.finer.add(name)
        return Value(name, val.dtype, tuple(map(str, val.shape)), channels)

    def name(self, call: Call, kind: type[Node]) -> str:
        """The path of the module that makes the call, followed by the name of the function where the module makes several calls."""
        path = call.place if call.leaf and call.place and kind is not Float else f"{call.place}.{call.name}".strip(".")
        return _free(path, lambda name: name in self.nodes or name == "x")

    def add(self, kind: type[Node], call: Call, *inputs: Value, name: str = "", **fields: Any) -> Value:
        """Adds a node that computes the result of the call."""
        name = name or self.name(call, kind)
        self.nodes[name] = kind(name, tuple(one.name for one in inputs), **fields)
        return self._value(name, call.node.meta.get("val"))

    def slice(self, call: Call, x: Value, start: int, stop: int) -> Value:
        """Adds a node that takes the channels `start` to `stop` - 1 of x."""
        assert x.shape is not None
        name = self.name(call, Slice)
        self.nodes[name] = Slice(name, (x.name,), start, stop)
        if x.name in self.finer:
            self.finer.add(name)
        return Value(name, x.dtype, (x.shape[0], str(stop - start), *x.shape[2:]), stop - start)

    def key(self, name: str, **parts: torch.Tensor | None) -> str:
        """Puts values into the state, under the keys of a module that has all of them, or else under the name of the node."""
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

    def other(self, call: Call, function: str = "", arguments: tuple[Any, ...] | None = None) -> Value:
        """Adds the call as it is, as a `Float`. function, arguments: used in place of the call's own function and arguments."""
        name = self.name(call, Float)
        inputs: dict[str, int] = {}
        shapes: dict[str, tuple[int, ...]] = {}

        def plain(value: Any) -> Any:
            if isinstance(value, Value):
                return Ref(inputs.setdefault(value.name, len(inputs)))
            if isinstance(value, Constant):
                key = value.key or _free(f"{name}.constant", lambda key: key in self.own or key in self.state)
                self.state[key] = value.tensor if value.key else value.tensor.clone()  # a later call may write into it
                shapes[key] = tuple(value.tensor.shape)
                return Key(key)
            return tuple(map(plain, value)) if isinstance(value, (list, tuple)) else value

        values = tuple(map(plain, call.args if arguments is None else arguments))
        named = () if arguments is not None else call.kwargs.items()
        settings = tuple((key, plain(value)) for key, value in named if key != "inplace")
        function = function or _target(call.node)
        if function.startswith("."):
            if isinstance(values[0], Ref):
                values = values[1:]  # without the first input
            else:
                function = f"torch.Tensor{function}"
        self.nodes[name] = Float(name, tuple(inputs), function, values, settings, tuple(shapes.items()))
        made = self._value(name, call.node.meta.get("val"))
        if _is_view(call.node, True) and call.args and isinstance(call.args[0], Value):
            made.memory = call.args[0].memory
        return made


def _free(name: str, taken: Callable[[str], bool]) -> str:
    """The name itself, or the name with a number appended where it is taken."""
    names = (name if i == 0 else f"{name}_{i}" for i in range(1 << 30))
    return next(one for one in names if not taken(one))


def _hint(size: int | torch.SymInt) -> int:
    return size if isinstance(size, int) else int(size.node.hint)


def _random(call: Call) -> bool:
    if call.name == "dropout":
        return bool(call.get("train", call.get("training", True)))
    if call.name == "scaled_dot_product_attention":
        return call.get("dropout_p", 0) > 0
    return torch.Tag.nondeterministic_seeded in getattr(call.node.target, "tags", ())


def _target(node: fx.Node) -> str:
    """The `target` of a `Float`. A function that writes in place is replaced by its variant that does not. A view may become a
    copy, because calls that make tensors contiguous are left out."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        space, name = target._schema.name.split("::")
        name = name[:-1] if target._schema.is_mutable and name.endswith("_") else name
        name = "reshape" if target is torch.ops.aten.view.default else name
        return f"torch.ops.{space}.{name}.{target._overloadname}"
    if isinstance(target, str):
        target = "reshape" if target == "view" else target
        return "." + (target.rstrip("_") if not target.endswith("__") else target)
    name = fx.node._get_qualified_name(target)
    return name if "." in name else f"builtins.{name}"


def _is_view(call: fx.Node, unknown: bool) -> bool:
    """Returns whether the result of a call may share memory with its arguments. unknown: the answer where no schema tells."""
    schema = getattr(call.target, "_schema", None)
    return unknown if schema is None else any(one.alias_info is not None for one in schema.returns)
