"""RDN (Zhang et al., CVPR 2018) in float: the smallest module that its state dicts load into unchanged."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ..graph.nodes import Activation, Add, Concat, Graph, Node, PixelShuffle
from .spec import ConvSpec, NetworkSpec


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

    @property
    def linear_upsampler(self) -> bool:
        return True

    @property
    def shuffles(self) -> tuple[int, ...]:
        """PixelShuffle factors of the upsampler, in order."""
        return (2, 2) if self.scale == 4 else (self.scale,)

    @property
    def tail_names(self) -> tuple[str, ...]:
        """Names of the upsampler's convolutions in the order they run."""
        return tuple(f"UPNet.{2 * i}" for i in range(len(self.shuffles) + 1))

    def convs(self) -> tuple[ConvSpec, ...]:
        c, g = self.channels, self.growth
        convs = [ConvSpec("SFENet1", 3, c, 3, "end"), ConvSpec("SFENet2", c, c, 3, "end")]
        for i in range(self.blocks):
            dense = (ConvSpec(f"RDBs.{i}.convs.{j}.conv.0", c + j * g, g, 3, "adaptive", body=True) for j in range(self.layers))
            convs += [*dense, ConvSpec(f"RDBs.{i}.LFF", c + self.layers * g, c, 1, "fixed", body=True)]
        convs.append(ConvSpec("GFF.0", self.blocks * c, c, 1, "adaptive", body=True))
        convs.append(ConvSpec("GFF.1", c, c, 3, "adaptive", body=True))
        scale = 1
        for i, r in enumerate(self.shuffles):
            convs.append(ConvSpec(f"UPNet.{2 * i}", c if i == 0 else g, g * r * r, 3, "end", scale))
            scale *= r
        return (*convs, ConvSpec(self.tail_names[-1], g, 3, 3, "end", scale))


def rdn_graph(spec: RDNSpec) -> Graph:
    """The network under AdaBM's names: convolutions, and the keys of their weights, are those of `spec.convs()`."""
    convs = {conv.name: conv for conv in spec.convs()}
    nodes: list[Node] = []

    def add(node: Node) -> str:
        nodes.append(node)
        return node.name

    def conv(name: str, x: str) -> str:
        return add(convs[name].node(x))

    first = conv("SFENet1", "x")
    y, blocks = conv("SFENet2", first), []
    for i in range(spec.blocks):
        dense = y
        for j in range(spec.layers):
            name = f"RDBs.{i}.convs.{j}"
            new = add(Activation(f"{name}.act", (conv(f"{name}.conv.0", dense),), "relu"))
            dense = add(Concat(name, (dense, new)))
        y = add(Add(f"RDBs.{i}", (conv(f"RDBs.{i}.LFF", dense), y)))
        blocks.append(y)
    y = conv("GFF.1", conv("GFF.0", add(Concat("RDBs", tuple(blocks)))))
    y = add(Add("GFF", (y, first)))
    for name, factor in zip(spec.tail_names, [*spec.shuffles, 1], strict=True):
        y = conv(name, y)
        y = add(PixelShuffle(f"{name}.shuffle", (y,), factor)) if factor > 1 else y
    return Graph(tuple(nodes), outputs=(y,))


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
