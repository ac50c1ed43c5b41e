"""Calls the C entries of the CUDA library with convolution problems, on the host runtime."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from unittest import mock

import torch
from cuda_library import buffers, host_library
from problems import ConvInstance, ConvProblem, instantiate, int16_features

from adabm_kernels import native
from adabm_kernels.backends import cuda, reference
from adabm_kernels.backends.call import Conv, Outputs, Packing, Place
from adabm_kernels.backends.structs import conv2d_args
from adabm_kernels.quantize import pack_codes, padded_channels, unpack_codes
from adabm_kernels.regions import Depths, Region

POISON = 171
PACKED_HEADER_BYTES = 64


@contextmanager
def cuda_on_host() -> Iterator[None]:
    """Inside the context the cuda backend uses the host runtime's library, and tensors in main memory."""
    real = native.library
    library = mock.patch.object(native, "library", lambda name: host_library() if name == "cuda" else real(name))
    with library, mock.patch.object(cuda, "_place", lambda x: (0, None)):
        yield


def pack_weights(weight: torch.Tensor, box_filter: bool, shuffle: int) -> torch.Tensor:
    """The packed form for the GPU of weights int8 [K, R, S, C] or [R, S, K, R, S, C]."""
    with cuda_on_host():
        return cuda.pack(weight, Packing(box_filter=box_filter, shuffle=shuffle))


def by_class(kernel: int, height: int, width: int, channels: int, outputs: int, bits: tuple[int, ...], **settings) -> ConvInstance:
    """A problem in which every border class has random weights and constants of its own."""
    settings = {"weight_bits": 8} | settings
    weight_bits = settings["weight_bits"]
    instance = instantiate(ConvProblem("by_class", height, width, channels, outputs, kernel, bits=bits, **settings))
    g = torch.Generator().manual_seed(5)
    most = 2 ** (weight_bits - 1)
    shape = (kernel, kernel, outputs, kernel, kernel, channels)
    instance.layer.weight = torch.randint(-most, most, shape, generator=g).to(torch.int8)
    instance.layer.box_filter = False
    instance.layer.beta = torch.randn(kernel, kernel, outputs, generator=g)
    return instance


@dataclass
class CudaCall:
    """One call of adabm_conv2d_cuda with its memory. `run` makes the call. Outputs that were not asked for are None."""

    args: native.Conv2dArgs
    read: list[torch.Tensor]
    packed: torch.Tensor
    y: torch.Tensor | None = None
    y_q: torch.Tensor | None = None
    y_acc: torch.Tensor | None = None

    def run(self, device: int = 0) -> None:
        written = [t for t in (self.y, self.y_q, self.y_acc) if t is not None]
        with buffers([*self.read, self.packed], written):
            host_library().call("adabm_conv2d_cuda", self.args, device, None)


def conv_of(
    instance: ConvInstance, depths: Depths | None = None, region: Region | None = None, fraction: int | None = None
) -> Conv:
    """The problem in the form that backends take. It computes a region of these depths, or everything where there is none.

    fraction: the fraction of 16-bit features, None for float features. A residual in floats is converted to 16 bits too.
    """
    layer = instance.layer
    conv = Conv(
        instance.x_q,
        instance.bits,
        layer.weight,
        pack_weights(layer.weight, layer.box_filter, layer.shuffle),
        layer.alpha,
        layer.beta,
        layer.slope,
        instance.residual,
        instance.out_grid,
        instance.out_bits,
        layer.box_filter,
        layer.activation,
        layer.shuffle,
    )
    conv = conv if fraction is None else int16_features(conv, fraction)
    if depths is None or region is None:
        return conv
    return replace(conv, place=Place(depths.values, tuple(region.numbers(depths))))


def conv2d_call(
    instance: ConvInstance,
    *,
    packed_x: bool = False,
    packed_y: bool = False,
    outputs: str = "yqa",
    depths: Depths | None = None,
    region: Region | None = None,
    fraction: int | None = None,
) -> CudaCall:
    """The problem as a call, whose outputs are poisoned.

    outputs: the letters of those that are asked for: y, q (y_q) and a (y_acc). depths, region, fraction: the same as in `conv_of`.
    """
    layer = instance.layer
    n, h, w, _ = instance.x_q.shape
    f = layer.shuffle
    size, channels = (n, h * f, w * f), layer.weight.shape[-4] // f**2
    y = torch.full((*size, channels), -987654.0) if "y" in outputs else None
    if y is not None and fraction is not None:
        y = torch.full((*size, channels), -32768, dtype=torch.int16)  # this value stands for no feature
    y_q = torch.full((*size, padded_channels(channels)), POISON, dtype=torch.uint8) if "q" in outputs else None
    y_acc = torch.full((*size, channels), -987654, dtype=torch.int32) if "a" in outputs else None
    conv = conv_of(instance, depths, region, fraction)
    packed = conv.packed
    if packed_x:
        conv = replace(conv, x_q=pack_codes(instance.x_q, instance.bits))
    packing = packed_x * native.PACKED_X + packed_y * native.PACKED_Y
    args, held = conv2d_args(conv, Outputs(y, y_q), packed_codes=packing, border_kernels=layer.weight.dim() == 6)
    args.y_acc = None if y_acc is None else y_acc.data_ptr()
    read = [t for t in held if t is not None and t is not y and t is not y_q and t is not packed]
    return CudaCall(args, read, packed, y, y_q, y_acc)


def check(instance: ConvInstance, *, packed_x: bool = False, packed_y: bool = False, config: int = 0) -> None:
    """Checks that accumulators, floats and codes equal those of the reference, and that no byte beyond the codes was touched."""
    want_acc = instance.run("reference", "acc")[0]
    want_y, want_q = instance.run("reference", "both")
    call = conv2d_call(instance, packed_x=packed_x, packed_y=packed_y)
    call.args.config = config
    call.run()
    assert torch.equal(call.y_acc, want_acc)
    assert torch.equal(call.y, want_y)
    check_codes(call, instance, want_q, packed_y)


def assert_equal(got: torch.Tensor, want: torch.Tensor) -> None:
    same = got.view(torch.int32) == want.view(torch.int32) if got.dtype == torch.float32 else got == want
    assert bool(same.all()), f"{int((~same).sum())} differ, first at {(~same).nonzero()[0].tolist()}"


def check_codes(call: CudaCall, instance: ConvInstance, want: torch.Tensor, packed: bool) -> None:
    """Checks that codes are the wanted ones, and that no byte beyond packed codes was touched."""
    if not packed:
        return assert_equal(call.y_q, want)
    assert_equal(unpack_codes(call.y_q, instance.out_bits), want)
    whole = pack_codes(want, instance.out_bits)
    assert_equal(torch.where(call.y_q == POISON, whole, call.y_q), whole)  # nothing was written behind the codes of an image


# ---- compute capability 9.0

HOPPER = {"major": 9, "shared_limit": 227 << 10}


def reference_of(call: CudaCall, instance: ConvInstance, packed: bool, **place) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Computes by the reference what the call should leave in y and y_q, which keep their present contents elsewhere. y_q is
    returned unpacked."""
    want_y, want_q = (None if t is None else t.clone() for t in (call.y, call.y_q))
    if packed and want_q is not None:
        want_q = unpack_codes(want_q, instance.out_bits)
    reference.conv2d_out(conv_of(instance, **place), Outputs(want_y, want_q))
    return want_y, want_q


def block(problem: ConvProblem, activation: str = "none", residual: bool = True):
    """Returns the first and the second instance of a residual block, the second with this activation, and the result of both by the
    reference, as two convolutions."""
    first = instantiate(problem)
    settings = {"bits": first.out_bits.tolist(), "activation": activation, "residual": residual}
    second = instantiate(replace(problem, channels=problem.outputs, **settings), seed=1)
    _, second.x_q = first.run("reference", "codes")
    return first, second, second.run("reference", "both")


def run_block(first, second, packed: bool = False, config: int = 0, outputs: str = "yq", **place):
    """Runs two convolutions as one residual block and returns the second's call. It computes a region where `place` names one
    (`conv2d_call`)."""
    a, b = conv2d_call(first, packed_x=packed, outputs="q"), conv2d_call(second, packed_y=packed, outputs=outputs, **place)
    a.args.y_q, b.args.x_q, b.args.x_bits = None, None, a.args.out_bits
    a.args.config = config
    with buffers([*a.read, a.packed, *b.read, b.packed], [t for t in (b.y, b.y_q) if t is not None]):
        host_library().call("adabm_resblock_cuda", a.args, b.args, 0, None)
    return b
