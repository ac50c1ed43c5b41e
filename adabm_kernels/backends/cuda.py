"""The CUDA library: device, stream and workspace. No arithmetic is done here."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch

from .. import native
from . import structs
from .call import (
    Conv,
    DepthRule,
    Outputs,
    Packing,
    Quantization,
    RunConv2d,
    RunQuantize,
    RunResblock,
    Target,
    dense,
    run_conv2d,
    run_quantize,
)


def _place(x: torch.Tensor) -> tuple[int, int]:
    """The index of the device that holds x, and its current stream."""
    if x.device.type != "cuda":
        raise RuntimeError(f"cuda: the tensors must be on a CUDA device, got {x.device}")
    return x.device.index, torch.cuda.current_stream(x.device).cuda_stream


def pack(weight: torch.Tensor, packing: Packing) -> torch.Tensor:
    """See call.Kernels. The weights are packed for one box_filter and shuffle. They are brought to the host and back, so this
    cannot run inside a CUDA graph."""
    on_host = weight.cpu().contiguous()
    args = structs.weights(on_host, packing)
    size = ctypes.c_uint64()
    native.library("cuda").call("adabm_pack_bytes_cuda", args, packing.box_filter, packing.shuffle, size)
    packed = torch.empty(size.value, dtype=torch.uint8)
    native.library("cuda").call("adabm_pack_cuda", args, packing.box_filter, packing.shuffle, packed.data_ptr())
    return packed.to(weight.device)


def _aligned(x_q: torch.Tensor) -> torch.Tensor:
    """The codes, copied where they do not begin at a multiple of 16 bytes, as the kernels need. Single images of a batch may begin
    elsewhere."""
    x_q = x_q.contiguous()
    return x_q if x_q.data_ptr() % 16 == 0 else x_q.clone()


def conv2d_out(conv: Conv, to: Outputs) -> None:
    """See call.Kernels."""
    run_conv2d(ready_conv2d_out(conv, to), conv, to)


def ready_conv2d_out(conv: Conv, to: Outputs) -> RunConv2d:
    """See call.Kernels. A call only fills in addresses."""
    made = native.PACKED_X if to.y is not None and to.y.dtype == torch.uint8 else native.PACKED_X | native.PACKED_Y
    settings = {"packed_codes": made if conv.packed_codes else 0, "border_kernels": conv.weight.dim() == 6}
    fill = structs.ready_conv2d_args(conv, to, **settings)

    def run(x_q, x_bits, weight, packed, alpha, beta, slope, residual, out_grid, out_bits, depth, y, y_q) -> None:
        x_q = _aligned(x_q)
        # Copies go back to the allocator of this stream, on which the kernel runs before whatever takes their memory next.
        args, _held = fill(x_q, x_bits, weight, packed, alpha, beta, slope, residual, out_grid, out_bits, depth, y, y_q)
        native.library("cuda").call("adabm_conv2d_cuda", args, *_place(x_q))

    return run


def why_not_resblock(*convs: tuple[torch.Tensor, bool]) -> str:
    """See call.ResidualBlocks. It waits for the device."""
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


def ready_resblock_out(first: Conv, second: Conv, to: Outputs) -> RunResblock:
    """See call.ResidualBlocks. A call only fills in addresses."""
    packed_x, packed_y = (native.PACKED_X, native.PACKED_Y) if first.packed_codes else (0, 0)
    fill_first = structs.ready_conv2d_args(first, Outputs(), packed_codes=packed_x)
    fill_second = structs.ready_conv2d_args(second, to, packed_codes=packed_y)

    def run(first, second, y, y_q) -> None:
        x_q = _aligned(first[0])
        a, _held_a = fill_first(x_q, *first[1:], None, None)
        b, _held_b = fill_second(*second, y, y_q)
        b.x_q, b.x_bits = None, a.out_bits
        native.library("cuda").call("adabm_resblock_cuda", a, b, *_place(x_q))

    return run


def _target(y_q: torch.Tensor, packed_codes: bool, start: int) -> dict[str, int]:
    return {"packed_codes": native.PACKED_Y, "y_start": start} if packed_codes else {"y_channels": y_q.shape[3]}


def quantize_out(read: Quantization, y_q: torch.Tensor) -> None:
    """See call.Kernels."""
    run_quantize(ready_quantize_out(read, y_q), read, y_q)


def ready_quantize_out(read: Quantization, y_q: torch.Tensor) -> RunQuantize:
    """See call.Kernels. A call only fills in addresses."""
    fill = structs.ready_quantize_args(read, y_q, **_target(y_q, read.packed_codes, read.start))

    def run(x, shift, grid, bits, depth, y_q) -> None:
        args, _held = fill(x, shift, grid, bits, depth, y_q)
        native.library("cuda").call("adabm_quantize_cuda", args, *_place(x))

    return run


def quantize_many_out(x: torch.Tensor, targets: Sequence[Target], packed_codes: bool) -> None:
    """See call.ManyGrids."""
    parts = []
    for target in targets:
        settings = _target(target.y_q, packed_codes, target.start)
        parts.append(structs.quantize_args(Quantization(x, None, target.grid, target.bits), target.y_q, **settings))
    for first in range(0, len(parts), native.MAX_TARGETS):
        made = [struct for struct, _held in parts[first : first + native.MAX_TARGETS]]
        array = (native.QuantizeArgs * len(made))(*made)
        native.library("cuda").call("adabm_quantize_many_cuda", array, len(made), *_place(x))


def tile_depths_out(x_q: torch.Tensor, rule: DepthRule, depth: torch.Tensor) -> None:
    """See call.Kernels."""
    pixels = x_q if x_q.data_ptr() % 4 == 0 else x_q.clone()  # the kernel loads a pixel as one word
    native.library("cuda").call("adabm_depths_cuda", structs.depths_args(pixels, rule, depth), *_place(x_q))


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
    """See call.Kernels."""
    measure = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
    _image_bits(x, measure=measure.data_ptr())
    return measure


def layer_bits(x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, rules: torch.Tensor) -> torch.Tensor:
    """See call.Kernels."""
    rules = dense(rules)
    bits = torch.empty(rules.shape[0], x.shape[0], dtype=torch.int32, device=x.device)
    pointers = {"lower": lower, "upper": upper, "rules": rules, "bits": bits}
    _image_bits(x, layers=rules.shape[0], **{name: tensor.data_ptr() for name, tensor in pointers.items()})
    return bits
