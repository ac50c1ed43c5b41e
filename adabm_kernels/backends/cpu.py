"""The CPU library: packed weights, threads and instruction sets; no arithmetic."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

import numpy as np
import torch

from .. import native
from . import structs
from .call import Conv, dense
from .structs import conv2d_args, weights

ALIGNMENT = 64


def _threads(asked: int) -> int:
    return asked or min(torch.get_num_threads(), native.MAX_THREADS)


def _how(threads: int) -> dict[str, int]:
    return {"isa": native.isa(), "threads": _threads(threads)}


def pack(weight: torch.Tensor, tile_for_bits: tuple[int, ...]) -> torch.Tensor:
    """The packed form of int8 [K, R, S, C] (or [R, S, K, R, S, C], a kernel per border class) for a tile per bit-width 2..8.

    Returns uint8 [bytes], 64-byte aligned.
    """
    weight = weight.contiguous()
    args = weights(weight, tile_for_bits=tuple(tile_for_bits))
    size = ctypes.c_uint64()
    native.library("cpu").call("adabm_pack_bytes_cpu", args, size)
    packed = _aligned_bytes(size.value)
    native.library("cpu").call("adabm_pack_cpu", args, packed.data_ptr())
    return packed


def _aligned(packed: torch.Tensor) -> torch.Tensor:
    """Packed weights where the kernels can read them.

    `pack` puts them there; AOTInductor lays the constants of a program anywhere. A copy that stayed would miss constants that are
    replaced in place, and copying takes a three-hundredth of the time of a 64-channel layer on an image of 256 pixels a side.
    """
    return packed if packed.data_ptr() % ALIGNMENT == 0 else _aligned_bytes(packed.numel()).copy_(packed)


def _aligned_bytes(count: int) -> torch.Tensor:
    """uint8 [count] with arbitrary contents, 64-byte aligned."""
    room = torch.empty(count + ALIGNMENT, dtype=torch.uint8, device="cpu")
    return room[-room.data_ptr() % ALIGNMENT :][:count]


def conv2d_out(conv: Conv, threads: int, y: torch.Tensor | None, y_q: torch.Tensor | None) -> None:
    """See ops.conv2d_out; an int32 y takes the accumulators, a uint8 y pixels."""
    ready_conv2d_out(conv, threads, y, y_q)(*conv[:10], conv.depth, y, y_q)


def conv2d_pixels_out(conv: Conv, threads: int, image: torch.Tensor) -> None:
    """See ops.conv2d_pixels_out."""
    conv2d_out(conv, threads, image, None)


def ready_conv2d_out(conv: Conv, threads: int, y: torch.Tensor | None, y_q: torch.Tensor | None) -> Callable[..., None]:
    """`conv2d_out` for all calls with tensors of these sizes, strides and types: a function of the ten tensors of Conv, depth, y
    and y_q, which fills in their addresses."""
    y_field = "y" if y is None else {torch.int32: "y_acc", torch.uint8: "y_image"}.get(y.dtype, "y")
    struct, held = conv2d_args(conv, None if y_field == "y_image" else y, y_q, threads=threads)
    read = conv.x_q, conv.x_bits, conv.alpha, conv.beta, conv.slope, conv.out_grid, conv.out_bits, conv.residual
    as_they_are = all(tensor is used for tensor, used in zip(read, held, strict=False))
    template, make, call = bytes(struct), native.Conv2dArgs.from_buffer_copy, native.library("cpu").call

    def run(x_q, x_bits, _weight, packed, alpha, beta, slope, residual, out_grid, out_bits, depth, y, y_q):
        args = make(template)
        args.isa = native.isa()
        if not threads:
            args.threads = _threads(0)
        packed = _aligned(packed)
        args.x_q, args.x_bits, args.packed = x_q.data_ptr(), x_bits.data_ptr(), packed.data_ptr()
        args.alpha, args.beta = alpha.data_ptr(), beta.data_ptr()
        if slope is not None:
            args.slope = slope.data_ptr()
        if residual is not None:
            args.residual = residual.data_ptr()
        if out_grid is not None:
            args.out_grid = out_grid.data_ptr()
        if out_bits is not None:
            args.out_bits = out_bits.data_ptr()
        if depth is not None:
            args.region.depth = depth.data_ptr()
        if y is not None:
            setattr(args, y_field, y.data_ptr())
        if y_q is not None:
            args.y_q = y_q.data_ptr()
        call("adabm_conv2d_cpu", args)

    def run_on_copies(x_q, x_bits, weight, packed, alpha, beta, slope, residual, out_grid, out_bits, depth, y, y_q):
        x_q, x_bits, alpha, beta, slope, out_grid, out_bits = map(dense, (x_q, x_bits, alpha, beta, slope, out_grid, out_bits))
        if y is None or y.is_contiguous():  # else the residual has its strides
            residual = dense(residual)
        run(x_q, x_bits, weight, packed, alpha, beta, slope, residual, out_grid, out_bits, depth, y, y_q)

    return run if as_they_are else run_on_copies


def quantize_out(
    x: torch.Tensor,
    shift: torch.Tensor | None,
    grid: torch.Tensor,
    bits: torch.Tensor,
    threads: int,
    y_q: torch.Tensor,
    *,
    fraction: int = 0,
    depth: torch.Tensor | None = None,
    region: Sequence[int] = (),
) -> None:
    """See ops.quantize_out."""
    place = {"depth": depth, "region": region}
    ready_quantize_out(x, shift, grid, bits, threads, y_q, fraction=fraction, **place)(x, shift, grid, bits, depth, y_q)


def ready_quantize_out(
    x: torch.Tensor,
    shift: torch.Tensor | None,
    grid: torch.Tensor,
    bits: torch.Tensor,
    threads: int,
    y_q: torch.Tensor,
    *,
    fraction: int = 0,
    depth: torch.Tensor | None = None,
    region: Sequence[int] = (),
) -> Callable[..., None]:
    """`quantize_out` for all calls with tensors of these sizes, strides and types: a function of (x, shift, grid, bits, depth,
    y_q)."""
    place = {"y_channels": y_q.shape[3], "region": structs.region(depth, region), "threads": threads}
    struct, _held = structs.quantize_args(x, shift, grid, bits, y_q, fraction, **place)
    template, make, call = bytes(struct), native.QuantizeArgs.from_buffer_copy, native.library("cpu").call

    def run(x, shift, grid, bits, depth, y_q):
        args = make(template)
        shift, grid, bits = dense(shift), dense(grid), dense(bits)
        args.isa = native.isa()
        if not threads:
            args.threads = _threads(0)
        args.x, args.grid, args.bits, args.y_q = x.data_ptr(), grid.data_ptr(), bits.data_ptr(), y_q.data_ptr()
        if shift is not None:
            args.shift = shift.data_ptr()
        if depth is not None:
            args.region.depth = depth.data_ptr()
        call("adabm_quantize_cpu", args)

    return run


def tile_depths_out(
    x_q: torch.Tensor, tile: int, top: int, left: int, threshold: int, deep: int, threads: int, depth: torch.Tensor
) -> None:
    """See ops.tile_depths."""
    args = structs.depths_args(x_q, tile, top, left, threshold, deep, depth, threads=_how(threads)["threads"])
    native.library("cpu").call("adabm_depths_cpu", args)


def interpolate(
    x: np.ndarray,
    top: int,
    left: int,
    shares: np.ndarray,
    full: int,
    cubic: np.ndarray,
    linear: np.ndarray,
    y: np.ndarray,
    threads: int = 0,
) -> None:
    """Interpolate a part of a picture over what is in y, as smooth.interpolate_reference does, to the last bit.

    x: [H, W, C] of uint8, uint16 or float32, of any strides. top, left: where in it the part begins. shares: int16 [h + 2, w + 2],
    0..full. cubic, linear: float32 [scale, taps] of smooth.phases. y: [scale*h, scale*w, C] of x's type, in which the channels of a
    pixel lie one after the other. Raises ValueError for arrays that are not like this.
    """
    scale, item = len(cubic), x.itemsize
    wanted = scale * (shares.shape[0] - 2), scale * (shares.shape[1] - 2), x.shape[2]
    if y.shape != wanted or y.dtype != x.dtype or (y.shape[2] > 1 and y.strides[2] != item):
        raise ValueError(f"y must be {wanted} of {x.dtype}, channels adjacent, got {y.shape} of {y.dtype} with strides {y.strides}")
    if shares.dtype != np.int16 or not shares.flags.c_contiguous:
        raise ValueError(f"shares must be int16 and contiguous, got {shares.dtype} with strides {shares.strides}")
    if any(stride % item for stride in (*x.strides, *y.strides)):
        raise ValueError(f"strides of x and y must be multiples of {item} bytes, got {x.strides} and {y.strides}")
    strides = (stride // item for stride in x.strides)
    args = native.InterpolateArgs(
        height=shares.shape[0] - 2,
        width=shares.shape[1] - 2,
        channels=x.shape[2],
        scale=scale,
        element=item,
        x_height=x.shape[0],
        x_width=x.shape[1],
        top=top,
        left=left,
        **dict(zip(("x_stride_h", "x_stride_w", "x_stride_c"), strides, strict=True)),
        x=x.ctypes.data,
        shares=shares.ctypes.data,
        full=full,
        y_pitch=y.strides[1] // item,
        cubic=cubic.ctypes.data,
        linear=linear.ctypes.data,
        y=y.ctypes.data,
        y_stride_h=y.strides[0] // item,
        **_how(threads),
    )
    native.library("cpu").call("adabm_interpolate_cpu", args)
