"""EDSR (Lim et al., CVPRW 2017) in float: the smallest module that its published state dicts load into unchanged."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from ..graph.builder import Builder
from ..graph.nodes import ColourShift, Graph
from .spec import NetworkSpec, stages

# The mean colour of DIV2K, (0.4488, 0.4371, 0.4040), times 255 in float32: what published weights carry.
DIV2K_PIXELS = (114.44400024414062, 111.46049499511719, 103.02000427246094)


@dataclass(frozen=True)
class EDSRSpec(NetworkSpec):
    """Hyper-parameters of one EDSR.

    scale: 2, 3 or 4. blocks, channels: residual blocks and feature channels, at least 1 each.
    mean_shift: subtract and add the mean colour (`sub_mean`, `add_mean`) around the network.
    tail: "staged" = conv, PixelShuffle, ..., conv (EDSR); "single" = one conv to 3*scale^2 channels, then PixelShuffle.
    res_scale: factor on the second convolution of each block (0.1 in the largest EDSR, else 1).
    mean: that colour in 0..255, float32 values; DIV2K's in published weights.
    """

    network = "edsr"

    scale: int
    blocks: int
    channels: int
    mean_shift: bool = True
    tail: str = "staged"
    res_scale: float = 1.0
    mean: tuple[float, float, float] = DIV2K_PIXELS

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(self.mean))  # a list where it comes from JSON
        if len(self.mean) != 3 or not all(isinstance(value, float) and math.isfinite(value) for value in self.mean):
            raise ValueError(f"EDSRSpec: mean must be three finite numbers, got {self.mean}")
        if self.scale not in (2, 3, 4):
            raise ValueError(f"EDSRSpec: scale must be 2, 3 or 4, got {self.scale}")
        self.check_sizes("blocks", "channels")
        if self.tail not in ("staged", "single"):
            raise ValueError(f"EDSRSpec: tail must be 'staged' or 'single', got {self.tail!r}")

    def build(self) -> Graph:
        b, c, shift = Builder(), self.channels, self.mean_shift
        x = b.add(ColourShift("sub_mean", ("x",), "sub_mean", -1, self.mean)) if shift else "x"
        first = y = b.conv("head.0", x, (3, c), role="end")
        for i in range(self.blocks):
            inner = b.relu(f"body.{i}.act", b.conv(f"body.{i}.conv1", y, (c, c), body=True))
            y = b.sum(f"body.{i}", b.conv(f"body.{i}.conv2", inner, (c, c), body=True), y, self.res_scale)
        y = b.sum("body", b.conv(f"body.{self.blocks}", y, (c, c)), first)
        single = self.tail == "single"
        for i, factor in enumerate((self.scale,) if single else stages(self.scale)):
            name = f"tail.0.{2 * i}"
            y = b.conv(name, y, (c, (3 if single else c) * factor**2), role="end")
            y = b.shuffle(f"{name}.shuffle", y, factor)
        y = y if single else b.conv("tail.1", y, (c, 3), role="end")
        return b.graph(b.add(ColourShift("add_mean", (y,), "add_mean", 1, self.mean)) if shift else y)


class MeanShift(nn.Module):
    """Add (`sign=1`) or subtract (`sign=-1`) a colour in 0..255, stored as the 1x1 convolution published weights carry."""

    def __init__(self, sign: int, mean: tuple[float, float, float] = DIV2K_PIXELS):
        super().__init__()
        # Numbers, not arithmetic on tensors: on the meta device, where shapes are taken, that imports torch's whole compiler.
        identity = [[float(i == j) for j in range(3)] for i in range(3)]
        self.register_buffer("weight", torch.tensor(identity).view(3, 3, 1, 1))
        self.register_buffer("bias", torch.tensor([sign * value for value in mean]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(x, self.weight, self.bias)


class ResBlock(nn.Module):
    """x + res_scale * conv(relu(conv(x))), [N, channels, H, W] -> the same shape."""

    def __init__(self, channels: int, res_scale: float):
        super().__init__()
        self.body = nn.Sequential(conv3x3(channels, channels), nn.ReLU(), conv3x3(channels, channels))
        self.res_scale = res_scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x)
        return x + (y if self.res_scale == 1 else y * self.res_scale)


class EDSR(nn.Module):
    """[N, 3, H, W] in 0..255 -> [N, 3, scale*H, scale*W], not clamped."""

    def __init__(self, spec: EDSRSpec):
        super().__init__()
        self.spec = spec
        c = spec.channels
        if spec.mean_shift:
            self.sub_mean, self.add_mean = MeanShift(-1, spec.mean), MeanShift(1, spec.mean)
        self.head = nn.Sequential(conv3x3(3, c))
        self.body = nn.Sequential(*[ResBlock(c, spec.res_scale) for _ in range(spec.blocks)], conv3x3(c, c))
        if spec.tail == "single":
            self.tail = nn.Sequential(nn.Sequential(conv3x3(c, 3 * spec.scale**2), nn.PixelShuffle(spec.scale)))
        else:
            stages = [m for r in spec.shuffles for m in (conv3x3(c, c * r * r), nn.PixelShuffle(r))]
            self.tail = nn.Sequential(nn.Sequential(*stages), conv3x3(c, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.spec.mean_shift:
            x = self.sub_mean(x)
        x = self.head(x)
        x = self.tail(x + self.body(x))
        return self.add_mean(x) if self.spec.mean_shift else x


def conv3x3(c: int, k: int) -> nn.Conv2d:
    return nn.Conv2d(c, k, 3, padding=1)
