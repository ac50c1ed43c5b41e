"""SRResNet (Ledig et al., CVPR 2017) in float: the smallest module that AdaBM's state dicts load into unchanged."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ..graph.builder import Builder
from ..graph.nodes import Activation, Affine, BatchNorm, Graph
from .spec import NetworkSpec, stages

BATCH_NORM_EPS = 1e-5
UNIT_RANGE = "unit_range"  # a buffer of one element that says so in the state dicts of networks which compute in 0..1


@dataclass(frozen=True)
class SRResNetSpec(NetworkSpec):
    """Hyper-parameters of one SRResNet.

    scale: 2, 3 or 4. blocks, channels: residual blocks and feature channels. bias: whether the first, the upsampler's and the
    last convolutions have one (those before a BatchNorm never do). slopes: of each PReLU, one for all channels (1) or one
    for each (`channels`). unit_range: the weights expect pixels in 0..1 and give -1..1; the module itself takes and gives 0..255.
    """

    network = "srresnet"

    scale: int
    blocks: int
    channels: int
    bias: bool = False
    slopes: int = 1
    unit_range: bool = False
    res_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.scale not in (2, 3, 4):
            raise ValueError(f"SRResNetSpec: scale must be 2, 3 or 4, got {self.scale}")
        self.check_sizes("blocks", "channels")
        if self.slopes not in (1, self.channels):
            raise ValueError(f"SRResNetSpec: slopes must be 1 or {self.channels}, the channels, got {self.slopes}")

    def build(self) -> Graph:
        b, c, bias = Builder(), self.channels, self.bias

        def norm(name: str, x: str) -> str:
            return b.add(BatchNorm(name, (x,), name, c, BATCH_NORM_EPS))

        def prelu(name: str, x: str) -> str:
            return b.add(Activation(name, (x,), "prelu", key=name, slopes=self.slopes))

        x = b.add(Affine("to_range", ("x",), divisor=255.0)) if self.unit_range else "x"
        first = y = prelu("head.1", b.conv("head.0", x, (3, c), 9, role="end", bias=bias))
        for i in range(self.blocks):
            name = f"body.{i}"
            inner = norm(f"{name}.bn1", b.conv(f"{name}.conv1", y, (c, c), bias=False, body=True))
            inner = b.conv(f"{name}.conv2", prelu(f"{name}.act", inner), (c, c), bias=False, body=True)
            y = b.sum(f"{name}.add", norm(f"{name}.bn2", inner), y, self.res_scale)
        y = norm(f"body.{self.blocks + 1}", b.conv(f"body.{self.blocks}", y, (c, c), bias=False))
        y = b.sum("body", y, first)
        for i, factor in enumerate(stages(self.scale)):
            y = b.conv(f"tail.0.{3 * i}", y, (c, c * factor**2), role="end", bias=bias)
            y = prelu(f"tail.0.{3 * i + 2}", b.shuffle(f"tail.0.{3 * i + 1}", y, factor))
        y = b.conv("tail.1", y, (c, 3), 9, role="end", bias=bias)
        if not self.unit_range:
            return b.graph(y)
        return b.graph(b.add(Affine("from_range", (y,), (127.5,), (1.0,), first="shift")), {UNIT_RANGE: (1,)})


class _ResBlock(nn.Module):
    """x + res_scale * bn2(conv2(prelu(bn1(conv1(x)))))."""

    def __init__(self, spec: SRResNetSpec):
        super().__init__()
        c = spec.channels
        self.conv1, self.conv2 = (nn.Conv2d(c, c, 3, padding=1, bias=False) for _ in range(2))
        self.act = nn.PReLU(spec.slopes)
        self.bn1, self.bn2 = nn.BatchNorm2d(c, BATCH_NORM_EPS), nn.BatchNorm2d(c, BATCH_NORM_EPS)
        self.res_scale = spec.res_scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
        return x + y * self.res_scale


class SRResNet(nn.Module):
    """[N, 3, H, W] in 0..255 -> [N, 3, scale*H, scale*W], not clamped. Use it after `.eval()`."""

    def __init__(self, spec: SRResNetSpec):
        super().__init__()
        self.spec = spec
        c, bias = spec.channels, spec.bias
        self.head = nn.Sequential(nn.Conv2d(3, c, 9, padding=4, bias=bias), nn.PReLU(spec.slopes))
        blocks = [_ResBlock(spec) for _ in range(spec.blocks)]
        self.body = nn.Sequential(*blocks, nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c, BATCH_NORM_EPS))
        stages = []
        for r in spec.shuffles:
            stages += [nn.Conv2d(c, c * r * r, 3, padding=1, bias=bias), nn.PixelShuffle(r), nn.PReLU(spec.slopes)]
        self.tail = nn.Sequential(nn.Sequential(*stages), nn.Conv2d(c, 3, 9, padding=4, bias=bias))
        if spec.unit_range:
            self.register_buffer(UNIT_RANGE, torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.head(to_range(x, self.spec))
        return from_range(self.tail(x + self.body(x)), self.spec)


def to_range(x: torch.Tensor, spec: SRResNetSpec) -> torch.Tensor:
    """Pixels in 0..255 as the weights expect them."""
    return x / 255 if spec.unit_range else x


def from_range(y: torch.Tensor, spec: SRResNetSpec) -> torch.Tensor:
    """What the weights give, as pixels in 0..255."""
    return (y + 1) * 127.5 if spec.unit_range else y
