"""Calls made ready: what the checks read of a call is its signature, and a call of a known signature is not checked again.

Nothing of a tensor is kept but what the signature says of it: sizes, strides, type and device are read again at every call.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any

import torch

# How many signatures are kept: a network makes some seven for each size of images. One more than these, and all are forgotten.
MOST = 1024

# Signature -> what runs such a call, given its tensors.
READY: dict[Hashable, Callable[..., Any]] = {}


def signature(tensors: Iterable[torch.Tensor | None]) -> tuple:
    """All that checks can ask of tensors but what is in them and where they lie.

    A contiguous tensor needs no strides here: its shape determines them, except in dimensions of one element, where no address
    depends on them.
    """
    return tuple([None if t is None else (t.shape, t.is_contiguous() or t.stride(), t.dtype, t.device) for t in tensors])


def keep(key: Hashable, run: Callable[..., Any]) -> Callable[..., Any]:
    """`run`, which calls with this signature will find in READY."""
    if len(READY) >= MOST:
        READY.clear()
    READY[key] = run
    return run
