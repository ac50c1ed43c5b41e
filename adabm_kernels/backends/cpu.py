"""Tensors to C structs of the CPU library; no arithmetic."""

from __future__ import annotations

import ctypes

import torch

from .. import native

ACTIVATIONS = {"none": 0, "relu": 1, "prelu": 2}
ALIGNMENT = 64
MAX_THREADS = 256  # of the library


def _pointer(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _dense(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.contiguous()


def pack(weight: torch.Tensor, tile_for_bits: tuple[int, ...]) -> torch.Tensor:
    """The packed form of int8 [K, R, S, C] (or [R, S, K, R, S, C], a kernel per border class) for a tile per bit-width 2..8.

    Returns uint8 [bytes], 64-byte aligned.
    """
    weight = weight.contiguous()
    k, r, s, c = weight.shape[-4:]
    args = native.Weights(
        out_channels=k,
        channels=c,
        kernel_h=r,
        kernel_w=s,
        border_kernels=weight.dim() == 6,
        weight=weight.data_ptr(),
        tile_for_bits=tuple(tile_for_bits),
    )
    size = ctypes.c_uint64()
    native.library("cpu").call("adabm_pack_bytes_cpu", args, size)
    room = torch.empty(size.value + ALIGNMENT, dtype=torch.uint8)
    packed = room[-room.data_ptr() % ALIGNMENT :][: size.value]
    native.library("cpu").call("adabm_pack_cpu", args, packed.data_ptr())
    return packed


def conv2d_out(
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
    box_filter: bool,
    activation: str,
    shuffle: int,
    threads: int,
    y: torch.Tensor | None,
    y_q: torch.Tensor | None,
) -> None:
    """See ops.conv2d_out; an int32 y takes the accumulators."""
    n, h, w, _ = x_q.shape
    pitch = 0
    if y is not None and not y.is_contiguous():  # a slice of wider features: the residual is one too, or there is none
        pitch, held_residual = y.stride(2), residual
    else:
        held_residual = _dense(residual)
    # Kept in a list so that a dense copy lives until the call is over.
    held = [_dense(t) for t in (x_q, x_bits, alpha, beta, slope, out_grid, out_bits)]
    x_q, x_bits, alpha, beta, slope, out_grid, out_bits = held
    args = native.Conv2dArgs(
        isa=native.isa(),
        threads=threads or min(torch.get_num_threads(), MAX_THREADS),
        batch=n,
        height=h,
        width=w,
        out_channels=weight.shape[-4],
        channels=weight.shape[-1],
        kernel_h=weight.shape[-3],
        kernel_w=weight.shape[-2],
        x_q=x_q.data_ptr(),
        x_bits=x_bits.data_ptr(),
        packed=packed.data_ptr(),
        packed_bytes=packed.numel(),
        box_filter=box_filter,
        activation=ACTIVATIONS[activation],
        shuffle=shuffle,
        alpha=alpha.data_ptr(),
        beta=beta.data_ptr(),
        slope=_pointer(slope),
        residual=_pointer(held_residual),
        out_grid=_pointer(out_grid),
        out_bits=_pointer(out_bits),
        y=None if y is None or y.dtype == torch.int32 else y.data_ptr(),
        y_q=_pointer(y_q),
        y_acc=y.data_ptr() if y is not None and y.dtype == torch.int32 else None,
        y_pitch=pitch,
    )
    native.library("cpu").call("adabm_conv2d_cpu", args)


def quantize_out(
    x: torch.Tensor, shift: torch.Tensor | None, grid: torch.Tensor, bits: torch.Tensor, threads: int, y_q: torch.Tensor
) -> None:
    """See ops.quantize_out."""
    n, c, h, w = x.shape
    shift, grid, bits = _dense(shift), _dense(grid), _dense(bits)
    stride_n, stride_c, stride_h, stride_w = x.stride()
    args = native.QuantizeArgs(
        isa=native.isa(),
        threads=threads or min(torch.get_num_threads(), MAX_THREADS),
        batch=n,
        height=h,
        width=w,
        channels=c,
        stride_n=stride_n,
        stride_h=stride_h,
        stride_w=stride_w,
        stride_c=stride_c,
        x=x.data_ptr(),
        shift=_pointer(shift),
        grid=grid.data_ptr(),
        bits=bits.data_ptr(),
        y_q=y_q.data_ptr(),
        y_channels=y_q.shape[3],
        y_pitch=y_q.stride(2),
    )
    native.library("cpu").call("adabm_quantize_cpu", args)
