"""Tiles of two depths in a residual network: where each layer computes, and the filter of the tiles without blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from .. import native
from ..exits import ExitParameters, border_weights
from ..networks.spec import ConvSpec, NetworkSpec
from ..planning.layer import plan_layer
from ..planning.times import tile_times
from ..quantize import MAX_BITS, act_grid, act_steps
from ..regions import MAX_DEPTH, Depths, Region
from .conv import IntegerConv2d, shuffle_order

EASY, HARD = (0, 0), (1, MAX_DEPTH)  # depths of tiles without blocks, and of those with them


class LinearExit(IntegerConv2d):
    """The filter of easy tiles on the codes of the pixels: what `exits.exit_output` computes, exact to the borders.

    Images must have at least `parameters.kernel` pixels a side: pixels near the borders have kernels of their own.
    """

    def __init__(self, parameters: ExitParameters):
        order = shuffle_order(parameters.weight.shape[0], parameters.scale)
        weight = border_weights(parameters)[:, :, order]
        gain = torch.full((len(order),), 1 / parameters.unit, dtype=torch.float64)
        super().__init__(
            "exit",
            plan_layer("exit", weight.numpy(), MAX_BITS, times=tile_times(native.planning_isa())),
            weight.permute(0, 1, 2, 4, 5, 3),
            act_steps(0, 255)[:, None] * gain,
            parameters.bias[order].expand(*weight.shape[:2], -1),
            act_grid(0, 255),
            shuffle=parameters.scale,
        )
        self.parameters_ = parameters


@dataclass(frozen=True)
class Places:
    """Where the layers of a residual network compute, as arguments of the operators; everywhere where there are no depths.

    Blocks are for hard tiles, which read the features of their easy neighbours as the head left them, and zeros there between the
    two convolutions of a block. reach: low-resolution pixels around a hard tile that the upsampler reads, so that the convolution
    that closes the body is computed that far, and features of the head one pixel further.
    """

    depths: Depths | None
    reach: int

    def _at(self, region: Region, factor: int = 1) -> dict[str, Any]:
        if self.depths is None:
            return {}
        depths = self.depths.enlarged(factor) if factor > 1 else self.depths
        return {"depth": depths.values, "region": region.numbers(depths)}

    def head(self) -> dict[str, Any]:
        """Of the convolution before the body, whose features all others read."""
        return self._at(Region(near=HARD, reach=self.reach + 1))

    def inside(self) -> dict[str, Any]:
        """Of a block's first convolution."""
        return self._at(Region(own=HARD, passed=HARD, pass_reach=1))

    def block(self, end: bool) -> dict[str, Any]:
        """Of a block's second convolution, or of both in one; it also hands on the features around hard tiles. end: whether it is
        the first block, which copies all features that will be read, or the last, which makes all codes that the closing
        convolution reads."""
        return self._at(Region(own=HARD, passed=HARD, pass_reach=self.reach + 1 if end else 1))

    def closing(self) -> dict[str, Any]:
        """Of the convolution that closes the body."""
        return self._at(Region(near=HARD, reach=self.reach))

    def stage(self, convs: list[ConvSpec], index: int) -> dict[str, Any]:
        """Of a convolution of the upsampler, whose convolutions are given in the order they run."""
        factor = convs[index].scale
        if index == len(convs) - 1:
            return self._at(Region(own=HARD), factor)
        return self._at(Region(near=HARD, reach=math.ceil(radius(convs[index + 1 :]) * factor)), factor)

    def read(self, convs: list[ConvSpec], index: int) -> dict[str, Any]:
        """Where the output of a convolution of the upsampler, not its last, is read, at the resolution of the next one."""
        factor = convs[index + 1].scale
        return self._at(Region(near=HARD, reach=math.ceil(radius(convs[index + 1 :]) * factor)), factor)

    def collapsed(self) -> dict[str, Any]:
        """Of the whole upsampler as one convolution."""
        return self._at(Region(own=HARD))

    def easy(self) -> dict[str, Any]:
        """Of the filter of easy tiles."""
        return self._at(Region(own=EASY))


EVERYWHERE = Places(None, 0)


def radius(convs: list[ConvSpec]) -> float:
    """Low-resolution pixels on each side that an output of these convolutions depends on."""
    return sum(conv.kernel // 2 / conv.scale for conv in convs)


def tail_specs(spec: NetworkSpec) -> list[ConvSpec]:
    """The convolutions of the upsampler, in the order they run."""
    convs = list(spec.convs())
    return convs[max(i for i, conv in enumerate(convs) if conv.role != "end") + 1 :]
