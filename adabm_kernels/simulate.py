"""AdaBM in plain torch on floats, as published: the level of truth that the integer kernels are tested against.

Hong and Lee, "AdaBM: On-the-Fly Adaptive Bit Mapping for Image Super-Resolution", CVPR 2024 (arXiv 2404.03296). Every
quantised convolution rounds its input and its weight to their grids and convolves the rounded floats; the bits of its
input are base + image offset + layer offset. Parameter names are those of the authors' implementation, so its state
dicts load unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .config import ConvertConfig
from .networks.detect import adabm_name, detect, edsr_convs, to_float_state, unwrap
from .networks.edsr import EDSRSpec, MeanShift, conv3x3
from .quantize import MAX_BITS, MIN_BITS, fake_quantize_act, fake_quantize_weight

END_BITS = 8  # weights and activations of the first, last and upsampler convolutions of a fully quantised network
LUMA = (0.299, 0.587, 0.114)
SOBEL_X = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))


def image_measure(x: torch.Tensor) -> torch.Tensor:
    """Detail of each image: the mean |Sobel gradient| of its luma over both directions and all pixels, times 1000.

    x: [N, 3, H, W] float in 0..255. Returns [N] of the same dtype, 0 for a flat image. Borders are replicated.
    """
    luma = F.conv2d(x / 255, x.new_tensor(LUMA).view(1, 3, 1, 1))
    sobel = x.new_tensor(SOBEL_X) / 8
    gradients = F.conv2d(F.pad(luma, (1, 1, 1, 1), mode="replicate"), torch.stack([sobel, sobel.T]).unsqueeze(1))
    return gradients.abs().mean((1, 2, 3)) * 1000


def image_offsets(measure: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
    """Bits that an image gets more or less: -1 below `lower`, +1 above `upper`, 0 between and on either threshold.

    measure: [N]. lower, upper: one element each. Returns int32 [N].
    """
    return (measure > upper).to(torch.int32) - (measure < lower).to(torch.int32)


class SimulatedConv2d(nn.Conv2d):
    """A 3x3 convolution that first rounds its input and weight to their grids; zeros pad the rounded input.

    name: key in the network. end: one of the first, last and upsampler convolutions, fixed at 8 bits and left out of
    the network's mean bits. adaptive: the bits of its input depend on image and layer. quantized: False computes
    the plain float convolution.
    Parameters: lower_a, upper_a [1], the range of the input; upper_w, that of the weight, [1] or [K, 1, 1, 1]; on an
    adaptive convolution also measure_layer [1], whose rounded value in -1..1 is added to the bits. Ranges start as NaN.
    """

    def __init__(self, channels_in: int, channels_out: int, name: str, end: bool, config: ConvertConfig):
        super().__init__(channels_in, channels_out, 3, padding=1)
        self.name, self.end, self.config, self.quantized = name, end, config, True
        self.act_bits, self.weight_bits = (END_BITS, END_BITS) if end else (config.act_bits, config.weight_bits)
        self.adaptive = config.adaptive and not end
        self.lower_a, self.upper_a, self.upper_w = (nn.Parameter(torch.full((1,), float("nan"))) for _ in range(3))
        if self.adaptive:
            self.measure_layer = nn.Parameter(torch.zeros(1))

    @property
    def layer_offset(self) -> int:
        """Bits that this layer gets more or less: -1, 0 or 1."""
        return int(self.measure_layer.detach().clamp(-1, 1).round()) if self.adaptive else 0

    def bits(self, image_offset: torch.Tensor) -> torch.Tensor:
        """Bits of the input of each image. image_offset: int32 [N]. Returns int32 [N], 2..8."""
        if not self.adaptive:
            return torch.full_like(image_offset, self.act_bits)
        return (self.act_bits + self.layer_offset + image_offset).clamp(MIN_BITS, MAX_BITS)

    def quantized_weight(self) -> torch.Tensor:
        """The weight on its grid, float [K, C, 3, 3]."""
        return fake_quantize_weight(self.weight, self.upper_w, self.weight_bits)

    def forward(self, x: torch.Tensor, image_offset: torch.Tensor) -> torch.Tensor:
        """x: [N, C, H, W]. image_offset: int32 [N]. Returns [N, K, H, W]."""
        if not self.quantized:
            return super().forward(x)
        bits = self.bits(image_offset).to(x.dtype).view(-1, 1, 1, 1)
        x = fake_quantize_act(x, self.lower_a, self.upper_a, bits)
        return F.conv2d(x, self.quantized_weight(), self.bias, padding=1)


class SimulatedBlock(nn.Module):
    """x + res_scale * conv2(relu(conv1(x)))."""

    def __init__(self, conv1: nn.Module, conv2: nn.Module, res_scale: float):
        super().__init__()
        self.conv1, self.conv2, self.res_scale = conv1, conv2, res_scale

    def forward(self, x: torch.Tensor, image_offset: torch.Tensor) -> torch.Tensor:
        y = self.conv2(F.relu(self.conv1(x, image_offset)), image_offset)
        return y * self.res_scale + x


class SimulatedEDSR(nn.Module):
    """EDSR computing with few bits: [N, 3, H, W] in 0..255 -> [N, 3, scale*H, scale*W], not clamped.

    Each image of a batch decides its own bits. Works in float32 and, after `.double()`, in float64.
    """

    def __init__(self, spec: EDSRSpec, config: ConvertConfig):
        super().__init__()
        self.spec, self.config = spec, config
        roles = edsr_convs(spec, config.quantize)

        def conv(name: str, channels_in: int, channels_out: int) -> nn.Conv2d:
            if name not in roles:
                return conv3x3(channels_in, channels_out)
            return SimulatedConv2d(channels_in, channels_out, name, roles[name] == "end", config)

        c = spec.channels
        if spec.mean_shift:
            self.sub_mean, self.add_mean = MeanShift(-1), MeanShift(1)
        if config.adaptive:
            self.measure_l, self.measure_u = (nn.Parameter(torch.full((1,), float("nan"))) for _ in range(2))
        self.head = nn.ModuleList([conv("head.0", 3, c)])
        blocks = [[conv(f"body.{i}.conv{j}", c, c) for j in (1, 2)] for i in range(spec.blocks)]
        self.body = nn.ModuleList([SimulatedBlock(*pair, spec.res_scale) for pair in blocks])
        self.body.append(conv(f"body.{spec.blocks}", c, c))
        stages = nn.ModuleList()
        for i, r in enumerate(spec.shuffles):
            stages.extend([conv(f"tail.0.{2 * i}", c, (3 if spec.tail == "single" else c) * r * r), nn.PixelShuffle(r)])
        self.tail = nn.ModuleList([stages] + ([conv("tail.1", c, 3)] if spec.tail == "staged" else []))

    @classmethod
    def from_state(cls, state_dict: Mapping[str, Any], config: ConvertConfig, res_scale: float = 1.0) -> SimulatedEDSR:
        """A calibrated network from its state dict, as the authors' implementation or `state_dict()` gives it.

        A state dict does not reveal its bit-widths: `config` must be the one it was calibrated with, except that
        `adaptive=False` may be asked of adaptive weights. Raises ValueError when the state dict is not calibrated, when
        it disagrees with `config`, or when a range is empty.
        """
        found = detect(state_dict, res_scale)
        state = unwrap(state_dict)
        if not found.calibrated:
            raise ValueError("from_state: the state dict holds float weights without ranges: calibrate it first")
        if found.quantize != config.quantize:
            raise ValueError(
                f"from_state: config.quantize must be {found.quantize!r} as in the state dict, got {config.quantize!r}"
            )
        if config.adaptive and not found.adaptive:
            raise ValueError("from_state: config.adaptive must be False: the state dict has no thresholds and offsets")
        if not config.adaptive:
            state = {key: value for key, value in state.items() if "measure_" not in key}
        model = cls(found.spec, config)
        for conv in model.quantized_convs():
            _check_ranges(state, conv.name)
            conv.upper_w = nn.Parameter(torch.empty_like(state[f"{conv.name}.upper_w"], dtype=torch.float32))
        model.load_state_dict(state)
        return model.eval()

    @classmethod
    def from_float(cls, state_dict: Mapping[str, Any], config: ConvertConfig, res_scale: float = 1.0) -> SimulatedEDSR:
        """The network with float weights in place and every range still NaN, for `calibrate` to fill."""
        found = detect(state_dict, res_scale)
        model = cls(found.spec, config)
        floats = to_float_state(state_dict, found)
        model.load_state_dict(model.state_dict() | {adabm_name(key): value for key, value in floats.items()})
        return model.eval()

    def float_state(self) -> dict[str, torch.Tensor]:
        """The float32 weights alone, under the names that `networks.edsr.EDSR(spec)` loads strictly."""
        ranges = ("lower_a", "upper_a", "upper_w", "measure_layer", "measure_l", "measure_u")
        state = {key: value.detach() for key, value in self.state_dict().items() if not key.endswith(ranges)}
        return to_float_state(state, detect(state, self.spec.res_scale))

    def quantized_convs(self) -> list[SimulatedConv2d]:
        """The quantised convolutions in the order they run."""
        return [module for module in self.modules() if isinstance(module, SimulatedConv2d)]

    @contextmanager
    def float_mode(self) -> Iterator[SimulatedEDSR]:
        """Inside this context the network computes in float: the teacher of its own calibration."""
        before = [conv.quantized for conv in self.quantized_convs()]
        try:
            for conv in self.quantized_convs():
                conv.quantized = False
            yield self
        finally:
            for conv, quantized in zip(self.quantized_convs(), before, strict=True):
                conv.quantized = quantized

    def image_offsets(self, x: torch.Tensor) -> torch.Tensor:
        """Bits that each image gets more or less, int32 [N]: zeros when the network is not adaptive."""
        if not self.config.adaptive:
            return torch.zeros(x.shape[0], dtype=torch.int32, device=x.device)
        return image_offsets(image_measure(x), self.measure_l, self.measure_u)

    def layer_bits(self, image_offset: torch.Tensor) -> dict[str, torch.Tensor]:
        """Activation bits of every quantised convolution, by name in the order they run: int32 [N] each."""
        return {conv.name: conv.bits(image_offset) for conv in self.quantized_convs()}

    def mean_bits(self, x: torch.Tensor) -> torch.Tensor:
        """Mean activation bits over the counted convolutions (all but the ends), float32 [N]."""
        offsets = self.image_offsets(x)
        bits = [conv.bits(offsets) for conv in self.quantized_convs() if not conv.end]
        return torch.stack(bits).sum(0).to(torch.float32) / len(bits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Raises ValueError unless x is floating point [N, 3, H, W]."""
        if x.ndim != 4 or x.shape[1] != 3 or not x.is_floating_point():
            raise ValueError(f"SimulatedEDSR: x must be floating point [N, 3, H, W], got {x.dtype} {tuple(x.shape)}")
        offset = self.image_offsets(x)
        if self.spec.mean_shift:
            x = self.sub_mean(x)
        x = _apply(self.head[0], x, offset)
        y = x
        for module in self.body:
            y = _apply(module, y, offset)
        x = y + x
        for module in [*self.tail[0], *self.tail[1:]]:
            x = _apply(module, x, offset)
        return self.add_mean(x) if self.spec.mean_shift else x


def _apply(module: nn.Module, x: torch.Tensor, image_offset: torch.Tensor) -> torch.Tensor:
    return module(x, image_offset) if isinstance(module, (SimulatedConv2d, SimulatedBlock)) else module(x)


def _check_ranges(state: Mapping[str, torch.Tensor], name: str) -> None:
    lower, upper, weight = (state[f"{name}.{key}"] for key in ("lower_a", "upper_a", "upper_w"))
    if not lower < upper:
        values = f"{lower.item():g} and {upper.item():g}"
        raise ValueError(f"from_state: '{name}.lower_a' must be below '{name}.upper_a', got {values}")
    if not (weight > 0).all():
        raise ValueError(f"from_state: '{name}.upper_w' must be positive, got {weight.min().item():g}")
