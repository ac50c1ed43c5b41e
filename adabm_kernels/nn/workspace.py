"""Buffers that a network keeps between calls: fresh memory for every feature map costs more than the arithmetic on it."""

from __future__ import annotations

import math
import threading

import torch


class Workspace(threading.local):
    """Named buffers, a set for each thread; a buffer grows to the largest size asked for and stays until `clear`."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype, torch.device], torch.Tensor] = {}

    def get(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """A tensor of this shape with arbitrary contents, valid until the next `get` of the same name on this thread."""
        key, count = (name, dtype, device), math.prod(shape)
        buffer = self._buffers.get(key)
        if buffer is None or buffer.numel() < count:
            buffer = self._buffers[key] = torch.empty(count, dtype=dtype, device=device)
        return buffer[:count].view(shape)

    def clear(self) -> None:
        """Give the calling thread's buffers back."""
        self._buffers.clear()

    def __deepcopy__(self, memo: dict) -> Workspace:
        return Workspace()

    def __reduce__(self) -> tuple:
        return Workspace, ()
