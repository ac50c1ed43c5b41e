"""Computes an upsampler without activations as one convolution, because its convolutions and PixelShuffles together are a linear
map."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F

from ..graph.nodes import BorderConv, Conv, Graph
from ..graph.properties import COLLAPSED_RADIUS as RADIUS
from ..graph.properties import linear_upsampler, needed, upsampler_input

CLASSES = 2 * RADIUS + 1  # border classes along an axis: first, second, inner, last but one and last pixel
SMALLEST = 2 * RADIUS + 1  # in images with a shorter side, pixels would belong to two classes at once


@dataclass(frozen=True)
class CollapsedTail:
    """An upsampler as one kernel for each border class of the low-resolution pixel. The first two axes are the border classes of
    rows and of columns.

    weight: float64 [5, 5, 3*scale^2, C, 5, 5], zero where a tap falls outside the image. bias: float64 [5, 5, 3*scale^2]. Output
    number colour * scale^2 + sub-pixel is in the order that torch's pixel_shuffle takes.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    scale: int


def collapse(convs: Sequence[tuple[torch.Tensor, torch.Tensor]], shuffles: Sequence[int]) -> CollapsedTail:
    """The single convolution that equals a staged tail, exactly up to the border of the image.

    convs: (weight [K, C, 3, 3], bias [K]) of each stage and of the last convolution. shuffles: the factor of the PixelShuffle after
    each stage, so one fewer than convs. Zero padding between the stages makes the outer two pixels differ from the rest, so each of
    the 5x5 border classes has its own kernel: the gradient of that pixel's outputs.
    """
    convs = [(weight.double(), bias.double()) for weight, bias in convs]
    channels, scale = convs[0][0].shape[1], 1
    for r in shuffles:
        scale *= r

    def tail(x: torch.Tensor) -> torch.Tensor:
        for i, (weight, bias) in enumerate(convs):
            x = F.conv2d(x, weight, bias, padding=1)
            x = F.pixel_shuffle(x, shuffles[i]) if i < len(shuffles) else x
        return F.pixel_unshuffle(x, scale)  # [N, 3*scale^2, n, n]

    n = 4 * RADIUS + 3
    rows = [0, 1, n // 2, n - 2, n - 1]
    outputs = convs[-1][0].shape[0] * scale**2
    weight = torch.zeros(CLASSES, CLASSES, outputs, channels, CLASSES, CLASSES, dtype=torch.float64)
    at_zero = tail(torch.zeros(1, channels, n, n, dtype=torch.float64))[0]
    bias = torch.stack([torch.stack([at_zero[:, y, x] for x in rows]) for y in rows])
    # The pixels of one group lie so far apart that their gradients do not overlap, so one backward pass serves all of them.
    groups = ((0, 2, 4), (1, 3))
    for group_y in groups:
        for group_x in groups:
            seed = torch.zeros(outputs, outputs, n, n, dtype=torch.float64)
            for i in group_y:
                for j in group_x:
                    seed[range(outputs), range(outputs), rows[i], rows[j]] = 1
            gradient = _adjoint(tail, seed, channels)
            for i in group_y:
                for j in group_x:
                    window = F.pad(gradient, [RADIUS] * 4)
                    weight[i, j] = window[:, :, rows[i] : rows[i] + CLASSES, rows[j] : rows[j] + CLASSES]
    return CollapsedTail(weight, bias, scale)


def _adjoint(linear: Callable[[torch.Tensor], torch.Tensor], seed: torch.Tensor, channels: int) -> torch.Tensor:
    """The gradient of <linear(x), seed> with respect to x, for each image of `seed`."""
    x = torch.zeros(seed.shape[0], channels, *seed.shape[2:], dtype=seed.dtype, requires_grad=True)
    with torch.enable_grad():
        return torch.autograd.grad(linear(x), x, seed)[0]


def collapse_linear_upsampler(graph: Graph, state: Mapping[str, torch.Tensor]) -> tuple[Graph, dict[str, torch.Tensor]]:
    """The graph and its state, with an upsampler of several convolutions without activations between them turned into one
    `BorderConv`.

    Other graphs stay as they are. The new weights have the dtype of the weights that they are made of. Pictures must then have at
    least SMALLEST pixels a side.
    """
    found = linear_upsampler(graph)
    if found is None:
        return graph, dict(state)
    keys, factors = found
    entry = upsampler_input(graph)
    chain = needed(graph, graph.outputs, (entry,))
    last = max(i for i, node in enumerate(chain) if isinstance(node, Conv))
    weights = [(state[f"{key}.weight"], state[f"{key}.bias"]) for key in keys]
    tail = collapse(weights, factors)
    first = next(node for node in chain if isinstance(node, Conv))
    colours = tail.weight.shape[2] // tail.scale**2
    key = f"{first.key}.collapsed"
    node = BorderConv(chain[last].name, (entry,), key, first.channels_in, colours, tail.scale, CLASSES)
    gone = {one.name for one in chain[: last + 1]}
    nodes = [one for one in graph.nodes if one.name not in gone]
    place = 1 + max((i for i, one in enumerate(nodes) if one.name == entry), default=-1)
    whole = replace(graph, nodes=(*nodes[:place], node, *nodes[place:]))
    dtype, kept = weights[0][0].dtype, whole.parameters().keys() | (state.keys() - graph.parameters().keys())
    values = {f"{key}.weight": tail.weight.to(dtype), f"{key}.bias": tail.bias.to(dtype)}
    return whole, {name: value for name, value in (dict(state) | values).items() if name in kept}
