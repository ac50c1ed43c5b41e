"""Tells which card a device is, and whether Triton's interpreter takes its place. Imports torch only when asked."""

from __future__ import annotations

import functools
import os

from . import amd


def interpreting() -> bool:
    """Tells whether Triton's interpreter is on, as in tests. Kernels then run on the CPU, very slowly."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def card(device: str | None) -> int:
    """Index of the card that a device names, as "cuda:1" does, or of the current card where it names none ("cuda", None)."""
    import torch

    index = device.partition(":")[2] if device else ""
    return int(index) if index else torch.cuda.current_device()


def capability(device: str | None) -> tuple[int, int]:
    """Compute capability of the card of NVIDIA that `card` finds for a device."""
    import torch

    return torch.cuda.get_device_capability(card(device))


def amd_architecture(index: int | None) -> str:
    """The architecture, such as "gfx942", of the card of AMD with this index (None: the current one). It needs a torch for ROCm."""
    return _amd_architecture(card(None) if index is None else index)


@functools.cache
def _amd_architecture(index: int) -> str:
    import torch

    return amd.short_name(torch.cuda.get_device_properties(index).gcnArchName)
