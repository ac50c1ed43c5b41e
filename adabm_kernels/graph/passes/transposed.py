"""Replaces each transposed convolution by a convolution that computes every sub-pixel and a PixelShuffle, which give the same
result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from ..nodes import Conv, Float, Graph, Key, Node, PixelShuffle, Ref, called

State = Mapping[str, torch.Tensor]
MOST_REACH = 7  # pixels to each side that the new convolution may read, so that kernels have at most 15 rows


def transposed_as_convs(graph: Graph, state: State) -> tuple[Graph, dict[str, torch.Tensor]]:
    """A graph with convolutions and PixelShuffles in place of the transposed convolutions that enlarge by their stride. These have
    no dilation and one group, and their output has as many rows and columns as the input times the stride.

    With kernel k, stride r and padding p, row r * y + i of the output reads row y + d of the input through tap i + p - r * d of the
    kernel, wherever there is such a tap. So sub-pixel row i has a kernel of its own, and the zeros around the input are the same.
    """
    nodes: list[Node] = []
    made, taken = dict(state), {node.name for node in graph.nodes} | set(graph.inputs)
    readers = [key for node in graph.nodes for key in node.parameters()]
    for node in graph.nodes:
        form = _form(node, state)
        if form is None:
            nodes.append(node)
            continue
        weight, bias, stride, padding, reach = form
        key, factor = _key(node, readers), stride[0]
        name = node.name if factor == 1 else _free(f"{node.name}.conv", taken)
        channels_in, outputs = weight.shape[0], weight.shape[1] * factor**2
        made[f"{key}.weight"] = _kernels(weight, stride, padding, reach)
        if bias is not None:
            made[f"{key}.bias"] = bias.repeat_interleave(factor**2)
        sizes: dict[str, Any] = {"kernel": (2 * reach[0] + 1, 2 * reach[1] + 1), "padding": reach, "bias": bias is not None}
        nodes.append(Conv(name, node.inputs, key, channels_in, outputs, **sizes))
        if factor > 1:
            nodes.append(PixelShuffle(node.name, (name,), factor))
    return replace(graph, nodes=tuple(nodes)), made


def _form(node: Node, state: State) -> tuple[torch.Tensor, torch.Tensor | None, Any, Any, tuple[int, int]] | None:
    """The weight [C, K, R, S], bias, stride, padding and reach of a transposed convolution that a convolution can replace; None for
    any other node."""
    if not isinstance(node, Float) or called(node) != "conv_transpose2d" or len(node.inputs) != 1:
        return None
    settings: dict[str, Any] = {"stride": 1, "padding": 0, "output_padding": 0, "groups": 1, "dilation": 1}
    given = dict(zip(("input", "weight", "bias", *settings), node.arguments, strict=False)) | dict(node.settings)
    settings |= {name: given[name] for name in settings if name in given}
    weight, bias = given.get("weight"), given.get("bias")
    if given.get("input") != Ref(0) or not isinstance(weight, Key) or not (bias is None or isinstance(bias, Key)):
        return None
    if not all(type(one) is int for value in settings.values() for one in (value if isinstance(value, tuple) else (value,))):
        return None
    stride, padding, more, dilation = (_pair(settings[name]) for name in ("stride", "padding", "output_padding", "dilation"))
    kernel = tuple(state[weight.name].shape[2:])
    enlarges = all(k + extra - 2 * p == r for k, extra, p, r in zip(kernel, more, padding, stride, strict=True))
    if settings["groups"] != 1 or dilation != (1, 1) or stride[0] != stride[1] or not enlarges:
        return None
    rows, columns = (max((r - 1 + p) // r, (k - 1 - p) // r) for k, p, r in zip(kernel, padding, stride, strict=True))
    if max(rows, columns) > MOST_REACH:
        return None
    return state[weight.name], None if bias is None else state[bias.name], stride, padding, (rows, columns)


def _kernels(weight: torch.Tensor, stride: tuple[int, int], padding: tuple[int, int], reach: tuple[int, int]) -> torch.Tensor:
    """The kernels [K * r^2, C, rows, columns] made of those of a transposed convolution, [C, K, R, S]. Their outputs are in the
    order that PixelShuffle reads."""
    channels, outputs, *kernel = weight.shape
    found = weight.new_zeros(outputs, *stride, channels, 2 * reach[0] + 1, 2 * reach[1] + 1)
    taps = [
        [(i, d + far, i + p - r * d) for i in range(r) for d in range(-far, far + 1) if 0 <= i + p - r * d < k]
        for k, r, p, far in zip(kernel, stride, padding, reach, strict=True)
    ]
    for i, row, t in taps[0]:
        for j, column, u in taps[1]:
            found[:, i, j, :, row, column] = weight[:, :, t, u].T
    return found.reshape(outputs * stride[0] * stride[1], channels, *found.shape[4:])


def _key(node: Node, readers: list[str]) -> str:
    """The key of the layer that holds the values, where nothing else reads them, or else the name of the node."""
    keys = set(node.parameters())
    owner = min(keys).rpartition(".")[0]
    own = keys <= {f"{owner}.weight", f"{owner}.bias"} and all(readers.count(key) == 1 for key in keys)
    return owner if own else node.name


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name
