"""Looking at the inputs of the quantised convolutions while a network runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from ..simulate import SimulatedConv2d, SimulatedNetwork


@contextmanager
def before_each_conv(
    model: SimulatedNetwork, act: Callable[[SimulatedConv2d, torch.Tensor], torch.Tensor | None]
) -> Iterator[None]:
    """Inside this context `act(conv, input)` runs before each quantised convolution; a tensor it returns is the new input."""

    def hook(conv: SimulatedConv2d, args: tuple) -> tuple | None:
        x = act(conv, args[0])
        return None if x is None else (x, *args[1:])

    handles = [conv.register_forward_pre_hook(hook) for conv in model.quantized_convs()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
