"""The CPU library: packed weights, threads and instruction sets. No arithmetic is done here."""

from __future__ import annotations

import ctypes

import numpy as np
import torch

from .. import native
from . import structs
from .call import Conv, DepthRule, Outputs, Packing, Quantization, RunConv2d, RunQuantize, run_conv2d, run_quantize
from .reference import image_measure, layer_bits

__all__ = [
    "conv2d_out",
    "image_measure",
    "interpolate",
    "layer_bits",
    "pack",
    "quantize_out",
    "ready_conv2d_out",
    "ready_quantize_out",
    "tile_depths_out",
]

ALIGNMENT = 64


def _threads(asked: int) -> int:
    return asked or min(torch.get_num_threads(), native.MAX_THREADS)


def pack(weight: torch.Tensor, packing: Packing) -> torch.Tensor:
    """See call.Kernels. The weights are packed for the tile of each bit-width, and aligned to 64 bytes."""
    weight = weight.contiguous()
    args = structs.weights(weight, packing, tile_for_bits=tuple(packing.tile_for_bits))
    size = ctypes.c_uint64()
    native.library("cpu").call("adabm_pack_bytes_cpu", args, size)
    packed = _aligned_bytes(size.value)
    native.library("cpu").call("adabm_pack_cpu", args, packed.data_ptr())
    return packed


def _aligned_bytes(count: int) -> torch.Tensor:
    """uint8 [count] with arbitrary contents, aligned to 64 bytes."""
    room = torch.empty(count + ALIGNMENT, dtype=torch.uint8, device="cpu")
    return room[-room.data_ptr() % ALIGNMENT :][:count]


def conv2d_out(conv: Conv, to: Outputs) -> None:
    """See call.Kernels."""
    run_conv2d(ready_conv2d_out(conv, to), conv, to)


def ready_conv2d_out(conv: Conv, to: Outputs) -> RunConv2d:
    """See call.Kernels. A call only fills in addresses."""
    fill, threads = structs.ready_conv2d_args(conv, to, threads=conv.threads), conv.threads
    call = native.library("cpu").call

    def run(x_q, x_bits, weight, packed, alpha, beta, slope, residual, out_grid, out_bits, depth, y, y_q) -> None:
        # `pack` aligns the weights, but AOTInductor lays the constants of a program anywhere. They are copied in each call, since a
        # lasting copy would miss constants that are replaced in place. Copying takes a three-hundredth of the time of a 64-channel
        # layer on an image of 256 pixels a side.
        if packed.data_ptr() % ALIGNMENT:
            packed = _aligned_bytes(packed.numel()).copy_(packed)
        args, _held = fill(x_q, x_bits, weight, packed, alpha, beta, slope, residual, out_grid, out_bits, depth, y, y_q)
        args.isa = native.isa()
        if not threads:
            args.threads = _threads(0)
        call("adabm_conv2d_cpu", args)

    return run


def quantize_out(read: Quantization, y_q: torch.Tensor) -> None:
    """See call.Kernels."""
    run_quantize(ready_quantize_out(read, y_q), read, y_q)


def ready_quantize_out(read: Quantization, y_q: torch.Tensor) -> RunQuantize:
    """See call.Kernels. A call only fills in addresses."""
    fill, threads = structs.ready_quantize_args(read, y_q, y_channels=y_q.shape[3], threads=read.threads), read.threads
    call = native.library("cpu").call

    def run(x, shift, grid, bits, depth, y_q) -> None:
        args, _held = fill(x, shift, grid, bits, depth, y_q)
        args.isa = native.isa()
        if not threads:
            args.threads = _threads(0)
        call("adabm_quantize_cpu", args)

    return run


def tile_depths_out(x_q: torch.Tensor, rule: DepthRule, depth: torch.Tensor) -> None:
    """See call.Kernels."""
    native.library("cpu").call("adabm_depths_cpu", structs.depths_args(x_q, rule, depth, threads=_threads(rule.threads)))


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
    """Interpolates a part of a picture into y, over what is there, with the same result as smooth.interpolate_reference to the last
    bit.

    x: [H, W, C] of uint8, uint16 or float32, with any strides. top, left: where in x the part begins. shares: int16 [h + 2, w + 2],
    each 0..full. cubic, linear: float32 [scale, taps] of smooth.phases. y: [scale*h, scale*w, C] of x's type, in which the channels
    of a pixel lie one after the other. Raises ValueError for arrays that are not like this.
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
        isa=native.isa(),
        threads=_threads(threads),
    )
    native.library("cpu").call("adabm_interpolate_cpu", args)
