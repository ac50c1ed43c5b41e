"""What every launcher needs: the device, and the sizes that a launch can take."""

from __future__ import annotations

import contextlib
import functools
from contextlib import AbstractContextManager
from typing import Any

import torch

from .. import amd, cards

MOST_IMAGES = 65535  # of a grid's second axis
MOST_PIXELS = 2**31 - 2**12  # of an image: positions are 32 bits, and tiles reach a little further
MOST_THREADS = 2**32 - 1  # along an axis of a grid on a card of AMD (HIP, hipModuleLaunchKernel); NVIDIA's count programs
NARROW = 2**31 - 1  # elements of an image that 32-bit offsets reach
_HERE = contextlib.nullcontext()


def check(operator: str, name: str, tensor: torch.Tensor, pixels: int) -> None:
    """Raises ValueError for more images or pixels an image (of the input or output, whichever has more) than a launch can count."""
    if tensor.shape[0] > MOST_IMAGES:
        raise ValueError(f"{operator}: {name} must have at most {MOST_IMAGES} images, got {tensor.shape[0]}")
    if pixels > MOST_PIXELS:
        raise ValueError(f"{operator}: an image of {name} must give at most {MOST_PIXELS} pixels, got {pixels}")


def check_programs(operator: str, device: torch.device, programs: int, warps: int) -> None:
    """Raises ValueError for more programs along the first axis of a grid, each of so many warps, than a card of AMD counts."""
    if device.type != "cuda" or torch.version.hip is None:
        return
    name = cards.amd_architecture(device.index)
    threads = programs * warps * amd.ARCHITECTURES[name].lanes
    if threads > MOST_THREADS:
        raise ValueError(f"{operator}: an image must take at most {MOST_THREADS} threads on {name}, got {threads}")


def on(tensor: torch.Tensor) -> AbstractContextManager:
    """The tensor's device is the current one inside the context: Triton launches there, on its current stream."""
    elsewhere = tensor.is_cuda and tensor.device.index != torch.cuda.current_device()
    return torch.cuda.device(tensor.device) if elsewhere else _HERE


class Again:
    """Launches of a kernel on one device with arguments of the same types, and the same sizes where it is compiled for those.

    kernel: of triton.jit. grid: its programs, two numbers. constants: by name, in the order of the kernel's parameters, and its
    options behind them. The first launch with addresses that are all multiples of 16 gives the compiled kernel, and those that
    follow take it: looking it up costs Triton several times what the launch does.
    """

    def __init__(self, kernel: Any, grid: tuple[int, int], constants: dict[str, Any]):
        self._first, self._grid, self._settings = kernel[grid], (*grid, 1), constants
        self._constants = [constants[name] for name in kernel.arg_names if name in constants]
        self._compiled: Any = None

    def __call__(self, tensors: tuple[torch.Tensor | None, ...], arguments: tuple[Any, ...]) -> None:
        """tensors: those whose alignment the kernel is compiled for; arguments: all of them, tensors too, in their order."""
        aligned = not any([tensor is not None and tensor.data_ptr() & 15 for tensor in tensors])
        if aligned and self._compiled is not None:
            self._compiled(*arguments, *self._constants)
            return
        compiled = self._first(*arguments, **self._settings)
        if aligned and compiled is not None:  # the interpreter compiles nothing
            self._compiled = compiled[self._grid]


@functools.lru_cache(256)
def _again(kernel: Any, grid: tuple[int, int], constants: tuple[tuple[str, Any], ...], *_facts: Any) -> Again:
    return Again(kernel, grid, dict(constants))


def forget_compiled() -> None:
    """Launches look their compiled kernels up again: devices are others."""
    _again.cache_clear()


def run(
    kernel: Any, grid: tuple[int, int], tensors: tuple[torch.Tensor | None, ...], numbers: tuple[int, ...], **constants: Any
) -> None:
    """Launch a kernel whose parameters are tensors, numbers and constants in this order; `Again` where all but addresses is as in a
    launch before."""
    types = tuple([None if tensor is None else tensor.dtype for tensor in tensors])
    first = tensors[0]
    assert first is not None
    _again(kernel, grid, tuple(constants.items()), first.device, types, numbers)(tensors, (*tensors, *numbers))


# Compute capability -> shared memory that one block can have, bytes (CUDA C++ Programming Guide, technical specifications).
_SHARED = {80: 163 << 10, 87: 163 << 10, 90: 227 << 10, 100: 227 << 10, 103: 227 << 10}


def shared_bytes(capability: int) -> int:
    """Shared memory that one block can have."""
    return _SHARED.get(capability, 99 << 10)  # of 8.6, 8.9, 12.0 and 12.1


def capability(device: torch.device) -> int | str:
    """Compute capability, 90 for 9.0, or on a card of AMD its architecture, "gfx942"; for the interpreter that of Ampere."""
    if device.type != "cuda":
        return 80
    if torch.version.hip is not None:
        return cards.amd_architecture(device.index)
    major, minor = torch.cuda.get_device_capability(device)
    return major * 10 + minor
