"""The parts that every launcher needs: the device, the sizes that one launch can take, and the repetition of a launch."""

from __future__ import annotations

import contextlib
import functools
from contextlib import AbstractContextManager
from typing import Any

import torch

from .. import amd, cards

MOST_IMAGES = 65535  # programs along the second axis of a grid
MOST_PIXELS = 2**31 - 2**12  # pixels of an image: positions have 32 bits, and tiles reach a little further
# Threads along an axis of a grid on a card of AMD (HIP, hipModuleLaunchKernel). NVIDIA's cards limit programs instead.
MOST_THREADS = 2**32 - 1
NARROW = 2**31 - 1  # elements of an image that 32-bit offsets reach
_HERE = contextlib.nullcontext()


def check(operator: str, name: str, tensor: torch.Tensor, pixels: int) -> None:
    """Raises ValueError where there are more images, or more pixels in an image, than one launch can count. pixels: those of an
    image of the input or of the output, whichever has more.
    """
    if tensor.shape[0] > MOST_IMAGES:
        raise ValueError(f"{operator}: {name} must have at most {MOST_IMAGES} images, got {tensor.shape[0]}")
    if pixels > MOST_PIXELS:
        raise ValueError(f"{operator}: an image of {name} must give at most {MOST_PIXELS} pixels, got {pixels}")


def check_programs(operator: str, device: torch.device, programs: int, warps: int) -> None:
    """Raises ValueError where a card of AMD cannot count so many programs, each of `warps` warps, on the first axis of a grid."""
    if device.type != "cuda" or torch.version.hip is None:
        return
    name = cards.amd_architecture(device.index)
    threads = programs * warps * amd.ARCHITECTURES[name].lanes
    if threads > MOST_THREADS:
        raise ValueError(f"{operator}: an image must take at most {MOST_THREADS} threads on {name}, got {threads}")


def on(tensor: torch.Tensor) -> AbstractContextManager:
    """A context in which the tensor's device is the current one, because Triton launches there, on its current stream."""
    elsewhere = tensor.is_cuda and tensor.device.index != torch.cuda.current_device()
    return torch.cuda.device(tensor.device) if elsewhere else _HERE


class Again:
    """Launches of one kernel on one device with arguments of the same types, and of the same sizes where the kernel is compiled for
    these.

    kernel: a function of triton.jit. grid: the numbers of programs along its two axes. constants: the kernel's constants by name,
    in the order of its parameters, and then its options. The first launch whose addresses are all multiples of 16 gives the
    compiled kernel, and later launches use that one, because looking it up costs Triton several times what the launch does.
    """

    def __init__(self, kernel: Any, grid: tuple[int, int], constants: dict[str, Any]):
        self._first, self._grid, self._settings = kernel[grid], (*grid, 1), constants
        self._constants = [constants[name] for name in kernel.arg_names if name in constants]
        self._compiled: Any = None

    def __call__(self, tensors: tuple[torch.Tensor | None, ...], arguments: tuple[Any, ...]) -> None:
        """Launches the kernel. tensors: those for whose alignment the kernel is compiled. arguments: all arguments in their order,
        the tensors among them.
        """
        aligned = not any([tensor is not None and tensor.data_ptr() & 15 for tensor in tensors])
        if aligned and self._compiled is not None:
            self._compiled(*arguments, *self._constants)
            return
        compiled = self._first(*arguments, **self._settings)
        if aligned and compiled is not None:  # the interpreter compiles nothing and returns None
            self._compiled = compiled[self._grid]


@functools.lru_cache(256)
def _again(kernel: Any, grid: tuple[int, int], constants: tuple[tuple[str, Any], ...], *_facts: Any) -> Again:
    return Again(kernel, grid, dict(constants))


def forget_compiled() -> None:
    """Makes later launches look their compiled kernels up again, because the devices have changed."""
    _again.cache_clear()


def run(
    kernel: Any, grid: tuple[int, int], tensors: tuple[torch.Tensor | None, ...], numbers: tuple[int, ...], **constants: Any
) -> None:
    """Launches a kernel whose parameters are tensors, numbers and constants in this order. Where everything but the addresses is as
    in an earlier launch, the `Again` of that launch is used.
    """
    types = tuple([None if tensor is None else tensor.dtype for tensor in tensors])
    first = tensors[0]
    assert first is not None
    _again(kernel, grid, tuple(constants.items()), first.device, types, numbers)(tensors, (*tensors, *numbers))


# Bytes of shared memory that one block can have, by compute capability (CUDA C++ Programming Guide, technical specifications).
_SHARED = {80: 163 << 10, 87: 163 << 10, 90: 227 << 10, 100: 227 << 10, 103: 227 << 10}


def shared_bytes(capability: int) -> int:
    """Bytes of shared memory that one block can have. capability: 90 for 9.0."""
    return _SHARED.get(capability, 99 << 10)  # the default is that of 8.6, 8.9, 12.0 and 12.1


def capability(device: torch.device) -> int | str:
    """The compute capability of a device of NVIDIA, 90 for 9.0, or the architecture of a card of AMD, such as "gfx942". For the
    interpreter it is that of Ampere.
    """
    if device.type != "cuda":
        return 80
    if torch.version.hip is not None:
        return cards.amd_architecture(device.index)
    major, minor = torch.cuda.get_device_capability(device)
    return major * 10 + minor
