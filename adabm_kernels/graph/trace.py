"""Turns any nn.Module into a graph. torch.export or torch.fx records the calls of torch that the module makes, and each call
becomes a node."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .lowering import Lowering
from .nodes import Conv, Graph
from .outputs import ONE_TENSOR, Layout, checked_layout, layout_of
from .passes import merge_affines, merge_factors, remove_dead, with_roles
from .recording import Recording, export, export_of_size, symbolic


@dataclass(frozen=True)
class Traced:
    """A module as data.

    graph: computes what the module computes, from "x" [N, C, H, W]. state: the values that the graph reads, as float32 (integers
    keep their type), under the module's own keys where the module has them. multiple: the number of which H and W must be
    multiples. recorder: "torch.export" or "torch.fx". size: H and W where the graph holds for no others. layout: how the module
    hands its outputs out (outputs.py). finer: the names of tensors with more rows than the input. smallest: the least side for
    which the graph holds, where that is more than 16.
    """

    graph: Graph
    state: dict[str, torch.Tensor]
    multiple: int = 1
    recorder: str = "torch.export"
    size: tuple[int, int] | None = None
    layout: Layout = ONE_TENSOR
    finer: frozenset[str] = frozenset()
    smallest: int = 1


def trace(
    module: nn.Module,
    example_inputs: Any = None,
    *,
    channels: int = 3,
    roles: Mapping[str, str] | None = None,
    any_size: bool = True,
) -> Traced:
    """Makes a graph that computes what a module in eval mode computes of pictures [N, C, H, W] of any number and size.

    example_inputs: one floating-point tensor, or a tuple of one; None for a tensor of `channels` channels. roles: for the names of
    some nodes, the roles of their convolutions, which then do not follow the rule. By the rule, a convolution is an "end" where no
    convolution comes before it or none after it, where it computes more pixels than the picture has, or where a PixelShuffle
    spreads its values over more pixels than that. All others are "adaptive" and "body".

    any_size: true where the graph must hold for pictures of other sizes than the example's. Without it, a graph that cannot do so
    is made for that size alone (`Traced.size`).

    Nodes are called by the path of the module that makes them: "body.0.conv1". Calls that no kind of node describes become `Float`.
    Constants that only depend on the module are computed now; a scale or a shift that it learns becomes a constant too. For
    pictures whose sides are at least 16 and multiples of `Traced.multiple`, the graph computes the same as the module to the last
    bit.

    Raises TypeError for an argument that is not a module or a tensor, and ValueError, with the place in the module, for training
    mode, control flow that depends on values or sizes, several inputs, outputs that are not tensors, complex or integer parameters,
    values that change from call to call, and modules without convolutions.
    """
    _check_module(module)
    x = _example(module, example_inputs, channels)
    with torch.no_grad():
        recording = _recorded(module, x, example_inputs is None, any_size)
        if not any_size and recording.size is None and not _takes_larger(module, x, recording.multiple):
            recording.size = (int(x.shape[2]), int(x.shape[3]))
        lowering = Lowering(module, recording)
        outputs = lowering.run()
    graph = merge_affines(merge_factors(remove_dead(Graph(tuple(lowering.nodes.values()), outputs=outputs))))
    if not any(isinstance(node, Conv) for node in graph.nodes):
        raise ValueError(f"trace: {type(module).__name__} must have a convolution on the way to its outputs, but has none")
    try:
        graph = with_roles(graph, lowering.finer, roles or {})
        layout = checked_layout(layout_of(recording.structure), len(outputs))
    except ValueError as error:
        raise ValueError(f"trace: {type(module).__name__}: {error}") from None
    state = {key: _as_float32(lowering.state[key]) for key in graph.parameters()}
    return Traced(
        graph, state, recording.multiple, recording.recorder, recording.size, layout, frozenset(lowering.finer), recording.smallest
    )


def _recorded(module: nn.Module, x: torch.Tensor, grows: bool, any_size: bool) -> Recording:
    """Records the calls that a module makes, by the first way that works. grows: whether the size of x is free."""
    attempts: list[Callable[[], Recording]] = [lambda: export(module, x, grows), lambda: symbolic(module, x)]
    if not any_size:
        attempts.append(lambda: export_of_size(module, x))
    errors: list[Exception] = []
    for attempt in attempts:
        try:
            return attempt()
        except Exception as error:  # torch.export raises errors of many kinds
            errors.append(error)
    raise ValueError(f"trace: {_place(module, errors[0])}: {_reason(errors[0])}") from errors[0]


def _takes_larger(module: nn.Module, x: torch.Tensor, multiple: int) -> bool:
    """Returns whether a module takes tensors that are a little larger. A recording may leave this to checks at run time."""
    try:
        module(torch.nn.functional.pad(x[:1], (0, multiple, 0, multiple)))
    except Exception:  # a module may raise any kind of error for wrong sizes
        return False
    return True


def _check_module(module: nn.Module) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"trace: module must be an nn.Module, got {type(module).__name__}")
    for path, part in module.named_modules():
        if part.training:
            raise ValueError(f"trace: '{path}' ({type(part).__name__}) is in training mode: call .eval() on the module first")
    for name, value in module.named_parameters():
        if not value.is_floating_point():
            raise ValueError(f"trace: parameters must be real floating-point numbers, but '{name}' is {value.dtype}")
    parameters = inspect.signature(module.forward).parameters.values()
    needed = [one.name for one in parameters if one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    if len(needed) > 1:
        raise ValueError(f"trace: {type(module).__name__} must take one tensor, but its forward needs {needed}")


def _example(module: nn.Module, given: Any, channels: int) -> torch.Tensor:
    like = next(module.parameters(), torch.zeros(()))
    if given is None:
        return torch.rand(2, channels, 64, 96).to(like)
    if isinstance(given, (tuple, list)):
        if len(given) != 1:
            raise ValueError(f"trace: example_inputs must be one tensor, got {len(given)} inputs")
        given = given[0]
    if not isinstance(given, torch.Tensor):
        raise TypeError(f"trace: example_inputs must be a tensor, got {type(given).__name__}")
    if given.ndim != 4 or not given.is_floating_point():
        raise ValueError(f"trace: example_inputs must be floating point [N, C, H, W], got {given.dtype} {tuple(given.shape)}")
    return given if given.shape[0] > 1 else torch.cat([given, given])  # torch.export would take a batch of 1 for a constant


def _place(module: nn.Module, error: BaseException) -> str:
    """The innermost part of the module in which an error arose: "'body.0' (ResBlock)"."""
    paths = {id(part): path for path, part in module.named_modules()}
    place, cause = "", error
    while cause is not None:
        for frame, _ in traceback.walk_tb(cause.__traceback__):
            place = paths.get(id(frame.f_locals.get("self")), place)
        cause = cause.__cause__ or cause.__context__  # type: ignore[assignment]
    return f"'{place}' ({type(module.get_submodule(place)).__name__})"


def _reason(error: Exception) -> str:
    text = str(error)
    if "data-dependent" in text:
        return "control flow depends on the values of a tensor"
    if "Constraints violated" in text:
        rules = [line.strip(" -") for line in text.splitlines() if line.startswith("  - ")]
        return f"what it computes depends on the size of the picture ({' '.join(rules) or text.splitlines()[0]})"
    return text.splitlines()[0] if text else type(error).__name__


def _as_float32(value: torch.Tensor) -> torch.Tensor:
    value = value.detach()
    return value.to(torch.float32) if value.is_floating_point() else value
