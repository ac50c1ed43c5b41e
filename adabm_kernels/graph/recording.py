"""The calls of torch that a module makes, recorded by torch.export or by torch.fx."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

_GRAPH = re.compile(r"^def forward\(self.*\n(?:(?: .*)?\n)*", re.MULTILINE)  # as torch prints a graph

LARGEST_MULTIPLE = 64  # the largest multiple of the sides of pictures that is tried for modules that divide sides
# conditions on sizes are tried for all sides up to the first number, and for the other three
MANY_SIDES, LARGE_SIDES = 600, (1000, 10000, 100000)
SMALLEST_SIDE = 16  # the least side that a graph is asked to hold for, since smaller sides are special cases of too many calls
# least sides that are tried next, since below them halved features often have one row
SMALLEST_SIDES = (17, 32, 33, 64, 65, 128, 129, 256)


@dataclass
class Recording:
    """The calls that a module makes.

    nodes: the calls, in order. outputs: the tensors that the module returns. constants: the nodes that stand for values of the
    module, by key. size: the rows and columns where the module takes no other size; None where it takes any. smallest: the least
    side that it takes. structure: what the module returns, with the number of each output in place of the output.
    """

    nodes: list[fx.Node]
    outputs: list[Any]
    x: fx.Node
    constants: dict[fx.Node, tuple[str, torch.Tensor]]
    multiple: int = 1
    recorder: str = "torch.export"
    size: tuple[int, int] | None = None
    smallest: int = 1
    structure: Any = 0


def tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters and buffers of a module, by key. A tensor that has several keys stands under each of them."""
    return dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))


def export(module: nn.Module, x: torch.Tensor, grows: bool) -> Recording:
    """Records a module by torch.export, with batch, height and width left open. grows: whether the size of x is free."""
    least = [min(SMALLEST_SIDE, size) for size in x.shape[2:]]
    rows, columns = (torch.export.Dim(name, min=size) for name, size in zip(("rows", "columns"), least, strict=True))
    multiple, smallest = 1, 1
    try:
        program = _exported(module, x, {0: torch.export.Dim("batch"), 2: rows, 3: columns})
    except Exception as error:
        multiple, smallest = _multiple(str(error), LARGE_SIDES[0] if grows else min(x.shape[2:]))
        if not multiple:
            raise
        if grows:
            x = x.new_zeros(2, x.shape[1], *(multiple * (max(size, smallest) // multiple + 1) for size in (64, 96)))
        open_sizes = dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)  # under the conditions that `multiple` meets
        program = _exported(module, x, open_sizes)
    recording = _read(program, module)
    if any(isinstance(recording.x.meta["val"].shape[dim], int) for dim in (0, 2, 3)):
        raise ValueError("what it computes depends on the size of the picture")
    return replace(recording, multiple=multiple, smallest=smallest)


def export_of_size(module: nn.Module, x: torch.Tensor) -> Recording:
    """Records a module by torch.export, with only the batch left open, for pictures of the size of x."""
    program = _exported(module, x, {0: torch.export.Dim("batch")})
    return replace(_read(program, module), size=(int(x.shape[2]), int(x.shape[3])))


def _exported(module: nn.Module, x: torch.Tensor, sizes: dict[int, Any]) -> torch.export.ExportedProgram:
    """The program that torch.export makes of the module. sizes: the sizes of x that are left open."""
    first = next(iter(inspect.signature(module.forward).parameters.values()), None)
    several = first is not None and first.kind is first.VAR_POSITIONAL
    shapes: tuple[Any, ...] = ((sizes,),) if several else (sizes,)
    with _graphs_unprinted():
        return torch.export.export(module, (x,), dynamic_shapes=shapes, strict=False)


@contextlib.contextmanager
def _graphs_unprinted() -> Iterator[None]:
    """Suppresses what torch.export prints where it fails: the graph so far, and a warning that a symbol has no code. Callers try
    further ways of recording, and report where and why none of them works. Anything else that is printed meanwhile appears at the
    end."""
    log, printed = logging.getLogger("torch.fx.experimental.symbolic_shapes"), io.StringIO()
    log.addFilter(_says_more)
    try:
        with contextlib.redirect_stderr(printed):
            yield
    finally:
        log.removeFilter(_says_more)
        other = _GRAPH.sub("", printed.getvalue()).lstrip("\n")
        if other and sys.stderr is not None:
            sys.stderr.write(other)


def _says_more(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("Unable to find user code")


def _read(program: torch.export.ExportedProgram, module: nn.Module) -> Recording:
    signature = program.graph_signature
    values = program.constants | tensors(module)
    keys = {**signature.inputs_to_parameters, **signature.inputs_to_buffers, **signature.inputs_to_lifted_tensor_constants}
    nodes = list(program.graph.nodes)
    constants = {node: (keys[node.name], values[keys[node.name]]) for node in nodes if node.name in keys}
    outputs = list(nodes[-1].args[0])[-len(signature.user_outputs) :]
    placeholder = next(node for node in nodes if node.name in signature.user_inputs)
    spec = program.call_spec.out_spec
    return Recording(nodes, outputs, placeholder, constants, structure=pytree.tree_unflatten(range(spec.num_leaves), spec))


def _multiple(message: str, most: int) -> tuple[int, int]:
    """The smallest number whose multiples, as sides of pictures, meet the conditions on sizes in a message of torch.export, and the
    smallest side from which they do; (0, 0) where there is no such number.

    The message lists conditions that some sizes violate or that could not be proved; they are tried for many sizes. most: the
    largest value that the least side may have.
    """
    conditions = re.findall(r"generated guard (.*)\.$", message, re.MULTILINE)
    # The picture is L['x'], and before torch 2.7 L['args'][0][0].
    codes = [compile(re.sub(r"L\['\w+'\](\[\d+\])*\.size\(\)", "size", text), "guard", "eval") for text in conditions]
    names = {"__builtins__": {}, "max": max, "min": min, "Max": max, "Min": min, "IntInfinity": lambda: math.inf}

    def holds(size: tuple[int, ...]) -> bool:
        return all(eval(code, names, {"size": size}) for code in codes)

    def meets(multiple: int, smallest: int) -> bool:
        sides = [multiple * times for times in range(-(-smallest // multiple), -(-MANY_SIDES // multiple))]
        sides += [multiple * (side // multiple) for side in LARGE_SIDES]
        pairs = [(rows, columns) for rows in sides for columns in (rows, sides[0], sides[-1], sides[len(sides) // 3])]
        return all(holds((batch, 0, *pair)) and holds((batch, 0, *pair[::-1])) for pair in pairs for batch in (1, 2, 3))

    for multiple in range(1, LARGEST_MULTIPLE + 1 if codes else 1):
        for smallest in (SMALLEST_SIDE, *(side for side in SMALLEST_SIDES if side <= most)):
            if meets(multiple, smallest):
                return multiple, smallest if smallest > SMALLEST_SIDE else 1
    return 0, 0


class _Tracer(fx.Tracer):
    """Traces into every module except those that ask tensors for their number of dimensions."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.modules.batchnorm._BatchNorm)


class _Recorder(fx.Interpreter):
    """Records the shape and dtype of every value."""

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op == "get_attr":
            n.meta["held"] = value
        n.meta["val"] = value.to("meta") if isinstance(value, torch.Tensor) else value
        return value


def _same(a: Any, b: Any) -> bool:
    """Returns whether two results of a module are equal to the last bit."""
    pairs = zip(*map(pytree.tree_leaves, (a, b)), strict=True)
    return all(torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other for one, other in pairs)


def symbolic(module: nn.Module, x: torch.Tensor) -> Recording:
    """Records a module by torch.fx. The recording is for the size of x alone where the module does not take tensors twice as large,
    or where the recording computes something else from them. Raises ValueError where it does not compute what the module
    computes."""
    parameters = list(inspect.signature(module.forward).parameters.values())[1:]
    defaults = {one.name: one.default for one in parameters if one.default is not one.empty}
    graph = _Tracer().trace(module, defaults)
    recorded = fx.GraphModule(module, graph)
    given = _Recorder(recorded).run(x.clone(), *defaults.values())
    if not _same(given, module(x.clone())):
        raise ValueError("torch.fx records other values than the module computes")
    larger = x.repeat(1, 1, 2, 2)
    try:
        any_size = _same(recorded(larger.clone(), *defaults.values()), module(larger))
    except Exception:  # a module may raise any kind of error for wrong sizes
        any_size = False
    nodes, own = list(graph.nodes), tensors(module)
    attributes = [node for node in nodes if node.op == "get_attr"]
    constants = {node: (node.target if node.target in own else "", node.meta["held"]) for node in attributes}
    inputs = [node for node in nodes if node.op == "placeholder"]
    size = None if any_size else (int(x.shape[2]), int(x.shape[3]))
    outputs, spec = pytree.tree_flatten(nodes[-1].args[0])
    structure = pytree.tree_unflatten(range(len(outputs)), spec)
    return Recording(nodes, outputs, inputs[0], constants, recorder="torch.fx", structure=structure, size=size)
