"""Shows a graph as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

from .nodes import Activation, Add, Affine, Conv, Float, Graph, Linear, Node, PixelShuffle, PixelUnshuffle, Pool, Resize, Slice
from .properties import Extent, extents


def describe(graph: Graph, channels: Mapping[str, int] | None = None) -> str:
    """A table with one line for each node: its name, its kind, the tensors that it reads, the size of its tensor for pictures of H
    x W, the role of a convolution, and its multiplications for each pixel of the picture.

    channels: the number of channels of each input, as `extents` takes them. A size that is not known is shown as "?".
    """
    sizes = extents(graph, channels)
    rows = [("name", "kind", "reads", "size", "role", "products a pixel")]
    for node in graph.nodes:
        size = sizes.get(node.name)
        role = node.role if isinstance(node, Conv) else ""
        rows.append((node.name, _kind(node), ", ".join(node.inputs), _size(size), role, _products(node, size)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(lines)


def _kind(node: Node) -> str:
    match node:
        case Conv():
            words = [f"conv {_times(node.kernel)}"]
            words += [f"stride {_times(node.stride)}"] * (node.stride != (1, 1))
            words += [f"dilation {_times(node.dilation)}"] * (node.dilation != (1, 1))
            words += [f"groups {node.groups}"] * (node.groups > 1)
            return " ".join(words)
        case Activation() | Pool():
            return node.function
        case Add() if node.factors:
            return f"add {', '.join(f'{factor:g}' for factor in node.factors)}"
        case Affine():
            parts = [f"/ {node.divisor:g}"] * (node.divisor is not None)
            parts += [f"{sign} {_numbers(values)}" for sign, values in (("*", node.gain), ("+", node.shift)) if values is not None]
            return " ".join(parts[::-1] if node.first == "shift" else parts)
        case PixelShuffle() | PixelUnshuffle():
            return f"{type(node).__name__} {node.factor}"
        case Resize():
            return f"{node.mode} x{node.factor:g}"
        case Slice():
            return f"channels {node.start}..{node.stop}"
        case Float():
            return f"float {node.target}"
    return type(node).__name__


def _times(sizes: tuple[int, int]) -> str:
    return f"{sizes[0]}x{sizes[1]}"


def _numbers(values: tuple[float, ...]) -> str:
    return f"{values[0]:g}" if len(values) == 1 else f"{len(values)} numbers"


def _size(size: Extent | None) -> str:
    if size is None:
        return "?"
    if size.scale == 0:
        return f"{size.channels}"
    up, down = size.scale.numerator, size.scale.denominator
    sides = [f"{up if up > 1 else ''}{side}{f'/{down}' if down > 1 else ''}" for side in "HW"]
    return f"{size.channels} x {sides[0]} x {sides[1]}"


def _products(node: Node, size: Extent | None) -> str:
    if not isinstance(node, (Conv, Linear)):
        return ""
    if size is None:
        return "?"
    taps = Fraction(math.prod(node.kernel), node.groups) if isinstance(node, Conv) else 1
    return f"{float(node.channels_in * node.channels_out * taps * size.scale**2):g}"
