"""How much memory a forward pass holds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

from ..graph.nodes import Add, Affine, BatchNorm
from .steps import DropStep, FloatStep, FreshStep, LeaveStep, Program, Step, Store

# Bytes of a value. Features that pass the blocks by may be half as wide, and codes on a GPU may lie two in a byte.
_BYTES = {"codes": 1, "features": 4, "stream": 4, "pixels": 4}


def bytes_per_pixel(program: Program, scales: Mapping[str, Fraction]) -> int:
    """The most bytes that a forward pass holds for each low-resolution pixel: its input, the buffers, which stay, and tensors in
    fresh memory while they are read. Memory that kernels hold for a moment is not counted.

    scales: for each tensor of the network by name, the number of its rows as a multiple of that of the input.
    """

    def size(store: Store) -> Fraction:
        name, factor = store.extent
        return _BYTES[store.kind] * store.width * (scales[name] * factor) ** 2

    buffers: dict[str, Fraction] = {}
    fresh: dict[int, Store] = {}  # by their place among the tensors, while they live
    peak: Fraction | int = 0
    for step in program.steps:
        for held in (*step.reads(), *step.writes()):
            if held.store.fresh:
                fresh[held.at] = held.store
            else:
                buffers[held.store.buffer] = max(size(held.store), buffers.get(held.store.buffer, Fraction(0)))
        peak = max(peak, sum(map(size, [*fresh.values(), *_passing(step)])))
        for at in step.ats if isinstance(step, DropStep) else ():
            if at != program.x:  # the caller holds the input
                fresh.pop(at, None)  # a tensor that has only been read in parts may not be here
    return math.ceil(peak + sum(buffers.values()))


def _passing(step: Step) -> list[Store]:
    """The tensors that torch makes on the way in a step, each as a store of its size."""
    if isinstance(step, FloatStep) and isinstance(step.node, (Add, Affine, BatchNorm)):
        return [step.y.store]  # a product, before it is added to
    if isinstance(step, LeaveStep):  # the values that the codes stand for, and a copy of what must stay as it is
        return [step.x.store] * (2 if step.keep or step.x.store.kind == "stream" else 1)
    if isinstance(step, FreshStep):
        copied = [step.residual.store] if step.residual is not None and step.residual.store.fresh else []
        # With two digits torch computes the PReLU: the mask of negative values, their products, and the result.
        return copied + [step.y.store] * (3 if step.left is not None and step.conv.late == "prelu" else 0)
    return []
