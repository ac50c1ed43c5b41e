"""Tensors to the C structs that the CPU and the CUDA library share; no arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .. import native
from .call import ACTIVATIONS, FEATURES, Conv, dense, pitch


def pointer(tensor: torch.Tensor | None) -> int | None:
    """Address of the first element, None for no tensor."""
    return None if tensor is None else tensor.data_ptr()


def weights(weight: torch.Tensor, **settings: Any) -> native.Weights:
    """Contiguous int8 [K, R, S, C] or [R, S, K, R, S, C] as adabm_weights."""
    k, r, s, c = weight.shape[-4:]
    sizes = {"out_channels": k, "channels": c, "kernel_h": r, "kernel_w": s, "border_kernels": weight.dim() == 6}
    return native.Weights(**sizes, weight=weight.data_ptr(), **settings)


def region(depth: torch.Tensor | None, numbers: Sequence[int]) -> native.Region:
    """The numbers of a region as adabm_region; every pixel without a depth."""
    return native.Region() if depth is None else native.Region(depth.data_ptr(), *numbers)


def conv2d_args(
    conv: Conv, y: torch.Tensor | None, y_q: torch.Tensor | None, **settings: Any
) -> tuple[native.Conv2dArgs, list[torch.Tensor | None]]:
    """The arguments of ops.conv2d_out as adabm_conv2d_args, and what must live until the call is over."""
    n, h, w, _ = conv.x_q.shape
    weight, residual, y_pitch = conv.weight, conv.residual, 0
    if y is not None and not y.is_contiguous():  # a slice of wider features: the residual is one too, or there is none
        y_pitch = pitch(y)
    else:
        residual = dense(residual)
    held = [dense(t) for t in (conv.x_q, conv.x_bits, conv.alpha, conv.beta, conv.slope, conv.out_grid, conv.out_bits)]
    x_q, x_bits, alpha, beta, slope, out_grid, out_bits = held
    args = native.Conv2dArgs(
        batch=n,
        height=h,
        width=w,
        out_channels=weight.shape[-4],
        channels=weight.shape[-1],
        kernel_h=weight.shape[-3],
        kernel_w=weight.shape[-2],
        x_q=x_q.data_ptr(),
        x_bits=x_bits.data_ptr(),
        packed=conv.packed.data_ptr(),
        packed_bytes=conv.packed.numel(),
        box_filter=conv.box_filter,
        activation=ACTIVATIONS[conv.activation],
        shuffle=conv.shuffle,
        alpha=alpha.data_ptr(),
        beta=beta.data_ptr(),
        slope=pointer(slope),
        residual=pointer(residual),
        out_grid=pointer(out_grid),
        out_bits=pointer(out_bits),
        y=None if y is None or y.dtype == torch.int32 else y.data_ptr(),
        y_q=pointer(y_q),
        y_acc=y.data_ptr() if y is not None and y.dtype == torch.int32 else None,
        y_pitch=y_pitch,
        y_format=list(FEATURES).index(conv.features),
        y_fraction=conv.fraction,
        region=region(conv.depth, conv.region),
        **settings,
    )
    return args, [*held, residual, conv.packed, conv.depth, y, y_q]


def quantize_args(
    x: torch.Tensor,
    shift: torch.Tensor | None,
    grid: torch.Tensor,
    bits: torch.Tensor,
    y_q: torch.Tensor,
    fraction: int = 0,
    **settings: Any,
) -> tuple[native.QuantizeArgs, list[torch.Tensor | None]]:
    """The arguments of ops.quantize_out as adabm_quantize_args, and what must live until the call is over."""
    n, c, h, w = x.shape
    held = [dense(shift), dense(grid), dense(bits)]
    stride_n, stride_c, stride_h, stride_w = x.stride()
    args = native.QuantizeArgs(
        batch=n,
        height=h,
        width=w,
        channels=c,
        stride_n=stride_n,
        stride_h=stride_h,
        stride_w=stride_w,
        stride_c=stride_c,
        x=x.data_ptr(),
        shift=pointer(held[0]),
        grid=held[1].data_ptr(),
        bits=held[2].data_ptr(),
        y_q=y_q.data_ptr(),
        y_pitch=pitch(y_q),
        x_format=list(FEATURES.values()).index(x.dtype),
        x_fraction=fraction,
        **settings,
    )
    return args, [*held, x, y_q]


def depths_args(
    x_q: torch.Tensor, tile: int, top: int, left: int, threshold: int, deep: int, depth: torch.Tensor, **settings: Any
) -> native.DepthsArgs:
    """The arguments of ops.tile_depths as adabm_depths_args."""
    n, h, w, _ = x_q.shape
    sizes = {"batch": n, "height": h, "width": w, "tile": tile, "top": top, "left": left, "threshold": threshold, "deep": deep}
    return native.DepthsArgs(**sizes, x_q=x_q.data_ptr(), depth=depth.data_ptr(), **settings)
