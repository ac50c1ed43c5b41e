"""How a network hands its tensors out: one tensor, or tuples, lists and dicts of tensors, which may be nested."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

# A layout is the number of a tensor among the outputs of a graph, or a kind with its parts: ("tuple", (0, 1)), ("dict", (("boxes",
# 0), ...)).
Layout = Any
ONE_TENSOR: Layout = 0
MOST_DEPTH = 8


def layout_of(structure: Any) -> Layout:
    """The layout of a network's output. structure: this output, in which the number of each tensor stands in place of the tensor.

    Raises ValueError where the output is not made of tuples, lists and dicts.
    """

    def walk(value: Any, place: str, depth: int) -> Layout:
        if type(value) is int:
            return value
        if isinstance(value, Mapping) and depth < MOST_DEPTH and all(type(key) in (str, int) for key in value):
            return "dict", tuple((key, walk(one, f"{place}[{key!r}]", depth + 1)) for key, one in value.items())
        if isinstance(value, (tuple, list)) and depth < MOST_DEPTH:
            kind = "list" if isinstance(value, list) else "tuple"
            return kind, tuple(walk(one, f"{place}[{i}]", depth + 1) for i, one in enumerate(value))
        raise ValueError(f"outputs must be tensors, or tuples, lists and dicts of tensors, got {type(value).__name__} at {place}")

    return walk(structure, "output", 0)


def arranged(layout: Layout, tensors: Sequence[torch.Tensor]) -> Any:
    """The tensors arranged as the layout says, in plain tuples, lists and dicts."""
    if isinstance(layout, int):
        return tensors[layout]
    kind, parts = layout
    if kind == "dict":
        return {key: arranged(part, tensors) for key, part in parts}
    values = (arranged(part, tensors) for part in parts)
    return list(values) if kind == "list" else tuple(values)


def places(layout: Layout, place: str = "output") -> list[str]:
    """The place of each tensor of a layout, for messages: "output", "output[1]", "output['boxes']"."""
    if isinstance(layout, int):
        return [place]
    kind, parts = layout
    pairs = [(repr(key), part) for key, part in parts] if kind == "dict" else list(enumerate(parts))
    return [one for key, part in pairs for one in places(part, f"{place}[{key}]")]


def checked_layout(value: Any, count: int) -> Layout:
    """The layout of `count` tensors, read from its form in JSON, which has lists in place of tuples. Raises ValueError for any
    other value."""
    seen: list[int] = []

    def walk(part: Any, depth: int) -> Layout:
        if type(part) is int:
            seen.append(part)
            return part
        if depth < MOST_DEPTH and isinstance(part, (list, tuple)) and len(part) == 2 and isinstance(part[1], (list, tuple)):
            kind, parts = part
            if kind in ("tuple", "list"):
                return kind, tuple(walk(one, depth + 1) for one in parts)
            pairs = all(isinstance(one, (list, tuple)) and len(one) == 2 and type(one[0]) in (str, int) for one in parts)
            if kind == "dict" and pairs:
                return kind, tuple((one[0], walk(one[1], depth + 1)) for one in parts)
        raise ValueError(f"layout must be numbers of tensors in tuples, lists and dicts, got {part!r}")

    layout = walk(value, 0)
    if seen != list(range(count)):
        raise ValueError(f"layout must name each of {count} outputs once and in order, got {seen}")
    return layout
