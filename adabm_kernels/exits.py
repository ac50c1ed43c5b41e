"""The exit of easy tiles: where a picture hardly bends, one small linear filter stands for the whole network.

Without its blocks a super-resolution network is close to linear from the picture to the output, and where a picture is easy the
blocks add less than the noise of few bits. So tiles have a depth, the number of blocks that are computed there: either all of them,
or none, and then the filter makes the output. The largest bend of a tile (`tile_bends`) decides. docs/depth.md has the evidence.
"""

from __future__ import annotations

import math
import reprlib
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from .regions import Depths, tiles_of

MAX_BEND = 510  # the most that a picture can bend, in levels of 255
MAX_KERNEL = 15  # the largest side of the filter in pixels
# Pixels a side of a tile. A tile must be at least as large as what any network reads around hard tiles; most read a few pixels,
# SRResNet 4 (`NetworkSpec.least_tile`). It must be no larger than what a window cut from a picture should have around it.
TILES = (4, 256)
MAX_UNIT = 1 << 20


@dataclass(frozen=True)
class ExitParameters:
    """The linear filter of easy tiles and the rule that tells an easy tile, as model files hold them.

    weight: the filter, int8 [3*scale^2, 3, R, R] in units of 1/unit, where R is odd and 3..15. Its output o is colour * scale^2 +
    sub-pixel, as torch's pixel_shuffle takes it. unit: 1..2^20. bias: float32 [3*scale^2], in levels of 255. tile: the side of a
    tile in low-resolution pixels, 4..256. threshold: 0..510 levels of 255; tiles that bend by at most this are easy and have depth
    0.

    Raises ValueError naming the field, its rule and the value.
    """

    weight: torch.Tensor
    unit: int
    bias: torch.Tensor
    tile: int
    threshold: int

    def __post_init__(self) -> None:
        weight, bias = self.weight, self.bias
        shape = list(weight.shape)
        filters = weight.dtype == torch.int8 and weight.dim() == 4 and shape[1] == 3 and shape[2] == shape[3]
        kernel = shape[2] if filters else 0
        scale = math.isqrt(shape[0] // 3) if filters else 0
        self._require(
            "weight", filters and kernel % 2 == 1 and 3 <= kernel <= MAX_KERNEL, f"int8 [K, 3, R, R] with R odd, 3..{MAX_KERNEL}",
            f"{weight.dtype} {shape}",
        )  # fmt: skip
        self._require("weight", shape[0] == 3 * scale**2 > 0, "filters for 3 colours of scale^2 sub-pixels", shape)
        self._require("unit", type(self.unit) is int and 1 <= self.unit <= MAX_UNIT, f"1..{MAX_UNIT}", reprlib.repr(self.unit))
        finite = bias.dtype == torch.float32 and list(bias.shape) == shape[:1] and bool(bias.isfinite().all())
        self._require("bias", finite, f"finite float32 [{shape[0]}]", f"{bias.dtype} {list(bias.shape)}")
        least, most = TILES
        self._require("tile", type(self.tile) is int and least <= self.tile <= most, f"{least}..{most}", reprlib.repr(self.tile))
        whole = type(self.threshold) is int
        self._require("threshold", whole and 0 <= self.threshold <= MAX_BEND, f"0..{MAX_BEND}", reprlib.repr(self.threshold))
        border_weights(self)

    def _require(self, name: str, holds: bool, rule: str, seen: object) -> None:
        if not holds:
            raise ValueError(f"ExitParameters: {name} must be {rule}, got {seen}")

    def check_for(self, spec: Any, config: Any) -> None:
        """Raises ValueError where this is no exit of the network with that `NetworkSpec` and `ConvertConfig`."""
        self._require("scale", self.scale == spec.scale, f"that of the network, {spec.scale}", self.scale)
        if not spec.skips_blocks:
            raise ValueError(f"ExitParameters: a network of this kind, {spec.title}, has no exit: {spec.why_full_depth}")
        if why := spec.why_larger_tiles(self.tile):
            raise ValueError(f"ExitParameters: {why}")
        if not config.exact_pixels:
            raise ValueError("ExitParameters: a network has no exit unless quantize is 'full' and input_range 'pixels'")

    @property
    def scale(self) -> int:
        return math.isqrt(self.weight.shape[0] // 3)

    @property
    def kernel(self) -> int:
        """Pixels a side of the filter."""
        return self.weight.shape[2]


def border_weights(parameters: ExitParameters) -> torch.Tensor:
    """The filter for each border class of the pixel, int8 [R, R, K, 3, R, R].

    Taps beyond the picture are added to those at its end. The classes of rows and columns are those of
    csrc/include/adabm/adabm.h: the first R/2 and the last R/2 have one each. Raises ValueError where a sum does not fit 8 bits.
    """
    folded = fold_borders(parameters.weight.to(torch.int32))
    if folded.abs().max() > 127:
        raise ValueError(f"ExitParameters: weights must fit 8 bits where borders are folded too, got {int(folded.abs().max())}")
    return folded.to(torch.int8)


def fold_borders(weight: torch.Tensor) -> torch.Tensor:
    """The filter [K, 3, R, R] for each border class of the pixel, [R, R, K, 3, R, R] (see `border_weights`)."""
    folds = _folds(weight.shape[2]).to(weight.dtype)
    # It is computed with a matrix for each class of rows and columns.
    return torch.einsum("iur,kcrs,jvs->ijkcuv", folds, weight, folds)


def _folds(kernel: int) -> torch.Tensor:
    """A matrix for each border class, [class, tap, tap]: which taps of the whole kernel (last axis) are added to a tap at a
    border."""
    pad = kernel // 2
    folds = torch.zeros(kernel, kernel, kernel)
    for position in range(kernel):
        # The positions are the first rows, one in the middle and the last rows. A tap may lie no further out than the image's first
        # or last row.
        first = pad - position if position < pad else 0
        last = kernel - 1 if position <= pad else pad + (kernel - 1 - position)
        for tap in range(kernel):
            folds[position, min(max(tap, first), last), tap] = 1
    return folds


def exit_output(parameters: ExitParameters, x: torch.Tensor) -> torch.Tensor:
    """The output of the filter, [N, 3, scale*H, scale*W], for pixels x, floats [N, 3, H, W]. Beyond its ends the picture repeats
    its outermost pixels."""
    pad = parameters.kernel // 2
    y = F.conv2d(F.pad(x, [pad] * 4, mode="replicate"), parameters.weight.to(x) / parameters.unit, parameters.bias.to(x))
    return F.pixel_shuffle(y, parameters.scale)


def pixel_bends(x: torch.Tensor) -> torch.Tensor:
    """How much pixels [N, C, H, W] bend: int16 [N, H, W], their largest second difference along rows or columns in any channel.
    Beyond its ends the picture repeats its outermost pixels. Pixels are whole numbers; others are rounded half to even."""
    x = x.round().to(torch.int16)
    found = []
    for axis in (2, 3):
        size = x.shape[axis]
        step = x.narrow(axis, 1, size - 1) - x.narrow(axis, 0, size - 1)
        pad = [0, 0, 1, 1] if axis == 2 else [1, 1]
        step = F.pad(step, pad)
        found.append((step.narrow(axis, 1, size) - step.narrow(axis, 0, size)).abs().amax(1))
    return torch.maximum(*found)


def tile_bends(x: torch.Tensor, tile: int, top: int = 0, left: int = 0) -> torch.Tensor:
    """The largest bend (`pixel_bends`) in each tile of pixels [N, C, H, W]: int16 [N, rows, columns]. top, left: see `Depths`."""
    bends = pixel_bends(x)
    for axis, before in ((1, top), (2, left)):
        size = bends.shape[axis]
        # Tiles may be far larger than the image, so the pixels are cut where tiles end rather than padded to whole tiles.
        ends = [min(index * tile - before, size) for index in range(1, tiles_of(size, tile, before) + 1)]
        sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
        bends = torch.stack([part.amax(axis) for part in bends.split(sizes, axis)], axis)
    return bends


def tile_depths(x: torch.Tensor, parameters: ExitParameters, deep: int, top: int = 0, left: int = 0) -> Depths:
    """The depth of each tile of pixels [N, C, H, W]: 0 for the easy ones, `deep` for the others."""
    hard = tile_bends(x, parameters.tile, top, left) > parameters.threshold
    return Depths(hard.to(torch.uint8) * deep, parameters.tile, top, left)
