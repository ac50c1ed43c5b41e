"""RDN (Zhang et al., CVPR 2018) in float: the smallest module that its state dicts load into unchanged."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ..graph.builder import Builder
from ..graph.nodes import Concat, Graph
from .spec import NetworkSpec, stages


@dataclass(frozen=True)
class RDNSpec(NetworkSpec):
    """Hyper-parameters of one RDN, in 0..255 without a mean shift.

    scale: 2, 3 or 4. blocks: residual dense blocks (D). layers: convolutions in each (C). growth: channels that each adds (G).
    channels: features between the blocks (G0).
    """

    network = "rdn"

    scale: int
    blocks: int
    layers: int
    growth: int
    channels: int = 64

    def __post_init__(self) -> None:
        if self.scale not in (2, 3, 4):
            raise ValueError(f"RDNSpec: scale must be 2, 3 or 4, got {self.scale}")
        self.check_sizes("blocks", "layers", "growth", "channels")

    def build(self) -> Graph:
        b, c, g = Builder(), self.channels, self.growth
        first = b.conv("SFENet1", "x", (3, c), role="end")
        y, blocks = b.conv("SFENet2", first, (c, c), role="end"), []
        for i in range(self.blocks):
            dense = y
            for j in range(self.layers):
                name = f"RDBs.{i}.convs.{j}"
                new = b.relu(f"{name}.act", b.conv(f"{name}.conv.0", dense, (c + j * g, g), body=True))
                dense = b.add(Concat(name, (dense, new)))
            fused = b.conv(f"RDBs.{i}.LFF", dense, (c + self.layers * g, c), 1, role="fixed", body=True)
            y = b.sum(f"RDBs.{i}", fused, y)
            blocks.append(y)
        fused = b.conv("GFF.0", b.add(Concat("RDBs", tuple(blocks))), (self.blocks * c, c), 1, body=True)
        y = b.sum("GFF", b.conv("GFF.1", fused, (c, c), body=True), first)
        factors = stages(self.scale)
        for i, factor in enumerate(factors):
            name = f"UPNet.{2 * i}"
            y = b.conv(name, y, (g if i else c, g * factor**2), role="end")
            y = b.shuffle(f"{name}.shuffle", y, factor)
        return b.graph(b.conv(f"UPNet.{2 * len(factors)}", y, (g, 3), role="end"))


class _DenseLayer(nn.Module):
    """x -> (x, relu(conv(x))) along the channels."""

    def __init__(self, channels: int, growth: int):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(channels, growth, 3, padding=1), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat((x, self.conv(x)), 1)


class _DenseBlock(nn.Module):
    """[N, G0, H, W] -> the same shape: dense layers, a 1x1 fusion, the block's input added."""

    def __init__(self, spec: RDNSpec):
        super().__init__()
        c, g = spec.channels, spec.growth
        self.convs = nn.Sequential(*[_DenseLayer(c + j * g, g) for j in range(spec.layers)])
        self.LFF = nn.Conv2d(c + spec.layers * g, c, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.LFF(self.convs(x)) + x


class RDN(nn.Module):
    """[N, 3, H, W] in 0..255 -> [N, 3, scale*H, scale*W], not clamped."""

    def __init__(self, spec: RDNSpec):
        super().__init__()
        self.spec = spec
        c, g = spec.channels, spec.growth
        self.SFENet1, self.SFENet2 = nn.Conv2d(3, c, 3, padding=1), nn.Conv2d(c, c, 3, padding=1)
        self.RDBs = nn.ModuleList([_DenseBlock(spec) for _ in range(spec.blocks)])
        self.GFF = nn.Sequential(nn.Conv2d(spec.blocks * c, c, 1), nn.Conv2d(c, c, 3, padding=1))
        stages = []
        for i, r in enumerate(spec.shuffles):
            stages += [nn.Conv2d(c if i == 0 else g, g * r * r, 3, padding=1), nn.PixelShuffle(r)]
        self.UPNet = nn.Sequential(*stages, nn.Conv2d(g, 3, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.SFENet1(x)
        x, features = self.SFENet2(first), []
        for block in self.RDBs:
            x = block(x)
            features.append(x)
        return self.UPNet(self.GFF(torch.cat(features, 1)) + first)
