"""Turns tensors into the C structs that the CPU and the CUDA library share. No arithmetic is done here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .. import native
from .call import ACTIVATIONS, FEATURES, Conv, DepthRule, Outputs, Packing, Quantization, dense, pitch

# The field of the struct that y fills, by the type of y.
_Y_FIELDS = {torch.float32: "y", torch.int16: "y", torch.int32: "y_acc", torch.uint8: "y_image"}


def pointer(tensor: torch.Tensor | None) -> int | None:
    """Address of the first element; None for no tensor."""
    return None if tensor is None else tensor.data_ptr()


def weights(weight: torch.Tensor, packing: Packing, **settings: Any) -> native.Weights:
    """Contiguous weights int8 [K, R, S, C / groups] or [R, S, K, R, S, C] as adabm_weights."""
    k, r, s, c = weight.shape[-4:]
    sizes = {"out_channels": k, "channels": c * packing.geometry.groups, "kernel_h": r, "kernel_w": s}
    settings |= {"border_kernels": weight.dim() == 6, "box_filter": packing.box_filter, "shuffle": packing.shuffle}
    return native.Weights(**sizes, weight=weight.data_ptr(), geometry=native.Geometry(*packing.geometry.numbers(r, s)), **settings)


def region(depth: torch.Tensor | None, numbers: Sequence[int]) -> native.Region:
    """The numbers of a region as adabm_region. Without a depth it is the region of all pixels."""
    return native.Region() if depth is None else native.Region(depth.data_ptr(), *numbers)


def conv2d_args(conv: Conv, to: Outputs, **settings: Any) -> tuple[native.Conv2dArgs, list[torch.Tensor | None]]:
    """The arguments of ops.conv2d_out as adabm_conv2d_args, and the tensors that must live until the call is over."""
    n, h, w, _ = conv.x_q.shape
    weight, residual, y, y_pitch = conv.weight, conv.residual, to.y, 0
    if y is not None and not y.is_contiguous():  # y is a slice of wider features, and so is the residual, if there is one
        y_pitch = pitch(y)
    else:
        residual = dense(residual)
    x_q, x_bits, alpha, beta = dense(conv.x_q), dense(conv.x_bits), dense(conv.alpha), dense(conv.beta)
    slope, out_grid, out_bits = dense(conv.slope), dense(conv.out_grid), dense(conv.out_bits)
    args = native.Conv2dArgs(
        batch=n,
        height=h,
        width=w,
        out_channels=weight.shape[-4],
        channels=weight.shape[-1] * conv.geometry.groups,
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
        y_q=pointer(to.y_q),
        y_pitch=y_pitch,
        y_format=list(FEATURES).index(conv.features),
        y_fraction=conv.fraction,
        region=region(conv.place.depth, conv.place.region),
        geometry=native.Geometry(*conv.geometry.numbers(*weight.shape[-3:-1])),
        **({} if y is None else {_Y_FIELDS[y.dtype]: y.data_ptr()}),
        **settings,
    )
    held = [x_q, x_bits, alpha, beta, slope, out_grid, out_bits, residual, conv.packed, conv.place.depth, y, to.y_q]
    return args, held


Filled = tuple[native.Conv2dArgs, tuple[torch.Tensor | None, ...] | None]


def ready_conv2d_args(conv: Conv, to: Outputs, **settings: Any) -> Callable[..., Filled]:
    """`conv2d_args` for all calls with tensors of these sizes, strides and types. The result is a function that takes the tensors
    of call.RunConv2d and gives the struct and the copies that must live until the call is over, which are None where none were
    made."""
    struct, held = conv2d_args(conv, to, **settings)
    template, make = bytes(struct), native.Conv2dArgs.from_buffer_copy
    y_field = "y" if to.y is None else _Y_FIELDS[to.y.dtype]
    read = conv.x_q, conv.x_bits, conv.alpha, conv.beta, conv.slope, conv.out_grid, conv.out_bits, conv.residual
    as_they_are = all(tensor is used for tensor, used in zip(read, held, strict=False))

    def fill(x_q, x_bits, _weight, packed, alpha, beta, slope, residual, out_grid, out_bits, depth, y, y_q) -> Filled:
        args = make(template)
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
        return args, None

    def fill_with_copies(x_q, x_bits, weight, packed, alpha, beta, slope, residual, out_grid, out_bits, depth, y, y_q) -> Filled:
        x_q, x_bits, alpha, beta = dense(x_q), dense(x_bits), dense(alpha), dense(beta)
        slope, out_grid, out_bits = dense(slope), dense(out_grid), dense(out_bits)
        if y is None or y.is_contiguous():  # where y is a slice, the residual has its strides
            residual = dense(residual)
        args, _ = fill(x_q, x_bits, weight, packed, alpha, beta, slope, residual, out_grid, out_bits, depth, y, y_q)
        return args, (x_q, x_bits, alpha, beta, slope, residual, out_grid, out_bits)

    return fill if as_they_are else fill_with_copies


def quantize_args(read: Quantization, y_q: torch.Tensor, **settings: Any) -> tuple[native.QuantizeArgs, list[torch.Tensor | None]]:
    """The arguments of ops.quantize_out as adabm_quantize_args, and the tensors that must live until the call is over."""
    n, c, h, w = read.x.shape
    shift, grid, bits = dense(read.shift), dense(read.grid), dense(read.bits)
    stride_n, stride_c, stride_h, stride_w = read.x.stride()
    args = native.QuantizeArgs(
        batch=n,
        height=h,
        width=w,
        channels=c,
        stride_n=stride_n,
        stride_h=stride_h,
        stride_w=stride_w,
        stride_c=stride_c,
        x=read.x.data_ptr(),
        shift=pointer(shift),
        grid=grid.data_ptr(),
        bits=bits.data_ptr(),
        y_q=y_q.data_ptr(),
        y_pitch=pitch(y_q),
        x_format=list(FEATURES.values()).index(read.x.dtype),
        x_fraction=read.fraction,
        region=region(read.place.depth, read.place.region),
        **settings,
    )
    return args, [shift, grid, bits, read.x, y_q]


FilledQuantization = tuple[native.QuantizeArgs, tuple[torch.Tensor | None, ...]]


def ready_quantize_args(read: Quantization, y_q: torch.Tensor, **settings: Any) -> Callable[..., FilledQuantization]:
    """`quantize_args` for all calls with tensors of these sizes, strides and types. The result is a function that takes the tensors
    of call.RunQuantize and gives the struct and the tensors that must live until the call is over."""
    struct, _held = quantize_args(read, y_q, **settings)
    template, make = bytes(struct), native.QuantizeArgs.from_buffer_copy

    def fill(x, shift, grid, bits, depth, y_q) -> FilledQuantization:
        args = make(template)
        shift, grid, bits = dense(shift), dense(grid), dense(bits)
        args.x, args.grid, args.bits, args.y_q = x.data_ptr(), grid.data_ptr(), bits.data_ptr(), y_q.data_ptr()
        if shift is not None:
            args.shift = shift.data_ptr()
        if depth is not None:
            args.region.depth = depth.data_ptr()
        return args, (shift, grid, bits)

    return fill


def depths_args(x_q: torch.Tensor, rule: DepthRule, depth: torch.Tensor, **settings: Any) -> native.DepthsArgs:
    """The arguments of ops.tile_depths as adabm_depths_args."""
    n, h, w, _ = x_q.shape
    return native.DepthsArgs(
        batch=n,
        height=h,
        width=w,
        tile=rule.tile,
        top=rule.top,
        left=rule.left,
        threshold=rule.threshold,
        deep=rule.deep,
        x_q=x_q.data_ptr(),
        depth=depth.data_ptr(),
        **settings,
    )
