"""Tells whether a call that was made ready would be launched in the same way now. It needs no Triton, though Triton alone has such
a choice."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

Function = TypeVar("Function", bound=Callable)

# A generation ends whenever something changes that decides about launches. A call that was made ready in another generation is made
# ready again.
generation = 0
_decided: list[Callable[[], None]] = []  # functions that forget what was decided in the generation that ends


def remembered(most: int) -> Callable[[Function], Function]:
    """A decorator for functions that decide about launches: their results for up to `most` different calls are remembered within a
    generation."""

    def decorated(function: Function) -> Function:
        cached = functools.lru_cache(most)(function)
        _decided.append(cached.cache_clear)
        return cached  # type: ignore[return-value]

    return decorated


def changed() -> None:
    """Begins a new generation."""
    global generation
    generation += 1
    for forget in _decided:
        forget()
