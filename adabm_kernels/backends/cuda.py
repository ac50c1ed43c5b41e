"""The CUDA library: device, stream and workspace; no arithmetic."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch

from .. import native
from . import structs
from .call import Conv, dense
from .structs import conv2d_args, weights


def _place(x: torch.Tensor) -> tuple[int, int]:
    """Index of the device that holds x, and its current stream."""
    if x.device.type != "cuda":
        raise RuntimeError(f"cuda: the tensors must be on a CUDA device, got {x.device}")
    return x.device.index, torch.cuda.current_stream(x.device).cuda_stream


def pack(weight: torch.Tensor, box_filter: bool, shuffle: int) -> torch.Tensor:
    """The packed form of int8 [K, R, S, C] (or [R, S, K, R, S, C], a kernel per border class) for one box_filter and shuffle.

    Returns uint8 [bytes] on the device of the weights; they are brought to the host and back, so not inside a CUDA graph.
    """
    on_host = weight.cpu().contiguous()
    args = weights(on_host)
    size = ctypes.c_uint64()
    native.library("cuda").call("adabm_pack_bytes_cuda", args, box_filter, shuffle, size)
    packed = torch.empty(size.value, dtype=torch.uint8)
    native.library("cuda").call("adabm_pack_cuda", args, box_filter, shuffle, packed.data_ptr())
    return packed.to(weight.device)


def _aligned(conv: Conv) -> Conv:
    """With codes that begin at a multiple of 16 bytes, as the kernels need; images of a batch taken by themselves need not."""
    x_q = conv.x_q.contiguous()
    return conv._replace(x_q=x_q if x_q.data_ptr() % 16 == 0 else x_q.clone())


def conv2d_out(conv: Conv, _threads: int, y: torch.Tensor | None, y_q: torch.Tensor | None, packed_codes: bool = False) -> None:
    """See ops.conv2d_out; an int32 y takes the accumulators."""
    packing = (native.PACKED_X | native.PACKED_Y) if packed_codes else 0
    # Copies made here come back to the allocator of this stream, which the kernel is ahead on.
    struct, _held = conv2d_args(_aligned(conv), y, y_q, packed_codes=packing, border_kernels=conv.weight.dim() == 6)
    native.library("cuda").call("adabm_conv2d_cuda", struct, *_place(conv.x_q))


def conv2d_pixels_out(conv: Conv, _threads: int, image: torch.Tensor, packed_codes: bool = False) -> None:
    """See ops.conv2d_pixels_out."""
    settings = {"packed_codes": native.PACKED_X if packed_codes else 0, "border_kernels": conv.weight.dim() == 6}
    struct, _held = conv2d_args(_aligned(conv), None, None, y_image=image.data_ptr(), **settings)
    native.library("cuda").call("adabm_conv2d_cuda", struct, *_place(conv.x_q))


def why_not_resblock(*convs: tuple[torch.Tensor, bool]) -> str:
    """Why two convolutions, each (int8 [K, R, S, C], box_filter), cannot run as one residual block; empty where they can. Waits."""
    device = native.Device()
    try:
        index, _ = _place(convs[0][0])
    except RuntimeError as error:  # a backend may be set before the model moves to a card
        return str(error)
    native.library("cuda").call("adabm_device_cuda", index, device)
    if device.compute_major != 9:
        return f"compute capability {device.compute_major}.{device.compute_minor} has no wgmma: only 9.0 has"
    for weight, box_filter in convs:
        k, c = weight.shape[0], weight.shape[-1]
        if weight.shape[1:3] != (3, 3) or k != c or not 33 <= c <= 64:
            return f"its convolutions must be 3x3 with 33 to 64 channels, got weights {list(weight.shape)}"
        if box_filter and not -64 <= int(weight.min()) <= int(weight.max()) <= 63:
            return "its weights need the sum of the codes"
    return ""


def resblock_out(first: Conv, second: Conv, y: torch.Tensor | None, y_q: torch.Tensor | None, packed_codes: bool = False) -> None:
    """See ops.resblock_out; the second's codes, which the first makes, are not looked at."""
    packed_x, packed_y = (native.PACKED_X, native.PACKED_Y) if packed_codes else (0, 0)
    a, _held_a = conv2d_args(_aligned(first), None, None, packed_codes=packed_x)
    b, _held_b = conv2d_args(second, y, y_q, packed_codes=packed_y)
    b.x_q, b.x_bits = None, a.out_bits
    native.library("cuda").call("adabm_resblock_cuda", a, b, *_place(first.x_q))


def _target(y_q: torch.Tensor, packed_codes: bool, start: int) -> dict[str, int]:
    return {"packed_codes": native.PACKED_Y, "y_start": start} if packed_codes else {"y_channels": y_q.shape[3]}


def quantize_out(
    x: torch.Tensor,
    shift: torch.Tensor | None,
    grid: torch.Tensor,
    bits: torch.Tensor,
    threads: int,
    y_q: torch.Tensor,
    *,
    packed_codes: bool = False,
    start: int = 0,
    fraction: int = 0,
    depth: torch.Tensor | None = None,
    region: Sequence[int] = (),
) -> None:
    """See ops.quantize_out."""
    place = _target(y_q, packed_codes, start) | {"region": structs.region(depth, region)}
    struct, _held = structs.quantize_args(x, shift, grid, bits, y_q, fraction, **place)
    native.library("cuda").call("adabm_quantize_cuda", struct, *_place(x))


def quantize_many_out(
    x: torch.Tensor,
    grids: list[torch.Tensor],
    bits: list[torch.Tensor],
    starts: list[int],
    y_q: list[torch.Tensor],
    packed_codes: bool = False,
) -> None:
    """See ops.quantize_many_out."""
    parts = []
    for grid, own_bits, start, codes in zip(grids, bits, starts, y_q, strict=True):
        parts.append(structs.quantize_args(x, None, grid, own_bits, codes, **_target(codes, packed_codes, start)))
    for first in range(0, len(parts), native.MAX_TARGETS):
        targets = [struct for struct, _held in parts[first : first + native.MAX_TARGETS]]
        array = (native.QuantizeArgs * len(targets))(*targets)
        native.library("cuda").call("adabm_quantize_many_cuda", array, len(targets), *_place(x))


def tile_depths_out(
    x_q: torch.Tensor, tile: int, top: int, left: int, threshold: int, deep: int, _threads: int, depth: torch.Tensor
) -> None:
    """See ops.tile_depths."""
    pixels = x_q if x_q.data_ptr() % 4 == 0 else x_q.clone()  # the kernel loads a pixel as one word
    args = structs.depths_args(pixels, tile, top, left, threshold, deep, depth)
    native.library("cuda").call("adabm_depths_cuda", args, *_place(x_q))


def _image_bits(x: torch.Tensor, **outputs: int | None) -> None:
    n, _, h, w = x.shape
    workspace = torch.empty(n * native.MEASURE_BYTES, dtype=torch.uint8, device=x.device)
    stride_n, stride_c, stride_h, stride_w = x.stride()
    args = native.ImageBitsArgs(
        batch=n,
        height=h,
        width=w,
        stride_n=stride_n,
        stride_c=stride_c,
        stride_h=stride_h,
        stride_w=stride_w,
        x=x.data_ptr(),
        workspace=workspace.data_ptr(),
        workspace_bytes=workspace.numel(),
        **outputs,
    )
    native.library("cuda").call("adabm_image_bits_cuda", args, *_place(x))


def image_measure(x: torch.Tensor) -> torch.Tensor:
    """See ops.image_measure."""
    measure = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
    _image_bits(x, measure=measure.data_ptr())
    return measure


def layer_bits(x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, rules: torch.Tensor) -> torch.Tensor:
    """See ops.layer_bits."""
    rules = dense(rules)
    bits = torch.empty(rules.shape[0], x.shape[0], dtype=torch.int32, device=x.device)
    pointers = {"lower": lower, "upper": upper, "rules": rules, "bits": bits}
    _image_bits(x, layers=rules.shape[0], **{name: tensor.data_ptr() for name, tensor in pointers.items()})
    return bits
