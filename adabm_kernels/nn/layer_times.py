"""How long each convolution of a converted network takes while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .network import ConvertedNetwork
from .timing import wait_for

WAYS = ("forward", "into", "into_with", "pixels", "pixels_into")  # the methods by which an integer convolution is run


@contextmanager
def layer_times(model: ConvertedNetwork) -> Iterator[dict[str, float]]:
    """Inside the block, collects by name the seconds that each integer convolution took in all forward passes. Only one thread may
    run the model.

    A convolution's time includes its epilogue: activation, residual, and the codes of the next layer. Two convolutions that run as
    one share their time equally. On a GPU every convolution is waited for, which makes the whole slower than it is without
    measuring.
    """
    seconds: dict[str, float] = {conv.name: 0.0 for conv in model.convs()}

    def timed(name: str, call: Callable) -> Callable:
        def run(*args: Any, **kwargs: Any) -> Any:
            wait_for(model._device())  # this waits for the work between convolutions
            start = time.perf_counter()
            result = call(*args, **kwargs)
            wait_for(model._device())
            took = time.perf_counter() - start
            names = (name, args[0].name) if call.__name__ == "into_with" else (name,)
            for each in names:
                seconds[each] += took / len(names)
            return result

        return run

    try:
        for conv in model.convs():
            for way in WAYS:
                setattr(conv, way, timed(conv.name, getattr(conv, way)))
        yield seconds
    finally:
        for conv in model.convs():
            for way in WAYS:
                conv.__dict__.pop(way, None)
