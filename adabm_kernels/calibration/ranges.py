"""Ranges of weights and activations: observed as published (AdaBM, section 3.2), or searched."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from ..config import ConvertConfig
from ..quantize import MAX_BITS, MIN_BITS, fake_quantize_act, fake_quantize_weight
from ..simulate import SimulatedConv2d, SimulatedNetwork
from .hooks import before_each_conv

SHRINKS = [1 - i / 100 for i in range(100)]  # factors that bit-aware clipping tries on a range
SEARCHED = torch.linspace(0.2, 1, 41).tolist()  # factors that a searched range tries on either end
# two digits are so fine that the range can reach this much beyond the values seen, so that other images are not clipped
ROOM = 1.25
ENLARGED = 6  # images whose enlarged features, which take many times the memory, are looked at
SAMPLE = 1 << 15  # activations of one layer that a search looks at: torch starts no threads for so few


class Observer:
    """Moving averages over batches of the input ranges in the float network, and its inputs' standard deviations."""

    def __init__(self, model: SimulatedNetwork):
        self.model, self.config = model, model.config
        self.ranges: dict[str, tuple[float, float]] = {}
        self.deviations: dict[str, list[float]] = {conv.name: [] for conv in model.quantized_convs() if conv.adaptive}

    def update(self, batch: torch.Tensor) -> None:
        """Run one batch, float32 [N, 3, H, W]. Raises ValueError where the network computes NaN or infinite values."""
        with self.model.float_mode(), before_each_conv(self.model, self._observe):
            outputs = tree_leaves(self.model(batch))
        if not all(y.isfinite().all() for y in outputs):
            raise ValueError("calibrate: model computes NaN or infinite values: its output holds some")

    def _observe(self, conv: SimulatedConv2d, x: torch.Tensor) -> None:
        lower, upper = (float(value) for value in torch.aminmax(x))
        if not np.isfinite([lower, upper]).all():
            raise ValueError(f"calibrate: model computes NaN or infinite values: the input of {conv.name!r} holds some")
        if self.config.chosen("act_ranges") == "percentile":
            share = self.config.range_percentile
            lower, upper = (float(v) for v in np.percentile(x.cpu().numpy().ravel(), [100 - share, share]))
        elif self.config.chosen("act_ranges") == "omse":
            low, up = best_act_range(sample(x), torch.tensor(lower), torch.tensor(upper), self.config.act_bits, SHRINKS[:90])
            lower, upper = float(low), float(up)
        self.ranges[conv.name] = average(self.ranges.get(conv.name), (lower, upper), self.config.ema_beta)
        if conv.adaptive:
            self.deviations[conv.name].append(float(x.std((1, 2, 3)).mean()))

    def store(self) -> None:
        """Write the ranges into the network."""
        for conv in self.model.quantized_convs():
            set_range(conv, *self.ranges[conv.name])
        if self.config.exact_pixels and self.model.spec.takes_pixels and self.model.reads_pixels:
            set_range(self.model.quantized_convs()[0], 0.0, 255 * self.model.pixel_unit())


def average(past: tuple[float, float] | None, new: tuple[float, float], beta: float) -> tuple[float, float]:
    """Exponential moving average of both ends with weight `beta` of the past. The first values are taken as they are."""
    if past is None:
        return new
    return beta * past[0] + (1 - beta) * new[0], beta * past[1] + (1 - beta) * new[1]


def set_range(conv: SimulatedConv2d, lower: float, upper: float) -> None:
    """Set the input range, widened from `lower` upwards when it is too narrow for float32 to divide into levels."""
    if not upper - lower > max(abs(lower), abs(upper), 2.0**-20) * 2.0**-20:
        upper = lower + max(1.0, abs(lower))
    conv.lower_a.fill_(lower)
    conv.upper_a.fill_(upper)


def layer_bits(conv: SimulatedConv2d) -> int:
    """Bits of the input of an image with offset 0."""
    return min(max(conv.act_bits + conv.layer_offset, MIN_BITS), MAX_BITS)


def sample(x: torch.Tensor) -> torch.Tensor:
    """At most SAMPLE values spread evenly over x."""
    values = x.flatten()
    return values[:: -(-len(values) // SAMPLE)]


# ---- weights


def set_weight_ranges(model: SimulatedNetwork) -> None:
    """Sets the range of every weight in the way that the settings of the network name.

    In the published way, the search for the least squared error starts at the largest weight (not the largest magnitude) and
    quantises with the base bit-width, even in the 8-bit layers.
    """
    config: ConvertConfig = model.config
    for conv in model.quantized_convs():
        if conv.weight_grid == "signed":
            conv.weight_range.copy_(best_channel_ranges(conv.weight, conv.weight_bits))
        elif config.weight_ranges == "minmax":
            conv.weight_range.copy_(_positive(conv.weight.abs().max()))
        elif config.weight_ranges == "percentile":
            share = np.percentile(conv.weight.cpu().numpy().ravel(), config.range_percentile)
            conv.weight_range.copy_(_positive(torch.tensor(share, dtype=torch.float32)))
        else:
            conv.weight_range.copy_(published_weight_range(conv.weight, config.weight_bits))


def published_weight_range(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """The range with the least squared quantisation error, among 50 from the largest weight downwards: [1], positive."""
    most = _positive(weight.max())
    errors = [(weight - fake_quantize_weight(weight, most * s, bits)).square().mean() for s in SHRINKS[:50]]
    return most * SHRINKS[int(torch.stack(errors).argmin())]


def best_channel_ranges(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """The range on the signed grid with the least squared error, for each output channel: [K, 1, 1, 1], positive."""
    dims = tuple(range(1, weight.ndim))
    most = weight.abs().amax(dims, keepdim=True).clamp(min=2.0**-60)
    best, error = most, torch.full_like(most, float("inf"))
    for factor in torch.linspace(0.3, 1.1, 81).tolist():
        tried = most * factor
        now = (weight - fake_quantize_weight(weight, tried, bits, "signed")).square().sum(dims, keepdim=True)
        best, error = torch.where(now < error, tried, best), torch.minimum(now, error)
    return best


def _positive(value: torch.Tensor) -> torch.Tensor:
    return value.clamp(min=2.0**-60).view(1)


# ---- activations


def best_act_range(
    x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, bits: int, shrinks: list[float] = SHRINKS
) -> tuple[torch.Tensor, torch.Tensor]:
    """(lower, upper) with the least squared error on x at `bits` bits, among pairs that shrink the given one towards zero."""
    errors = [(x - fake_quantize_act(x, lower * s, upper * s, bits)).square().mean() for s in shrinks]
    shrink = shrinks[int(torch.stack(errors).argmin())]
    return lower * shrink, upper * shrink


def clip_ranges(model: SimulatedNetwork, batch: torch.Tensor) -> None:
    """Bit-aware clipping (AdaBM): one batch runs through the quantised network, and each layer in turn moves its range towards the
    shrunken range with the least squared error at its own bits. The ends keep theirs."""

    def clip(conv: SimulatedConv2d, x: torch.Tensor) -> None:
        if conv.end:
            return
        beta = model.config.bac_beta
        lower, upper = best_act_range(sample(x), conv.lower_a, conv.upper_a, layer_bits(conv))
        conv.lower_a.copy_(beta * conv.lower_a + (1 - beta) * lower)
        conv.upper_a.copy_(beta * conv.upper_a + (1 - beta) * upper)

    _run_trunk(model, batch, clip)


def search_ranges(model: SimulatedNetwork, batch: torch.Tensor) -> None:
    """Sets, layer by layer, the two ends of the range with the least squared error at the layer's bits, on the layer's input in the
    quantised network.

    Each end is searched with the other held, twice. The first convolution of the network keeps its range, which is that of pixels.
    The range of the upsampler, whose input has rare large values, is searched too. The convolutions behind the upsampler keep the
    observed range, except in a network whose channels have factors.
    """

    def search(conv: SimulatedConv2d, x: torch.Tensor) -> None:
        if conv is first:
            return
        least, most = (float(v) for v in torch.aminmax(x))
        if conv.digits == 2:
            set_range(conv, least * ROOM, most * ROOM)
            return
        values, bits = sample(x), layer_bits(conv)
        lower, upper = least, most
        if most - least > max(abs(least), abs(most)) * 2.0**-20:

            def error(lower: float, upper: float) -> float:
                rounded = fake_quantize_act(values, torch.tensor([lower]), torch.tensor([upper]), bits)
                return float((values - rounded).square().mean())

            for _ in range(2):
                if least < 0 < upper:
                    lower = min((least * f for f in SEARCHED), key=partial(error, upper=upper))
                if most > 0 and most * SEARCHED[0] > lower:
                    upper = min((most * f for f in SEARCHED), key=partial(error, lower))
        set_range(conv, lower, upper)

    convs = model.quantized_convs()
    first = convs[0] if convs[0].end and model.spec.takes_pixels else None
    feature = _run_trunk(model, batch, search)
    if (following := model.after_trunk) is not None:
        search(following, feature)
    if model.equalized:
        few, offsets = batch[:ENLARGED], model.image_offsets(batch[:ENLARGED])
        tail = [conv for conv in convs if conv.name in model.spec.tail_names]
        with before_each_conv(model, lambda conv, x: search(conv, x) if conv in tail[1:] else None):
            model.upsample(feature[:ENLARGED], offsets, few)


def _run_trunk(model: SimulatedNetwork, batch: torch.Tensor, act: Callable[[SimulatedConv2d, torch.Tensor], None]) -> torch.Tensor:
    """Runs the quantised network up to its upsampler, which holds only 8-bit ends and half of the work. Returns the upsampler's
    input."""
    with before_each_conv(model, act):
        return model.trunk(batch, model.image_offsets(batch))[0]
