"""Residual networks whose tiles have two depths: where each layer computes, and the filter of the tiles without blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import torch
from torch import nn

from .. import native, ops
from ..exits import ExitParameters, border_weights
from ..graph.fuse import FusedConv, Item
from ..graph.nodes import Graph
from ..graph.properties import extents, reach_of, stream
from ..graph.trunk import Trunk, reaches
from ..networks.spec import NetworkSpec
from ..planning.layer import plan_layer
from ..planning.times import tile_times
from ..quantize import MAX_BITS, act_grid, act_steps
from ..regions import MAX_DEPTH, Depths, Region, as_tiles, flat_length, pixels_of_tiles
from ..registry import Choice
from .conv import IntegerConv2d, shuffle_order
from .steps import Place

EASY, HARD = (0, 0), (1, MAX_DEPTH)  # depths of tiles without blocks, and of tiles with them


class LinearExit(IntegerConv2d):
    """The filter of easy tiles on the codes of the pixels. It computes what `exits.exit_output` computes, exactly, also at the
    borders.

    Images must have at least `parameters.kernel` pixels a side, because pixels near the borders have kernels of their own.
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
    """Where the layers of a residual network compute in pictures with tiles of two depths.

    computed: the place where a layer computes, by the name of the tensor that it computes. read: the place where a tensor is read,
    by its name. sums: for each sum that ends a block and is computed in floats, the tensor that it equals in easy tiles. collapsed:
    the place of the whole upsampler as one convolution. easy: the place of the filter of easy tiles. A tensor that is missing here
    is computed or read everywhere.
    """

    computed: Mapping[str, Place] = field(default_factory=dict)
    read: Mapping[str, Place] = field(default_factory=dict)
    sums: Mapping[str, str] = field(default_factory=dict)
    collapsed: Place | None = None
    easy: Place | None = None


def places_of(items: Sequence[Item], graph: Graph, found: Trunk) -> Places:
    """Finds where each layer of a residual network computes. Blocks are computed for hard tiles. In their easy neighbours these
    read the features as they were before the blocks, and nothing that the convolutions of a block make.

    Layers before and behind the blocks are computed around hard tiles as far as they are read (`reaches`). A convolution in a block
    also hands on, around hard tiles, the features that it adds to, and zeros where it adds to none. Where every block's last
    convolution adds to one buffer in place, the features around hard tiles stay there: the first block copies all of them that will
    be read, the last one makes all codes that are read behind it, and those between hand on what the next block reads.
    """
    need, sizes, inner = reaches(graph, found), extents(graph), found.inner
    convs = {item.name: item for item in items if isinstance(item, FusedConv)}
    in_place = bool(stream(graph)) and all(output in convs for output in found.outputs)
    first, last = found.blocks[0].output, found.blocks[-1].output

    def near(name: str, scale: Fraction) -> Place:
        reach = math.ceil(need[name] * scale)
        return Place(Region(near=HARD, reach=reach) if reach else Region(own=HARD), int(scale))

    computed = {}
    for name, item in convs.items():
        if item.conv.name not in inner:
            computed[name] = near(name, sizes[item.inputs[0]].scale)
            continue
        reach = math.ceil(need[name])
        if in_place and name in found.outputs and name not in (first, last):
            reach = max(math.ceil(steps) for node in graph.nodes if name in node.inputs and (steps := reach_of(node)) is not None)
        computed[name] = Place(Region(own=HARD, passed=HARD, pass_reach=reach) if reach else Region(own=HARD))
    read = {name: near(name, sizes[name].scale) for name in need}
    sums = {name: block.entry for name, block in found.outputs.items() if name not in convs}
    return Places(computed, read, sums, Place(Region(own=HARD)), Place(Region(own=EASY)))


class DecidesDepths(nn.Module):
    """The part of a converted network that says which tiles have its blocks computed."""

    spec: NetworkSpec
    exit: ExitParameters | None
    easy: LinearExit | None
    choice: Choice
    deep: int  # the depth of tiles with all blocks: the number of blocks, or MAX_DEPTH where that is less
    _depth: str | int
    _threads: int

    def _check(self, x: torch.Tensor | None, offset: torch.Tensor | None, origin: tuple[int, int] = (0, 0)) -> None:
        raise NotImplementedError

    def _forget_graphs(self) -> None:
        raise NotImplementedError

    def _codes_of_pixels(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def set_depth(self, depth: str | int = "auto") -> None:
        """Sets for which tiles the network's blocks are computed.

        With "auto" they are left out in easy tiles, which bend by at most the threshold that calibration found. With "full", or the
        number of the network's blocks, they are computed for all tiles, and with 0 for none. For images with fewer pixels a side
        than the exit's filter they are computed at any depth. Raises ValueError for another depth, and for 0 where the network has
        no exit.
        """
        blocks = self.spec.block_count
        known = depth in ("auto", "full") or (type(depth) is int and depth in (0, blocks))
        if not known and not blocks:
            raise ValueError(f"set_depth: depth must be 'auto' or 'full' for a network without blocks, got {depth!r}")
        if not known:
            raise ValueError(f"set_depth: depth must be 'auto', 'full', 0 or {blocks}, the blocks of this network, got {depth!r}")
        if depth == 0 and self.exit is None:
            raise ValueError("set_depth: depth must be 'auto' or 'full' for a model without an exit for easy tiles, got 0")
        depth = "full" if depth == blocks else depth
        if depth != self._depth:
            self._depth = depth
            self._forget_graphs()

    @property
    def varies_depth(self) -> bool:
        """Whether blocks may be left out in some tiles."""
        return self.easy is not None and self._depth != "full"

    def tile_depths(self, x: torch.Tensor, *, origin: tuple[int, int] = (0, 0)) -> Depths | None:
        """The depth of each tile of images, as the next forward pass would choose them; None where all tiles have all blocks.

        origin: rows and columns of pixels that the first tiles of x lack. Raises as `forward`.
        """
        self._check(x, None, origin)
        if not self._exits(x):
            return None
        with torch.no_grad():
            depths = self.depths_from_codes(self._codes_of_pixels(x), origin)
        n, _, h, w = x.shape
        return replace(depths, values=as_tiles(depths.values, n, h, w, depths.tile, *origin))

    def computed_share(self, x: torch.Tensor, *, origin: tuple[int, int] = (0, 0)) -> torch.Tensor:
        """The share of each image's pixels for which blocks are computed, float32 [N] in 0..1. Raises as `forward`."""
        depths = self.tile_depths(x, origin=origin)
        if depths is None:
            return x.new_ones(x.shape[0])
        sizes = [pixels_of_tiles(size, depths.tile, at) for size, at in zip(x.shape[2:], origin, strict=True)]
        rows, columns = (torch.tensor(size, dtype=torch.float64, device=x.device) for size in sizes)
        return ((depths.values > 0).double() @ columns @ rows / (x.shape[2] * x.shape[3])).float()

    def _exits(self, x: torch.Tensor) -> bool:
        """Whether tiles of images of this size may have no blocks: the filter needs room for all its border classes."""
        return self.exit is not None and self.varies_depth and all(side >= self.exit.kernel for side in x.shape[2:])

    def depths_from_codes(self, pixels: torch.Tensor, origin: tuple[int, int]) -> Depths:
        """The depths of tiles, in the flat form, from the codes of the pixels uint8 [N, H, W, 4]. origin: rows and columns that
        the first tiles lack."""
        assert self.exit is not None
        tile, threshold, (n, h, w, _), (top, left) = self.exit.tile, self.exit.threshold, pixels.shape, origin
        if self._depth == 0:
            values = pixels.new_zeros(flat_length(n, h, w, tile, top, left))
        else:
            on: dict[str, Any] = {"backend": self.choice.backend, "threads": self._threads}
            values = ops.tile_depths(pixels, tile, threshold, self.deep, top=top, left=left, flat=True, **on)
        return Depths(values, tile, top, left)
