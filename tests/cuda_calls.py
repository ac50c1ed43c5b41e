"""Convolution problems as calls of the CUDA library's C entries, on the host runtime."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field

import torch
from cuda_library import buffers, host_library
from problems import ConvInstance

from adabm_kernels import native
from adabm_kernels.backends.cpu import ACTIVATIONS
from adabm_kernels.quantize import pack_codes, padded_channels, unpack_codes

POISON = 171
PACKED_HEADER_BYTES = 64


def aligned(tensor: torch.Tensor, alignment: int = 64) -> torch.Tensor:
    """The same values at an address that is a multiple of `alignment`, as those of a GPU's memory are."""
    room = torch.empty(tensor.numel() * tensor.element_size() + alignment, dtype=torch.uint8)
    at = room[-room.data_ptr() % alignment :][: tensor.numel() * tensor.element_size()]
    copy = at.view(tensor.dtype).view(tensor.shape)
    copy.copy_(tensor)
    return copy


def pack_weights(weight: torch.Tensor, box_filter: bool, shuffle: int) -> torch.Tensor:
    """The packed form for the GPU of int8 [K, R, S, C] or [R, S, K, R, S, C]."""
    k, r, s, c = weight.shape[-4:]
    weight = weight.contiguous()
    args = native.Weights(
        out_channels=k, channels=c, kernel_h=r, kernel_w=s, border_kernels=weight.dim() == 6, weight=weight.data_ptr()
    )
    size = ctypes.c_uint64()
    host_library().call("adabm_pack_bytes_cuda", args, box_filter, shuffle, size)
    packed = aligned(torch.full((size.value,), POISON, dtype=torch.uint8))
    host_library().call("adabm_pack_cuda", args, box_filter, shuffle, packed.data_ptr())
    return packed


@dataclass
class CudaCall:
    """One call of adabm_conv2d_cuda with its memory; `run` makes it. Outputs that were not asked for are None."""

    args: native.Conv2dArgs
    read: list[torch.Tensor] = field(default_factory=list)
    y: torch.Tensor | None = None
    y_q: torch.Tensor | None = None
    y_acc: torch.Tensor | None = None

    def run(self, device: int = 0) -> None:
        written = [t for t in (self.y, self.y_q, self.y_acc) if t is not None]
        with buffers(self.read, written):
            host_library().call("adabm_conv2d_cuda", self.args, device, None)


def conv2d_call(instance: ConvInstance, *, packed_x: bool = False, packed_y: bool = False, outputs: str = "yqa") -> CudaCall:
    """The problem as a call; outputs: which of y, q (y_q) and a (y_acc). Outputs are poisoned."""
    layer, bits = instance.layer, instance.bits
    n, h, w, _ = instance.x_q.shape
    k, r, s, c = layer.weight.shape[-4:]
    f = layer.shuffle
    size, channels = (n, h * f, w * f), k // f**2
    x_q = aligned(pack_codes(instance.x_q, bits) if packed_x else instance.x_q)
    packed = pack_weights(layer.weight, layer.box_filter, f)
    tables = [layer.alpha, layer.beta, layer.slope, instance.residual, instance.out_grid, instance.out_bits, bits]
    alpha, beta, slope, residual, out_grid, out_bits, bits = [None if t is None else aligned(t) for t in tables]
    y = aligned(torch.full((*size, channels), -987654.0)) if "y" in outputs else None
    y_q = aligned(torch.full((*size, padded_channels(channels)), POISON, dtype=torch.uint8)) if "q" in outputs else None
    y_acc = aligned(torch.full((*size, channels), -987654, dtype=torch.int32)) if "a" in outputs else None

    def at(tensor: torch.Tensor | None) -> int | None:
        return None if tensor is None else tensor.data_ptr()

    args = native.Conv2dArgs(
        batch=n,
        height=h,
        width=w,
        out_channels=k,
        channels=c,
        kernel_h=r,
        kernel_w=s,
        x_q=at(x_q),
        x_bits=at(bits),
        packed=at(packed),
        packed_bytes=packed.numel(),
        box_filter=layer.box_filter,
        activation=ACTIVATIONS[layer.activation],
        shuffle=f,
        alpha=at(alpha),
        beta=at(beta),
        slope=at(slope),
        residual=at(residual),
        out_grid=at(out_grid),
        out_bits=at(out_bits),
        y=at(y),
        y_q=at(y_q),
        y_acc=at(y_acc),
        packed_codes=packed_x * native.PACKED_X + packed_y * native.PACKED_Y,
        border_kernels=layer.weight.dim() == 6,
    )
    read = [t for t in (x_q, bits, packed, alpha, beta, slope, residual, out_grid, out_bits) if t is not None]
    return CudaCall(args, read, y, y_q, y_acc)


def check(instance: ConvInstance, *, packed_x: bool = False, packed_y: bool = False) -> None:
    """Accumulators, floats and codes equal the reference's, and no byte beyond the codes is touched."""
    want_acc = instance.run("reference", "acc")[0]
    want_y, want_q = instance.run("reference", "both")
    call = conv2d_call(instance, packed_x=packed_x, packed_y=packed_y)
    call.run()
    assert torch.equal(call.y_acc, want_acc)
    assert torch.equal(call.y, want_y)
    if not packed_y:
        assert torch.equal(call.y_q, want_q)
        return
    assert torch.equal(unpack_codes(call.y_q, instance.out_bits), want_q)
    want = pack_codes(want_q, instance.out_bits)
    assert torch.equal(torch.where(call.y_q == POISON, want, call.y_q), want)
