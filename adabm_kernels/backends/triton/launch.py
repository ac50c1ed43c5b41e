"""What every launcher needs: the device, and the sizes that a launch can take."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import torch

from .. import amd, devices

MOST_IMAGES = 65535  # of a grid's second axis
MOST_PIXELS = 2**31 - 2**12  # of an image: positions are 32 bits, and tiles reach a little further
MOST_THREADS = 2**32 - 1  # along an axis of a grid on a card of AMD (HIP, hipModuleLaunchKernel); NVIDIA's count programs
NARROW = 2**31 - 1  # elements of an image that 32-bit offsets reach


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
    name = devices.amd_architecture(device.index)
    threads = programs * warps * amd.ARCHITECTURES[name].lanes
    if threads > MOST_THREADS:
        raise ValueError(f"{operator}: an image must take at most {MOST_THREADS} threads on {name}, got {threads}")


def on(tensor: torch.Tensor) -> AbstractContextManager:
    """The tensor's device is the current one inside the context: Triton launches there, on its current stream."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def capability(device: torch.device) -> int | str:
    """Compute capability, 90 for 9.0, or on a card of AMD its architecture, "gfx942"; for the interpreter that of Ampere."""
    if device.type != "cuda":
        return 80
    if torch.version.hip is not None:
        return devices.amd_architecture(device.index)
    major, minor = torch.cuda.get_device_capability(device)
    return major * 10 + minor
