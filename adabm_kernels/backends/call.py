"""The arguments of all backends, and the functions that a backend must offer: records, and the protocols of a backend's module.

The arguments have been checked by ops/checks.py: their types and shapes, that all tensors are on one device, and that outputs are
dense or slices of channels. A call is made ready once, for all calls with the same settings and with tensors of the same sizes,
strides, types and device. The result is a function that takes the tensors alone, and holds none between calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, overload

import torch

from ..quantize import PLAIN, Axis, Geometry

ACTIVATIONS = {"none": 0, "relu": 1, "prelu": 2}  # ADABM_ACT_* of csrc/include/adabm/adabm.h

FEATURES = {"float32": torch.float32, "int16": torch.int16}  # how y and the residual are stored, in the order of ADABM_FEATURES_*


@dataclass(frozen=True)
class Place:
    """The pixels that a call writes: all of them without a depth, otherwise those that a region picks by the depth of each tile.

    depth: uint8 [N, rows, columns], or flat (`regions.Depths.values`). region: the numbers of a `regions.Region`.
    """

    depth: torch.Tensor | None = None
    region: tuple[int, ...] = ()


EVERYWHERE = Place()


@dataclass(frozen=True)
class Conv:
    """The tensors and settings that a convolution reads, as `ops.conv2d_out` describes them.

    features: the type of the residual and y, one of FEATURES. fraction: the fraction of int16 features (quantize.to_fixed), 0 for
    float32. threads: the threads of the CPU library, 0 for as many as torch has. geometry: a geometry that is not plain needs a
    backend with `any_geometry`.
    """

    x_q: torch.Tensor
    x_bits: torch.Tensor
    weight: torch.Tensor
    packed: torch.Tensor
    alpha: torch.Tensor
    beta: torch.Tensor
    slope: torch.Tensor | None
    residual: torch.Tensor | None
    out_grid: torch.Tensor | None
    out_bits: torch.Tensor | None
    box_filter: bool
    activation: str
    shuffle: int
    features: str = "float32"
    fraction: int = 0
    packed_codes: bool = False
    threads: int = 0
    place: Place = EVERYWHERE
    geometry: Geometry = PLAIN

    @property
    def axes(self) -> tuple[Axis, Axis]:
        """The geometry's axes: rows, then columns."""
        return self.geometry.axes(*self.weight.shape[-3:-1])

    @property
    def tensors(self) -> dict[str, torch.Tensor | None]:
        """All tensors by name, in the order in which `RunConv2d` takes them."""
        return {
            "x_q": self.x_q,
            "x_bits": self.x_bits,
            "weight": self.weight,
            "packed": self.packed,
            "alpha": self.alpha,
            "beta": self.beta,
            "slope": self.slope,
            "residual": self.residual,
            "out_grid": self.out_grid,
            "out_bits": self.out_bits,
            "depth": self.place.depth,
        }

    @property
    def settings(self) -> dict[str, Any]:
        """All arguments that are no tensors, by name, without the region."""
        return {
            "box_filter": self.box_filter,
            "activation": self.activation,
            "shuffle": self.shuffle,
            "features": self.features,
            "fraction": self.fraction,
            "packed_codes": self.packed_codes,
            "threads": self.threads,
            "geometry": self.geometry,
        }


@dataclass(frozen=True)
class Outputs:
    """The tensors that a convolution writes its results to; at least one is given.

    y: float32 or int16 features, int32 accumulators, or pixels of uint8. It may be the same tensor as the residual. Where it is not
    contiguous, it is a slice of the channels of wider features, and a residual then has its strides. y_q: uint8 codes.
    """

    y: torch.Tensor | None = None
    y_q: torch.Tensor | None = None


@dataclass(frozen=True)
class Quantization:
    """The tensors and settings that a quantisation reads, as `ops.quantize_out` describes them. threads: the same as in `Conv`."""

    x: torch.Tensor
    shift: torch.Tensor | None
    grid: torch.Tensor
    bits: torch.Tensor
    fraction: int = 0
    packed_codes: bool = False
    start: int = 0
    threads: int = 0
    place: Place = EVERYWHERE

    @property
    def settings(self) -> dict[str, Any]:
        """All arguments that are no tensors, by name, without the region."""
        return {"fraction": self.fraction, "packed_codes": self.packed_codes, "start": self.start, "threads": self.threads}


@dataclass(frozen=True)
class Target:
    """One of several code buffers that the same features are quantised into. The fields are as in `Quantization`."""

    grid: torch.Tensor
    bits: torch.Tensor
    y_q: torch.Tensor
    start: int = 0


@dataclass(frozen=True)
class DepthRule:
    """The rule by which `ops.tile_depths` gives tiles their depths. threads: the same as in `Conv`."""

    tile: int
    top: int
    left: int
    threshold: int
    deep: int
    threads: int = 0


@dataclass(frozen=True)
class Packing:
    """The settings that decide the form of packed weights.

    The CPU library goes by the tile for each bit-width 2..8 and by the geometry (tiles.LayerPlan). GPU kernels go by the box filter
    and the factor of the PixelShuffle, and so does the CPU library where the geometry is not plain.
    """

    tile_for_bits: tuple[int, ...] = (0,) * 7
    box_filter: bool = False
    shuffle: int = 1
    geometry: Geometry = PLAIN


class RunConv2d(Protocol):
    """A convolution that was made ready. Tensors that were absent when it was made ready are None in every call, and the others are
    given in every call."""

    def __call__(
        self,
        x_q: torch.Tensor,
        x_bits: torch.Tensor,
        weight: torch.Tensor,
        packed: torch.Tensor,
        alpha: torch.Tensor,
        beta: torch.Tensor,
        slope: torch.Tensor | None,
        residual: torch.Tensor | None,
        out_grid: torch.Tensor | None,
        out_bits: torch.Tensor | None,
        depth: torch.Tensor | None,
        y: torch.Tensor | None,
        y_q: torch.Tensor | None,
        /,
    ) -> None: ...


class RunQuantize(Protocol):
    """A quantisation that was made ready."""

    def __call__(
        self,
        x: torch.Tensor,
        shift: torch.Tensor | None,
        grid: torch.Tensor,
        bits: torch.Tensor,
        depth: torch.Tensor | None,
        y_q: torch.Tensor,
        /,
    ) -> None: ...


class RunResblock(Protocol):
    """A residual block that was made ready: the tensors of each convolution (`Conv.tensors`), and the outputs."""

    def __call__(
        self,
        first: Sequence[torch.Tensor | None],
        second: Sequence[torch.Tensor | None],
        y: torch.Tensor | None,
        y_q: torch.Tensor | None,
        /,
    ) -> None: ...


class Kernels(Protocol):
    """The functions that the module of every backend offers. Kernels are launched on the current stream of the tensors' device, and
    nothing but `pack` waits for that stream."""

    def pack(self, weight: torch.Tensor, packing: Packing) -> torch.Tensor:
        """uint8 of any shape, on the weights' device: what the convolution gets as `packed` for these int8 weights, which are [K,
        R, S, C] or, with a kernel by border class, [R, S, K, R, S, C]."""

    def conv2d_out(self, conv: Conv, to: Outputs) -> None:
        """See ops.conv2d_out and, for pixels, ops.conv2d_pixels_out."""

    def ready_conv2d_out(self, conv: Conv, to: Outputs) -> RunConv2d:
        """Makes `conv2d_out` ready."""

    def quantize_out(self, read: Quantization, y_q: torch.Tensor) -> None:
        """See ops.quantize_out."""

    def ready_quantize_out(self, read: Quantization, y_q: torch.Tensor) -> RunQuantize:
        """Makes `quantize_out` ready."""

    def tile_depths_out(self, x_q: torch.Tensor, rule: DepthRule, depth: torch.Tensor) -> None:
        """See ops.tile_depths. depth: uint8 [N, rows, columns]."""

    def image_measure(self, x: torch.Tensor) -> torch.Tensor:
        """See ops.image_measure."""

    def layer_bits(self, x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, rules: torch.Tensor) -> torch.Tensor:
        """See ops.layer_bits."""


class ResidualBlocks(Protocol):
    """The functions that a backend with `residual_blocks` offers in addition."""

    def why_not_resblock(self, *convs: tuple[torch.Tensor, bool]) -> str:
        """The reason why two convolutions, each given as (int8 [K, R, S, C], box_filter), cannot run as one residual block; ""
        where they can."""

    def ready_resblock_out(self, first: Conv, second: Conv, to: Outputs) -> RunResblock:
        """See ops.resblock_out. The codes that `second` holds are not looked at, because the first convolution makes them."""


class ManyGrids(Protocol):
    """The function that a backend with `many_grids` offers in addition."""

    def quantize_many_out(self, x: torch.Tensor, targets: Sequence[Target], packed_codes: bool) -> None:
        """See ops.quantize_many_out."""


ABILITIES: dict[str, type] = {"residual_blocks": ResidualBlocks, "many_grids": ManyGrids}  # keys are fields of backends.Backend


def run_conv2d(run: RunConv2d, conv: Conv, to: Outputs) -> None:
    """Calls a convolution that was made ready, with the tensors of these arguments."""
    run(
        conv.x_q, conv.x_bits, conv.weight, conv.packed, conv.alpha, conv.beta, conv.slope, conv.residual, conv.out_grid,
        conv.out_bits, conv.place.depth, to.y, to.y_q,
    )  # fmt: skip


def run_quantize(run: RunQuantize, read: Quantization, y_q: torch.Tensor) -> None:
    """Calls a quantisation that was made ready, with the tensors of these arguments."""
    run(read.x, read.shift, read.grid, read.bits, read.place.depth, y_q)


def pitch(tensor: torch.Tensor) -> int:
    """Elements from one pixel of [N, H, W, C] to the next. The tensor is contiguous or a slice of channels.

    In a contiguous tensor that is one pixel wide, the stride of the columns means nothing: torch lets it be any number.
    """
    return tensor.shape[3] if tensor.is_contiguous() else tensor.stride(2)


@overload
def dense(tensor: torch.Tensor) -> torch.Tensor: ...
@overload
def dense(tensor: None) -> None: ...
@overload
def dense(tensor: torch.Tensor | None) -> torch.Tensor | None: ...
def dense(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """The tensor itself where it is contiguous, else a contiguous copy; None for None."""
    return None if tensor is None else tensor.contiguous()
