"""EDSR, RDN and SRResNet, written as modules as in their authors' code. The graphs are compared with them."""

from __future__ import annotations

import torch
from torch import nn

from adabm_kernels.networks.edsr import EDSRSpec
from adabm_kernels.networks.rdn import RDNSpec
from adabm_kernels.networks.srresnet import SRResNetSpec


class MeanShift(nn.Module):
    """Adds (`sign=1`) or subtracts (`sign=-1`) a colour in 0..255, stored as the 1x1 convolution that published weights have."""

    def __init__(self, sign: int, mean: tuple[float, float, float]):
        super().__init__()
        # These are numbers rather than tensors: arithmetic on tensors of the meta device, where shapes are taken, imports torch's
        # whole compiler.
        identity = [[float(i == j) for j in range(3)] for i in range(3)]
        self.register_buffer("weight", torch.tensor(identity).view(3, 3, 1, 1))
        self.register_buffer("bias", torch.tensor([sign * value for value in mean]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(x, self.weight, self.bias)


class ResBlock(nn.Module):
    """x + res_scale * conv(relu(conv(x))), from [N, channels, H, W] to the same shape."""

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


class _DenseLayer(nn.Module):
    """x -> (x, relu(conv(x))) along the channels."""

    def __init__(self, channels: int, growth: int):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(channels, growth, 3, padding=1), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat((x, self.conv(x)), 1)


class _DenseBlock(nn.Module):
    """Dense layers, a 1x1 fusion and the addition of the block's input, from [N, G0, H, W] to the same shape."""

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


class _ResBlock(nn.Module):
    """x + res_scale * bn2(conv2(prelu(bn1(conv1(x)))))."""

    def __init__(self, spec: SRResNetSpec):
        super().__init__()
        c = spec.channels
        self.conv1, self.conv2 = (nn.Conv2d(c, c, 3, padding=1, bias=False) for _ in range(2))
        self.act = nn.PReLU(spec.slopes)
        self.bn1, self.bn2 = nn.BatchNorm2d(c), nn.BatchNorm2d(c)
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
        self.body = nn.Sequential(*blocks, nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c))
        stages = []
        for r in spec.shuffles:
            stages += [nn.Conv2d(c, c * r * r, 3, padding=1, bias=bias), nn.PixelShuffle(r), nn.PReLU(spec.slopes)]
        self.tail = nn.Sequential(nn.Sequential(*stages), nn.Conv2d(c, 3, 9, padding=4, bias=bias))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.head(to_range(x, self.spec))
        return from_range(self.tail(x + self.body(x)), self.spec)


def to_range(x: torch.Tensor, spec: SRResNetSpec) -> torch.Tensor:
    """Pixels in 0..255 in the range that the weights expect."""
    return x / 255 if spec.unit_range else x


def from_range(y: torch.Tensor, spec: SRResNetSpec) -> torch.Tensor:
    """The outputs of the weights as pixels in 0..255."""
    return (y + 1) * 127.5 if spec.unit_range else y
