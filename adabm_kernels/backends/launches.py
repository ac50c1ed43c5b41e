"""Whether calls that were made ready are launched as they would be now. Known without Triton, which alone has such a choice."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

Function = TypeVar("Function", bound=Callable)

# How often that has changed which decides about launches: a call that was made ready in another generation is made ready again.
generation = 0
_decided: list[Callable[[], None]] = []  # forget what was decided in the generation that ends


def remembered(most: int) -> Callable[[Function], Function]:
    """A decorator of functions that decide about launches: what they return is remembered, for so many calls, in a generation."""

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
