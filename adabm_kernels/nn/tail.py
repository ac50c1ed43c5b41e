"""The collapsed upsampler in integers."""

from __future__ import annotations

import torch

from .. import native
from ..networks.collapse import CollapsedTail
from ..planning.layer import plan_layer
from ..planning.times import tile_times
from ..quantize import act_grid, act_steps, rest_range
from .conv import IntegerConv2d, shuffle_order


class CollapsedConv2d(IntegerConv2d):
    """A collapsed tail in integers: codes of 8 bits are multiplied by weights of 8 bits, with a scale for each output.

    lower, upper: the range of the features. shift: the mean colour, which is added to every pixel, float64 [colours]. digits: how
    many 8-bit codes hold a value of the input, 1 or 2 (see IntegerConv2d.rest). Images must have at least SMALLEST pixels a side.
    """

    BITS = 8

    def __init__(self, tail: CollapsedTail, lower: float, upper: float, shift: torch.Tensor, digits: int = 1):
        order = shuffle_order(tail.weight.shape[2], tail.scale)
        weight, bias = tail.weight[:, :, order], tail.bias[:, :, order]
        top = 2 ** (self.BITS - 1) - 1
        scale = weight.abs().amax((0, 1, 3, 4, 5)).clamp(min=torch.finfo(torch.float32).tiny) / top
        integers = torch.round(weight / scale.view(-1, 1, 1, 1))
        sums = integers.sum((3, 4, 5))
        super().__init__(
            "tail",
            plan_layer("tail", integers.numpy(), self.BITS, times=tile_times(native.planning_isa())),
            integers.permute(0, 1, 2, 4, 5, 3),
            act_steps(lower, upper)[:, None] * scale,
            bias + scale * lower * sums + shift.double().repeat(tail.scale**2),
            act_grid(lower, upper),
            shuffle=tail.scale,
        )
        if digits == 2:
            half = rest_range(lower, upper)
            without = CollapsedTail(tail.weight, torch.zeros_like(tail.bias), tail.scale)
            self.set_rest(CollapsedConv2d(without, -half, half, torch.zeros_like(shift)), lower, upper)
