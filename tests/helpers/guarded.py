"""Memory between two pages that end the process when they are touched."""

from __future__ import annotations

import ctypes
import mmap

import torch

PLACES = ("start", "shifted", "end")


def guarded_bytes(size: int, alignment: int, place: str) -> tuple[mmap.mmap, int]:
    """Reserves memory and returns it with the offset from which `size` bytes may be used. The memory lives as long as the first
    result.

    place: "end" where these bytes end at the second page (up to the alignment, a power of two), "start" where they begin at the
    first page, and "shifted" where they lie one alignment behind "start", so that they are aligned to nothing more.
    """
    page = mmap.PAGESIZE
    pages = -(-(size + alignment) // page)
    room = mmap.mmap(-1, (pages + 2) * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(room))
    for guard in (start, start + (pages + 1) * page):
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0) == 0
    ends = ((pages + 1) * page - size) // alignment * alignment
    return room, {"end": ends, "start": page, "shifted": page + alignment}[place]


def guarded_empty(count: int, alignment: int, place: str) -> torch.Tensor:
    """A tensor uint8 [count] of zeros in guarded memory."""
    room, offset = guarded_bytes(count, alignment, place)
    return torch.frombuffer(room, dtype=torch.uint8, count=count, offset=offset)


def guarded(tensor: torch.Tensor, place: str, alignment: int = 0) -> torch.Tensor:
    """A contiguous copy of a tensor in guarded memory. alignment: in bytes; 0 stands for the size of an element."""
    tensor = tensor.contiguous()
    room = guarded_empty(tensor.nbytes, alignment or tensor.element_size(), place)
    return room.view(tensor.dtype).view(tensor.shape).copy_(tensor)
