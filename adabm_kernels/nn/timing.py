"""How long an integer convolution takes on this machine."""

from __future__ import annotations

import time
from statistics import median

import torch

from ..quantize import padded_channels
from .conv import IntegerConv2d

REPEATS = 7


def wait_for(device: torch.device) -> None:
    """Waits until a CUDA device has finished the work it was given. Other devices have finished when a call returns."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def conv_seconds(conv: IntegerConv2d, bits: int, side: int) -> float:
    """Seconds of one pass over a side x side image of codes of `bits` bits that writes codes, on the layer's backend and threads.
    It is the median of REPEATS passes."""
    channels, device = conv.weight.shape[-1] * conv.geometry.groups, conv.weight.device
    x = torch.zeros(1, side, side, padded_channels(channels), dtype=torch.uint8, device=device)
    bits_of, seconds = torch.full((1,), bits, dtype=torch.int32, device=device), []
    for _ in range(REPEATS + 2):
        wait_for(device)
        start = time.perf_counter()
        conv(x, bits_of, out="codes", out_grid=conv.grid, out_bits=bits_of)
        wait_for(device)
        seconds.append(time.perf_counter() - start)
    return median(seconds[2:])
