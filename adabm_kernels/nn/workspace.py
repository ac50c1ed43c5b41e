"""Buffers that a network keeps between calls: fresh memory for every feature map costs more than the arithmetic on it."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Workspace(threading.local):
    """Named buffers, with a set for each thread and CUDA stream. Each grows to the largest size asked for and stays until
    `clear`."""

    def __init__(self) -> None:
        self._buffers: dict[tuple, torch.Tensor] = {}
        self.holds_output = False  # whether the calling thread's network writes its output into a buffer too

    def get(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, room: int = 0) -> torch.Tensor:
        """A tensor of this shape with arbitrary contents, valid until the next `get` of the same name on this thread.

        room: values that the buffer will have to hold, where that is more than the shape has.
        """
        # Work on two streams may overlap even where one thread asked for both.
        stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else None
        key, count = (name, dtype, device, stream), math.prod(shape)
        if torch._C._len_torch_dispatch_stack() or torch._C._are_functorch_transforms_active():
            # Fake, traced or wrapped tensors must not be kept, because they mean nothing to the calls that follow.
            return torch.empty(shape, dtype=dtype, device=device)
        buffer = self._buffers.get(key)
        if buffer is None or buffer.numel() < max(count, room):
            with torch.inference_mode(False):  # a tensor of inference mode could not be written outside of it
                buffer = self._buffers[key] = torch.empty(max(count, room), dtype=dtype, device=device)
        return buffer[:count].view(shape)

    def clear(self) -> None:
        """Frees the calling thread's buffers."""
        self._buffers.clear()

    @contextmanager
    def fresh(self) -> Iterator[None]:
        """Inside the context the calling thread has no buffers at first. Those made there are freed after it."""
        kept, self._buffers = self._buffers, {}
        try:
            yield
        finally:
            self._buffers = kept

    def __deepcopy__(self, memo: dict) -> Workspace:
        return Workspace()

    def __reduce__(self) -> tuple:
        return Workspace, ()
