"""How long an integer convolution takes here."""

from __future__ import annotations

import time
from statistics import median

import torch

from ..quantize import padded_channels
from .conv import IntegerConv2d

REPEATS = 7


def conv_seconds(conv: IntegerConv2d, bits: int, side: int) -> float:
    """Seconds of one pass over a side x side image of codes of `bits` bits, codes to codes, on the layer's backend and threads: the
    median of REPEATS."""
    channels = conv.weight.shape[-1]
    x = torch.zeros(1, side, side, padded_channels(channels), dtype=torch.uint8)
    bits_of, seconds = torch.tensor([bits], dtype=torch.int32), []
    for _ in range(REPEATS + 2):
        start = time.perf_counter()
        conv(x, bits_of, out="codes", out_grid=conv.grid, out_bits=bits_of)
        seconds.append(time.perf_counter() - start)
    return median(seconds[2:])
