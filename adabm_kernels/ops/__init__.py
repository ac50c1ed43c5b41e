"""The operators as users call them; underneath they are `torch.ops.adabm.*` (library.py).

Code tensors are uint8 [N, H, W, C4], C4 = C rounded up to a multiple of 4, padding channels 0. Features are float32 or, where a
fraction is given with them, int16 in units of 2^-fraction (quantize.to_fixed).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch

from .. import native
from ..backends import BACKENDS, having
from ..backends.call import Packing, ResidualBlocks
from ..planning.layer import plan_layer
from ..planning.times import tile_times
from ..quantize import MAX_BITS, MIN_BITS, PLAIN, Geometry
from ..regions import as_tiles
from . import library
from .checks import MAX_SHUFFLE, OUTPUTS, WIDTHS, why_not_geometry

# Names of the backends with an ability (backends.TABLE).
PACKED_CODES, QUANTIZE_MANY, RESBLOCKS = having("packed_codes"), having("many_grids"), having("residual_blocks")
ANY_GEOMETRY = having("any_geometry")
Numbers = int | Sequence[int]

__all__ = [
    "ANY_GEOMETRY",
    "MAX_SHUFFLE",
    "OUTPUTS",
    "PACKED_CODES",
    "QUANTIZE_MANY",
    "RESBLOCKS",
    "choose_tiles",
    "conv2d",
    "conv2d_out",
    "conv2d_pixels",
    "conv2d_pixels_out",
    "image_measure",
    "layer_bits",
    "pack_weights",
    "quantize",
    "quantize_many_out",
    "quantize_out",
    "resblock_out",
    "tile_depths",
    "why_not_geometry",
    "why_not_resblock",
]

_WEIGHT_FORM = "int8 [K, R, S, C] or [R, S, K, R, S, C]"


def pack_weights(
    backend: str,
    weight: torch.Tensor,
    tile_for_bits: tuple[int, ...],
    box_filter: bool,
    shuffle: int,
    geometry: Geometry = PLAIN,
) -> torch.Tensor:
    """What `conv2d` takes as `packed` for int8 weights [K, R, S, C / groups] or [R, S, K, R, S, C]. Each backend has a form of its
    own.

    tile_for_bits: the tile that computes codes of 2..8 bits, seven indexes of tiles.TILES, for the CPU kernels (tiles.LayerPlan).
    box_filter, shuffle, geometry: those of the convolution. Raises ValueError naming the argument, the rule and the value.
    """

    def require(name: str, holds: bool, rule: str, seen: object) -> None:
        if not holds:
            raise ValueError(f"pack_weights: {name} must be {rule}, got {seen}")

    require("backend", backend in BACKENDS, f"one of {BACKENDS}", repr(backend))
    require("weight", weight.dtype == torch.int8 and weight.dim() in (4, 6), _WEIGHT_FORM, f"{weight.dtype} {list(weight.shape)}")
    plain = geometry.is_plain(*weight.shape[-3:-1])
    require("geometry", weight.dim() == 4 or plain, "plain with a kernel for each border class", geometry)
    require("groups", weight.shape[-4] % geometry.groups == 0, f"a divisor of {weight.shape[-4]} outputs", geometry.groups)
    if why := why_not_geometry(backend, geometry, weight.shape[-3:-1]):
        raise ValueError(f"pack_weights: {why}")
    if backend == "cpu":
        whole = len(tile_for_bits) == WIDTHS and all(type(tile) is int for tile in tile_for_bits)
        require("weight", weight.device.type == "cpu", "in main memory for backend 'cpu'", weight.device)
        require("tile_for_bits", whole, f"{WIDTHS} whole numbers", tile_for_bits)
    packing = Packing(tuple(tile_for_bits), box_filter, shuffle, PLAIN if plain else geometry)
    return library.backend_module(backend).pack(weight, packing)


def _numbers(weight: torch.Tensor, stride: Numbers, dilation: Numbers, groups: int, padding: Numbers | None) -> tuple[int, ...]:
    """The geometry of a convolution as the operators underneath take it."""
    if padding is None and groups == 1 and stride in (1, (1, 1)) and dilation in (1, (1, 1)):
        if weight.dim() < 3 or weight.shape[-3] & weight.shape[-2] & 1:
            return ()
    return Geometry.given(stride, dilation, groups, padding).numbers(*weight.shape[-3:-1])


def choose_tiles(
    weight: torch.Tensor, most_bits: int = MAX_BITS, *, box_filter: bool = False, geometry: Geometry = PLAIN
) -> tuple[int, ...]:
    """What `pack_weights` takes as `tile_for_bits`: for codes of 2..8 bits, the tile with the least predicted time on this machine
    among those that are exact for these weights (planning/layer.py has the reasons). All zeros, the direct form, is always right.

    weight, box_filter, geometry: as for `pack_weights`. A geometry that is not plain is computed directly. most_bits: the most bits
    that codes will have, 2..8. Raises ValueError naming the argument, the rule and the value, also where an accumulator could leave
    int32.
    """
    if weight.dtype != torch.int8 or weight.dim() not in (4, 6):
        raise ValueError(f"choose_tiles: weight must be {_WEIGHT_FORM}, got {weight.dtype} {list(weight.shape)}")
    if type(most_bits) is not int or not MIN_BITS <= most_bits <= MAX_BITS:
        raise ValueError(f"choose_tiles: most_bits must be a whole number in {MIN_BITS}..{MAX_BITS}, got {most_bits!r}")
    integers = weight.movedim(-1, -3).cpu().numpy()
    plain, times = geometry.is_plain(*weight.shape[-3:-1]), tile_times(native.planning_isa())
    plan = plan_layer("weight", integers, most_bits, times=times, box_filter=box_filter, plain=plain)
    return plan.tile_for_bits


def conv2d(
    x_q: torch.Tensor,
    x_bits: torch.Tensor,
    weight: torch.Tensor,
    packed: torch.Tensor,
    alpha: torch.Tensor,
    beta: torch.Tensor,
    *,
    slope: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    out_grid: torch.Tensor | None = None,
    out_bits: torch.Tensor | None = None,
    box_filter: bool = False,
    activation: str = "none",
    shuffle: int = 1,
    out: str = "float",
    features: str = "float32",
    fraction: int = 0,
    packed_codes: bool = False,
    backend: str = "cpu",
    threads: int = 0,
    stride: Numbers = (1, 1),
    dilation: Numbers = (1, 1),
    groups: int = 1,
    padding: Numbers | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Integer convolution with zero padding and its epilogue (formula: csrc/include/adabm/adabm.h).

    x_q: uint8 codes [N, H, W, C4], image n on x_bits[n] bits (int32 [N], 2..8). weight: int8 [K, R, S, C / groups], the integers m,
    or k' with m = 2k' + 1 under `box_filter`;
    or [R, S, K, R, S, C], one kernel per border class of the pixel. packed: what `pack_weights` made of it for this
    backend (empty for the reference).
    alpha: float32 [7, K], per bit-width of x_q. beta: float32 [classes of rows, classes of columns, K] by border class
    (quantize.Axis.border_class), [(R//2+1)^2, (S//2+1)^2, K] where the geometry is plain; [R, S, K] with a kernel per class.
    slope: [K] for activation="prelu". residual: float32, shape of y. out_grid, out_bits: grid and bits of the output codes.
    out: "codes", "float", "both", or "acc" (the int32 accumulators). shuffle: factor of the PixelShuffle in the store, 1..16.
    features: "float32"; or "int16" for y and the residual in units of 2^-fraction (`quantize.to_fixed`), fraction -16..24: the
    codes, too, are then of the value that y holds, or would hold. Not with "acc" or a shuffle.
    packed_codes: x_q and y_q are buffers of `quantize.pack_codes`. threads: 0 takes torch.get_num_threads().
    stride, dilation, groups, padding: as in `quantize.Geometry`, or one number for rows and columns. Plain is stride 1, dilation 1,
    one group and an odd kernel with half of it as padding, which padding=None gives; all else needs a backend of ANY_GEOMETRY and
    a kernel for all pixels alike (`why_not_geometry`).

    Returns (y, y_q): float32 (int16, or int32) [N, H'*r, W'*r, K/r^2] and uint8 [N, H'*r, W'*r, (K/r^2)4], with H' x W' the size
    that torch.nn.functional.conv2d gives, H x W where the geometry is plain; what was not asked for is empty. Raises RuntimeError
    (from the dispatcher) or ValueError naming the argument, the rule and the value.
    """
    return torch.ops.adabm.conv2d(
        x_q, x_bits, weight, packed, alpha, beta, slope, residual, out_grid, out_bits, box_filter, activation, shuffle, out,
        features, fraction, packed_codes, backend, threads, _numbers(weight, stride, dilation, groups, padding),
    )  # fmt: skip


def conv2d_out(
    x_q: torch.Tensor,
    x_bits: torch.Tensor,
    weight: torch.Tensor,
    packed: torch.Tensor,
    alpha: torch.Tensor,
    beta: torch.Tensor,
    *,
    y: torch.Tensor | None = None,
    y_q: torch.Tensor | None = None,
    accumulate: bool = False,
    slope: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    out_grid: torch.Tensor | None = None,
    out_bits: torch.Tensor | None = None,
    box_filter: bool = False,
    activation: str = "none",
    shuffle: int = 1,
    features: str = "float32",
    fraction: int = 0,
    packed_codes: bool = False,
    backend: str = "cpu",
    threads: int = 0,
    depth: torch.Tensor | None = None,
    region: Sequence[int] = (),
    stride: Numbers = (1, 1),
    dilation: Numbers = (1, 1),
    groups: int = 1,
    padding: Numbers | None = None,
) -> None:
    """`conv2d` into tensors that exist already, at least one of y, float32 (or int16), and y_q, uint8, of the shapes that it would
    return.

    y of float32 may be a slice of the channels of a wider contiguous tensor; a residual then has its strides. y and y_q must share
    no memory with each other, x_q and the residual, but y may be the residual. accumulate: y holds the residual and is added to.
    depth, region: which pixels are written, where the output has the size of the image. depth is the depth of each tile of the
    images, uint8 [N, rows, columns] (`regions.Depths`) or flat (`tile_depths`); region is the numbers of a `regions.Region`. With
    y_q alone, no residual and no pixels passed on, the codes around those pixels are arbitrary. Raises as `conv2d`.
    """
    torch.ops.adabm.conv2d_out(
        x_q, x_bits, weight, packed, alpha, beta, slope, residual, out_grid, out_bits, box_filter, activation, shuffle,
        accumulate, features, fraction, packed_codes, backend, threads, depth, region, y, y_q,
        _numbers(weight, stride, dilation, groups, padding),
    )  # fmt: skip


def conv2d_pixels(
    x_q: torch.Tensor,
    x_bits: torch.Tensor,
    weight: torch.Tensor,
    packed: torch.Tensor,
    alpha: torch.Tensor,
    beta: torch.Tensor,
    *,
    slope: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    box_filter: bool = False,
    activation: str = "none",
    shuffle: int = 1,
    packed_codes: bool = False,
    backend: str = "cpu",
    threads: int = 0,
    stride: Numbers = (1, 1),
    dilation: Numbers = (1, 1),
    groups: int = 1,
    padding: Numbers | None = None,
) -> torch.Tensor:
    """The floats of `conv2d` as pixels, uint8 [N, H'*r, W'*r, K/r^2], clamped to 0..255 and rounded half to even
    (quantize.to_pixels).

    The kernels write pixels in place of floats; the reference rounds floats. Raises as `conv2d`.
    """
    return torch.ops.adabm.conv2d_pixels(
        x_q, x_bits, weight, packed, alpha, beta, slope, residual, box_filter, activation, shuffle, packed_codes, backend, threads,
        _numbers(weight, stride, dilation, groups, padding),
    )  # fmt: skip


def conv2d_pixels_out(
    x_q: torch.Tensor,
    x_bits: torch.Tensor,
    weight: torch.Tensor,
    packed: torch.Tensor,
    alpha: torch.Tensor,
    beta: torch.Tensor,
    *,
    image: torch.Tensor,
    slope: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    box_filter: bool = False,
    activation: str = "none",
    shuffle: int = 1,
    packed_codes: bool = False,
    backend: str = "cpu",
    threads: int = 0,
    depth: torch.Tensor | None = None,
    region: Sequence[int] = (),
    stride: Numbers = (1, 1),
    dilation: Numbers = (1, 1),
    groups: int = 1,
    padding: Numbers | None = None,
) -> None:
    """`conv2d_pixels` into a contiguous image, uint8 of the shape it would return.

    The image must share no memory with x_q and the residual. depth, region: as in `conv2d_out`.
    """
    torch.ops.adabm.conv2d_pixels_out(
        x_q, x_bits, weight, packed, alpha, beta, slope, residual, box_filter, activation, shuffle, packed_codes, backend, threads,
        depth, region, image, _numbers(weight, stride, dilation, groups, padding),
    )  # fmt: skip


def why_not_resblock(backend: str, *convs: tuple[torch.Tensor, bool]) -> str:
    """Why `resblock_out` cannot compute two convolutions, each (weight, box_filter), on a backend; empty where it can."""
    if backend not in RESBLOCKS:
        return f"backend {backend!r} computes convolutions one by one"
    return cast(ResidualBlocks, library.backend_module(backend)).why_not_resblock(*convs)


def resblock_out(
    x_q: torch.Tensor,
    x_bits: torch.Tensor,
    first: tuple[torch.Tensor, ...],
    second: tuple[torch.Tensor, ...],
    inner_grid: torch.Tensor,
    inner_bits: torch.Tensor,
    *,
    y: torch.Tensor | None = None,
    y_q: torch.Tensor | None = None,
    accumulate: bool = False,
    residual: torch.Tensor | None = None,
    out_grid: torch.Tensor | None = None,
    out_bits: torch.Tensor | None = None,
    slope: torch.Tensor | None = None,
    activation: str = "none",
    box_filters: tuple[bool, bool] = (False, False),
    features: str = "float32",
    fraction: int = 0,
    packed_codes: bool = False,
    backend: str = "cuda",
    depth: torch.Tensor | None = None,
    region: Sequence[int] = (),
) -> None:
    """Two convolutions as `conv2d_out` computes them one after the other, with the codes between them kept on the chip.

    first, second: (weight, packed, alpha, beta) of each. inner_grid, inner_bits: the grid, float32 [7, 2], and the bits, int32 [N],
    of the codes between them. slope, activation: those of the first; the second has none. features, fraction: those of y and the
    residual. depth, region: those of the results, as in `conv2d_out`; the codes between them are those of 0 where no result is
    computed. y, y_q: as in `conv2d_out`. Raises as `conv2d`, and RuntimeError where `why_not_resblock` gives a reason.
    """
    torch.ops.adabm.resblock_out(
        x_q, x_bits, *first, slope, box_filters[0], activation, inner_grid, inner_bits, *second, box_filters[1], residual, out_grid,
        out_bits, accumulate, features, fraction, packed_codes, backend, depth, region, y, y_q,
    )  # fmt: skip


def quantize(
    x: torch.Tensor,
    grid: torch.Tensor,
    bits: torch.Tensor,
    *,
    shift: torch.Tensor | None = None,
    fraction: int = 0,
    packed_codes: bool = False,
    backend: str = "cpu",
    threads: int = 0,
) -> torch.Tensor:
    """The codes of x - shift: float32 (or int16) [N, C, H, W] of any strides becomes uint8 [N, H, W, C4].

    grid: float32 [7, 2] (quantize.act_grid). bits: int32 [N]. shift: float32 [C] or None. fraction: for an int16 x, which holds its
    values in units of 2^-fraction and has no shift. packed_codes: as in `conv2d`. Raises RuntimeError or ValueError naming the
    argument, the rule and the value.
    """
    return torch.ops.adabm.quantize(x, shift, grid, bits, fraction, packed_codes, backend, threads)


def quantize_out(
    x: torch.Tensor,
    grid: torch.Tensor,
    bits: torch.Tensor,
    y_q: torch.Tensor,
    *,
    shift: torch.Tensor | None = None,
    fraction: int = 0,
    packed_codes: bool = False,
    start: int = 0,
    backend: str = "cpu",
    threads: int = 0,
    depth: torch.Tensor | None = None,
    region: Sequence[int] = (),
) -> None:
    """`quantize` into uint8 y_q [N, H, W, C or more], contiguous or a slice of the channels of a contiguous tensor.

    y_q must share no memory with x. Channels of y_q beyond those of x become 0.
    packed_codes: y_q is all of a buffer [N, H, W, C4] of `quantize.pack_codes`, and the codes are its channels from `start`, a
    multiple of 4; those behind them become 0 up to the next multiple of 4 and, where that is C4, to the end of the pixel.
    depth, region: as in `conv2d_out`; no pixels are passed on. Raises as `quantize`.
    """
    torch.ops.adabm.quantize_out(x, shift, grid, bits, fraction, packed_codes, start, backend, threads, depth, region, y_q)


def quantize_many_out(
    x: torch.Tensor,
    grids: list[torch.Tensor],
    bits: list[torch.Tensor],
    y_q: list[torch.Tensor],
    *,
    packed_codes: bool = False,
    starts: list[int] | None = None,
    backend: str = "cpu",
    threads: int = 0,
) -> None:
    """`quantize_out` of the same x into several code buffers, each with a grid, bits and a start of its own.

    Backends of QUANTIZE_MANY read x once for all; the others fill one buffer after the other. Raises as `quantize`, and where
    grids, bits, starts and y_q are not equally many, at least one.
    """
    torch.ops.adabm.quantize_many_out(x, grids, bits, packed_codes, starts or [0] * len(grids), backend, threads, y_q)


def tile_depths(
    x_q: torch.Tensor,
    tile: int,
    threshold: int,
    deep: int,
    *,
    top: int = 0,
    left: int = 0,
    flat: bool = False,
    backend: str = "cpu",
    threads: int = 0,
) -> torch.Tensor:
    """The depth of each tile of images, by how much they bend (exits.tile_bends): uint8 [N, rows, columns] for `regions.Depths`.

    x_q: pixels as 8-bit codes, uint8 [N, H, W, 4], contiguous, the fourth channel 0. tile: pixels a side. threshold: 0..510; tiles
    that bend by more get the depth `deep`, 1..255, and the others 0. top, left: rows and columns that the first tiles lack. flat:
    whether the depths are returned in the flat form (regions.flat_length), which the other operators take too and which programs
    traced for images of any size need. Raises RuntimeError naming the argument, the rule and the value.
    """
    depth = torch.ops.adabm.tile_depths(x_q, tile, top, left, threshold, deep, backend, threads)
    images, height, width, _ = x_q.shape
    return depth if flat else as_tiles(depth, images, height, width, tile, top, left)


def image_measure(x: torch.Tensor, *, backend: str = "cpu") -> torch.Tensor:
    """`measure.image_measure` of float32 [N, 3, H, W] in 0..255, equal up to the rounding of its sums: float32 [N].

    Raises RuntimeError naming the argument, the rule and the value.
    """
    return torch.ops.adabm.image_measure(x, backend)


def layer_bits(
    x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, rules: torch.Tensor, *, backend: str = "cpu"
) -> torch.Tensor:
    """Bits of every layer's codes for every image, int32 [L, N], from the images float32 [N, 3, H, W] in 0..255.

    lower, upper: float32 [], thresholds of `image_measure`. rules: int32 [L, 2], see `measure.bits_by_rule`. Raises as
    `image_measure`.
    """
    return torch.ops.adabm.layer_bits(x, lower, upper, rules, backend)
