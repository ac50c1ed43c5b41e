"""Calls made ready. The properties of a call that the checks read are its signature, and a call of a known signature is not checked
again.

Nothing of a tensor is kept but its signature: sizes, strides, type and device are read again at every call.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any

import torch

# The most signatures that are kept. A network makes some seven for each size of images. When one more comes, all are forgotten.
MOST = 1024

# By signature, the function that runs such a call when it is given the tensors.
READY: dict[Hashable, Callable[..., Any]] = {}


def signature(tensors: Iterable[torch.Tensor | None]) -> tuple:
    """All properties of tensors that checks can ask for, except their contents and their addresses.

    A contiguous tensor needs no strides here: its shape determines them, except in dimensions of one element, where no address
    depends on them.
    """
    return tuple([None if t is None else (t.shape, t.is_contiguous() or t.stride(), t.dtype, t.device) for t in tensors])


def keep(key: Hashable, run: Callable[..., Any]) -> Callable[..., Any]:
    """Keeps `run` in READY for calls with this signature, and returns it."""
    if len(READY) >= MOST:
        READY.clear()
    READY[key] = run
    return run
