"""Calibration without training: activation and weight ranges, image thresholds and layer offsets from sample images.

The method is that of AdaBM (Hong and Lee, CVPR 2024, arXiv 2404.03296) without its fine-tuning. Where the authors'
implementation searches the 8-bit weights of the first, last and upsampler convolutions with the base bit-width, each
layer is searched with its own here.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .config import ConvertConfig
from .networks.detect import detect
from .networks.edsr import EDSR
from .quantize import MAX_BITS, MIN_BITS, fake_quantize_act, fake_quantize_weight
from .simulate import SimulatedConv2d, SimulatedEDSR, image_measure

MIN_SIDE = 16  # pixels; in smaller images most features see the zero padding and ranges would be those of borders
SHRINKS = [1 - i / 100 for i in range(100)]  # factors tried on a range
CLIPPING_SAMPLE = 1 << 15  # activations of one layer that bit-aware clipping looks at: torch starts no threads for so few


def calibrate(
    model: nn.Module | Mapping[str, Any],
    images: Iterable[torch.Tensor | str | Path],
    config: ConvertConfig | None = None,
    progress: Callable[[int, int], None] | None = None,
    *,
    res_scale: float | None = None,
) -> SimulatedEDSR:
    """Choose every range, threshold and offset of a quantised network from images; its weights stay as they are.

    model: a float network, recognised by its state dict (EDSR-PyTorch or AdaBM names), or that state dict.
    images: low-resolution images as the network will see them, about 100: float or uint8 tensors [N, 3, H, W] in
        0..255, or paths of pictures. Of each a random crop of at most `config.patch` pixels a side is used, smaller
        where another image of its batch is smaller.
    progress: called with (batches done, batches in all).
    res_scale: the network's residual scale, which its state dict does not reveal; default that of an `EDSR`, else 1.

    1. Weights: the range with the least squared error on the layer's own bits.
    2. Batches of crops run through the float network. Activation ranges (minimum and maximum) and image thresholds
       (percentiles of `image_measure`) are moving averages over batches; layer offsets are -1 and +1 for the layers
       whose mean standard deviation lies outside the percentiles of all layers.
    3. Bit-aware clipping: with all that in place one batch runs through the quantised network, and each layer in turn
       moves its range towards the shrunken one with the least squared error on its bits.

    The same arguments give the same result. A layer that sees one value only, as when all images are flat, gets a range
    that holds this value exactly.
    Raises TypeError and ValueError naming the argument, the rule and the value: no images, images smaller than 16
    pixels a side or outside 0..255, an unknown or already calibrated network, activations that are NaN or infinite.
    """
    config = ConvertConfig() if config is None else config
    if isinstance(model, nn.Module):
        state = model.state_dict()
        if res_scale is None and isinstance(model, EDSR):
            res_scale = model.spec.res_scale
    elif isinstance(model, Mapping):
        state = model
    else:
        raise TypeError(f"calibrate: model must be a torch.nn.Module or a state dict, got {type(model).__name__}")
    res_scale = 1.0 if res_scale is None else res_scale
    if detect(state, res_scale).calibrated:
        raise ValueError("calibrate: model must be a float network, and this one is calibrated already")
    batches = _batches(images, config)
    simulated = SimulatedEDSR.from_float(state, config, res_scale)
    steps = len(batches) + config.bit_aware_clipping

    with torch.no_grad():
        for conv in simulated.quantized_convs():
            conv.upper_w.copy_(best_weight_range(conv.weight, conv.weight_bits))
        observed = _Observations(simulated)
        for step, batch in enumerate(batches, 1):
            observed.update(batch)
            if progress is not None:
                progress(step, steps)
        observed.store()
        if config.bit_aware_clipping:
            with _before_each_conv(simulated, _clip_range):
                simulated(batches[0])
            if progress is not None:
                progress(steps, steps)
    return simulated


def best_weight_range(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """The range, of 100 from max |weight| downwards, with the least squared quantisation error on `bits` bits.

    weight: float, any shape. Returns [1], positive even when every weight is 0.
    """
    most = weight.abs().max().clamp(min=2.0**-60).view(1)
    errors = [(weight - fake_quantize_weight(weight, most * s, bits)).square().mean() for s in SHRINKS]
    return most * SHRINKS[int(torch.stack(errors).argmin())]


def best_act_range(x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, bits: int) -> tuple[torch.Tensor, ...]:
    """(lower, upper), of 100 pairs from the given one towards zero, with the least squared error on x, `bits` bits."""
    errors = [(x - fake_quantize_act(x, lower * s, upper * s, bits)).square().mean() for s in SHRINKS]
    shrink = SHRINKS[int(torch.stack(errors).argmin())]
    return lower * shrink, upper * shrink


class _Observations:
    """Moving averages of what the convolutions and the image measure show, batch by batch, in the float network."""

    def __init__(self, model: SimulatedEDSR):
        self.model, self.config = model, model.config
        self.ranges: dict[str, tuple[float, float]] = {}
        self.deviations: dict[str, list[float]] = {conv.name: [] for conv in model.quantized_convs() if conv.adaptive}
        self.thresholds: tuple[float, float] | None = None

    def update(self, batch: torch.Tensor) -> None:
        quantile = self.config.image_percentile / 100
        measure = image_measure(batch)
        self.thresholds = self._average(self.thresholds, tuple(float(torch.quantile(measure, q)) for q in (quantile, 1 - quantile)))
        with self.model.float_mode(), _before_each_conv(self.model, self._observe):
            y = self.model(batch)
        if not y.isfinite().all():
            raise ValueError("calibrate: model computes NaN or infinite values: its output holds some")

    def _observe(self, conv: SimulatedConv2d, x: torch.Tensor) -> None:
        lower, upper = (float(value) for value in torch.aminmax(x))
        if not np.isfinite([lower, upper]).all():
            raise ValueError(f"calibrate: model computes NaN or infinite values: the input of {conv.name!r} holds some")
        self.ranges[conv.name] = self._average(self.ranges.get(conv.name), (lower, upper))
        if conv.adaptive:
            self.deviations[conv.name].append(float(x.std((1, 2, 3)).mean()))

    def _average(self, past: tuple[float, float] | None, new: tuple[float, float]) -> tuple[float, float]:
        beta = self.config.ema_beta
        return new if past is None else tuple(beta * a + (1 - beta) * b for a, b in zip(past, new, strict=True))

    def store(self) -> None:
        for conv in self.model.quantized_convs():
            lower, upper = _not_empty(*self.ranges[conv.name])
            conv.lower_a.fill_(lower)
            conv.upper_a.fill_(upper)
        if not self.config.adaptive:
            return
        self.model.measure_l.fill_(self.thresholds[0])
        self.model.measure_u.fill_(self.thresholds[1])
        means = {name: np.mean(values) for name, values in self.deviations.items()}
        percentile = self.config.layer_percentile
        low, high = np.percentile(list(means.values()), [percentile, 100 - percentile])
        for conv in self.model.quantized_convs():
            if conv.adaptive:
                conv.measure_layer.fill_(float(means[conv.name] > high) - float(means[conv.name] < low))


def _not_empty(lower: float, upper: float) -> tuple[float, float]:
    """The range itself, or one starting at `lower` when it is too narrow for float32 to divide into levels."""
    if upper - lower > max(abs(lower), abs(upper), 2.0**-20) * 2.0**-20:
        return lower, upper
    return lower, lower + max(1.0, abs(lower))


def _clip_range(conv: SimulatedConv2d, x: torch.Tensor) -> None:
    if conv.end:
        return
    bits = min(max(conv.act_bits + conv.layer_offset, MIN_BITS), MAX_BITS)
    values = x.flatten()
    sample = values[:: -(-len(values) // CLIPPING_SAMPLE)]
    beta = conv.config.bac_beta
    lower, upper = best_act_range(sample, conv.lower_a, conv.upper_a, bits)
    conv.lower_a.copy_(beta * conv.lower_a + (1 - beta) * lower)
    conv.upper_a.copy_(beta * conv.upper_a + (1 - beta) * upper)


@contextmanager
def _before_each_conv(model: SimulatedEDSR, act: Callable[[SimulatedConv2d, torch.Tensor], None]) -> Iterator[None]:
    hooks = [conv.register_forward_pre_hook(lambda conv, args: act(conv, args[0])) for conv in model.quantized_convs()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _batches(images: Iterable[torch.Tensor | str | Path], config: ConvertConfig) -> list[torch.Tensor]:
    """Crops in random order, float32 [N, 3, h, w] with N up to `config.batch`."""
    rng = random.Random(config.seed)
    crops = list(_crops(images, config.patch, rng))
    if not crops:
        raise ValueError("calibrate: images must hold at least one image, got none")
    brightest = max(float(crop.max()) for crop in crops)
    if 0 < brightest <= 1:
        raise ValueError(f"calibrate: images must be in 0..255, and these look like 0..1: they end at {brightest:g}")
    rng.shuffle(crops)
    batches = []
    for start in range(0, len(crops), config.batch):
        group = crops[start : start + config.batch]
        h, w = (min(crop.shape[axis] for crop in group) for axis in (1, 2))
        batches.append(torch.stack([crop[:, :h, :w] for crop in group]))
    return batches


def _crops(images: Iterable[torch.Tensor | str | Path], patch: int, rng: random.Random) -> Iterator[torch.Tensor]:
    if isinstance(images, (str, Path, torch.Tensor)) or not isinstance(images, Iterable):
        raise TypeError(f"calibrate: images must be an iterable of tensors or paths, got {type(images).__name__}")
    for index, item in enumerate(images):
        for image in _as_batch(item, index):
            h, w = image.shape[1:]
            if min(h, w) < MIN_SIDE:
                raise ValueError(f"calibrate: images[{index}] must be at least {MIN_SIDE} pixels a side, got {h}x{w}")
            if not (image.isfinite().all() and 0 <= image.min() and image.max() <= 255):
                raise ValueError(f"calibrate: images[{index}] must be finite and in 0..255, got {_extent(image)}")
            y, x = rng.randint(0, max(h - patch, 0)), rng.randint(0, max(w - patch, 0))
            yield image[:, y : y + patch, x : x + patch].clone()


def _as_batch(item: torch.Tensor | str | Path, index: int) -> torch.Tensor:
    if isinstance(item, (str, Path)):
        from .images import read_image

        return torch.from_numpy(read_image(item).rgb).permute(2, 0, 1)[None].float()
    if not isinstance(item, torch.Tensor):
        raise TypeError(f"calibrate: images[{index}] must be a tensor or a path, got {type(item).__name__}")
    if item.ndim != 4 or item.shape[1] != 3 or not (item.is_floating_point() or item.dtype == torch.uint8):
        raise ValueError(f"calibrate: images[{index}] must be float or uint8 [N, 3, H, W], got {item.dtype} {tuple(item.shape)}")
    return item.detach().float().cpu()


def _extent(image: torch.Tensor) -> str:
    lower, upper = torch.aminmax(image)
    return f"values in {lower:g}..{upper:g}"
