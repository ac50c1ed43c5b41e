"""Bit maps: image thresholds and layer offsets, either as published or by measured sensitivity under a budget of bits or time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ..config import ConvertConfig
from ..quantize import MAX_BITS, MIN_BITS, fake_quantize_act
from ..simulate import SimulatedConv2d, SimulatedNetwork, image_measure
from .hooks import before_each_conv
from .ranges import average

OFFSETS = (-1, 0, 1)
PROBES = 4  # random projections of the output that sensitivities are averaged over
BINS = 20_000  # resolution of a budget
PROBED_VALUES = 2**27  # layer inputs of one image that are probed at once; an RDN-B at 96x96 has 3.4e8 and would need 15 GB


def image_thresholds(images: Sequence[torch.Tensor], config: ConvertConfig) -> tuple[float, float]:
    """(lower, upper) percentiles of the image measure, a moving average over batches (AdaBM, section 3.2).

    images: batches [N, 3, H, W] in 0..255.
    """
    thresholds: tuple[float, float] | None = None
    for batch in images:
        measure, quantile = image_measure(batch), config.image_percentile / 100
        new = float(torch.quantile(measure, quantile)), float(torch.quantile(measure, 1 - quantile))
        thresholds = average(thresholds, new, config.ema_beta)
    assert thresholds is not None, "there is at least one batch"
    return thresholds


def layer_offsets_by_deviation(deviations: Mapping[str, list[float]], percentile: float) -> dict[str, int]:
    """The offset of each layer by name: -1 where its mean standard deviation lies below the percentiles of all layers, +1 where it
    lies above them, and 0 elsewhere (AdaBM, section 3.2)."""
    if not deviations:
        return {}
    means = {name: float(np.mean(values)) for name, values in deviations.items()}
    low, high = np.percentile(list(means.values()), [percentile, 100 - percentile])
    return {name: int(mean > high) - int(mean < low) for name, mean in means.items()}


def sensitivities(model: SimulatedNetwork, batch: torch.Tensor, generator: torch.Generator) -> dict[str, dict[int, float]]:
    """Squared output error that each adaptive layer's rounding causes, by its number of bits.

    With r the gradient of a random projection v of the output with respect to a layer's input, E[(r * noise)^2] summed over the
    input is the energy at the output that independent noise in the input causes. One backward pass serves every layer. The noise is
    what rounding the layer's actual input leaves at each width. Only the middle is used of images with more than PROBED_VALUES
    layer inputs, which keeps memory bounded. Returns name -> {bits: energy per output value}.
    """
    layers = [conv for conv in model.quantized_convs() if conv.adaptive]
    energy = {conv.name: dict.fromkeys(range(MIN_BITS, MAX_BITS + 1), 0.0) for conv in layers}
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def tap(conv: SimulatedConv2d, x: torch.Tensor) -> torch.Tensor | None:
        if not conv.adaptive:
            return None
        probe = torch.zeros_like(x, requires_grad=True)
        seen[conv.name] = (x.detach(), probe)
        return x + probe

    side = max(8, math.isqrt(PROBED_VALUES // sum(conv.weight.shape[1] for conv in layers))) if layers else 0
    for image in (_middle(batch, side) if model.spec.takes_pixels else batch).split(1):
        with torch.enable_grad(), before_each_conv(model, tap):
            y = model.preview(image)
        probes = [seen[conv.name][1] for conv in layers]
        squares = [torch.zeros(()) for _ in layers]
        for probe in range(PROBES):
            v = torch.randint(0, 2, y.shape, generator=generator).to(y) * 2 - 1
            # In a traced network an output may depend on a layer through an operation without a gradient.
            gradients = torch.autograd.grad(y, probes, v, retain_graph=probe + 1 < PROBES, allow_unused=True)
            pairs = zip(squares, gradients, strict=True)
            squares = [square if gradient is None else square + gradient.square() for square, gradient in pairs]
        del y, probes, gradients
        # One layer and width is handled at a time, because the noise of all at once would be many times the network.
        for conv, square in zip(layers, squares, strict=True):
            x = seen.pop(conv.name)[0]
            for bits in energy[conv.name]:
                error = (fake_quantize_act(x, conv.lower_a.detach(), conv.upper_a.detach(), bits) - x).square()
                energy[conv.name][bits] += float((square * error).sum()) / (PROBES * len(batch) * v.numel())
        seen.clear()
    return energy


def _middle(batch: torch.Tensor, side: int) -> torch.Tensor:
    """The middle of images [N, C, H, W] with at most side x side pixels; smaller images as they are."""
    h, w = batch.shape[-2:]
    if h * w <= side * side:
        return batch
    top, left = max(h - side, 0) // 2, max(w - side, 0) // 2
    return batch[..., top : top + side, left : left + side]


def allocate(
    damage: Mapping[str, Mapping[int, float]], cost: Mapping[str, Mapping[int, float]], base: Mapping[str, int], budget: float
) -> dict[str, int]:
    """The offset of each layer that minimises the summed damage while the summed cost stays within the budget.

    damage, cost: layer -> {bits: value}. base: layer -> bits at offset 0. It works by dynamic programming over layers, and is exact
    up to the rounding of each cost to one BINS-th of the cost between the cheapest and the dearest choice. A budget below the
    cheapest choice gives the cheapest choice.
    """
    names = list(damage)
    choices = [[(o, min(max(base[name] + o, MIN_BITS), MAX_BITS)) for o in OFFSETS] for name in names]
    least = sum(min(cost[name][bits] for _, bits in choice) for name, choice in zip(names, choices, strict=True))
    most = sum(max(cost[name][bits] for _, bits in choice) for name, choice in zip(names, choices, strict=True))
    unit = max(most - least, 1e-30) / BINS
    # Half a bin of rounding for each layer may come out either way.
    room = min(max(int((budget - least) / unit + len(names) / 2), 0), BINS + len(names))
    best, picks = np.full(BINS + len(names) + 1, np.inf), []
    best[0] = 0.0
    for name, choice in zip(names, choices, strict=True):
        floor = min(cost[name][bits] for _, bits in choice)
        following, picked = np.full_like(best, np.inf), np.zeros(len(best), np.int8)
        for offset, bits in choice:
            step = int(round((cost[name][bits] - floor) / unit))
            tried = np.full_like(best, np.inf)
            tried[step:] = best[: len(best) - step] + damage[name][bits]
            better = tried < following
            following[better], picked[better] = tried[better], offset
        best = following
        picks.append(picked)
    at = int(np.argmin(best[: room + 1]))
    offsets = {}
    for name, choice, picked in zip(reversed(names), reversed(choices), reversed(picks), strict=True):
        offset = int(picked[at])
        offsets[name] = offset
        bits = dict(choice)[offset]
        at -= int(round((cost[name][bits] - min(cost[name][b] for _, b in choice)) / unit))
    return {name: offsets[name] for name in names}
