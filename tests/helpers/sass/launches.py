"""Calls of the CUDA library as launches of its machine code: the tests' host runtime cuts the tiles and hands over the
parameters."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterable

import numpy as np
import torch
from cuda_library import Captured, captured_launches, driver, host_library

from . import cubin
from .block import Block, Launch
from .memory import Region

# Kernel -> the file of csrc that has it, and whether it is compiled for 9.0 alone (sm_90a).
SOURCES = {
    "conv2d_sm80": ("cuda/conv2d.cu", False),
    "conv2d_sm90": ("cuda/conv2d_sm90.cu", True),
    "resblock_sm90": ("cuda/resblock_sm90.cu", True),
}
# What the pretended driver says of a card, by architecture: compute capability, shared memory of a block, multiprocessors.
CARDS = {
    "80": {"major": 8, "minor": 0, "shared_limit": 163 << 10, "multiprocessors": 108},
    "86": {"major": 8, "minor": 6, "shared_limit": 99 << 10, "multiprocessors": 82},
    "89": {"major": 8, "minor": 9, "shared_limit": 99 << 10, "multiprocessors": 128},
    "90": {"major": 9, "minor": 0, "shared_limit": 227 << 10, "multiprocessors": 132},
}


@functools.cache
def _names() -> dict[int, str]:
    return cubin.symbols(host_library().path)


class _Info(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("base", ctypes.c_void_p), ("symbol", ctypes.c_char_p), ("address", ctypes.c_void_p)]


def name_of(function: int) -> str:
    """The mangled name of a function of the host library."""
    info = _Info()
    if not ctypes.CDLL(None).dladdr(ctypes.c_void_p(function), ctypes.byref(info)):
        raise ValueError(f"name_of: no library has a function at {function:#x}")
    return _names()[function - info.base]


def kernel_of(name: str, architecture: str) -> cubin.Kernel:
    """The machine code of a kernel by its mangled name, for "80", "86", "89" or "90"."""
    for short, (source, alone) in SOURCES.items():
        if f"{len(short)}{short}" in name:
            return cubin.find(name, source, architecture + "a" * alone)
    raise KeyError(f"kernel_of: no file of csrc is known for {name}")


def launch(call: Callable[[], None], architecture: str, **answers: int) -> Launch:
    """The one launch that a call of the host library makes on a card of an architecture. answers: what else the driver says."""
    with captured_launches() as launches, driver(**CARDS[architecture] | answers):
        call()
    if len(launches) != 1:
        raise ValueError(f"launch: call must make one launch, got {len(launches)}")
    found: Captured = launches[0]
    kernel = kernel_of(name_of(found.function), architecture)
    x, y, z = found.grid
    if z != 1:
        raise ValueError(f"launch: a grid must have two dimensions, got {x}x{y}x{z}")
    return Launch(kernel, (x, y), found.threads, found.shared_bytes, found.parameters, CARDS[architecture]["major"])


def regions(read: Iterable[torch.Tensor], written: Iterable[torch.Tensor]) -> list[Region]:
    """The memory of CPU tensors, at its own addresses; a tensor that is both is written."""
    found: dict[int, Region] = {}
    for writable, group in ((False, read), (True, written)):
        for tensor in group:
            size = tensor.numel() * tensor.element_size()
            name = f"{'written' if writable else 'read'} {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
            if size:
                found[tensor.data_ptr()] = Region.of_host(tensor.data_ptr(), size, writable, name)
    return list(found.values())


def run(started: Launch, index: tuple[int, int], read: list[torch.Tensor], written: list[torch.Tensor], **settings) -> Block:
    """Executes one block to its end."""
    return Block(started, index, regions(read, written), **settings).run()


def poison(tensor: torch.Tensor) -> None:
    """Fills a tensor with bytes that no result has throughout."""
    np.frombuffer((ctypes.c_uint8 * (tensor.numel() * tensor.element_size())).from_address(tensor.data_ptr()), np.uint8)[:] = 0xAB
