"""An upsampler without activations as one convolution: conv, PixelShuffle, ..., conv is a linear map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

RADIUS = 2  # of the collapsed kernel, low-resolution pixels: two 3x3 stages and one at each finer resolution reach no further
CLASSES = 2 * RADIUS + 1  # per axis: first, second, inner, last but one, last pixel
SMALLEST = 2 * RADIUS + 1  # images with a shorter side have pixels of two classes at once


@dataclass(frozen=True)
class CollapsedTail:
    """One kernel for each border class of the low-resolution pixel, rows then columns.

    weight: float64 [5, 5, 3*scale^2, C, 5, 5], zero where a tap falls outside the image. bias: float64 [5, 5, 3*scale^2].
    Output o = colour * scale^2 + sub-pixel, as torch's pixel_shuffle takes it.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    scale: int


def collapse(convs: Sequence[tuple[torch.Tensor, torch.Tensor]], shuffles: Sequence[int]) -> CollapsedTail:
    """The single convolution equal to a staged tail, exact to the border.

    convs: (weight [K, C, 3, 3], bias [K]) of each stage and of the last convolution. shuffles: PixelShuffle factor after
    each stage; one fewer than convs. Zero padding between the stages makes the outer two pixels differ from the rest, so
    each of the 5x5 border classes has its own kernel: the gradient of that pixel's outputs.
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
    # The pixels of one group lie so far apart that their gradients do not overlap: one backward pass for all of them.
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
    """Gradient of <linear(x), seed> with respect to x, for each image of `seed`."""
    x = torch.zeros(seed.shape[0], channels, *seed.shape[2:], dtype=seed.dtype, requires_grad=True)
    with torch.enable_grad():
        return torch.autograd.grad(linear(x), x, seed)[0]
