"""What every launcher needs: the device, and the sizes that a launch can take."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import torch

MOST_IMAGES = 65535  # of a grid's second axis
MOST_PIXELS = 2**31 - 2**12  # of an image: positions are 32 bits, and tiles reach a little further
NARROW = 2**31 - 1  # elements of an image that 32-bit offsets reach


def check(operator: str, name: str, tensor: torch.Tensor, pixels: int) -> None:
    """Raises ValueError for more images or pixels an image (of the input or output, whichever has more) than a launch can count."""
    if tensor.shape[0] > MOST_IMAGES:
        raise ValueError(f"{operator}: {name} must have at most {MOST_IMAGES} images, got {tensor.shape[0]}")
    if pixels > MOST_PIXELS:
        raise ValueError(f"{operator}: an image of {name} must give at most {MOST_PIXELS} pixels, got {pixels}")


def on(tensor: torch.Tensor) -> AbstractContextManager:
    """The tensor's device is the current one inside the context: Triton launches there, on its current stream."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


# Compute capability -> shared memory that one block can have, bytes (CUDA C++ Programming Guide, technical specifications).
_SHARED = {80: 163 << 10, 87: 163 << 10, 90: 227 << 10, 100: 227 << 10, 103: 227 << 10}


def shared_bytes(capability: int) -> int:
    """Shared memory that one block can have."""
    return _SHARED.get(capability, 99 << 10)  # of 8.6, 8.9, 12.0 and 12.1


def capability(device: torch.device) -> int:
    """Compute capability, 90 for 9.0; that of Ampere for the interpreter, which has none."""
    if device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return major * 10 + minor
