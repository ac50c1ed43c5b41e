"""Time of each layer at each bit-width on this machine, for bit maps that save time instead of bits."""

from __future__ import annotations

import torch

from ..nn.conv import AdaptiveConv2d
from ..nn.from_simulated import conv_parameters
from ..nn.timing import conv_seconds
from ..quantize import MAX_BITS, MIN_BITS
from ..registry import Problem, choose
from ..simulate import SimulatedNetwork

SIDE = 96  # pixels a side of the timed layers, as of the patches that the policy works on


def layer_times(model: SimulatedNetwork) -> dict[str, dict[int, float]]:
    """Seconds of every adaptive layer on one SIDE x SIDE image, by the bits of its input: name -> {2..8: seconds}.

    They are measured with the kernels that the layer would run on, once for each different (shape, tile); see conv_seconds.
    """
    backend = choose(Problem("cpu"), "auto").backend
    known: dict[tuple, float] = {}
    times: dict[str, dict[int, float]] = {}
    for simulated in model.quantized_convs():
        if not simulated.adaptive:
            continue
        conv = AdaptiveConv2d(conv_parameters(simulated), activation="relu")
        conv.set_backend(backend, torch.get_num_threads())
        times[simulated.name] = {}
        for bits in range(MIN_BITS, MAX_BITS + 1):
            key = (*simulated.weight.shape, conv.box_filter, conv.plan.tile[bits - MIN_BITS])
            if key not in known:
                known[key] = conv_seconds(conv, bits, SIDE)
            times[simulated.name][bits] = known[key]
    return times
