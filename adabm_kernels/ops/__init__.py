"""The operators as users call them. They call the operators `torch.ops.adabm.*` (library.py).

Tensors of codes are uint8 [N, H, W, C4], where C4 is C rounded up to a multiple of 4, and the padding channels are 0. Features are
float32 or, where a fraction is given with them, int16 in units of 2^-fraction (quantize.to_fixed).
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
    """The packed weights that `conv2d` takes as `packed`. Each backend has a form of its own.

    weight: int8 [K, R, S, C / groups] or [R, S, K, R, S, C]. tile_for_bits: for the CPU kernels, the tile for codes of each of 2..8
    bits, as seven indexes of tiles.TILES (tiles.LayerPlan). box_filter, shuffle, geometry: as given to the convolution, the
    geometry as one record. Raises ValueError naming the argument, the rule and the value.
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
    """The tiles that `pack_weights` takes as `tile_for_bits`: for codes of each of 2..8 bits, the tile with the least predicted
    time on this machine among the tiles that are exact for these weights (planning/layer.py has the reasons). Seven zeros, which
    choose the direct form, always give right results.

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
    """Computes an integer convolution with zero padding, and its epilogue (csrc/include/adabm/adabm.h has the formula).

    x_q: the codes, uint8 [N, H, W, C4].
    x_bits: the bits of each image's codes, int32 [N], 2..8.
    weight: int8 [K, R, S, C / groups], or [R, S, K, R, S, C] with one kernel for each border class of the pixel. It holds the
        integers m or, with `box_filter`, k', where m = 2k' + 1.
    packed: the result of `pack_weights` for this weight and backend. It is empty for the reference.
    alpha: float32 [7, K], the scale of each output for each bit-width of x_q.
    beta: the constants that are added, float32 [classes of rows, classes of columns, K] by border class
        (quantize.Axis.border_class). This is [(R//2+1)^2, (S//2+1)^2, K] where the geometry is plain, and [R, S, K] with one kernel
        for each border class.
    activation, slope: the activation; "prelu" takes the slopes, float32 [K].
    residual: features of the type and shape of y, which are added.
    out_grid, out_bits: the grid, float32 [7, 2], and the bits, int32 [N], of the output codes.
    out: the outputs to compute: "codes", "float", "both", or "acc" for the int32 accumulators.
    shuffle: the factor of the PixelShuffle by which outputs are stored, 1..16.
    features, fraction: "float32", or "int16" where y and the residual are in units of 2^-fraction (`quantize.to_fixed`), with a
        fraction of -16..24. Codes are then made of the value that y holds, or would hold if it were asked for. "int16" goes neither
        with out="acc" nor with a shuffle.
    packed_codes: whether x_q and y_q are buffers of `quantize.pack_codes`.
    threads: the number of CPU threads; 0 takes torch.get_num_threads().
    stride, dilation, groups, padding: as in `quantize.Geometry`; one number may stand for rows and columns. The geometry is plain
        with stride 1, dilation 1, one group, and an odd kernel with half of it as padding, which padding=None gives. Any other
        geometry needs a backend of ANY_GEOMETRY and the same kernel for all pixels (`why_not_geometry`).

    Returns (y, y_q), with r = shuffle: y, float32 (or int16, or int32) [N, H'*r, W'*r, K/r^2], and y_q, uint8 [N, H'*r, W'*r, C4]
    of C = K/r^2 channels. H' x W' is the size that torch.nn.functional.conv2d gives, which is H x W where the geometry is plain.
    An output that was not asked for is empty. Raises RuntimeError (from the dispatcher) or ValueError naming the argument, the rule
    and the value.
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
    """Computes `conv2d` into tensors that exist already. At least one of y, float32 (or int16), and y_q, uint8, must be given, in
    the shapes that `conv2d` would return.

    y, y_q: they must share no memory with each other, with x_q or with the residual, except that y may be the residual itself. A
        float32 y may be a slice of the channels of a wider contiguous tensor; a residual then has the strides of y.
    accumulate: whether y holds the residual, to which the result is added.
    depth, region: which pixels are written; this needs an output of the size of the image. depth holds the depth of each tile of
        the images, uint8 [N, rows, columns] (`regions.Depths`) or flat (`tile_depths`). region holds the numbers of a
        `regions.Region`. With y_q alone, no residual and no pixels passed on, the codes around the written pixels are arbitrary.

    The other arguments are those of `conv2d`. Raises as `conv2d`.
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
    """The features of `conv2d` as pixels, uint8 [N, H'*r, W'*r, K/r^2], clamped to 0..255 and rounded half to even
    (quantize.to_pixels).

    The kernels write pixels in place of floats, while the reference computes floats and rounds them. Raises as `conv2d`.
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
    """Computes `conv2d_pixels` into a contiguous image, uint8 of the shape that `conv2d_pixels` would return.

    The image must share no memory with x_q and the residual. depth, region: as in `conv2d_out`.
    """
    torch.ops.adabm.conv2d_pixels_out(
        x_q, x_bits, weight, packed, alpha, beta, slope, residual, box_filter, activation, shuffle, packed_codes, backend, threads,
        depth, region, image, _numbers(weight, stride, dilation, groups, padding),
    )  # fmt: skip


def why_not_resblock(backend: str, *convs: tuple[torch.Tensor, bool]) -> str:
    """Why `resblock_out` cannot compute these two convolutions on a backend; empty where it can. Each is given as (weight,
    box_filter)."""
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
    """Computes two convolutions as `conv2d_out` would one after the other, and keeps the codes between them on the chip.

    first, second: (weight, packed, alpha, beta) of each convolution. box_filters: `box_filter` of each.
    inner_grid, inner_bits: the grid, float32 [7, 2], and the bits, int32 [N], of the codes between the convolutions.
    activation, slope: the activation of the first convolution, as in `conv2d`. The second has none.
    features, fraction: how y and the residual are stored, as in `conv2d`.
    depth, region: which pixels of the result are computed, as in `conv2d_out`. Elsewhere the codes between the convolutions stand
        for 0.

    The other arguments are those of `conv2d_out`. Raises as `conv2d`, and RuntimeError where `why_not_resblock` gives a reason.
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
    """The codes, uint8 [N, H, W, C4], of x - shift.

    x: float32 (or int16) [N, C, H, W] of any strides. grid: float32 [7, 2] (quantize.act_grid). bits: the bits of each image's
    codes, int32 [N]. shift: float32 [C], or None for 0. fraction: the unit of an int16 x, whose values are in units of 2^-fraction
    and which takes no shift. packed_codes: whether the codes are returned as `quantize.pack_codes` packs them. Raises RuntimeError
    or ValueError naming the argument, the rule and the value.
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
    """Computes `quantize` into y_q, uint8 [N, H, W, C or more], which is contiguous or a slice of the channels of a contiguous
    tensor.

    y_q must share no memory with x. Channels of y_q beyond those of x become 0.
    packed_codes, start: with packed codes, y_q is the whole of a buffer [N, H, W, C4] of `quantize.pack_codes`, and the codes are
        written to its channels from `start`, a multiple of 4. The channels behind them become 0 up to the next multiple of 4 and,
        where that is C4, up to the end of the pixel.
    depth, region: as in `conv2d_out`, but no pixels are passed on.

    The other arguments are those of `quantize`. Raises as `quantize`.
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
    """Computes `quantize_out` of the same x into several buffers of codes, each with a grid, bits and a start of its own.

    Backends of QUANTIZE_MANY read x once for all buffers; the others fill one buffer after the other. Raises as `quantize`, and
    where grids, bits, starts and y_q are not of one length of at least 1.
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
    """The depth of each tile of images, by how much the tile bends (exits.tile_bends): uint8 [N, rows, columns] for
    `regions.Depths`.

    x_q: the pixels as 8-bit codes, uint8 [N, H, W, 4], contiguous, with a fourth channel of 0. tile: the side of a tile in pixels.
    threshold, deep: tiles that bend by more than the threshold, 0..510, get the depth `deep`, 1..255, and the others get 0. top,
    left: rows and columns of pixels that the first tiles lack. flat: whether the depths are returned in the flat form
    (regions.flat_length), which the other operators take too and which programs traced for images of any size need. Raises
    RuntimeError naming the argument, the rule and the value.
    """
    depth = torch.ops.adabm.tile_depths(x_q, tile, top, left, threshold, deep, backend, threads)
    images, height, width, _ = x_q.shape
    return depth if flat else as_tiles(depth, images, height, width, tile, top, left)


def image_measure(x: torch.Tensor, *, backend: str = "cpu") -> torch.Tensor:
    """The image measure, float32 [N], of images x, float32 [N, 3, H, W] in 0..255. It equals `image_bits.image_measure` up to the
    rounding of its sums.

    Raises RuntimeError naming the argument, the rule and the value.
    """
    return torch.ops.adabm.image_measure(x, backend)


def layer_bits(
    x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, rules: torch.Tensor, *, backend: str = "cpu"
) -> torch.Tensor:
    """The bits of every layer's codes for every image, int32 [L, N].

    x: the images, float32 [N, 3, H, W] in 0..255. lower, upper: the thresholds of the image measure, float32 []. rules: int32
    [L, 2], see `image_bits.bits_by_rule`. Raises as `image_measure`.
    """
    return torch.ops.adabm.layer_bits(x, lower, upper, rules, backend)
